"""Rows of a fixed shape over items, and rows to batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np

from jaxalign.data.batch import ARRAYS, Batch, PairBatch, PromptBatch, UnpairedBatch
from jaxalign.data.bins import Bins, pack
from jaxalign.data.items import Item
from jaxalign.data.parts import Items, as_items
from jaxalign.data.records import KINDS
from jaxalign.models.packed import Layout

# Attention goes back and forth between rows with and without what is shared: a little is not worth it.
LEAST_SHARED = 1 / 4
SHARED_UNIT = 16  # tokens, of which the longer rows are multiples
AnyBatch = Batch | PairBatch | UnpairedBatch | PromptBatch


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a fixed shape over encoded items. `bins[r]` lists the items of row r, in segment order.

    `bounds` delimits the rows of each source: source k owns rows bounds[k] to bounds[k + 1].
    `ref_logp` [R, S] float32, once known for all rows in order, is collated into the `ref_logp` of batches.
    With `whole_length` rows hold what sequences of an item begin with once, in `row_length` slots that a model
    computes, and a batch has so many slots a row, where every sequence is whole; see `models.packed`.
    """

    items: Items
    bins: Bins
    kind: str
    row_length: int
    max_segments: int
    max_pairs: int  # P of every batch: two segments make a pair, a ranking of more than three makes more
    longest_ending: int  # L of every batch of prompts
    bounds: tuple[int, ...]
    weights: tuple[float, ...]
    pad_id: int
    whole_length: int
    ref_logp: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.bins)

    @cached_property
    def tokens(self) -> int:
        """Tokens of all items."""
        return int(self.items.lengths.sum(dtype=np.int64))

    @property
    def slots(self) -> int:
        """T of every batch."""
        return self.whole_length or self.row_length

    @cached_property
    def shared(self) -> int:
        """Tokens of all items that stand in no row, as others of their items are the same."""
        return int(self.items.shared.sum(dtype=np.int64)) if self.whole_length else 0

    @cached_property
    def most_shared(self) -> int:
        """Of the row that has most of them."""
        return int(self.bins.sums(self.items.shared).max())

    @cached_property
    def most_copies(self) -> int:
        """Of the item that has most sequences, those beside the first one."""
        return int(self.items.segments.max()) - 1

    @cached_property
    def crowded(self) -> float:
        """Share of rows that hold as many sequences as a row may, and so take no more however much room is left."""
        segments = self.items.segments
        return float((self.bins.sums(segments) + segments.min() > self.max_segments).mean())

    @cached_property
    def efficiency(self) -> float:
        """Share of token slots that hold a token."""
        return (self.tokens - self.shared) / (len(self) * self.row_length)


# Gives the rows of a source, for which it is given the function that finds them: a store keeps what was found.
Keeper = Callable[[Callable[[], Bins]], Bins]


def build_rows(
    sources: Sequence[Sequence[Item]],
    kind: str,
    *,
    row_length: int,
    max_segments: int,
    packing: bool = True,
    seed: int | None = None,
    weights: tuple[float, ...] = (),
    pad_id: int = 0,
    keepers: Sequence[Keeper] = (),
    sharing: bool = False,
) -> Rows:
    """Pack the items of every source into rows of its own.

    Prompts, and everything if `packing` is off, get one row per item, with as many segments as the largest
    item has sequences.

    Args:
      keepers: one for each source, where there are any.
      sharing: what the sequences of an item begin with stands once.
    """
    own = [as_items(source) for source in sources]
    items = Items.join(own)
    packing = packing and not KINDS[kind].one_per_row
    sharing = sharing and packing
    if not packing:
        max_segments = int(items.segments.max())

    def find(source: Items) -> Bins:
        if packing:
            lengths = source.lengths - source.shared if sharing else source.lengths
            return pack(lengths, row_length, max_segments, seed, source.segments)
        return Bins(np.arange(len(source)), np.arange(len(source) + 1))

    finders = [partial(find, source) for source in own]
    if packing and keepers:
        found = [keep(finder) for keep, finder in zip(keepers, finders, strict=True)]
    else:
        found = [finder() for finder in finders]
    bins = Bins.join(found)
    longest = max(row_length, int(bins.sums(items.lengths).max())) if sharing else 0
    most_pairs = int(bins.sums(items.pair_counts).max()) if KINDS[kind].pair else 0
    return Rows(
        items,
        bins,
        kind,
        row_length=row_length,
        max_segments=max_segments,
        max_pairs=max(most_pairs, max_segments // 2),
        longest_ending=max(1, int(items.measure("ending", len).max())),
        bounds=tuple(np.cumsum([0, *map(len, found)]).tolist()),
        weights=weights,
        pad_id=pad_id,
        whole_length=-(-longest // SHARED_UNIT) * SHARED_UNIT,
    )


def saves_enough(sources: Sequence[Items]) -> bool:
    """Whether prompts that stand once in a row are worth what it takes to bring them together for attention."""
    shared = sum(int(source.shared.sum(dtype=np.int64)) for source in sources)
    whole = sum(int(source.lengths.sum(dtype=np.int64)) for source in sources)
    return shared >= LEAST_SHARED * whole


def collate(rows: Rows, indices: Sequence[int]) -> AnyBatch:
    """The batch of rows `indices` as NumPy arrays; an index of -1 makes an empty row."""
    kind = KINDS[rows.kind]
    sizes = {"B": len(indices), "T": rows.slots, "S": rows.max_segments}
    sizes |= {"P": rows.max_pairs, "L": rows.longest_ending}
    fill = {"tokens": rows.pad_id, "rows": -1, "ending": -1}
    x = {
        name: np.full([sizes[axis] for axis in axes], fill.get(name, 0), dtype)
        for name, (axes, dtype) in ARRAYS[kind.batch].items()
    }
    if kind.batch is PromptBatch:
        _place_prompts(x, rows, indices)
        return PromptBatch(**x)
    names: Any = kind.pair
    chosen = [[rows.items[i] for i in rows.bins[index]] if index >= 0 else [] for index in indices]
    for b, (index, items) in enumerate(zip(indices, chosen, strict=True)):
        start = segment = pair = 0
        for item in items:
            for first, second in item.pairs if names else ():
                x[names[0]][b, pair] = segment + 1 + first
                x[names[1]][b, pair] = 0 if second is None else segment + 1 + second
                for name in kind.values:
                    x[name][b, pair] = getattr(item, name)
                pair += 1
            slots = slice(start, start + len(item.ids))
            x["tokens"][b, slots], x["loss_mask"][b, slots] = item.ids, item.mask
            for begin, end in pairwise((start, *(start + cut for cut in item.cuts), slots.stop)):
                x["positions"][b, begin:end] = np.arange(end - begin)
                x["segment_ids"][b, begin:end] = segment + 1
                x["rows"][b, segment] = item.row
                segment += 1
            start = slots.stop
        if rows.ref_logp is not None and index >= 0:
            x["ref_logp"][b] = rows.ref_logp[index]
    return kind.batch(**x, **({"layout": _lay_out(rows, chosen)} if rows.whole_length else {}))


def _lay_out(rows: Rows, chosen: Sequence[Sequence[Item]]) -> Layout:
    """Where the tokens of whole rows, of these items each, stand in those that share them."""
    most = -(-rows.most_shared // SHARED_UNIT) * SHARED_UNIT
    short, whole = (len(chosen), rows.row_length), (len(chosen), rows.slots)
    segments = np.zeros(short, np.int32)
    source, shared, place = (np.full(shape, -1, np.int32) for shape in (short, short, whole))
    copies = np.full((len(chosen), most, rows.most_copies), -1, np.int32)
    for b, items in enumerate(chosen):
        at = start = segment = listed = 0  # the next slot of the short row, and of the whole one
        for item in items:
            first, counts = at, item.shared
            alike = max(counts)
            shared[b, at : at + alike] = np.arange(listed, listed + alike)
            for number, (example, count) in enumerate(zip(item.examples, counts, strict=True)):
                segment += 1
                if count:
                    place[b, start : start + count] = np.arange(first, first + count)
                    copies[b, listed : listed + count, number - 1] = np.arange(start, start + count)
                size = len(example.ids) - count
                source[b, at : at + size] = np.arange(start + count, start + count + size)
                place[b, start + count : start + count + size] = np.arange(at, at + size)
                segments[b, at : at + size] = segment
                at, start = at + size, start + count + size
            listed += alike
    arrays: Any = (source, place, segments, copies, shared)
    return Layout(*arrays, shards=0)


def _place_prompts(x: dict[str, np.ndarray], rows: Rows, indices: Sequence[int]) -> None:
    for b, index in enumerate(indices):
        for prompt in [rows.items[i] for i in rows.bins[index]] if index >= 0 else []:
            slots = slice(rows.row_length - len(prompt.ids), rows.row_length)
            x["tokens"][b, slots] = prompt.ids
            x["positions"][b, slots] = np.arange(len(prompt.ids))
            x["segment_ids"][b, slots] = 1
            x["rows"][b] = prompt.row
            x["ending"][b, : len(prompt.ending)] = prompt.ending
