"""The jitted functions of a stage that samples, made once for equal settings."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from jaxalign.losses.metrics import Metrics
from jaxalign.models import ModelConfig
from jaxalign.rl.learner import mix_text, mixed_totals
from jaxalign.rl.rollout import rollout_work, score_completions
from jaxalign.training.flops import flops_metric, update_flops
from jaxalign.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from jaxalign.training.programs import made_once
from jaxalign.training.stage import Stage
from jaxalign.training.state import Update, make_update

if TYPE_CHECKING:
    from jaxalign.rl.stage import OnPolicyStage


@made_once
def make_updates(
    stage: "OnPolicyStage",
    options: Any,
    model: ModelConfig,
    others: dict[str, ModelConfig],
    critic_model: ModelConfig,
    rates: OptimizerConfig,
    critic_rates: OptimizerConfig,
    updates: int,
    parts: int,
    halt: bool,
) -> tuple[Update, Update | None]:
    """The updates of policy and critic, as `OnPolicyStage.updates` returns them."""
    shared: Any = {"num_microbatches": parts, "halt": halt}
    read = tuple(others.get(name, model) for name in stage.frozen(options))

    def measure(batch: tuple[Any, Any]) -> Metrics:
        episodes, text = batch
        more = 0.0 if text is None else update_flops(model, text, mask=text.loss_mask)
        mask = stage.tokens_read(episodes, options)
        return flops_metric(update_flops(model, episodes, read, mask=mask) + more, "/policy")

    policy = make_update(
        mix_text(stage.objective(model, options, others, whole=parts == 1), model, options.ptx_coef),
        mixed_totals(stage.total(model, options, others, num_microbatches=parts)),
        make_optimizer(rates, updates),
        make_schedule(rates, updates),
        **shared,
        measure=measure,
    )
    if stage.critic_loss is None:
        return policy, None
    critic = Stage(stage.name, stage.data, stage.options, stage.critic_loss, stage.totals, scalar=True)
    value = make_update(
        critic.objective(critic_model, options),
        critic.total(critic_model, options),
        make_optimizer(critic_rates, updates),
        make_schedule(critic_rates, updates),
        **shared,
        measure=lambda batch: flops_metric(update_flops(critic_model, batch, scalar=True), "/critic"),
    )
    return policy, value


@made_once
def make_scorer(
    model: ModelConfig,
    critic_model: ModelConfig | None,
    reward_config: ModelConfig | None,
    temperature: float,
    kl_estimator: str,
) -> Callable[..., dict[str, jax.Array]]:
    """`score_completions` for these models."""
    models = {"model": model, "critic_model": critic_model, "reward_config": reward_config}
    settings: Any = {"temperature": temperature, "kl_estimator": kl_estimator}
    return jax.jit(functools.partial(score_completions, **models, **settings))


@made_once
def make_credit(stage: "OnPolicyStage", options: Any) -> Callable[..., Any]:
    """The `credit` of a stage."""
    return jax.jit(functools.partial(stage.credit, options=options))


@made_once
def make_measure(
    model: ModelConfig, judges: tuple[ModelConfig, ...], samples: int, readers: int
) -> Callable[..., Metrics]:
    """`rollout_work` of these models."""
    settings: Any = {"judges": judges, "samples": samples, "readers": readers}
    return jax.jit(functools.partial(rollout_work, model=model, **settings))
