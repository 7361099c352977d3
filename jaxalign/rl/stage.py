"""The declaration of a stage that samples, and what is made from it: a rollout, an update, and programs to plan."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data import Dataset, PromptBatch
from jaxalign.errors import ConfigError, StepZeroError
from jaxalign.losses import running_moments
from jaxalign.losses.metrics import Metrics, finalize
from jaxalign.models import ModelConfig
from jaxalign.models.frozen import FrozenConfig
from jaxalign.parallel import processes
from jaxalign.rewards import Rewards, TrainerState, reward_metrics
from jaxalign.rl.learner import make_learner, merge_ragged, mix_text, mixed_totals
from jaxalign.rl.models import RolloutModels, critic_architecture, first_critic, load_models
from jaxalign.rl.programs import on_policy_programs
from jaxalign.rl.rollout import (
    OnPolicyState,
    Rollout,
    completion_texts,
    plain_rollout,
    repeat_rows,
    rollout_metrics,
    score_completions,
)
from jaxalign.sampling.generate import Completions, generate
from jaxalign.training.open import Run, local_rows
from jaxalign.training.optimizer import make_optimizer, make_schedule
from jaxalign.training.stage import LossFn, Stage
from jaxalign.training.state import Update, abstract_train_state, make_state, make_update
from jaxalign.training.trainer import Program, Trainer

Credit = Callable[..., tuple[Rollout, dict[str, Any], Metrics]]


def no_credit(
    scored: dict[str, jax.Array],
    scores: jax.Array | None,
    completions: Completions,
    state: OnPolicyState,
    options: Any,
) -> tuple[Rollout, dict[str, Any], Metrics]:
    """Of a stage whose loss needs no advantages: the completions as they are."""
    return plain_rollout(scored), {}, rollout_metrics(scored, scores, completions)


def never(options: Any) -> bool:
    """Of a stage that reads no reference in its rollouts."""
    return False


@dataclasses.dataclass(frozen=True)
class OnPolicyStage(Stage):
    """A stage that samples completions of prompts and learns from them; `options` derives from OnPolicyConfig.

    `loss` gets a `Rollout` as its batch, and as `policy` what the model that is trained says of it.
    """

    # (scored, scores [E] or None, completions, state, options) -> (rollout, what of the state changes, metrics): from
    # what models and reward functions said to advantages. Jitted.
    credit: Credit = no_credit
    reference: Callable[[Any], bool] = (
        never  # options -> the rollout is scored by the model that training starts from
    )
    critic_loss: LossFn | None = (
        None  # as `loss`, of a scalar model beside the policy; None: there is no critic
    )

    def build(self, run: Run) -> Trainer:
        """What the loop runs: a rollout and an update."""
        return build_on_policy(self, run)

    def programs(self, run: Run) -> list[Program]:
        """Sampling, scoring and every update."""
        return on_policy_programs(self, run)

    def updates(
        self,
        run: Run,
        others: dict[str, ModelConfig] | None = None,
        critic_config: ModelConfig | None = None,
    ) -> tuple[Update, Update | None]:
        """The jitted updates of policy and critic, as `make_update` has them.

        The policy's takes (rollout, text) as its batch, the critic's a rollout.
        """
        config, options = run.config, run.config.options
        parts = config.num_microbatches
        shared = {"num_microbatches": parts, "halt": config.on_nonfinite == "stop"}
        objective = self.objective(run.model, options, others, whole=parts == 1)
        totals = self.total(run.model, options, others, num_microbatches=parts)
        policy = make_update(
            mix_text(objective, run.model, options.ptx_coef),
            mixed_totals(totals),
            make_optimizer(config.optimizer, run.updates),
            make_schedule(config.optimizer, run.updates),
            **shared,
        )
        if self.critic_loss is None:
            return policy, None
        critic = Stage(self.name, self.data, self.options, self.critic_loss, self.totals, scalar=True)
        architecture = critic_config or run.model
        rates = critic_rates(run)
        value = make_update(
            critic.objective(architecture, options),
            critic.total(architecture, options),
            make_optimizer(rates, run.updates),
            make_schedule(rates, run.updates),
            **shared,
        )
        return policy, value

    def scorer(
        self, run: Run, critic_config: ModelConfig | None, reward_config: ModelConfig | None
    ) -> Callable[..., dict[str, jax.Array]]:
        """The jitted `score_completions` of a run."""
        options = run.config.options
        return jax.jit(
            functools.partial(
                score_completions,
                model=run.model,
                critic_model=critic_config,
                reward_config=reward_config,
                temperature=options.sampling.temperature,
                kl_estimator=getattr(options, "kl_estimator", "k1"),
            )
        )


def critic_rates(run: Run) -> Any:
    """The policy's optimizer settings at the critic's learning rate."""
    return dataclasses.replace(run.config.optimizer, learning_rate=run.config.options.critic_learning_rate)


def check_run(stage: OnPolicyStage, run: Run) -> None:
    """Checks what the fields of the options cannot say alone.

    Raises:
      ConfigError: the completions of a rollout cannot be grouped, cut into minibatches and split, or a setting is of
        a reference that the stage does not read.
    """
    config, options = run.config, run.config.options
    if options.reference_rate and not stage.reference(options):
        raise ConfigError(
            f"{options.path}.reference_rate={options.reference_rate} moves a reference, but a run of {stage.name} with "
            "these settings reads none; leave it at 0"
        )
    E, k = config.batch_size, options.samples_per_row
    if E % k:
        raise ConfigError(
            f"config.batch_size={E} completions are no whole number of groups of {options.path}.group_size={k}; make "
            f"the batch a multiple of it, such as {-(-E // k) * k}"
        )
    run.check_divides(f"batch_size / {options.path}.group_size" if k > 1 else "batch_size", E // k)
    run.check_divides(
        f"batch_size / ({options.path}.num_minibatches * config.num_microbatches)",
        E,
        options.num_minibatches * config.num_microbatches,
    )


def build_on_policy(stage: OnPolicyStage, run: Run) -> Trainer:
    """The trainer of a stage that samples."""
    options = run.config.options
    check_run(stage, run)
    models = load_models(stage, run)
    if not models.holds_models and run.config.frozen != FrozenConfig():
        raise ConfigError(
            f"config.frozen is {run.config.frozen}, but this run holds no frozen model; leave it as it is by default"
        )
    critic_config = None
    if stage.critic_loss is not None:
        critic_config = critic_architecture(options, run, models.reward_config)
        critic_optimizer = make_optimizer(critic_rates(run), run.updates)
    abstract = abstract_state(stage, run, critic_config)

    def init() -> OnPolicyState:
        params = run.load_init()
        critic = None
        if stage.critic_loss is not None:
            critic = first_critic(options, run, params, models.judge)
            assert abstract.critic is not None
            critic = make_state(critic, critic_optimizer, abstract.critic)
        policy = make_state(params, make_optimizer(run.config.optimizer, run.updates), abstract.policy)

        def make(policy: Any, critic: Any) -> OnPolicyState:
            controlled = hasattr(options, "kl_target")
            return OnPolicyState(
                policy=policy,
                critic=critic,
                kl_coef=jnp.float32(options.kl_coef) if controlled else None,
                moments=running_moments.init() if stage.critic_loss is not None else None,
                reference=policy.params if options.reference_rate else None,
                average=policy.params if options.average_decay else None,
                rollout=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract.rollout),
                key=jax.random.fold_in(jax.random.key(run.config.seed), 1),
            )

        layout = jax.tree.map(lambda x: x.sharding, abstract)
        return jax.jit(make, donate_argnums=(0, 1), out_shardings=layout)(policy, critic)

    sampler = make_rollout(stage, run, models, critic_config)
    policy_update, value_update = stage.updates(run, models.frozen.configs, critic_config)
    learner = make_learner(
        run,
        policy_update,
        value_update,
        frozen=models.frozen.params,
        text_batch=models.text_batch,
        critic_config=critic_config,
    )

    def evaluate(state: OnPolicyState) -> dict[str, float]:
        # A fixed key: evaluations differ by the policy alone. And the policy is the one that is exported.
        policy = (
            state.policy if state.average is None else dataclasses.replace(state.policy, params=state.average)
        )
        fixed = dataclasses.replace(
            state, policy=policy, key=jax.random.fold_in(jax.random.key(run.config.seed), 2)
        )
        merged = [sampler(fixed, batch, run.held_out)[1] for batch in run.eval_batches()]
        values = finalize(merge_ragged(merged))
        return {f"eval/{name}": float(x) for name, x in values.items() if not name.startswith("perf/")}

    return Trainer(
        run=run,
        abstract_state=abstract,
        init=init,
        phases=(("rollout", sampler), ("update", learner)),
        evaluate=evaluate,
        params=lambda state: state.policy.params if state.average is None else state.average,
        headlines=stage.headlines,
        changeable=stage.changeable,
        fingerprint=models.digest,
    )


def abstract_state(stage: OnPolicyStage, run: Run, critic_config: ModelConfig | None) -> OnPolicyState:
    """The ShapeDtypeStructs, with shardings, of a run's state."""
    options = run.config.options

    def scalar(dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((), dtype, sharding=run.replicated)

    critic = None
    if stage.critic_loss is not None:
        params = run.abstract_params(scalar=True, model=critic_config)
        critic = abstract_train_state(params, make_optimizer(critic_rates(run), run.updates), run.mesh)
    policy_optimizer = make_optimizer(run.config.optimizer, run.updates)
    policy = abstract_train_state(run.abstract_params(), policy_optimizer, run.mesh)
    shape = (run.config.batch_size, run.prompt_length + options.sampling.max_new_tokens)
    return OnPolicyState(
        policy=policy,
        critic=critic,
        kl_coef=scalar() if hasattr(options, "kl_target") else None,
        moments=jax.tree.map(lambda _: scalar(), running_moments.init()) if critic is not None else None,
        reference=run.abstract_params() if options.reference_rate else None,
        average=run.abstract_params() if options.average_decay else None,
        rollout=abstract_rollout(stage, run, shape),
        key=scalar(jax.random.key(0).dtype),
    )


def abstract_rollout(stage: OnPolicyStage, run: Run, shape: tuple[int, int]) -> Rollout:
    """A rollout [E, T] with the parts that the stage's credit gives it."""
    options, E = run.config.options, shape[0]
    ints, floats = run.abstract_rows(shape, jnp.int32), run.abstract_rows(shape, jnp.float32)
    scored = {"tokens": ints, "positions": ints, "segment_ids": ints, "mask": floats}
    scored |= {"old_logp": floats, "entropy": floats}
    if stage.reference(options):
        scored |= {"ref_logp": floats, "kl": floats, "kl1": floats}
    if stage.critic_loss is not None:
        scored["old_values"] = floats
    N = options.sampling.max_new_tokens
    abstract: Any = run.abstract_rows
    new = abstract((E, N), jnp.float32)
    done = Completions(abstract((E, N), jnp.int32), new, new, abstract((E,), jnp.bool_))
    coef, unread = jax.ShapeDtypeStruct((), jnp.float32), cast(Any, None)
    state = OnPolicyState(unread, None, coef, running_moments.init(), None, None, unread, unread)
    credit = functools.partial(stage.credit, options=options)
    scores = run.abstract_rows((E,), jnp.float32)
    rollout, _, _ = jax.eval_shape(credit, scored, scores, done, state)
    return jax.tree.map(lambda x: run.abstract_rows(x.shape, x.dtype), rollout)


def make_rollout(
    stage: OnPolicyStage, run: Run, models: RolloutModels, critic_config: ModelConfig | None
) -> Callable[..., tuple[OnPolicyState, Metrics]]:
    """The rollout phase: prompts -> completions with advantages, in the state."""
    options = run.config.options
    k = options.samples_per_row
    score = stage.scorer(run, critic_config, models.reward_config)
    credit = jax.jit(functools.partial(stage.credit, options=options))
    exact = run.model.dtype == run.config.frozen.dtype == "float32"

    def rollout(
        state: OnPolicyState, prompts: PromptBatch, dataset: Dataset = run.train
    ) -> tuple[OnPolicyState, Metrics]:
        key, sample_key = jax.random.split(state.key)
        completions = generate(
            state.policy.params,
            run.model,
            prompts.tokens,
            prompts.positions,
            prompts.segment_ids,
            sample_key,
            sampling=options.sampling,
            stop_ids=run.tokenizer.eos_ids,
            samples=k,
        )
        # The empty rows that fill up a last batch of held-out prompts have sampled nothing that counts.
        rows = repeat_rows(prompts.rows, k)
        completions = dataclasses.replace(completions, mask=completions.mask * (rows >= 0)[:, None])
        reference = models.reference if state.reference is None else state.reference
        critic = None if state.critic is None else state.critic.params
        scored = score(state.policy.params, critic, reference, models.reward, prompts, completions)
        scores, more = scored.pop("scores", None), {}
        if models.functions is not None:
            scores, more = call_functions(
                models.functions, scores, run, dataset, rows, completions, step=int(state.policy.step)
            )
        unread: Any = None
        light = dataclasses.replace(
            state, policy=unread, critic=None, reference=None, average=None, rollout=unread, key=unread
        )
        episodes, changes, metrics = credit(scored, scores, completions, light)
        if int(state.policy.step) == 0 and "objective/kl" in metrics:
            _verify_kl(metrics, exact=exact)
        return dataclasses.replace(state, rollout=episodes, key=key, **changes), metrics | more

    return rollout


def call_functions(
    functions: Rewards,
    scores: jax.Array | None,
    run: Run,
    dataset: Dataset,
    rows: jax.Array,
    completions: Completions,
    *,
    step: int,
) -> tuple[jax.Array, Metrics]:
    """Scores [E] of the reward functions, joined with those of the reward model where there is one, and metrics."""
    # Each process has the functions score its own rows, however the compiler laid the completions out.
    own = jax.device_put((completions, rows), run.rows_sharding)
    texts = completion_texts(own[0], run.tokenizer, run.tokenizer.eos_ids)
    numbers = [int(row) for row in local_rows(own[1])]
    live = [i for i, row in enumerate(numbers) if row >= 0]
    records = [dataset.record(numbers[i]) for i in live]
    with processes.fail_together():
        found = functions.score(
            [record["prompt"] for record in records],
            [texts[i] for i in live],
            records,
            where=[dataset.where(numbers[i]) for i in live],
            trainer_state=TrainerState(step, run.updates),
        )
    mask = np.zeros(len(texts), np.float32)
    mask[live] = 1
    columns = {}
    for name, values in found.each.items():
        columns[name] = np.zeros(len(texts))
        columns[name][live] = values
    weights = run.config.options.reward_weights
    total = np.zeros(len(texts), np.float32)
    total[live] = found.total
    total = run.put(total)
    if scores is not None:
        total = total + weights[0] * scores
    return total, reward_metrics({name: run.put(np.float32(x)) for name, x in columns.items()}, run.put(mask))


def _verify_kl(metrics: Metrics, *, exact: bool) -> None:
    kl = float(finalize(metrics)["objective/kl"])
    if not abs(kl) <= (1e-3 if exact else 0.5):
        raise StepZeroError(
            f"before the first update the policy is its reference, yet objective/kl is {kl:.4e} nats; "
            f"config.model.init_from and the reference hold different weights, or config.frozen.dtype rounds the "
            f"reference by too much"
        )
