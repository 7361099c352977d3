"""The second half of a PPO step: minibatches of a rollout through the losses of policy and critic."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.errors import StepZeroError
from jaxalign.losses import running_moments
from jaxalign.losses.metrics import Mean, Metrics, finalize, merge
from jaxalign.losses.ppo import PPOObjective, policy_loss, value_loss
from jaxalign.models import ModelConfig, Params
from jaxalign.models.scoring import routed_values, score_tokens
from jaxalign.stages.ppo_config import PPOConfig
from jaxalign.stages.ppo_setup import PPOModels
from jaxalign.stages.pretrain import PretrainConfig
from jaxalign.stages.pretrain import loss as ptx_loss
from jaxalign.stages.pretrain import totals as ptx_totals
from jaxalign.stages.rollout import Rollout
from jaxalign.stages.router import real_tokens, with_router_losses
from jaxalign.training.open import Run
from jaxalign.training.state import TrainState, apply_gradients, gradients, moving_average


@flax.struct.dataclass
class PPOState:
    """Everything that a PPO run must find again to go on bit for bit."""

    policy: TrainState
    critic: TrainState
    kl_coef: jax.Array  # float32
    moments: running_moments.RunningMoments  # of returns
    reference: Params | None  # only a moving one; a fixed one is loaded again
    average: Params | None  # of the policy's weights
    rollout: Rollout  # what the update phase works on
    key: jax.Array


def totals(episodes: Rollout) -> dict[str, jax.Array]:
    """What the losses divide by: the sampled tokens of a minibatch."""
    return {"episodes": episodes.mask.sum()} | real_tokens(episodes)


def policy_objective(
    params: Params,
    batch: tuple[Rollout, Any],
    total: dict[str, jax.Array],
    *,
    model: ModelConfig,
    options: PPOConfig,
) -> tuple[jax.Array, Metrics]:
    """Clipped surrogate on episodes [E, T], less the entropy bonus, plus the pretraining loss."""
    episodes, text = batch
    scored = score_tokens(
        params,
        model,
        episodes.tokens,
        episodes.positions,
        episodes.segment_ids,
        temperature=options.sampling.temperature,
        with_entropy=options.entropy_coef > 0,
    )
    value, metrics = policy_loss(
        scored.logp,
        episodes.old_logp,
        episodes.advantages,
        episodes.mask,
        PPOObjective(options.clip, options.clip_high, options.entropy_coef),
        entropy=scored.entropy,
        normalizer=total["episodes"],
    )
    value, metrics = with_router_losses((value, metrics), scored.router, episodes, total, model)
    metrics.pop("policy/entropy_avg", None)  # the rollout's, over all episodes, is the one reported
    if text is not None:
        ptx, more = ptx_loss(params, text, total["text"], None, model=model, options=PretrainConfig())
        value, metrics = value + options.ptx_coef * ptx, metrics | {"ptx/nll": more["nll"]}
    return value, metrics


def value_objective(
    params: Params, episodes: Rollout, total: dict[str, jax.Array], *, model: ModelConfig, options: PPOConfig
) -> tuple[jax.Array, Metrics]:
    """Clipped squared error of the critic on episodes [E, T]."""
    values, router = routed_values(params, model, episodes.tokens, episodes.positions, episodes.segment_ids)
    result = value_loss(
        values,
        episodes.old_values,
        episodes.returns,
        episodes.mask,
        clip=float("inf") if options.value_clip is None else options.value_clip,
        normalizer=total["episodes"],
    )
    value, metrics = with_router_losses(result, router, episodes, total, model)
    return value, {f"critic/{name}" if name.startswith("router/") else name: x for name, x in metrics.items()}


def make_policy_update(run: Run, optimizer: optax.GradientTransformation, schedule: optax.Schedule) -> Any:
    """The jitted (policy, episodes, text, failed) -> (policy, metrics): one update on a minibatch."""
    options: PPOConfig = run.config.options
    halt = run.config.on_nonfinite == "stop"

    @functools.partial(jax.jit, donate_argnums=0)
    def policy_update(
        policy: TrainState, episodes: Rollout, text: Any, failed: jax.Array
    ) -> tuple[TrainState, Metrics]:
        total = totals(episodes) | {"text": None if text is None else ptx_totals(text)}
        objective = functools.partial(policy_objective, total=total, model=run.model, options=options)
        parts = run.config.num_microbatches
        value, metrics, grads = gradients(objective, policy.params, (episodes, text), parts)
        rate = schedule(policy.step)
        hold = halt & (policy.skipped + failed > 0)
        policy, more = apply_gradients(policy, value, grads, optimizer, hold=hold)
        return policy, metrics | more | {"learning_rate": Mean(rate, rate * 0 + 1)}

    return policy_update


def make_value_update(run: Run, critic_config: ModelConfig, optimizer: optax.GradientTransformation) -> Any:
    """The jitted (critic, episodes, failed) -> (critic, metrics): one update on a minibatch."""
    options: PPOConfig = run.config.options
    halt = run.config.on_nonfinite == "stop"

    @functools.partial(jax.jit, donate_argnums=0)
    def value_update(critic: TrainState, episodes: Rollout, failed: jax.Array) -> tuple[TrainState, Metrics]:
        objective = functools.partial(
            value_objective, total=totals(episodes), model=critic_config, options=options
        )
        parts = run.config.num_microbatches
        value, metrics, grads = gradients(objective, critic.params, episodes, parts)
        hold = halt & (critic.skipped + failed > 0)
        critic, more = apply_gradients(critic, value, grads, optimizer, hold=hold)
        return critic, metrics | {f"critic/{name}": x for name, x in more.items()}

    return value_update


def make_update(run: Run, models: PPOModels) -> Any:
    """The update phase: minibatches of a rollout through two jitted steps, one a model."""
    options: PPOConfig = run.config.options
    E, M = run.config.batch_size, options.num_minibatches

    @jax.jit
    def minibatch(rollout: Rollout, key: jax.Array, epoch: jax.Array, index: jax.Array) -> Rollout:
        order = jax.random.permutation(jax.random.fold_in(key, epoch), E)
        rows = jax.lax.dynamic_slice_in_dim(order, index * (E // M), E // M)
        return jax.tree.map(lambda x: jnp.take(x, rows, axis=0), rollout)

    policy_update = make_policy_update(run, models.optimizer, models.schedule)
    value_update = make_value_update(run, models.critic_config, models.critic_optimizer)

    @functools.partial(jax.jit, donate_argnums=0)
    def drift(reference: Params, params: Params, decay: jax.Array) -> Params:
        return moving_average(reference, params, decay)

    def update(state: PPOState, batch: Any) -> tuple[PPOState, Metrics]:
        policy, critic = state.policy, state.critic
        step = int(policy.step)  # once a rollout: the pretraining text is picked by number
        seen: list[Metrics] = []
        stopped = False
        for i in range(options.ppo_epochs * M):
            part = minibatch(state.rollout, state.key, i // M, i % M)
            metrics: Metrics = {}
            if not stopped:
                text = models.text_batch(step + i) if options.ptx_coef else None
                policy, metrics = policy_update(policy, part, text, critic.skipped)
                if step + i == 0:
                    _verify_ratio(metrics, run.model)
                if options.early_stop_kl:
                    stopped = float(finalize(metrics)["policy/approxkl_avg"]) > options.early_stop_kl
            first = int(critic.step) == 0
            critic, more = value_update(critic, part, policy.skipped)
            if first:
                _verify_values(more, models.critic_config)
            seen.append(metrics | more)
        merged = merge_ragged(seen)
        merged["policy/updates"] = Mean(jnp.float32(sum("val/ratio" in m for m in seen)), jnp.ones(()))
        state = state.replace(policy=policy, critic=critic, key=jax.random.split(state.key, 1)[0])
        if state.reference is not None:
            state = state.replace(reference=drift(state.reference, policy.params, 1 - options.reference_rate))
        if state.average is not None:
            state = state.replace(average=drift(state.average, policy.params, options.average_decay))
        return state, merged

    return update


def merge_ragged(seen: list[Metrics]) -> Metrics:
    """Metrics of several programs as one, each name over those that have it."""
    # On the host: a handful of scalars is not worth programs that span every device of the mesh.
    seen = jax.device_get(seen)
    names = dict.fromkeys(name for metrics in seen for name in metrics)
    merged: Metrics = {}
    for name in names:
        values = [metrics[name] for metrics in seen if name in metrics]
        merged |= merge({name: jax.tree.map(lambda *xs: np.stack(xs), *values)})
    if "val/ratio" in merged:
        mean = finalize({"r": merged["val/ratio"], "s": merged.pop("val/ratio_sq")})
        merged["val/ratio_var"] = Mean(mean["s"] - jnp.square(mean["r"]), jnp.ones(()))
    return merged


def _verify_values(metrics: Metrics, model: ModelConfig) -> None:
    clipped = float(finalize(metrics)["val/clipfrac_avg"])
    if clipped > (0.0 if model.dtype == "float32" else 0.05):  # bfloat16 rounds large values by as much
        raise StepZeroError(
            f"before the critic's first update no value can have left its clipping range, yet val/clipfrac_avg is "
            f"{clipped:.4f}; rollout and update compute different values"
        )


def _verify_ratio(metrics: Metrics, model: ModelConfig) -> None:
    if not float(metrics["val/ratio"].weight):
        return  # a minibatch of the empty rows that fill up a last batch
    ratio = {name: float(x) for name, x in finalize(metrics).items() if name.startswith("val/ratio")}
    tolerance = 1e-4 if model.dtype == "float32" else 0.05
    if not all(abs(x - 1) <= tolerance for x in ratio.values()):
        raise StepZeroError(
            f"before the first update π_θ / π_old must be 1, but its mean is {ratio['val/ratio']:.6f} and its mean "
            f"square {ratio['val/ratio_sq']:.6f}; rollout and update compute different log-probabilities"
        )
