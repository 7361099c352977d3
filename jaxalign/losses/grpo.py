"""Group-relative policy optimisation and its relatives: several samples of a prompt instead of a critic.

GRPO      arXiv 2402.03300   loss_type="grpo", scale="group", beta=0.04
DAPO      arXiv 2503.14476   loss_type="dapo", scale="group", clip_high=0.28
Dr. GRPO  arXiv 2503.20783   loss_type="dr_grpo", scale="none"
GSPO      arXiv 2507.18071   loss_type="grpo", importance="sequence_mean", clip=3e-4, clip_high=4e-4
RLOO      arXiv 2402.14740   loss_type="grpo", importance="sequence_sum", baseline="leave_one_out", scale="none"
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from jaxalign.errors import ConfigError
from jaxalign.losses.advantages import kl_estimate
from jaxalign.losses.metrics import Mean, Metrics, masked_max, masked_mean, masked_min, normalized
from jaxalign.losses.numerics import is_traced, keep, require_choice, require_float32
from jaxalign.losses.ppo import MAX_LOG_RATIO, clipped_surrogate, require_clip

_CHOICES = {
    "loss_type": ("grpo", "dapo", "bnpo", "dr_grpo"),
    "importance": ("token", "sequence_mean", "sequence_sum"),
    "baseline": ("mean", "leave_one_out"),
    "scale": ("group", "batch", "none"),
}


@dataclasses.dataclass(frozen=True)
class GRPOObjective:
    """The settings of `grpo_loss` and `group_advantages`. Raises ConfigError for a value that cannot work."""

    clip: float = 0.2
    # The upper clip where it differs; None for `clip`.
    clip_high: float | None = None
    # β, weight of the estimate of KL(π ‖ π_ref) in the loss.
    beta: float = 0.0
    # What the loss is a mean over: grpo, sequences of the mean over tokens; dapo or bnpo, tokens (to TRL bnpo
    # means those of one microbatch, which would let microbatches change the loss); dr_grpo, token places.
    loss_type: str = "dapo"
    # The ratio that is clipped: a token's; the geometric mean of a sequence's (TRL: "sequence"); their product.
    importance: str = "token"
    # What an advantage is above: the mean of its whole group, or of the others in it.
    baseline: str = "mean"
    # What it is divided by: the standard deviation of the group's scores, of the batch's, or nothing.
    scale: str = "group"
    # The config section that errors name.
    section = "config.grpo"

    def __post_init__(self) -> None:
        require_clip(self.section, self.clip, self.clip_high)
        for name, choices in _CHOICES.items():
            require_choice(f"{self.section}.{name}", getattr(self, name), choices)
        if not is_traced(self.beta) and not self.beta >= 0:
            raise ConfigError(f"{self.section}.beta={self.beta} must be 0 or more")


def group_advantages(scores: jax.Array, objective: GRPOObjective) -> tuple[jax.Array, Metrics]:
    """Scores less their group's baseline, over (standard deviation + 1e-4) unless scale is "none": [G, k].

    The deviation has the divisor n - 1, as in TRL. A group whose scores are all equal gets exactly 0. Args:
    float32 `scores` of k samples of each of G prompts, the whole batch. Metrics, as in TRL: `reward`,
    `reward_std` over the batch, and `frac_reward_zero_std`, the share of groups with equal scores. Raises
    ConfigError for k = 1, TypeError for wrong arrays.
    """
    require_float32(scores=scores)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ConfigError(f"scores {scores.shape} must be [prompts, samples]; sample a prompt at least twice")
    groups, k = scores.shape
    equal = jnp.max(scores, axis=1, keepdims=True) == jnp.min(scores, axis=1, keepdims=True)
    above = scores - jnp.mean(scores, axis=1, keepdims=True)
    if objective.baseline == "leave_one_out":
        above = above * (k / (k - 1))
    spread = jnp.std(scores, ddof=1)
    if objective.scale == "group":
        above = above / (jnp.std(scores, axis=1, keepdims=True, ddof=1) + 1e-4)
    elif objective.scale == "batch":
        above = above / (spread + 1e-4)
    metrics: Metrics = {
        "reward": Mean(jnp.sum(scores), jnp.float32(scores.size)),
        "reward_std": Mean(spread, jnp.ones(())),
        "frac_reward_zero_std": Mean(jnp.sum(equal, dtype=jnp.float32), jnp.float32(groups)),
    }
    # The mean of equal numbers may differ from them by rounding, which 1 / 1e-4 would blow up.
    return jnp.where(equal, 0.0, above), metrics


def grpo_normalizer(mask: jax.Array, objective: GRPOObjective, max_new_tokens: int) -> jax.Array:
    """What `grpo_loss` divides by: the number of sequences, tokens or token places in the global batch's mask."""
    sequences = jnp.sum(jnp.any(mask != 0, axis=1), dtype=jnp.float32)
    counts = {"grpo": sequences, "dr_grpo": sequences * max_new_tokens}
    return counts.get(objective.loss_type, jnp.sum(mask))


def grpo_loss(
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    objective: GRPOObjective = GRPOObjective(),
    *,
    ref_logp: jax.Array | None = None,
    normalizer: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Mean of the `clipped_surrogate` of π / π_old + β (exp(-d) - 1 + d) with d = log π / π_ref, held above -20.

    arXiv 2402.03300 eq. 3 and 4; `GRPOObjective` says what the mean is over and which ratio is clipped.
    Gradients reach `logp` only.

    Args: float32 [E, T]; `advantages` that or [E]; `ref_logp` needed unless beta is 0; `normalizer` the
    `grpo_normalizer` of the global batch, needed by dr_grpo. Metrics: `loss/policy_avg` (without the KL) and
    `policy/approxkl_avg` as `policy_loss`; as in TRL `clip_ratio/low_mean`, `high_mean`, `region_mean` over
    tokens, or over sequences where the ratio is a sequence's, `clip_ratio/low_min`, `high_max` over
    sequences, and `kl` with a reference; `val/ratio`. Raises ConfigError for a missing argument, TypeError or
    ValueError for wrong arrays.
    """
    if ref_logp is None and (is_traced(objective.beta) or objective.beta):
        raise ConfigError(f"{objective.section}.beta={objective.beta} needs a reference; pass ref_logp, or 0")
    if normalizer is None and objective.loss_type == "dr_grpo":
        raise ConfigError("loss_type='dr_grpo' divides by token places; pass normalizer=grpo_normalizer(...)")
    if advantages.shape == mask.shape[:1]:
        advantages = jnp.broadcast_to(advantages[:, None], mask.shape)
    require_float32(logp=logp, old_logp=old_logp, advantages=advantages, mask=mask, ref_logp=ref_logp)
    old_logp, advantages = lax.stop_gradient((keep(old_logp, mask), keep(advantages, mask)))
    logp = keep(logp, mask)
    length = jnp.sum(mask, axis=1, keepdims=True)
    # A mask whose rows add up to 1, or 0: means weighted with it are over sequences.
    share = mask / jnp.where(length == 0, 1.0, length)
    log_ratio = token_ratio = logp - old_logp
    if objective.importance != "token":
        weight = mask if objective.importance == "sequence_sum" else share
        log_ratio = jnp.broadcast_to(jnp.sum(token_ratio * weight, axis=1, keepdims=True), mask.shape)
    token_loss, ratio, clipped = clipped_surrogate(log_ratio, advantages, objective.clip, objective.clip_high)
    over = share if objective.loss_type == "grpo" else mask
    policy = masked_mean(token_loss, over)
    loss = normalized(policy, normalizer)
    counted = mask if objective.importance == "token" else share
    low, high = (jnp.float32(clipped & side) for side in (advantages < 0, advantages > 0))
    sampled = jnp.float32(length[:, 0] != 0)
    metrics: Metrics = {
        "loss/policy_avg": policy,
        "policy/approxkl_avg": masked_mean(0.5 * jnp.square(token_ratio), mask),
        "val/ratio": masked_mean(ratio, counted),
        "clip_ratio/low_mean": masked_mean(low, counted),
        "clip_ratio/high_mean": masked_mean(high, counted),
        "clip_ratio/region_mean": masked_mean(low + high, counted),
        "clip_ratio/low_min": masked_min(jnp.sum(low * share, axis=1), sampled),
        "clip_ratio/high_max": masked_max(jnp.sum(high * share, axis=1), sampled),
    }
    if ref_logp is not None:
        ref_logp = lax.stop_gradient(keep(ref_logp, mask))
        kl = kl_estimate(jnp.maximum(logp, ref_logp - MAX_LOG_RATIO), ref_logp, "k3")
        metrics["kl"] = masked_mean(kl, mask)
        loss = loss + objective.beta * normalized(masked_mean(kl, over), normalizer)
    return loss, metrics
