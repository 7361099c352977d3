"""Proximal policy optimisation: the clipped losses and the adaptive KL coefficient."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from jaxalign.errors import ConfigError
from jaxalign.fields import Checked, field
from jaxalign.losses.metrics import Metrics, masked_mean, normalized
from jaxalign.losses.numerics import keep, require_float32

# exp() of a larger log-ratio would overflow squares, and inf * 0 in the backward pass is NaN.
MAX_LOG_RATIO = 20.0


@dataclasses.dataclass(frozen=True)
class PPOObjective(Checked, at="config.ppo"):
    """The settings of `policy_loss`. Raises ConfigError for a clip range that is not positive."""

    # Ratios are clipped to [1 - clip, 1 + clip_high]; None means that clip_high equals clip.
    clip: float = field(0.2, above=0)
    clip_high: float | None = field(None, above=0)
    # Weight of the entropy bonus.
    entropy_coef: float = field(0.0, at_least=0)


def clipped_surrogate(
    log_ratio: jax.Array, advantages: jax.Array, clip: float, clip_high: float | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """-min(r A, clamp(r, 1 - clip, 1 + clip_high) A) for each entry, with r = exp(log_ratio).

    PPO, arXiv 1707.06347 eq. 7; `clip_high` None means `clip`. Log-ratios are held within ±20, outside of
    which the gradient is 0. Returns (loss, r, whether clipping made the loss larger), each of the arguments'
    shape.
    """
    ratio = jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    clipped_ratio = jnp.clip(ratio, 1.0 - clip, 1.0 + (clip if clip_high is None else clip_high))
    unclipped, clipped = -ratio * advantages, -clipped_ratio * advantages
    return jnp.maximum(unclipped, clipped), ratio, clipped > unclipped


def policy_loss(
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    objective: PPOObjective = PPOObjective(),
    *,
    entropy: jax.Array | None = None,
    normalizer: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Token mean of the `clipped_surrogate` of r = π / π_old, less entropy_coef · entropy.

    PPO, arXiv 1707.06347 eq. 7 and 9. Gradients reach `logp` and `entropy` only.

    Args: float32 [B, T]; `normalizer` Σ mask over the global batch. Metrics: `loss/policy_avg` (without the
    entropy term), `policy/clipfrac_avg` (clipping made the loss larger), `policy/approxkl_avg` (half the
    squared log-ratio, as in TRL), `val/ratio`, `val/ratio_sq` (its variance is ratio_sq - ratio²),
    `policy/entropy_avg` when entropy is given. Raises ConfigError when entropy_coef is set without
    `entropy`, TypeError or ValueError for wrong arrays.
    """
    require_float32(logp=logp, old_logp=old_logp, advantages=advantages, mask=mask, entropy=entropy)
    coef = objective.entropy_coef
    if coef and entropy is None:
        raise ConfigError(f"entropy_coef={coef} needs entropy; pass token_logprobs(...).entropy, or 0")
    old_logp, advantages = lax.stop_gradient((keep(old_logp, mask), keep(advantages, mask)))
    log_ratio = keep(logp, mask) - old_logp
    token_loss, ratio, clipped = clipped_surrogate(log_ratio, advantages, objective.clip, objective.clip_high)
    policy = masked_mean(token_loss, mask)
    loss = normalized(policy, normalizer)
    metrics: Metrics = {
        "loss/policy_avg": policy,
        "policy/clipfrac_avg": masked_mean(clipped.astype(jnp.float32), mask),
        "policy/approxkl_avg": masked_mean(0.5 * jnp.square(log_ratio), mask),
        "val/ratio": masked_mean(ratio, mask),
        "val/ratio_sq": masked_mean(jnp.square(ratio), mask),
    }
    if entropy is not None:
        metrics["policy/entropy_avg"] = masked_mean(entropy, mask)
        loss = loss - coef * normalized(metrics["policy/entropy_avg"], normalizer)
    return loss, metrics


def value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip: float,
    normalizer: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Token mean of ½ max((V - R)², (V_clip - R)²), V_clip within ±clip of the old value.

    As in the code of arXiv 2009.01325. `clip=float("inf")` turns the clipping off. Gradients reach `values`
    only. Args: float32 [B, T]; `normalizer` Σ mask over the global batch. Metrics: `loss/value_avg`,
    `val/clipfrac_avg` (clipping made the loss larger). Raises TypeError or ValueError for wrong arrays.
    """
    require_float32(values=values, old_values=old_values, returns=returns, mask=mask)
    values = keep(values, mask)
    old_values, returns = lax.stop_gradient((keep(old_values, mask), keep(returns, mask)))
    unclipped = jnp.square(values - returns)
    clipped = jnp.square(jnp.clip(values, old_values - clip, old_values + clip) - returns)
    loss = masked_mean(0.5 * jnp.maximum(unclipped, clipped), mask)
    metrics: Metrics = {
        "loss/value_avg": loss,
        "val/clipfrac_avg": masked_mean((clipped > unclipped).astype(jnp.float32), mask),
    }
    return normalized(loss, normalizer), metrics


def adaptive_kl(
    coef: jax.Array, kl: jax.Array, *, target: float, horizon: int, num_samples: int
) -> jax.Array:
    """The next KL coefficient: coef · (1 + clip(kl / target - 1, ±0.2) · num_samples / horizon).

    The log-space proportional controller of arXiv 1909.08593 §2.2. Args: float32 scalars `coef` and the
    measured `kl`; `target` in the same units; `horizon` in samples. Raises TypeError unless both are float32,
    ConfigError for a horizon at which one measurement could turn the coefficient to 0 or below.
    """
    if not horizon > 0.2 * num_samples:
        raise ConfigError(
            f"config.ppo.kl_horizon={horizon} is too short for the {num_samples} episodes of a rollout: one of them "
            f"could turn β negative, which pays the policy for leaving its reference; use more than "
            f"{0.2 * num_samples:g}, such as 10000"
        )
    require_float32(coef=coef, kl=kl)
    error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
    return coef * (1.0 + error * (num_samples / horizon))
