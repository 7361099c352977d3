"""From rewards to advantages: KL penalties, score shaping, generalised advantage estimation, whitening."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxalign.errors import ConfigError
from jaxalign.losses.metrics import masked_mean, normalized
from jaxalign.losses.numerics import keep, require_float32


def kl_estimate(logp: jax.Array, ref_logp: jax.Array, kind: str) -> jax.Array:
    """Per-token estimate of KL(policy ‖ reference) from a sampled token: float32, shape of `logp`.

    With d = logp - ref_logp (Schulman 2020, "Approximating KL divergence"): k1 = d, unbiased; k2 = d² / 2,
    biased; k3 = exp(-d) - 1 + d, unbiased, never negative, infinite for d below about -88.
    Raises ConfigError for another kind ("exact" is `token_kl`), TypeError or ValueError for wrong arrays.
    """
    require_float32(logp=logp, ref_logp=ref_logp)
    d = logp - ref_logp
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * jnp.square(d)
    if kind == "k3":
        return jnp.expm1(-d) + d
    raise ConfigError(f"KL estimator is {kind!r}; choose k1, k2 or k3")


def shape_scores(
    scores: jax.Array,
    *,
    has_eos: jax.Array,
    missing_eos_penalty: float | None = None,
    clip: float | None = None,
    scale: float = 1.0,
) -> jax.Array:
    """Scores [B] times `scale`, then clipped to ±clip, then less the penalty where `has_eos` [B] is False.

    The penalty comes last so that clipping cannot absorb it: it is in the units of the shaped score.
    Raises TypeError unless `scores` is float32 and `has_eos` bool; ValueError for different shapes.
    """
    require_float32(scores=scores)
    if has_eos.dtype != jnp.bool_:
        raise TypeError(f"has_eos is {has_eos.dtype}; give a bool array")
    if has_eos.shape != scores.shape:
        raise ValueError(f"shapes differ: scores {scores.shape}, has_eos {has_eos.shape}")
    scores = scores * scale
    if clip is not None:
        scores = jnp.clip(scores, -clip, clip)
    if missing_eos_penalty is not None:
        scores = jnp.where(has_eos, scores, scores - missing_eos_penalty)
    return scores


def token_rewards(
    scores: jax.Array, kl: jax.Array, mask: jax.Array, *, kl_coef: float | jax.Array
) -> jax.Array:
    """-kl_coef · kl at every masked token, plus the row's score at its last masked token: [B, T].

    arXiv 2203.02155 eq. 2. "Last" is by `mask` alone, never by a token id. A row without masked tokens gets 0
    everywhere. Args: `scores` [B]; `kl`, `mask` [B, T]. Raises TypeError or ValueError for wrong arrays.
    """
    require_float32(kl=kl, mask=mask)
    _require_rows("scores", scores, kl)
    position = lax.broadcasted_iota(jnp.int32, mask.shape, 1)
    last = jnp.max(jnp.where(mask != 0, position, -1), axis=1, keepdims=True)
    return -kl_coef * keep(kl, mask) + jnp.where(position == last, scores[:, None], 0.0)


def gae(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    gamma: float,
    lam: float,
    bootstrap: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimates and returns (advantages + values), each [B, T].

    arXiv 1506.02438 eq. 16. Time is counted in masked tokens: an entry with mask 0 between them (an
    observation) takes no step, its reward and value are ignored, and its results are 0. Args: float32 [B,
    T]; `bootstrap` [B] the value of the state after each row's last masked token, None for 0 (terminated).
    Raises TypeError or ValueError for wrong arrays.
    """
    require_float32(rewards=rewards, values=values, mask=mask)
    if bootstrap is None:
        bootstrap = jnp.zeros_like(values[:, 0])
    _require_rows("bootstrap", bootstrap, values)
    rewards, values = keep(rewards, mask), keep(values, mask)

    def step(carry, entry):
        next_value, next_advantage = carry
        reward, value, is_step = entry
        advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        carry = (jnp.where(is_step, value, next_value), jnp.where(is_step, advantage, next_advantage))
        return carry, jnp.where(is_step, advantage, 0.0)

    entries = (rewards.T, values.T, (mask != 0).T)
    _, advantages = lax.scan(step, (bootstrap, jnp.zeros_like(bootstrap)), entries, reverse=True)
    return advantages.T, advantages.T + values


def whiten(x: jax.Array, mask: jax.Array, *, shift_mean: bool = True) -> jax.Array:
    """Scale `x` to unit variance and, if `shift_mean`, to zero mean, over all masked entries; 0 elsewhere.

    Raises TypeError or ValueError for wrong arrays.
    """
    require_float32(x=x, mask=mask)
    x = keep(x, mask)
    mean = normalized(masked_mean(x, mask))
    whitened = (x - mean) * inverse_std(x, mask)
    return keep(whitened if shift_mean else whitened + mean, mask)


def inverse_std(x: jax.Array, mask: jax.Array) -> jax.Array:
    """1 / sqrt(population variance + 1e-8) over all masked entries, a float32 scalar."""
    mean = normalized(masked_mean(x, mask))
    return lax.rsqrt(normalized(masked_mean(jnp.square(keep(x, mask) - mean), mask)) + 1e-8)


def _require_rows(name: str, x: jax.Array, like: jax.Array) -> None:
    require_float32(**{name: x})
    if x.shape != like.shape[:1]:
        raise ValueError(f"{name} has shape {x.shape}; rows of {like.shape} need {like.shape[:1]}")
