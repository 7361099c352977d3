"""How many rows the completions of a rollout take, and which stands in which: see `models.packed`."""

from typing import Any

import jax
import numpy as np

from jaxalign.data.packing import pack
from jaxalign.models.packed import Layout
from jaxalign.parallel import processes
from jaxalign.parallel.sharding import shards
from jaxalign.training.open import Run

# Numbers of rows, as parts of the number of completions. Each that occurs is compiled: so they are few, and rows are
# packed where at most half of them are left.
SIZES = (1 / 8, 1 / 4, 1 / 2, 1)


def lay_out(
    starts: np.ndarray, lengths: np.ndarray, width: int, *, parts: int, multiple: int
) -> Layout | None:
    """The layout, in NumPy, of E sequences, each of which stands in slots [start, start + length) of a row of its own.

    Args:
      starts, lengths: int [E]; a length of 0 is an empty row.
      width: T.
      parts: microbatches: sequence e belongs to number e % parts, as does row r, see `slices`.
      multiple: of which the rows of a microbatch are one.

    Returns:
      None where packing would save no row.
    """
    count = len(lengths) // parts
    whole = [np.flatnonzero(lengths[part::parts]) for part in range(parts)]
    bins = [
        pack(lengths[part::parts][live], width, max_segments=max(1, len(live)))
        for part, live in enumerate(whole)
    ]
    sizes = (-(-int(np.ceil(size * count)) // multiple) * multiple for size in SIZES)
    rows = next(size for size in sizes if size >= max(map(len, bins)))
    if rows >= count:
        return None
    source: Any = np.full((rows * parts, width), -1, np.int32)
    place: Any = np.full((len(lengths), width), -1, np.int32)
    segment_ids: Any = np.zeros_like(source)
    for part, live in enumerate(whole):
        for number, row in enumerate(range(part, part + len(bins[part]) * parts, parts)):
            at = 0
            for segment, index in enumerate(live[np.asarray(bins[part][number])].tolist(), 1):
                own = index * parts + part
                start, slots = int(starts[own]), np.arange(int(lengths[own]))
                source[row, at + slots] = index * width + start + slots
                place[own, start + slots] = number * width + at + slots
                segment_ids[row, at + slots] = segment
                at += len(slots)
    return Layout(source, place, segment_ids)


class Packer:
    """Lays out the completions of a run, as the option of its stage says."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._packs = run.config.options.pack_completions
        self._multiple = shards(run.mesh, "batch")

    def __call__(self, segment_ids: jax.Array) -> Layout | None:
        """The layout of sequences [E, T], for all of them at once."""
        found = self.several(segment_ids, np.arange(len(segment_ids))[None], parts=1)
        return found[0]

    def several(self, segment_ids: jax.Array, chosen: np.ndarray, *, parts: int) -> list[Layout | None]:
        """The layout of each of several choices [n, e] among sequences [E, T], for microbatches."""
        if not self._packs:
            return [None] * len(chosen)
        starts, lengths = (processes.fetch_whole(x) for x in _spans(segment_ids))
        width = segment_ids.shape[1]
        settings: Any = {"parts": parts, "multiple": self._multiple}
        found = [lay_out(starts[rows], lengths[rows], width, **settings) for rows in chosen]
        return [None if layout is None else self._place(layout) for layout in found]

    def _place(self, layout: Layout) -> Layout:
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, self._run.rows_sharding, lambda index: x[index]),
            layout,
        )


@jax.jit
def _spans(segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the one sequence of each row begins, and how long it is: int32 [E] twice."""
    real = segment_ids > 0
    return real.argmax(1).astype("int32"), real.sum(1).astype("int32")
