"""How likely held-out text is under a model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data import Dataset, eval_batches
from jaxalign.models import ModelConfig, Params
from jaxalign.models.scoring import score_tokens
from jaxalign.parallel import batch_sharding


@functools.partial(jax.jit, static_argnames=("config",))
def _sums(params, config, tokens, positions, segment_ids, loss_mask):
    logp = score_tokens(params, config, tokens, positions, segment_ids).logp
    return -jnp.sum(logp * loss_mask), jnp.sum(loss_mask)


def mean_nll(params: Params, config: ModelConfig, dataset: Dataset, *, batch_size: int) -> float:
    """Negative log-likelihood of a dataset's supervised tokens, in nats a token; exp of it is the perplexity."""
    layout = batch_sharding(jax.sharding.get_mesh())
    total, count = np.float64(0), np.float64(0)
    for batch in eval_batches(dataset.rows, batch_size):
        arrays = (batch.tokens, batch.positions, batch.segment_ids, batch.loss_mask)
        nll, tokens = _sums(params, config, *jax.device_put(arrays, layout))
        total, count = total + float(nll), count + float(tokens)
    return float(total / count)
