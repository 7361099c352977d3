"""Token-level data and losses of a `Session`: sequences of ids with a weight or an advantage for each token.

A datum is a dict of lists of one length, of which entry t is about token t:

    {"tokens": [...], "weights": [...]}                       cross_entropy
    {"tokens": [...], "logprobs": [...], "advantages": [...]} importance_sampling, ppo

`logprobs` are those of the model that sampled the tokens. Losses are sums over tokens, so that the gradients of
several calls add up to that of all their data in one. Shapes: B sequences, T token slots.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import ConfigError, DataError
from jaxalign.losses.metrics import Metrics, masked_mean
from jaxalign.losses.ppo import MAX_LOG_RATIO, clipped_surrogate
from jaxalign.models.scoring import Scores

VALUES = ("weights", "logprobs", "advantages")


@flax.struct.dataclass
class TokenBatch:
    """Sequences as a token-level loss sees them; all of a value that a datum does not give is 0."""

    tokens: jax.Array  # [B, T] int32
    positions: jax.Array  # [B, T] int32
    segment_ids: jax.Array  # [B, T] int32, 1 on tokens and 0 on padding
    weights: jax.Array  # [B, T] float32
    logprobs: jax.Array  # [B, T] float32
    advantages: jax.Array  # [B, T] float32


def cross_entropy(policy: Scores, batch: TokenBatch) -> tuple[jax.Array, Metrics]:
    """Σ_t -w_t log π(y_t)."""
    return -jnp.sum(policy.logp * batch.weights), {"nll": masked_mean(-policy.logp, batch.weights)}


def importance_sampling(policy: Scores, batch: TokenBatch) -> tuple[jax.Array, Metrics]:
    """Σ_t -r_t A_t, with r = π / π_old: the policy gradient, corrected for the policy that sampled."""
    return _surrogate(policy, batch, float("inf"), float("inf"))


def ppo(
    policy: Scores, batch: TokenBatch, *, clip_low_threshold: float = 0.8, clip_high_threshold: float = 1.2
) -> tuple[jax.Array, Metrics]:
    """Σ_t -min(r_t A_t, clamp(r_t, low, high) A_t), with r = π / π_old (arXiv 1707.06347, eq. 7)."""
    return _surrogate(policy, batch, 1 - clip_low_threshold, clip_high_threshold - 1)


def _surrogate(policy: Scores, batch: TokenBatch, clip: float, clip_high: float) -> tuple[jax.Array, Metrics]:
    log_ratio = policy.logp - batch.logprobs
    learned = (batch.advantages != 0).astype(jnp.float32)
    if np.isinf(clip):
        ratio = jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
        return -jnp.sum(ratio * batch.advantages), {"ratio": masked_mean(ratio, learned)}
    losses, ratio, clipped = clipped_surrogate(log_ratio, batch.advantages, clip, clip_high)
    metrics: Metrics = {
        "ratio": masked_mean(ratio, learned),
        "clip_fraction": masked_mean(clipped.astype(jnp.float32), learned),
    }
    return jnp.sum(losses), metrics


# The losses by name, and what a datum must give for each.
TOKEN_LOSSES = {
    "cross_entropy": (cross_entropy, ("weights",)),
    "importance_sampling": (importance_sampling, ("logprobs", "advantages")),
    "ppo": (ppo, ("logprobs", "advantages")),
}


def encode_tokens(
    data: Sequence[Mapping[str, Any]], vocab_size: int, max_length: int, needed: Sequence[str] = ()
) -> TokenBatch:
    """A batch as wide as the next power of two, at least 16, so that few shapes are compiled.

    Args:
      vocab_size, max_length: of the model.
      needed: values that every datum must give.

    Raises:
      DataError: a datum cannot be used; names its number, counted from 1.
    """
    arrays = [_datum(datum, vocab_size, max_length, needed, f"data:{i}") for i, datum in enumerate(data, 1)]
    shape = (len(arrays), slots(max(len(x["tokens"]) for x in arrays)))
    out: dict[str, Any] = {name: np.zeros(shape, np.float32) for name in VALUES}
    out |= {name: np.zeros(shape, np.int32) for name in ("tokens", "positions", "segment_ids")}
    for b, found in enumerate(arrays):
        length = len(found["tokens"])
        out["positions"][b, :length], out["segment_ids"][b, :length] = np.arange(length), 1
        for name, values in found.items():
            out[name][b, :length] = values
    return TokenBatch(**out)


def slots(length: int) -> int:
    """The power of two, at least 16, that holds `length` tokens."""
    return max(16, 1 << (length - 1).bit_length())


def check_tokens(ids: np.ndarray, vocab_size: int, max_length: int, where: str) -> None:
    """Checks that a model has rows for ids [T], and is made for so many.

    Raises:
      DataError: it has not, or is not; begins with `where`.
    """
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        wrong = next(int(i) for i in ids if not 0 <= i < vocab_size)
        raise DataError(f"{where}: token {wrong} is not in the vocabulary of {vocab_size}")
    if len(ids) > max_length:
        raise DataError(f"{where}: {len(ids)} tokens, and the model is made for {max_length}; shorten it")


def _datum(
    datum: Mapping[str, Any], vocab_size: int, max_length: int, needed: Sequence[str], where: str
) -> dict[str, np.ndarray]:
    known = ("tokens", *VALUES)
    if not isinstance(datum, Mapping) or "tokens" not in datum:
        raise DataError(f"{where}: give a dict with 'tokens' and, of one length with it, {', '.join(VALUES)}")
    for name in datum:
        if name not in known:
            raise DataError(f"{where}: {name!r} is none of {', '.join(known)}")
    for name in needed:
        if name not in datum:
            raise DataError(f"{where}: {name!r} is missing, which this loss needs, one for each token")
    ids = np.asarray(datum["tokens"])
    if ids.ndim != 1 or len(ids) < 2 or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f"{where}: tokens must be two or more whole numbers, a context and a target")
    check_tokens(ids, vocab_size, max_length, where)
    out = {"tokens": ids}
    for name in VALUES:
        if name not in datum:
            continue
        try:
            values = np.asarray(datum[name], np.float32)
        except (TypeError, ValueError):
            raise DataError(f"{where}: {name} must be numbers, one for each token") from None
        if values.shape != ids.shape:
            raise DataError(
                f"{where}: {name} has shape {list(values.shape)} and tokens {list(ids.shape)}; give one for each token"
            )
        if not np.isfinite(values).all():
            raise DataError(f"{where}: {name}[{int(np.argmin(np.isfinite(values)))}] is not finite")
        if name != "logprobs" and values[0] != 0:
            raise DataError(
                f"{where}: {name}[0]={values[0]:g} must be 0: nothing comes before the first token to predict it from"
            )
        out[name] = values
    return out


def token_loss(name: str, settings: Mapping[str, Any]) -> tuple[tuple[tuple[str, Any], ...], tuple[str, ...]]:
    """The settings of a named loss as it takes them, and what its data must give.

    Raises:
      ConfigError: a setting that the loss does not have, or that cannot work.
    """
    known: tuple[str, ...] = ("clip_low_threshold", "clip_high_threshold") if name == "ppo" else ()
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(f"loss_fn_config.{key}: {name!r} takes {', '.join(known) or 'no settings'}")
        low, high = (0, 1) if key == "clip_low_threshold" else (1, np.inf)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value < high or (low == 1 and value == 1):
            raise ConfigError(f"loss_fn_config.{key}={value!r}: give a ratio between {low} and {high}")
    return tuple(sorted(settings.items())), TOKEN_LOSSES[name][1]
