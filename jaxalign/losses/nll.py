"""Negative log-likelihood: pretraining and supervised fine-tuning."""

import jax
import jax.numpy as jnp

from jaxalign.errors import ConfigError
from jaxalign.losses.metrics import Metrics, masked_mean, normalized
from jaxalign.losses.numerics import keep, require_float32


def nll_loss(
    logp: jax.Array,
    mask: jax.Array,
    *,
    logsumexp: jax.Array | None = None,
    z_loss: float = 0.0,
    normalizer: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Mean over target tokens of -logp + z_loss · logsumexp² (PaLM, arXiv 2204.02311 §5).

    Args: `logp`, `mask`, `logsumexp` float32 [B, T] aligned with the target token; `normalizer` Σ mask over
    the global batch. Metrics: `nll` in nats per token; `z_loss`, the term as added, when it is on.
    Raises ConfigError when z_loss is on without `logsumexp`; TypeError or ValueError for wrong arrays.
    """
    require_float32(logp=logp, mask=mask, logsumexp=logsumexp)
    nll = masked_mean(-logp, mask)
    if not z_loss:
        return normalized(nll, normalizer), {"nll": nll}
    if logsumexp is None:
        raise ConfigError(f"z_loss={z_loss} needs logsumexp; pass token_logprobs(...).logsumexp, or 0")
    penalty = masked_mean(z_loss * jnp.square(keep(logsumexp, mask)), mask)
    loss = normalized(nll, normalizer) + normalized(penalty, normalizer)
    return loss, {"nll": nll, "z_loss": penalty}
