"""Batches in an order that is a pure function of (seed, step), whatever the number of processes."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import grain

from jaxalign.data.packing import AnyBatch, Rows, collate
from jaxalign.errors import ConfigError

PREFETCH = 4  # batches made ahead of the step that uses them
_ENDLESS = 2**40  # batches


def make_loader(
    rows: Rows,
    batch_size: int,
    seed: int,
    *,
    shuffle: bool = True,
    num_epochs: float | None = None,
    parts: Sequence[int] = (0,),
    num_parts: int = 1,
) -> grain.DatasetIterator:
    """Iterate over training batches for ever, or for `num_epochs`.

    Global batch s holds rows order[s * batch_size : (s + 1) * batch_size], where `order` runs through all
    rows, freshly shuffled for every epoch. A process gets those of the `num_parts` equal parts of each batch
    that its devices hold, see `parallel.processes.batch_parts`. A batch may straddle two epochs. With `num_epochs`
    every row comes that often, and empty rows fill up the last batch. Sources with weights are interleaved, each in
    its own order: over any stretch of steps their shares of rows are right to within rounding, the ratio of a weight to
    the smallest counting in hundredths.

    The iterator's `get_state()` is a JSON-able dict that holds the number of batches taken; `set_state` goes
    there, also in a run with another number of processes.
    """
    if num_epochs is not None and rows.weights:
        raise ConfigError("a mixture with weights has no epochs; give a number of steps instead")
    total = None if num_epochs is None else rows_of_epochs(rows, num_epochs)
    batches = train_batches(
        rows, batch_size, seed, shuffle=shuffle, total=total, parts=parts, num_parts=num_parts
    )
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH)))


def rows_of_epochs(rows: Rows, num_epochs: float) -> int:
    """How many rows `num_epochs` passes take; part of a row counts as one."""
    return max(1, math.ceil(round(num_epochs * len(rows), 6)))


def train_batches(
    rows: Rows,
    batch_size: int,
    seed: int,
    *,
    shuffle: bool = True,
    total: int | None = None,
    parts: Sequence[int] = (0,),
    num_parts: int = 1,
) -> grain.MapDataset:
    """The batches of `make_loader` by number: `train_batches(...)[s]` is batch s.

    Args:
      total: rows in all; empty ones fill up the last batch. None: there is no end.
    """
    share = share_of(batch_size, parts, num_parts)
    order: Any = _order(rows, seed, shuffle)
    total = _ENDLESS * batch_size if total is None else total

    def batch(step: int) -> AnyBatch:
        places = (step * batch_size + i for i in share)
        return collate(rows, [order[place] if place < total else -1 for place in places])

    return grain.MapDataset.range(-(-total // batch_size)).map(batch)


def eval_batches(
    rows: Rows,
    batch_size: int,
    *,
    of: range | None = None,
    parts: Sequence[int] = (0,),
    num_parts: int = 1,
) -> Iterator[Any]:
    """Every row once, in order; empty rows (segment 0, mask and weight 0) fill up the last batch.

    Args:
      of: these rows alone.
    """
    share = share_of(batch_size, parts, num_parts)
    chosen = range(len(rows)) if of is None else of
    for start in range(0, len(chosen), batch_size):
        indices = list(chosen[start : start + batch_size])
        indices += [-1] * (batch_size - len(indices))
        yield collate(rows, [indices[i] for i in share])


def _order(rows: Rows, seed: int, shuffle: bool) -> grain.MapDataset:
    """Row numbers for ever, as a random-access dataset."""
    orders = []
    for source, (start, stop) in enumerate(zip(rows.bounds, rows.bounds[1:], strict=False)):
        order = grain.MapDataset.range(start, stop).seed((seed + source) % 2**32)
        orders.append((order.shuffle() if shuffle else order).repeat())
    if rows.weights:
        return grain.MapDataset.mix(orders, rows.weights)
    everything = grain.MapDataset.range(len(rows)).seed(seed % 2**32)
    return (everything.shuffle() if shuffle else everything).repeat()


def share_of(batch_size: int, parts: Sequence[int], num_parts: int) -> list[int]:
    """The places in a batch of the rows that a process reads, which holds some of its equal parts.

    Raises:
      ConfigError: the batch cannot be cut into so many.
    """
    if batch_size < 1 or batch_size % num_parts:
        raise ConfigError(
            f"config.batch_size={batch_size}: must be a positive multiple of the {num_parts} parts that the mesh "
            f"splits a batch into"
        )
    size = batch_size // num_parts
    return [part * size + i for part in parts for i in range(size)]
