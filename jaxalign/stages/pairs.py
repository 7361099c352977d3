"""What the stages on preferences share: sums over the two sequences of each packed pair.

Shapes: B rows, T tokens, S segments a row, P pairs a row.
"""

import jax
import jax.numpy as jnp

from jaxalign.data import PairBatch
from jaxalign.models.scoring import segment_sums
from jaxalign.stages.router import real_tokens


def totals(batch: PairBatch) -> dict[str, jax.Array]:
    """What pair losses divide by: the weight of the pairs of the whole batch."""
    return {"pairs": batch.weight.sum()} | real_tokens(batch)


def pick(per_segment: jax.Array, batch: PairBatch) -> tuple[jax.Array, jax.Array]:
    """The values of the chosen and of the rejected sequence of each pair: [B, S] -> [B, P] twice."""
    chosen = jnp.take_along_axis(per_segment, jnp.maximum(batch.chosen - 1, 0), axis=1)
    rejected = jnp.take_along_axis(per_segment, jnp.maximum(batch.rejected - 1, 0), axis=1)
    return chosen, rejected


def pair_sums(x: jax.Array, batch: PairBatch) -> tuple[jax.Array, jax.Array]:
    """Sums of x [B, T] over the chosen and over the rejected sequence of each pair: [B, P] twice."""
    return pick(segment_sums(x, batch.segment_ids, batch.rows.shape[1]), batch)
