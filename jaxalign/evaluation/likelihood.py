"""How likely held-out data is under a model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data import Dataset, eval_batches
from jaxalign.data.batch import segment_sums
from jaxalign.models import ModelConfig, Params
from jaxalign.models.finite import check_ids
from jaxalign.models.scoring import score_tokens
from jaxalign.parallel import batch_sharding


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Of N sequences under a model. Both sequences of a pair have the number of its record; NumPy arrays of [N]."""

    rows: np.ndarray  # int32: number of the record
    nll: np.ndarray  # float64: of its supervised tokens, nats
    tokens: np.ndarray  # float64: how many they are
    # -1: not the rejected sequence of a pair; else the index of the chosen one.
    rejected_of: np.ndarray  # int32

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the chosen and the rejected sequence of each pair stand: int [pairs] twice."""
        rejected = np.flatnonzero(self.rejected_of >= 0)
        return self.rejected_of[rejected], rejected


@functools.partial(jax.jit, static_argnames=("config", "num_segments"))
def _sums(params, config, tokens, positions, segment_ids, loss_mask, num_segments):
    logp = score_tokens(params, config, tokens, positions, segment_ids).logp
    sums = functools.partial(segment_sums, segment_ids=segment_ids, num_segments=num_segments)
    return jnp.stack((sums(-logp * loss_mask), sums(loss_mask)), axis=-1)


def likelihood(params: Params, config: ModelConfig, dataset: Dataset, *, batch_size: int) -> Likelihood:
    """Measures each sequence of a dataset of any kind that is learned by likelihood; inside `parallel.use_mesh`."""
    layout = batch_sharding(jax.sharding.get_mesh())
    rows, sums, rejected_of, start = [], [], [], 0
    for batch in eval_batches(dataset.rows, batch_size):
        check_ids(batch.tokens, config)
        arrays = jax.device_put((batch.tokens, batch.positions, batch.segment_ids, batch.loss_mask), layout)
        per_segment = np.asarray(_sums(params, config, *arrays, num_segments=batch.rows.shape[1]), np.float64)
        used = np.nonzero(batch.rows >= 0)
        index = np.full(batch.rows.shape, -1, np.int32)
        index[used] = start + np.arange(len(used[0]), dtype=np.int32)
        partner = np.full(batch.rows.shape, -1, np.int32)
        if hasattr(batch, "rejected"):
            row, pair = np.nonzero(batch.rejected)
            partner[row, batch.rejected[row, pair] - 1] = index[row, batch.chosen[row, pair] - 1]
        rows.append(batch.rows[used])
        sums.append(per_segment[used])
        rejected_of.append(partner[used])
        start += len(used[0])
    nll, tokens = np.concatenate(sums).T
    return Likelihood(np.concatenate(rows), nll, tokens, np.concatenate(rejected_of))


def mean_nll(params: Params, config: ModelConfig, dataset: Dataset, *, batch_size: int) -> float:
    """Negative log-likelihood of a dataset's supervised tokens, in nats a token; exp of it is the perplexity."""
    found = likelihood(params, config, dataset, batch_size=batch_size)
    return float(found.nll.sum() / found.tokens.sum())
