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
from jaxalign.fields import Checked, field
from jaxalign.losses.advantages import kl_estimate
from jaxalign.losses.metrics import (
    Metrics,
    deviation,
    masked_max,
    masked_mean,
    masked_min,
    masked_std,
    normalized,
)
from jaxalign.losses.numerics import is_traced, keep, require_float32
from jaxalign.losses.ppo import MAX_LOG_RATIO, clipped_surrogate


@dataclasses.dataclass(frozen=True)
class GRPOObjective(Checked, at="config.grpo"):
    """The settings of `grpo_loss` and `group_advantages`. Raises ConfigError for a value that cannot work."""

    # Ratios are clipped to [1 - clip, 1 + clip_high]; None means that clip_high equals clip.
    clip: float = field(0.2, above=0)
    # The upper clip, where it differs.
    clip_high: float | None = field(None, above=0)
    # β, the weight of the KL estimate in the loss.
    beta: float = field(0.0, at_least=0)
    # How token losses are averaged. grpo: in each sequence, then over sequences. dapo and bnpo: over all tokens
    # (in TRL bnpo averages over one microbatch, but here microbatches never change the loss). dr_grpo: their
    # sum is divided by the number of sequences times max_new_tokens.
    loss_type: str = field("dapo", choices=("grpo", "dapo", "bnpo", "dr_grpo"))
    # Which ratio is clipped: that of each token, its geometric mean over the sequence (which TRL calls
    # "sequence"), or its product over the sequence.
    importance: str = field("token", choices=("token", "sequence_mean", "sequence_sum"))
    # The baseline of a score is the mean of its whole group, or of the other scores in the group.
    baseline: str = field("mean", choices=("mean", "leave_one_out"))
    # Advantages are divided by the standard deviation of scores in the group or in the batch, or not at all.
    scale: str = field("group", choices=("group", "batch", "none"))


def group_advantages(
    scores: jax.Array, objective: GRPOObjective, *, live: jax.Array | None = None
) -> tuple[jax.Array, Metrics]:
    """(score - baseline) / (standard deviation + 1e-4), without the division if scale is "none": [G, k].

    The deviation has the divisor n - 1, as in TRL. A group whose scores are all equal gets exactly 0.
    Args: float32 `scores` [G, k] of k samples for each of G prompts, the whole batch; `live` of that shape, 0 for
    all of a group that only fills up the batch and counts neither in its deviation nor in a metric. Metrics,
    as in TRL: `reward`, `reward_std` over the batch, and `frac_reward_zero_std`, the share of groups with
    equal scores.
    Raises ConfigError for k = 1, TypeError for wrong arrays.
    """
    require_float32(scores=scores, live=live)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ConfigError(f"scores {scores.shape} must be [prompts, samples]; sample a prompt at least twice")
    k = scores.shape[1]
    live = jnp.ones(scores.shape, jnp.float32) if live is None else live
    equal = have_equal_scores(scores)[:, None]
    above = scores - jnp.mean(scores, axis=1, keepdims=True)
    if objective.baseline == "leave_one_out":
        above = above * (k / (k - 1))
    if objective.scale == "group":
        above = above / (jnp.std(scores, axis=1, keepdims=True, ddof=1) + 1e-4)
    elif objective.scale == "batch":
        above = above / (deviation(masked_std(scores, live)) + 1e-4)
    metrics: Metrics = {
        "reward": masked_mean(scores, live),
        "reward_std": masked_std(scores, live),
        "frac_reward_zero_std": masked_mean(equal[:, 0].astype(jnp.float32), live[:, 0]),
    }
    # The mean of equal numbers may differ from them by rounding, which a division by 1e-4 would enlarge.
    return jnp.where(equal, 0.0, above), metrics


def have_equal_scores(scores: jax.Array) -> jax.Array:
    """Of groups [G, k] those whose scores are all the same, and from which nothing can be learned: bool [G]."""
    return jnp.max(scores, axis=1) == jnp.min(scores, axis=1)


def grpo_normalizer(mask: jax.Array, objective: GRPOObjective, max_new_tokens: int) -> jax.Array:
    """What `grpo_loss` divides by, from the mask [E, T] of the global batch: a float32 scalar.

    For grpo the number of sequences with tokens, for dr_grpo that times `max_new_tokens`, else Σ mask.
    """
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
    """Mean of the `clipped_surrogate` of r = π / π_old, plus β times that of exp(-d) - 1 + d, d = log π/π_ref.

    GRPO, arXiv 2402.03300 eq. 3 and 4; `GRPOObjective` says how the mean is taken and which ratio is clipped.
    Gradients reach `logp` only. d is held above -20, so that its exponential stays finite.

    Args: float32 [E, T], but `advantages` may be [E]; `ref_logp` is needed unless beta is 0; `normalizer` is
    the `grpo_normalizer` of the global batch, which dr_grpo needs. Metrics: `loss/policy_avg` (without the
    KL), `policy/approxkl_avg`, `val/ratio` and `val/ratio_sq` as for `policy_loss`; as in TRL `kl` when there is a
    reference, and how often clipping made the loss larger: `clip_ratio/low_mean`, `clip_ratio/high_mean` and
    `clip_ratio/region_mean` over tokens (over sequences if the ratio is a sequence's), `clip_ratio/low_min`
    and `clip_ratio/high_max` over sequences. Raises ConfigError for a missing argument, TypeError or
    ValueError for wrong arrays.
    """
    if ref_logp is None and (is_traced(objective.beta) or objective.beta):
        raise ConfigError(f"{objective.key('beta')}={objective.beta} needs a reference; pass ref_logp, or 0")
    if normalizer is None and objective.loss_type == "dr_grpo":
        raise ConfigError("loss_type='dr_grpo' reads max_new_tokens; pass normalizer=grpo_normalizer(...)")
    if advantages.shape == mask.shape[:1]:
        advantages = jnp.broadcast_to(advantages[:, None], mask.shape)
    require_float32(logp=logp, old_logp=old_logp, advantages=advantages, mask=mask, ref_logp=ref_logp)
    old_logp, advantages = lax.stop_gradient((keep(old_logp, mask), keep(advantages, mask)))
    logp = keep(logp, mask)
    length = jnp.sum(mask, axis=1, keepdims=True)
    # The weights of a mean over sequences: they add up to 1 in each sequence that has tokens.
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
        "val/ratio_sq": masked_mean(jnp.square(ratio), counted),
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
