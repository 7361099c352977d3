"""Batches in an order that is a pure function of (seed, step), whatever the number of processes."""

from collections.abc import Iterator, Sequence

import grain

from jaxalign.data.batch import Batch, PairBatch, PromptBatch
from jaxalign.data.packing import Rows, collate
from jaxalign.errors import ConfigError

PREFETCH = 4  # batches made ahead of the step that uses them


def make_loader(
    rows: Rows,
    batch_size: int,
    seed: int,
    *,
    shuffle: bool = True,
    num_epochs: int | None = None,
    parts: Sequence[int] = (0,),
    num_parts: int = 1,
) -> grain.DatasetIterator:
    """Iterate over training batches for ever, or for `num_epochs`.

    Global batch s holds rows order[s * batch_size : (s + 1) * batch_size], where `order` runs through all
    rows, freshly shuffled for every epoch. A process gets those of the `num_parts` equal parts of each batch
    that its devices hold, see `parallel.processes.batch_parts`. A batch may straddle two epochs, and so the
    last one is filled up from the epoch after. Sources with weights are interleaved, each in its own order:
    over any stretch of steps their shares of rows are right to within rounding, the ratio of a weight to the
    smallest counting in hundredths.

    The iterator's `get_state()` is a JSON-able dict that holds the number of batches taken; `set_state` goes
    there, also in a run with another number of processes.
    """
    batches = train_batches(rows, batch_size, seed, shuffle=shuffle, parts=parts, num_parts=num_parts)
    if num_epochs is not None:
        if rows.weights:
            raise ConfigError("a mixture with weights has no epochs; give a number of steps instead")
        batches = batches[: -(-len(rows) * num_epochs // batch_size)]
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH)))


def train_batches(
    rows: Rows,
    batch_size: int,
    seed: int,
    *,
    shuffle: bool = True,
    parts: Sequence[int] = (0,),
    num_parts: int = 1,
) -> grain.MapDataset:
    """The batches of `make_loader` by number: `train_batches(...)[s]` is batch s."""
    share = _share(batch_size, parts, num_parts)
    steps = _order(rows, seed, shuffle).batch(batch_size, batch_fn=list)
    return steps.map(lambda indices: collate(rows, [indices[i] for i in share]))


def eval_batches(
    rows: Rows, batch_size: int, *, parts: Sequence[int] = (0,), num_parts: int = 1
) -> Iterator[Batch | PairBatch | PromptBatch]:
    """Every row once, in order; empty rows (segment 0, mask and weight 0) fill up the last batch."""
    share = _share(batch_size, parts, num_parts)
    for start in range(0, len(rows), batch_size):
        indices = list(range(start, min(start + batch_size, len(rows))))
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


def _share(batch_size: int, parts: Sequence[int], num_parts: int) -> list[int]:
    if batch_size < 1 or batch_size % num_parts:
        raise ConfigError(
            f"config.batch_size={batch_size}: must be a positive multiple of the {num_parts} parts that the mesh "
            f"splits a batch into"
        )
    size = batch_size // num_parts
    return [part * size + i for part in parts for i in range(size)]
