"""Log-probabilities of tokens from hidden states, without ever holding the [B, T, V] logits.

The token axis is walked in chunks and the backward pass recomputes each chunk's logits. Chunks of tokens that nobody
reads are skipped, see `token_chunks`. A vocabulary-sharded head (`PartitionSpec("tensor", None)`) is used in place:
over V there are only reductions and an element-wise comparison.

On a mesh with data parallelism, call these functions inside `jax.shard_map` over the batch axes, with
`head = jax.lax.pcast(head, batch_axes, to="varying")`. Left to the partitioner they are as correct, but the
head's gradient is then summed over devices once per chunk instead of once, and the default chunk size sees
the global batch.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxalign.models.forward import readout
from jaxalign.models.token_chunks import (
    CHUNKS,
    LEAST_CHUNK,
    Front,
    bring_to_front,
    default_chunk_size,
    scan_tokens,
)
from jaxalign.parallel.sharding import joins_tokens, laid_out

DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")


class TokenStatistics(NamedTuple):
    """What a log shows of a distribution and its target, float32 [B, T]; none of them has a gradient."""

    entropy: jax.Array  # nats
    is_top1: jax.Array  # 1 where no token is likelier than the target
    mean_logit: jax.Array  # over the vocabulary, before the temperature


class TokenLogprobs(NamedTuple):
    """Each float32 [B, T], in nats; `entropy` of the whole distribution at that position, or None."""

    logp: jax.Array
    logsumexp: jax.Array
    entropy: jax.Array | None
    statistics: TokenStatistics | None = None


def token_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    with_entropy: bool = False,
    with_statistics: bool = False,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> TokenLogprobs:
    """log softmax(softcap(hidden @ headᵀ) / temperature) at `targets`.

    Args: `hidden` [B, T, D] and `head` [V, D] of any float dtype; `targets` integer [B, T]; `softcap` c maps
    logits to c · tanh(logits / c) (Gemma 2, arXiv 2408.00118 §2); `with_entropy` an entropy with a gradient,
    `with_statistics` what costs next to nothing beside it and has none; `mask` [B, T] is nonzero where the result is
    read, elsewhere it is 0, without gradient; `chunk_size` tokens per row handled at once, None for
    `default_chunk_size`. Logits and everything after them are float32. The head's gradient is
    summed in float32; the logits' gradient is rounded to the inputs' dtype before its two matrix products.
    A target outside [0, V) gives NaN. Raises TypeError or ValueError for wrong dtypes, shapes or settings.
    """
    _check_readout("hidden", hidden, "head", head)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise TypeError(f"targets is {targets.dtype}; give int32 token ids")
    if targets.shape != hidden.shape[:2]:
        raise ValueError(f"targets has shape {targets.shape}; hidden {hidden.shape} needs {hidden.shape[:2]}")
    if mask is not None and mask.shape != targets.shape:
        raise ValueError(f"mask has shape {mask.shape}, and targets {targets.shape}")
    asked = chunk_size
    chunk_size = _checked_chunk_size(chunk_size, hidden, head, temperature, softcap)
    settings = (temperature, softcap, with_entropy, with_statistics)
    # All in one chunk, the compiler keeps the logits for the backward pass, which costs less than to leave some out.
    # Tokens that lie on several devices are not brought into another order.
    if mask is not None and laid_out() and chunk_size < targets.shape[1]:
        size = asked or min(default_chunk_size(1, head.shape[0]), max(LEAST_CHUNK, targets.size // CHUNKS))
        return _token_logprobs(hidden, head, targets, bring_to_front(mask != 0), *settings, size)
    out: Any = _token_logprobs(hidden, head, targets, None, *settings, chunk_size)
    return out if mask is None else jax.tree.map(lambda x: jnp.where(mask != 0, x, 0.0), out)


def token_kl(
    hidden: jax.Array,
    head: jax.Array,
    ref_hidden: jax.Array,
    ref_head: jax.Array,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Exact KL(policy ‖ reference) over the whole vocabulary at every position: float32 [B, T], in nats.

    `token_divergence` of kind "reverse_kl", with one softcap for both models.
    """
    arrays = (hidden, head, ref_hidden, ref_head)
    return token_divergence(
        *arrays, temperature=temperature, softcap=softcap, ref_softcap=softcap, chunk_size=chunk_size
    )


def token_divergence(
    hidden: jax.Array,
    head: jax.Array,
    ref_hidden: jax.Array,
    ref_head: jax.Array,
    *,
    kind: str = "reverse_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    softcap: float | None = None,
    ref_softcap: float | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Exact divergence of policy p from reference (or teacher) q at every position: float32 [B, T], in nats.

    Kinds, summed over the whole vocabulary:
      reverse_kl  KL(p ‖ q)                                            as on-policy distillation uses it
      forward_kl  KL(q ‖ p)                                            the usual distillation
      jsd         β KL(q ‖ m) + (1 - β) KL(p ‖ m), m = (1 - β) p + β q   GKD, arXiv 2306.13649 eq. 1
    `beta`, in (0, 1), is read by jsd alone; as it approaches 0, jsd / β approaches forward_kl, and as it
    approaches 1, jsd / (1 - β) approaches reverse_kl. TRL names those two kinds beta=0 and beta=1.

    Arguments as for `token_logprobs`; the reference may have another width D and its own `ref_softcap`, but
    needs the same vocabulary. Gradients reach `hidden` and `head` only. Raises TypeError or ValueError for
    wrong dtypes, shapes or settings.
    """
    _check_readout("hidden", hidden, "head", head)
    _check_readout("ref_hidden", ref_hidden, "ref_head", ref_head)
    if hidden.shape[:2] != ref_hidden.shape[:2] or head.shape[0] != ref_head.shape[0]:
        raise ValueError(
            f"policy {hidden.shape}, {head.shape} and reference {ref_hidden.shape}, {ref_head.shape} "
            "must agree in B, T and V"
        )
    if kind not in DIVERGENCES:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(DIVERGENCES)}")
    if not 0 < beta < 1:
        raise ValueError(f"beta is {beta}; give a number between 0 and 1, or choose forward_kl or reverse_kl")
    _check_softcap("ref_softcap", ref_softcap)
    chunk_size = _checked_chunk_size(chunk_size, hidden, head, temperature, softcap)
    ref_hidden, ref_head = lax.stop_gradient((ref_hidden, ref_head))
    settings = _DivergenceSettings(kind, beta, temperature, softcap, ref_softcap, chunk_size)
    return _token_divergence(hidden, head, ref_hidden, ref_head, settings)


def _read_tokens(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    front: Front | None,
    temperature: float,
    softcap: float | None,
    with_entropy: bool,
    with_statistics: bool,
    chunk_size: int,
) -> tuple[TokenLogprobs, tuple[jax.Array, jax.Array]]:
    """The result, and its log-sum-exp as two numbers: the largest logit, and that of all less the largest."""

    def step(_, chunk):
        hidden_c, targets_c = chunk
        logits = _logits(hidden_c, head, temperature, softcap)
        shifted, largest, log_sum = _shift(logits)
        target = jnp.sum(jnp.where(_is_target(targets_c, logits), shifted, 0.0), axis=-1)
        in_vocabulary = (targets_c >= 0) & (targets_c < head.shape[0])
        logp = jnp.where(in_vocabulary, target - log_sum, jnp.nan)
        measured = with_entropy or with_statistics
        entropy: Any = _entropy(shifted - log_sum[..., None]) if measured else None
        statistics = None
        if with_statistics:
            # The largest logit less itself may be off by its rounding, as the compiler computes it twice.
            near = 4 * jnp.finfo(jnp.float32).eps * jnp.maximum(1.0, jnp.abs(largest))
            is_top1 = (in_vocabulary & (target >= -near)).astype(jnp.float32)
            statistics = TokenStatistics(entropy, is_top1, jnp.mean(logits, axis=-1) * temperature)
        out = TokenLogprobs(logp, largest + log_sum, entropy if with_entropy else None, statistics)
        return None, (out, (largest, log_sum))

    return scan_tokens(step, None, (hidden, targets), chunk_size, front)[1]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7, 8))
def _token_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    front: Front | None,
    temperature: float,
    softcap: float | None,
    with_entropy: bool,
    with_statistics: bool,
    chunk_size: int,
) -> TokenLogprobs:
    settings = (temperature, softcap, with_entropy, with_statistics, chunk_size)
    return _read_tokens(hidden, head, targets, front, *settings)[0]


def _token_logprobs_forward(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, front: Front | None, *settings: Any
) -> tuple[TokenLogprobs, tuple]:
    out, sums = _read_tokens(hidden, head, targets, front, *settings)
    return out, (hidden, head, targets, front, sums, out.entropy)


def _token_logprobs_backward(
    temperature: float,
    softcap: float | None,
    with_entropy: bool,
    with_statistics: bool,
    chunk_size: int,
    residuals: tuple,
    cotangents: TokenLogprobs,
) -> tuple[jax.Array, jax.Array, None, None]:
    hidden, head, targets, front, sums, entropy = residuals
    if front is not None:
        cotangents = jax.tree.map(lambda x: jnp.where(front.read, x, 0.0), cotangents)

    def step(d_head, chunk):
        hidden_c, targets_c, (largest_c, log_sum_c), entropy_c, d_out = chunk
        logits = _logits(hidden_c, head, temperature, softcap)
        log_probs = (logits - largest_c[..., None]) - log_sum_c[..., None]
        # d logp = onehot - p,  d logsumexp = p,  d entropy = -p (log p + entropy)
        d_probs = (d_out.logsumexp - d_out.logp)[..., None]
        if with_entropy:
            d_probs = d_probs - d_out.entropy[..., None] * (log_probs + entropy_c[..., None])
        d_target = jnp.where(_is_target(targets_c, logits), d_out.logp[..., None], 0.0)
        d_logits = d_target + d_probs * jnp.exp(log_probs)
        d_hidden_c, d_head_c = _logits_backward(d_logits, logits, hidden_c, head, temperature, softcap)
        return d_head + d_head_c, d_hidden_c

    chunked = (hidden, targets, sums, entropy, cotangents._replace(statistics=None))
    d_head, d_hidden = scan_tokens(step, jnp.zeros_like(head, jnp.float32), chunked, chunk_size, front)
    return d_hidden, d_head.astype(head.dtype), None, None


_token_logprobs.defvjp(_token_logprobs_forward, _token_logprobs_backward)


class _DivergenceSettings(NamedTuple):
    kind: str
    beta: float
    temperature: float
    softcap: float | None
    ref_softcap: float | None
    chunk_size: int


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _token_divergence(
    hidden: jax.Array,
    head: jax.Array,
    ref_hidden: jax.Array,
    ref_head: jax.Array,
    settings: _DivergenceSettings,
) -> jax.Array:
    def step(_, chunk):
        log_p = jax.nn.log_softmax(_logits(chunk[0], head, settings.temperature, settings.softcap))
        log_q = jax.nn.log_softmax(_logits(chunk[1], ref_head, settings.temperature, settings.ref_softcap))
        return None, _divergence(log_p, log_q, settings)

    return scan_tokens(step, None, (hidden, ref_hidden), settings.chunk_size)[1]


def _token_divergence_forward(*arrays_and_settings: Any) -> tuple[jax.Array, tuple]:
    divergence: Any = _token_divergence(*arrays_and_settings)
    return divergence, (*arrays_and_settings[:4], divergence)


def _token_divergence_backward(
    settings: _DivergenceSettings, residuals: tuple, d_divergence: jax.Array
) -> tuple[jax.Array, jax.Array, None, None]:
    hidden, head, ref_hidden, ref_head, divergence = residuals
    readout = (settings.temperature, settings.softcap)

    def step(d_head, chunk):
        hidden_c, ref_hidden_c, divergence_c, d_divergence_c = chunk
        logits = _logits(hidden_c, head, *readout)
        log_p = jax.nn.log_softmax(logits)
        log_q = jax.nn.log_softmax(
            _logits(ref_hidden_c, ref_head, settings.temperature, settings.ref_softcap)
        )
        d_logits = _divergence_backward(d_divergence_c[..., None], log_p, log_q, divergence_c, settings)
        d_hidden_c, d_head_c = _logits_backward(d_logits, logits, hidden_c, head, *readout)
        return d_head + d_head_c, d_hidden_c

    chunked = (hidden, ref_hidden, divergence, d_divergence)
    d_head, d_hidden = scan_tokens(step, jnp.zeros_like(head, jnp.float32), chunked, settings.chunk_size)
    return d_hidden, d_head.astype(head.dtype), None, None


_token_divergence.defvjp(_token_divergence_forward, _token_divergence_backward)


def _divergence(log_p: jax.Array, log_q: jax.Array, settings: _DivergenceSettings) -> jax.Array:
    if settings.kind == "reverse_kl":
        return _kl(log_p, log_q)
    if settings.kind == "forward_kl":
        return _kl(log_q, log_p)
    log_m, beta = _log_mixture(log_p, log_q, settings.beta), settings.beta
    return beta * _kl(log_q, log_m) + (1.0 - beta) * _kl(log_p, log_m)


def _divergence_backward(
    d_divergence: jax.Array,
    log_p: jax.Array,
    log_q: jax.Array,
    divergence: jax.Array,
    settings: _DivergenceSettings,
) -> jax.Array:
    """The gradient at the policy's logits, given that at the divergence as [B, T, 1]."""
    if settings.kind == "forward_kl":
        return d_divergence * (jnp.exp(log_p) - jnp.exp(log_q))
    # d KL(p ‖ q) = p (log p - log q - KL(p ‖ q)); that of jsd is (1 - β) times the same with m in the place of
    # q, as the terms that m's own dependence on p would add cancel.
    log_m, kl = log_q, divergence
    if settings.kind == "jsd":
        log_m = _log_mixture(log_p, log_q, settings.beta)
        d_divergence, kl = d_divergence * (1.0 - settings.beta), _kl(log_p, log_m)
    return d_divergence * jnp.exp(log_p) * (log_p - log_m - kl[..., None])


def _kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def _log_mixture(log_p: jax.Array, log_q: jax.Array, beta: float) -> jax.Array:
    return jnp.logaddexp(log_p + math.log1p(-beta), log_q + math.log(beta))


def _logits(hidden: jax.Array, head: jax.Array, temperature: float, softcap: float | None) -> jax.Array:
    return readout(hidden, head, softcap) / temperature


def _logits_backward(
    d_logits: jax.Array,
    logits: jax.Array,
    hidden: jax.Array,
    head: jax.Array,
    temperature: float,
    softcap: float | None,
) -> tuple[jax.Array, jax.Array]:
    """(d_hidden in hidden's dtype, d_head in float32) from the gradient at the output of `_logits`."""
    shape = hidden.shape
    if softcap is not None:
        d_logits = d_logits * (1.0 - jnp.square(logits * (temperature / softcap)))
    d_logits = (d_logits / temperature).astype(jnp.result_type(hidden, head))
    if joins_tokens():
        # One dimension of tokens, as in `Projection`.
        d_logits, hidden = (x.reshape(1, -1, x.shape[-1]) for x in (d_logits, hidden))
    d_hidden = jnp.einsum("btv,vd->btd", d_logits, head, preferred_element_type=jnp.float32)
    d_head = jnp.einsum("btv,btd->vd", d_logits, hidden, preferred_element_type=jnp.float32)
    return d_hidden.astype(hidden.dtype).reshape(shape), d_head


def _is_target(targets: jax.Array, logits: jax.Array) -> jax.Array:
    # A comparison, not a gather: it stays local to each shard of a sharded vocabulary.
    return lax.broadcasted_iota(targets.dtype, logits.shape, 2) == targets[..., None]


def _shift(logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits less their largest, the largest, and the log-sum-exp of the former.

    Logits near 1,000 less their log-sum-exp would keep the rounding of the latter, 3e-5.
    """
    largest = jnp.max(logits, axis=-1)
    shifted = logits - largest[..., None]
    return shifted, largest, jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))


def _entropy(log_probs: jax.Array) -> jax.Array:
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def _check_readout(hidden_name: str, hidden: jax.Array, head_name: str, head: jax.Array) -> None:
    for name, x in ((hidden_name, hidden), (head_name, head)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{name} is {x.dtype}; give a floating-point array")
    if hidden.ndim != 3 or head.ndim != 2 or hidden.shape[2] != head.shape[1]:
        raise ValueError(
            f"{hidden_name} {hidden.shape} and {head_name} {head.shape} must be [B, T, D] and [V, D]"
        )


def _check_softcap(name: str, softcap: float | None) -> None:
    if softcap is not None and softcap <= 0:
        raise ValueError(f"{name} is {softcap}; give a number above 0, or None for no cap")


def _checked_chunk_size(
    chunk_size: int | None, hidden: jax.Array, head: jax.Array, temperature: float, softcap: float | None
) -> int:
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; give a number above 0")
    _check_softcap("softcap", softcap)
    if chunk_size is None:
        return default_chunk_size(hidden.shape[0], head.shape[0])
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; give at least 1, or None to choose one")
    return chunk_size
