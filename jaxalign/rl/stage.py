"""The declaration of a stage that samples, and what is made from it: a rollout, an update, and programs to plan."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data import Dataset, PromptBatch
from jaxalign.errors import StepZeroError
from jaxalign.losses.metrics import Mean, Metrics, finalize
from jaxalign.models import ModelConfig
from jaxalign.parallel import processes
from jaxalign.rewards import Rewards, TrainerState, reward_metrics
from jaxalign.rl.abstract import abstract_state, check_run, critic_rates, make_critic_optimizer
from jaxalign.rl.jitted import make_credit, make_measure, make_scorer, make_updates
from jaxalign.rl.layout import SHARED_SIZES, SIZES, Packer
from jaxalign.rl.learner import make_learner, merge_ragged
from jaxalign.rl.models import (
    RolloutModels,
    critic_architecture,
    find_rewards,
    first_critic,
    load_models,
)
from jaxalign.rl.programs import on_policy_programs
from jaxalign.rl.rollout import (
    OnPolicyState,
    Rollout,
    completion_ids,
    join_prompts,
    plain_rollout,
    repeat_rows,
    rollout_metrics,
)
from jaxalign.sampling.answers import answer_text
from jaxalign.sampling.generate import Completions, generate
from jaxalign.training.memory import Program
from jaxalign.training.open import Run, local_rows
from jaxalign.training.samples import Samples, count_samples, describe_prompt, make_sample, shares
from jaxalign.training.stage import LossFn, Stage
from jaxalign.training.state import Update, make_state
from jaxalign.training.supervised import check_frozen, name_sets
from jaxalign.training.trainer import Trainer

SCORE_TIME = "perf/score_time"

Credit = Callable[..., tuple[Rollout, dict[str, Any], Metrics]]


def no_credit(
    scored: dict[str, jax.Array],
    scores: jax.Array | None,
    completions: Completions,
    control: dict[str, Any],
    options: Any,
) -> tuple[Rollout, dict[str, Any], Metrics]:
    """Of a stage whose loss needs no advantages: the completions as they are."""
    return plain_rollout(scored), {}, rollout_metrics(scored, scores, completions)


def no_control(options: Any) -> dict[str, Any]:
    """Of a stage whose credit remembers nothing."""
    return {}


def sampled_tokens(rollout: Rollout, options: Any) -> jax.Array:
    """Of a stage that reads nothing but the tokens which were sampled."""
    return rollout.mask


def never(options: Any) -> bool:
    """Of a stage that reads no reference in its rollouts."""
    return False


def always(options: Any) -> bool:
    """Of a stage whose policy reads its completions once more before it learns from them."""
    return True


@dataclasses.dataclass(frozen=True)
class OnPolicyStage(Stage):
    """A stage that samples completions of prompts and learns from them; `options` derives from OnPolicyConfig.

    `loss` gets a `Rollout` as its batch, and as `policy` what the model that is trained says of it.
    """

    # (scored, scores [E] or None, completions, control, options) -> (rollout, control of the next one, metrics): from
    # what models and reward functions said to advantages. Jitted.
    credit: Credit = no_credit
    # options -> what `credit` remembers from one rollout to the next, at first: kl_coef and moments of OnPolicyState.
    control: Callable[[Any], dict[str, Any]] = no_control
    # options -> whether the rollout is scored by the model that training starts from.
    reference: Callable[[Any], bool] = never
    # options -> whether the policy reads its completions once more before the update, as credit or loss ask what it
    # said. Where it does not, the loss has the numbers of `compare_sampling`; of held-out prompts it always does.
    scores_policy: Callable[[Any], bool] = always
    # As `loss`, of a scalar model beside the policy; None: there is no critic.
    critic_loss: LossFn | None = None
    log_samples: int = 4  # an evaluation samples anyway
    # Beside a gradient out of bounds: a policy far from its reference, and one that says the same whatever it is asked.
    alarms: str = f"{Stage.alarms},objective/kl>100,objective/entropy<0.01"

    def weights(self, options: Any) -> str:
        """The policy's, or their average where there is one."""
        return "average" if options.average_decay else "policy/params"

    def shapes(self, options: Any) -> int:
        """Completions take as many rows as they need."""
        sizes = SIZES if options.samples_per_row == 1 else SHARED_SIZES
        return len(sizes) if options.pack_completions else 1

    def check(self, run: Run) -> None:
        """Raises, as `build` would, for what can be known without loading a model."""
        check_run(self, run)
        find_rewards(run)
        super().check(run)

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
        config = run.config
        halt = config.on_nonfinite != "skip"
        models = (run.model, others or {}, critic_config or run.model)
        rates = (config.optimizer, config.optimizer if self.critic_loss is None else critic_rates(run))
        parts = config.num_microbatches
        return make_updates(self, config.options, *models, *rates, run.updates, parts, halt)

    def scorer(
        self, run: Run, critic_config: ModelConfig | None, reward_config: ModelConfig | None
    ) -> Callable[..., dict[str, jax.Array]]:
        """The jitted `score_completions` of a run."""
        options = run.config.options
        models = (run.model, critic_config, reward_config)
        return make_scorer(*models, options.sampling.temperature, options.kl_estimator)


def build_on_policy(stage: OnPolicyStage, run: Run) -> Trainer:
    """The trainer of a stage that samples."""
    options = run.config.options
    check_run(stage, run)
    models = load_models(stage, run)
    check_frozen(run, held=models.holds_models)
    critic_config = None
    if stage.critic_loss is not None:
        critic_config = critic_architecture(options, run, models.reward_config)
    abstract = abstract_state(stage, run, critic_config)

    def init() -> OnPolicyState:
        params = run.load_init()
        critic = None
        if abstract.critic is not None:
            critic = first_critic(options, run, params, models.judge)
            critic = make_state(critic, make_critic_optimizer(run), abstract.critic)
        policy = make_state(params, run.optimizer, abstract.policy, donate=True)

        def make(policy: Any, critic: Any) -> OnPolicyState:
            control = stage.control(options)
            return OnPolicyState(
                policy=policy,
                critic=critic,
                kl_coef=control.get("kl_coef"),
                moments=control.get("moments"),
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
        others=models.frozen.configs.values(),
        scored=stage.scores_policy(options),
    )

    wanted = shares(run, count_samples(run, stage.log_samples))
    samples: Samples = []  # of the last evaluation

    def evaluate(state: OnPolicyState, go_on: Callable[[], bool]) -> dict[str, float]:
        # A fixed key: evaluations differ by the policy alone. And the policy is the one that is exported.
        policy = (
            state.policy if state.average is None else dataclasses.replace(state.policy, params=state.average)
        )
        fixed = dataclasses.replace(
            state, policy=policy, key=jax.random.fold_in(jax.random.key(run.config.seed), 2)
        )
        samples.clear()
        found, every, going = {}, [], True
        for name in run.eval_sets:
            mine = []
            reader = Reader(run, name, wanted[name], samples)
            for batch in run.eval_batches(name):
                going = going and go_on()
                if not going:
                    break
                mine.append(sampler(fixed, batch, run.held_out, reader)[1])
            found[name] = _measured(mine)
            every += mine
        return name_sets(found, _measured(every)) if every else {}

    return Trainer(
        run=run,
        abstract_state=abstract,
        init=init,
        phases=(("rollout", sampler), ("update", learner)),
        evaluate=evaluate,
        samples=lambda state: list(samples),
        headlines=stage.headlines,
        changeable=stage.changeable,
        fingerprint=models.digest,
        fresh=("rollout",),
    )


def _measured(metrics: list[Metrics]) -> dict[str, float]:
    values = finalize(merge_ragged(metrics))
    return {name: float(x) for name, x in values.items() if not name.startswith("perf/")}


@dataclasses.dataclass
class Reader:
    """Keeps the first answers of an evaluation, as they are sampled anyway, to be read."""

    run: Run
    name: str  # of the evaluation set
    left: int  # prompts whose answers are still wanted
    samples: Samples

    def read(self, rows: jax.Array, completions: Completions, scores: jax.Array | None) -> None:
        """Takes the first completion of each prompt of a rollout, until there are enough."""
        if not self.left:
            return
        run, held_out = self.run, self.run.held_out
        assert held_out is not None
        k = run.config.options.samples_per_row
        arrays = [rows, completions.tokens, completions.mask, completions.stopped]
        found = [processes.fetch_whole(x)[::k] for x in arrays + ([] if scores is None else [scores])]
        items = {item.row: item for item in held_out.rows.items}
        for row, tokens, mask, stopped, *score in zip(*found, strict=True):
            if row < 0 or not self.left:
                continue
            self.left -= 1
            item = items[int(row)]
            asked = describe_prompt(run, self.name, item, item.ids, None)
            text = answer_text(tokens[mask > 0], run.tokenizer)
            more = {"score": float(score[0])} if score else {}
            self.samples.append(make_sample(asked, text, bool(stopped), **more))


def make_rollout(
    stage: OnPolicyStage, run: Run, models: RolloutModels, critic_config: ModelConfig | None
) -> Callable[..., tuple[OnPolicyState, Metrics]]:
    """The rollout phase: prompts -> completions with advantages, in the state."""
    options = run.config.options
    k = options.samples_per_row
    score = stage.scorer(run, critic_config, models.reward_config)
    credit = make_credit(stage, options)
    judges = tuple(x for x in (critic_config, models.reward_config) if x is not None)
    scores_policy = stage.scores_policy(options)
    measure = make_measure(run.model, judges, k, scores_policy + stage.reference(options))
    exact = run.model.dtype == run.config.frozen.dtype == "float32"
    packer = Packer(run, *judges)

    def rollout(
        state: OnPolicyState,
        prompts: PromptBatch,
        dataset: Dataset = run.train,
        reader: Reader | None = None,
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
        jax.block_until_ready(completions)
        began = time.monotonic()
        # The empty rows that fill up a last batch of held-out prompts have sampled nothing that counts.
        rows = repeat_rows(prompts.rows, k)
        completions = dataclasses.replace(completions, mask=completions.mask * (rows >= 0)[:, None])
        reference = models.reference if state.reference is None else state.reference
        critic = None if state.critic is None else state.critic.params
        layouts = (None, None)
        if options.pack_completions:
            judged, slots = models.reward is not None, prompts.tokens.shape[1]
            layouts = (
                packer(segment_ids(prompts, completions), slots),
                packer(segment_ids(prompts, completions, closed=True), slots) if judged else None,
            )
        policy = state.policy.params if scores_policy or dataset is not run.train else None
        scored = score(policy, critic, reference, models.reward, prompts, completions, layouts)
        scores, more = scored.pop("scores", None), measure(prompts, scored, layouts[0])
        if scores is not None:
            scores = options.weights[options.reward_model] * scores
        if models.functions is not None:
            scores, found = call_functions(
                models.functions, scores, run, dataset, rows, completions, step=int(state.policy.step)
            )
            more |= found
        jax.block_until_ready(scored)
        more[SCORE_TIME] = Mean(time.monotonic() - began, 1.0)
        if reader is not None:
            reader.read(rows, completions, scores)
        control = {"kl_coef": state.kl_coef, "moments": state.moments}
        episodes, control, metrics = credit(scored, scores, completions, control)
        begins_as_reference = int(state.policy.step) == 0 and not run.config.resume_from
        if begins_as_reference and "objective/kl" in metrics:
            _verify_kl(metrics, exact=exact)
        return dataclasses.replace(state, rollout=episodes, key=key, **control), metrics | more

    return rollout


@functools.partial(jax.jit, static_argnames="closed")
def segment_ids(prompts: PromptBatch, completions: Completions, *, closed: bool = False) -> jax.Array:
    """Of completions behind their prompts; see `join_prompts`."""
    return join_prompts(prompts, completions, closed=closed)[2]


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
    own = jax.device_put((dataclasses.replace(completions, places=None), rows), run.rows_sharding)
    ids = completion_ids(own[0])
    texts = [answer_text(each, run.tokenizer) for each in ids]
    numbers = [int(row) for row in local_rows(own[1])]
    live = [i for i, row in enumerate(numbers) if row >= 0]
    records = [dataset.record(numbers[i]) for i in live]
    with processes.fail_together():
        found = functions.score(
            [record["prompt"] for record in records],
            [texts[i] for i in live],
            records,
            where=[dataset.where(numbers[i]) for i in live],
            completion_ids=[ids[i] for i in live],
            trainer_state=TrainerState(step, run.updates),
            # Of the sum the reward model's score is left, where there is one.
            unscored="error" if scores is None else "nan",
        )
    mask = np.zeros(len(texts), np.float32)
    mask[live] = 1
    columns = {}
    for name, values in found.each.items():
        columns[name] = np.zeros(len(texts))
        columns[name][live] = values
    total = np.zeros(len(texts), np.float32)
    total[live] = np.nan_to_num(found.total, nan=0.0)
    total = run.put(total)
    if scores is not None:
        total = total + scores
    return total, reward_metrics({name: run.put(np.float32(x)) for name, x in columns.items()}, run.put(mask))


def _verify_kl(metrics: Metrics, *, exact: bool) -> None:
    name = "objective/kl_k1" if "objective/kl_k1" in metrics else "objective/kl"
    kl = float(finalize(metrics)[name])
    if not abs(kl) <= (1e-3 if exact else 0.5):
        raise StepZeroError(
            f"before the first update the policy is its reference, yet objective/kl is {kl:.4e} nats; "
            f"config.model.init_from and the reference hold different weights, or config.frozen.dtype rounds the "
            f"reference by too much"
        )
