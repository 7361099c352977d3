"""Proximal policy optimisation from a reward (RLHF): arXiv 1707.06347, as InstructGPT uses it (2203.02155).

    repeat
      y ~ π_θ(.|x)                                                          sample
      r_t = -β KL_t(π_θ ‖ π_ref) + [t is last] R(x, y)                      score
      A = GAE(r, V_φ),  G = A + V_φ                                         advantages
      θ: minimise -mean_t min(ρ_t A_t, clip(ρ_t) A_t),  ρ = π_θ / π_old     policy update, epochs × minibatches
      φ: minimise ½ mean_t (V_φ - G_t)², clipped                            value update

R is a trained reward model or any importable Python function. Policy and critic are separate models. A
rollout and an update are two phases: a run can be stopped, checkpointed and resumed between them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data import Dataset, PromptBatch
from jaxalign.errors import StepZeroError
from jaxalign.losses import running_moments
from jaxalign.losses.metrics import Mean, Metrics, finalize
from jaxalign.losses.ppo import adaptive_kl
from jaxalign.models import ModelConfig
from jaxalign.parallel import processes
from jaxalign.rewards import call_reward_function
from jaxalign.sampling.generate import generate
from jaxalign.stages.ppo_config import PPOConfig
from jaxalign.stages.ppo_setup import PPOModels, load_models
from jaxalign.stages.ppo_update import PPOState, make_update, merge_ragged
from jaxalign.stages.rollout import (
    Rollout,
    completion_texts,
    finish_rollout,
    score_episodes,
)
from jaxalign.training.open import Run
from jaxalign.training.stage import Stage

HEADLINES = (
    "objective/scores",
    "objective/kl",
    "kl_coef",
    "completions/mean_length",
    "loss/policy_avg",
    "loss/value_avg",
    "policy/entropy_avg",
    "policy/clipfrac_avg",
    "grad_norm",
    "learning_rate",
    "skipped_steps",
    "critic/skipped_steps",
    "perf/rollout_time",
    "perf/update_time",
)


def make_score(run: Run, critic_config: ModelConfig, reward_config: ModelConfig | None) -> Any:
    """The jitted `score_episodes` of a run."""
    options: PPOConfig = run.config.options
    return jax.jit(
        functools.partial(
            score_episodes,
            model=run.model,
            critic_model=critic_config,
            reward_config=reward_config,
            temperature=options.sampling.temperature,
            kl_estimator=options.kl_estimator,
        )
    )


def make_rollout(run: Run, models: PPOModels) -> Any:
    """The rollout phase: prompts -> episodes with advantages, in the state."""
    options: PPOConfig = run.config.options
    score = make_score(run, models.critic_config, models.reward_config)
    finish = jax.jit(functools.partial(finish_rollout, options=options))

    @jax.jit
    def control(kl_coef: jax.Array, kl: Mean) -> jax.Array:
        if not options.kl_target:
            return kl_coef
        measured, E = kl.total / kl.weight, run.config.batch_size
        return adaptive_kl(
            kl_coef, measured, target=options.kl_target, horizon=options.kl_horizon, num_samples=E
        )

    def rollout(
        state: PPOState, prompts: PromptBatch, dataset: Dataset = run.train
    ) -> tuple[PPOState, Metrics]:
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
        )
        # The empty rows that fill up a last batch of held-out prompts have sampled nothing that counts.
        completions = completions.replace(mask=completions.mask * (prompts.rows >= 0)[:, None])
        reference = models.reference if state.reference is None else state.reference
        scored = score(
            state.policy.params, state.critic.params, reference, models.reward, prompts, completions
        )
        if models.reward is None:
            # Each process has the function score its own rows, however the compiler laid the completions out.
            own = jax.device_put(completions, run.rows_sharding)
            texts = completion_texts(own, run.tokenizer, run.tokenizer.eos_ids)
            asked = run.prompts(dataset, prompts.rows)
            scores = np.zeros(len(texts), np.float32)
            with processes.together():
                scores[: len(asked)] = call_reward_function(
                    models.reward_function, asked, texts[: len(asked)]
                )
            scores = run.put(scores)
        else:
            scores = scored.pop("scores")
        episodes, moments, metrics = finish(scored, scores, completions, state.kl_coef, state.moments)
        if int(state.policy.step) == 0:
            _verify_kl(metrics, exact=run.model.dtype == run.config.frozen.dtype == "float32")
        kl_coef = control(state.kl_coef, metrics["objective/kl"])
        return state.replace(rollout=episodes, moments=moments, kl_coef=kl_coef, key=key), metrics

    return rollout


def _verify_kl(metrics: Metrics, *, exact: bool) -> None:
    kl = float(finalize(metrics)["objective/kl"])
    if not abs(kl) <= (1e-3 if exact else 0.5):
        raise StepZeroError(
            f"before the first update the policy is its reference, yet objective/kl is {kl:.4e} nats; "
            f"config.model.init_from and the reference hold different weights, or config.frozen.dtype rounds the "
            f"reference by too much"
        )


def build(run: Run) -> Stage:
    """The stage for the loop."""
    options: PPOConfig = run.config.options
    models = load_models(run, options)
    rollout_shape = _abstract_rollout(run, options)
    whole = run.replicated

    def scalar(dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), dtype, sharding=whole)

    abstract = PPOState(
        policy=models.abstract_policy,
        critic=models.abstract_critic,
        kl_coef=scalar(),
        moments=jax.tree.map(lambda _: scalar(), running_moments.init()),
        reference=run.abstract_params() if options.reference_rate else None,
        average=run.abstract_params() if options.average_decay else None,
        rollout=rollout_shape,
        key=scalar(jax.random.key(0).dtype),
    )

    def init() -> PPOState:
        return jax.jit(
            lambda policy, critic: PPOState(
                policy=policy,
                critic=critic,
                kl_coef=jnp.float32(options.kl_coef),
                moments=running_moments.init(),
                reference=policy.params if options.reference_rate else None,
                average=policy.params if options.average_decay else None,
                rollout=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), rollout_shape),
                key=jax.random.fold_in(jax.random.key(run.config.seed), 1),
            ),
            donate_argnums=(0, 1),
            out_shardings=jax.tree.map(lambda x: x.sharding, abstract),
        )(*models.init())

    sampler = make_rollout(run, models)

    def evaluate(state: PPOState) -> dict[str, float]:
        merged: list[Metrics] = []
        # A fixed key: evaluations differ by the policy alone. And the policy is the one that is exported.
        policy = state.policy if state.average is None else state.policy.replace(params=state.average)
        fixed = state.replace(policy=policy, key=jax.random.fold_in(jax.random.key(run.config.seed), 2))
        for batch in run.eval_batches():
            merged.append(sampler(fixed, batch, run.held_out)[1])
        values = finalize(merge_ragged(merged))
        return {f"eval/{name}": float(x) for name, x in values.items() if not name.startswith("perf/")}

    return Stage(
        run=run,
        abstract_state=abstract,
        init=init,
        phases=(("rollout", sampler), ("update", make_update(run, models))),
        evaluate=evaluate,
        params=lambda state: state.policy.params if state.average is None else state.average,
        headlines=HEADLINES,
        fingerprint=models.fingerprint,
    )


def _abstract_rollout(run: Run, options: PPOConfig) -> Rollout:
    E, P = run.config.batch_size, run.prompt_length
    shape = (E, P + options.sampling.max_new_tokens)
    ints = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=run.rows_sharding)
    floats = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=run.rows_sharding)
    return Rollout(ints, ints, ints, floats, floats, floats, floats, floats)
