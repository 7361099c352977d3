"""A reward model's scores of preference pairs, and of completions."""

import functools

import jax
import numpy as np

from jaxalign.data import Dataset, eval_batches
from jaxalign.models import ModelConfig, Params
from jaxalign.models.finite import check_ids
from jaxalign.models.scoring import segment_rewards
from jaxalign.parallel import batch_sharding


@functools.partial(jax.jit, static_argnames=("config", "num_segments"))
def _scores(params, config, tokens, positions, segment_ids, num_segments):
    return segment_rewards(params, config, tokens, positions, segment_ids, num_segments)


def pair_scores(
    params: Params, config: ModelConfig, dataset: Dataset, *, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the chosen and the rejected response of every pair of a preference dataset.

    Returns:
      Record numbers int32 [N] and scores float32 [N, 2].
    """
    layout = batch_sharding(jax.sharding.get_mesh())
    numbers, scores = [], []
    for batch in eval_batches(dataset.rows, batch_size):
        check_ids(batch.tokens, config)
        arrays = jax.device_put((batch.tokens, batch.positions, batch.segment_ids), layout)
        per_segment = np.asarray(_scores(params, config, *arrays, num_segments=batch.rows.shape[1]))
        row, pair = np.nonzero(batch.weight)
        chosen, rejected = batch.chosen[row, pair] - 1, batch.rejected[row, pair] - 1
        numbers.append(batch.rows[row, chosen])
        scores.append(np.stack((per_segment[row, chosen], per_segment[row, rejected]), axis=1))
    return np.concatenate(numbers), np.concatenate(scores)


def completion_scores(
    params: Params, config: ModelConfig, dataset: Dataset, *, batch_size: int
) -> np.ndarray:
    """The score of every record of an SFT dataset: float32, NaN for records that were dropped."""
    layout = batch_sharding(jax.sharding.get_mesh())
    scores = np.full(sum(map(len, dataset.sources)), np.nan, np.float32)
    for batch in eval_batches(dataset.rows, batch_size):
        check_ids(batch.tokens, config)
        arrays = jax.device_put((batch.tokens, batch.positions, batch.segment_ids), layout)
        per_segment = np.asarray(_scores(params, config, *arrays, num_segments=batch.rows.shape[1]))
        scores[batch.rows[batch.rows >= 0]] = per_segment[batch.rows >= 0]
    return scores
