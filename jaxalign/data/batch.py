"""The one batch schema every stage consumes: arrays only, host NumPy or device JAX alike.

B rows, T token slots per row, S segments per row, P pairs per row, L tokens of an ending. A segment is one
sequence; several share a row and are told apart by `segment_ids`. A row never needs its neighbours.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.models.packed import Layout

Array = Any  # numpy.ndarray on the host, jax.Array (or its abstract shape) on the device


@struct.dataclass
class Batch:
    """Packed sequences for pretraining and SFT.

    The mask of an NLL that also covers the prompt needs no field of its own: it is
    `(segment_ids > 0) & (positions > 0)`.
    """

    tokens: Array  # [B, T] int32
    positions: Array  # [B, T] int32, from 0 in every segment
    segment_ids: Array  # [B, T] int32, from 1 in every row; 0 is padding
    loss_mask: Array  # [B, T] float32; 1 where tokens[b, t] is a target. Never the first token of a segment
    rows: Array  # [B, S] int32, dataset record of segment s + 1; -1 for none


@struct.dataclass
class PairBatch:
    """Packed sequences and which of them are compared; a pair or ranking never leaves its row.

    Pair k of ordinary pairs is segments 2k + 1 (chosen) and 2k + 2 (rejected). A demonstration among pairs is
    a chosen sequence with none rejected.
    """

    tokens: Array  # [B, T] int32
    positions: Array  # [B, T] int32
    segment_ids: Array  # [B, T] int32
    loss_mask: Array  # [B, T] float32
    rows: Array  # [B, S] int32
    chosen: Array  # [B, P] int32, segment id of the preferred sequence; 0 for no pair
    rejected: Array  # [B, P] int32, segment id of the other one; 0 for no pair, and for a demonstration
    weight: Array  # [B, P] float32: 1 for a pair, 1 / n for each of the n in a ranking, 0 for none
    margin: Array  # [B, P] float32, the annotators' margin; 0 where none was given
    ref_logp: Array  # [B, S] float32, cached reference log-probability of segment s + 1; 0 if unused
    layout: Layout | None = None  # by which models read the tokens of a prompt once

    def pick(self, per_segment: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The values of the chosen and of the rejected sequence of each pair: [B, S] -> [B, P] twice."""
        return pick(per_segment, self.chosen), pick(per_segment, self.rejected)

    def pair_sums(self, x: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Sums of x [B, T] over the supervised tokens of both sequences of each pair: [B, P] twice.

        `mask` [B, T] counts other tokens than the supervised ones.
        """
        counted = self.loss_mask if mask is None else mask
        return self.pick(segment_sums(x * counted, self.segment_ids, self.rows.shape[1]))

    def weight_of(self, segments: jax.Array) -> jax.Array:
        """What supervised tokens of segments [B, P], one side of each pair, weigh: float32 [B, T].

        A response that is on that side of several pairs, as in a ranking, weighs what they weigh together.
        """
        return self.loss_mask * jnp.sum(
            is_inside(self.segment_ids, segments) * self.weight[:, None, :], axis=-1
        )

    def pair_lengths(self, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Supervised tokens of both sequences of each pair: float32 [B, P] twice."""
        return self.pair_sums(jnp.ones_like(self.loss_mask), mask)


@struct.dataclass
class PromptBatch:
    """One left-padded prompt per row, ready for sampling to continue at column T."""

    tokens: Array  # [B, T] int32
    positions: Array  # [B, T] int32, 0 at the first real token
    segment_ids: Array  # [B, T] int32, 1 on the prompt and 0 on the padding
    rows: Array  # [B] int32, dataset record of the prompt; -1 for an empty row
    # [B, L] int32: what ends an answer where it is trained on, from the stop token on; -1 after it. A reward model
    # reads its score there. None: the stop token that was sampled.
    ending: Array | None = None


def pick(per_segment: jax.Array, segments: jax.Array) -> jax.Array:
    """Of values [B, S] those of segments [B, P], numbered from 1; of the first one where there is none."""
    return jnp.take_along_axis(per_segment, jnp.maximum(segments - 1, 0), axis=1)


def is_inside(segment_ids: jax.Array, segments: jax.Array) -> jax.Array:
    """Whether tokens [B, T] lie in each of the segments [B, P] of their row, numbered from 1: bool [B, T, P]."""
    return (segment_ids[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]


def segment_sums(x: jax.Array, segment_ids: jax.Array, num_segments: int) -> jax.Array:
    """Sums of x [B, T] over segments 1..S: float32 [B, S]."""
    member = jax.nn.one_hot(segment_ids - 1, num_segments, dtype=x.dtype)
    return jnp.einsum("bt,bts->bs", x, member, precision=jax.lax.Precision.HIGHEST)


@struct.dataclass
class UnpairedBatch:
    """Packed completions, each judged alone, with what the KL estimate of KTO needs beside each.

    A mismatched sequence is the prompt of a completion followed by the completion of another record. It stands in the
    same row, and its completion tokens count in `loss_mask`, so that both are summed alike.
    """

    tokens: Array  # [B, T] int32
    positions: Array  # [B, T] int32
    segment_ids: Array  # [B, T] int32
    loss_mask: Array  # [B, T] float32
    rows: Array  # [B, S] int32; of a mismatched sequence, the record that its prompt is from
    completion: Array  # [B, P] int32, segment id of the judged sequence; 0 for none
    mismatched: Array  # [B, P] int32, segment id of the mismatched one; 0 for none
    desirable: Array  # [B, P] float32: 1 for a desirable completion, 0 for an undesirable one and for none
    weight: Array  # [B, P] float32: 1 for a completion, 0 for none
    ref_logp: Array  # [B, S] float32, cached reference log-probability of segment s + 1; 0 if unused
    layout: Layout | None = None  # by which models read the tokens of a prompt once

    def pick(self, per_segment: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The values of each completion and of its mismatched sequence: [B, S] -> [B, P] twice."""
        return pick(per_segment, self.completion), pick(per_segment, self.mismatched)

    def mask_of(self, segments: jax.Array) -> jax.Array:
        """The supervised tokens of segments [B, P]: float32 [B, T]."""
        return self.loss_mask * jnp.any(is_inside(self.segment_ids, segments), axis=-1)

    def sums(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Sums of x [B, T] over the supervised tokens of both: [B, P] twice."""
        return self.pick(segment_sums(x * self.loss_mask, self.segment_ids, self.rows.shape[1]))


# The arrays of each struct: their axes, by the letters above, and dtype.
_INT: np.dtype = np.dtype(np.int32)
_FLOAT: np.dtype = np.dtype(np.float32)
_TOKENS = dict.fromkeys(("tokens", "positions", "segment_ids"), ("BT", _INT))
_PACKED = _TOKENS | {"loss_mask": ("BT", _FLOAT), "rows": ("BS", _INT)}
ARRAYS: dict[type, dict[str, tuple[str, np.dtype]]] = {
    Batch: _PACKED,
    PairBatch: _PACKED
    | dict.fromkeys(("chosen", "rejected"), ("BP", _INT))
    | dict.fromkeys(("weight", "margin"), ("BP", _FLOAT))
    | {"ref_logp": ("BS", _FLOAT)},
    UnpairedBatch: _PACKED
    | dict.fromkeys(("completion", "mismatched"), ("BP", _INT))
    | dict.fromkeys(("desirable", "weight"), ("BP", _FLOAT))
    | {"ref_logp": ("BS", _FLOAT)},
    PromptBatch: _TOKENS | {"rows": ("B", _INT), "ending": ("BL", _INT)},
}
