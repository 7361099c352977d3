"""Group-relative policy optimisation (arXiv 2402.03300): PPO's loss without a critic.

    y_1 .. y_k ~ π_θ(.|x)                                       k completions of each prompt
    A_i = (R(x, y_i) - mean_j R(x, y_j)) / std_j R(x, y_j)      advantages within the group
    θ: minimise -mean_i mean_t min(ρ_t A_i, clip(ρ_t) A_i) + β KL(π_θ ‖ π_ref)

DAPO (arXiv 2503.14476): loss_type="dapo", clip_high, drop_equal_groups and mask_overlong. Dr. GRPO (arXiv 2503.20783):
loss_type="dr_grpo" and scale="none".
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.data.kinds import PROMPTS
from jaxalign.losses.grpo import (
    GRPOObjective,
    group_advantages,
    grpo_loss,
    grpo_normalizer,
    have_equal_scores,
)
from jaxalign.losses.metrics import Metrics
from jaxalign.models.scoring import Scores
from jaxalign.rl.config import GroupConfig
from jaxalign.rl.rollout import Rollout, compare_sampling, plain_rollout, rollout_metrics, shape
from jaxalign.rl.stage import OnPolicyStage, sampled_tokens
from jaxalign.sampling.generate import Completions
from jaxalign.stages import published
from jaxalign.training.stage import Totals

HEADLINES = (
    *("objective/scores", "objective/kl", "frac_reward_zero_std", "completions/mean_length", "grad_norm"),
    *("policy/entropy_avg", "learning_rate", "skipped_steps", "perf/rollout_time", "perf/update_time"),
)


@dataclasses.dataclass(frozen=True)
class GRPOConfig(GroupConfig, GRPOObjective, at="config.grpo"):
    """config.grpo: the settings of a rollout and of `grpo_loss`. `config.batch_size` counts completions."""

    drop_equal_groups: bool = False  # leave groups of one reward out of the loss, and count them
    mask_overlong: bool = False  # leave completions out of the loss that ran into the length limit

    @property
    def needs_old_logp(self) -> bool:
        """Whether there are several updates on a rollout: the only one begins at the policy that has sampled."""
        return self.updates_per_step > 1


def totals(rollout: Rollout, options: Any) -> Totals:
    """What the loss divides by, over the completions of a minibatch."""
    return {"grpo": grpo_normalizer(rollout.mask, options, options.sampling.max_new_tokens)}


def loss(
    policy: Scores, rollout: Rollout, frozen: dict[str, Scores], options: Any, total: Totals
) -> tuple[jax.Array, Metrics]:
    """The clipped surrogate on completions [E, T], and the KL from the reference where β is not 0."""
    once = not options.needs_old_logp
    value, metrics = grpo_loss(
        policy.logp,
        policy.logp if once else rollout.old_logp,
        rollout.advantages,
        rollout.mask,
        options,
        ref_logp=rollout.ref_logp,
        normalizer=total["grpo"],
    )
    if once:
        entropy = policy.statistics.entropy
        metrics |= compare_sampling(policy.logp, rollout.old_logp, entropy, rollout.mask)
    return value, metrics


def learn_from_groups(
    scored: dict[str, jax.Array], rewards: jax.Array, completions: Completions, options: Any
) -> tuple[Rollout, Metrics]:
    """Rewards [E] to advantages within the groups of one prompt."""
    grouped = rewards.reshape(-1, options.group_size)
    sampled = (jnp.sum(completions.mask, axis=1) > 0).astype(jnp.float32)
    advantages, metrics = group_advantages(grouped, options, live=sampled.reshape(grouped.shape))
    keep = jnp.ones(rewards.shape, jnp.float32)
    if options.drop_equal_groups:
        keep = jnp.repeat(1.0 - have_equal_scores(grouped).astype(jnp.float32), options.group_size)
    if options.mask_overlong:
        keep = keep * completions.stopped.astype(jnp.float32)
    mask = scored["mask"]
    counted = advantages.reshape(-1)[:, None] * mask
    return plain_rollout(scored | {"mask": mask * keep[:, None]}, advantages=counted), metrics


def credit(
    scored: dict[str, jax.Array],
    scores: jax.Array,
    completions: Completions,
    control: dict[str, Any],
    options: GRPOConfig,
) -> tuple[Rollout, dict[str, Any], Metrics]:
    """Advantages of the shaped scores; the KL stands in the loss."""
    rollout, metrics = learn_from_groups(scored, shape(scores, completions, options), completions, options)
    return rollout, {}, metrics | rollout_metrics(scored, scores, completions, options.missing_eos_penalty)


def reading(options: Any) -> dict[str, Any]:
    """Log-probabilities at the temperature of the sampling, and what is logged where nothing has read them before."""
    return {
        "temperature": options.sampling.temperature,
        "with_statistics": not options.needs_old_logp,
    }


STAGE = OnPolicyStage(
    "grpo",
    data=PROMPTS,
    options=GRPOConfig,
    loss=loss,
    totals=totals,
    reads=sampled_tokens,
    reading=reading,
    credit=credit,
    reference=lambda options: options.beta > 0,
    scores_policy=lambda options: options.needs_old_logp,
    headlines=HEADLINES,
    changeable=("reward", "ptx_data"),
    recipe=published.GRPO,
)
