"""Which sequences share a row, and rows to batches."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from jaxalign.data.batch import ARRAYS, Batch, PairBatch, PromptBatch, UnpairedBatch
from jaxalign.data.items import Item
from jaxalign.data.records import KINDS

AnyBatch = Batch | PairBatch | UnpairedBatch | PromptBatch


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a fixed shape over encoded items. `bins[r]` lists the items of row r, in segment order.

    `bounds` delimits the rows of each source: source k owns rows bounds[k] to bounds[k + 1].
    `ref_logp` [R, S] float32, once known for all rows in order, is collated into the `ref_logp` of batches.
    """

    items: Sequence[Item]
    bins: Sequence[Sequence[int]]
    kind: str
    row_length: int
    max_segments: int
    max_pairs: int  # P of every batch: two segments make a pair, a ranking of more than three makes more
    longest_ending: int  # L of every batch of prompts
    bounds: tuple[int, ...]
    weights: tuple[float, ...] = ()
    pad_id: int = 0
    ref_logp: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.bins)

    @cached_property
    def crowded(self) -> float:
        """Share of rows that hold as many sequences as a row may, and so take no more however much room is left."""
        counts = [sum(1 + len(self.items[i].cuts) for i in bin) for bin in self.bins]
        fewest = min(1 + len(item.cuts) for item in self.items)
        return sum(count + fewest > self.max_segments for count in counts) / len(counts)

    @cached_property
    def efficiency(self) -> float:
        """Share of token slots that hold a token."""
        tokens = sum(len(item.ids) for item in self.items)
        return tokens / (len(self) * self.row_length)


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
) -> Rows:
    """Pack the items of every source into rows of its own.

    Prompts, and everything if `packing` is off, get one row per item, with as many segments as the largest
    item has sequences.
    """
    items = [item for source in sources for item in source]
    bins: list[list[int]] = []
    bounds = [0]
    offset = 0
    packing = packing and not KINDS[kind].one_per_row
    if not packing:
        max_segments = max(1 + len(item.cuts) for item in items)
    for source in sources:
        if packing:
            lengths = [len(item.ids) for item in source]
            packed = pack(lengths, row_length, max_segments, seed, [1 + len(item.cuts) for item in source])
        else:
            packed = [[index] for index in range(len(source))]
        bins += [[offset + index for index in bin] for bin in packed]
        bounds.append(len(bins))
        offset += len(source)
    most = max(sum(len(items[i].pairs) for i in bin) for bin in bins)
    return Rows(
        items,
        bins,
        kind,
        row_length=row_length,
        max_segments=max_segments,
        max_pairs=max(most, max_segments // 2),
        longest_ending=max(1, *(len(item.ending) for item in items)),
        bounds=tuple(bounds),
        weights=weights,
        pad_id=pad_id,
    )


def pack(
    lengths: Sequence[int],
    row_length: int,
    max_segments: int,
    seed: int | None = None,
    segments: Sequence[int] | None = None,
) -> list[list[int]]:
    """Best-fit decreasing bin packing: the fullest row that still has room takes the next longest item.

    Args:
      lengths: tokens of each item; no item is ever split.
      row_length, max_segments: room of a row.
      seed: which of equally long items become neighbours; None keeps their order.
      segments: sequences of each item, 1 each if left out.

    Returns the item indices of each row. The same arguments give the same rows. Raises ValueError for an item
    that is longer, or has more sequences, than a row.
    """
    segments = [1] * len(lengths) if segments is None else segments
    for index, (length, count) in enumerate(zip(lengths, segments, strict=True)):
        if length > row_length or count > max_segments:
            raise ValueError(
                f"item {index} has {length} tokens in {count} segments, a row {row_length} in {max_segments}"
            )
    order = np.arange(len(lengths)) if seed is None else np.random.default_rng(seed).permutation(len(lengths))
    bins: list[list[int]] = []
    free: list[int] = []  # segments left in each row
    rooms: list[int] = []  # sorted token counts for which `growing` has rows with that many left
    growing: dict[int, list[int]] = {}
    fewest = min(segments, default=1)
    for index in sorted(order.tolist(), key=lambda i: -lengths[i]):
        for room in rooms[bisect_left(rooms, lengths[index]) :]:
            if free[growing[room][-1]] >= segments[index]:
                row = growing[room].pop()
                if not growing[room]:
                    rooms.remove(room)
                break
        else:
            room, row = row_length, len(bins)
            bins.append([])
            free.append(max_segments)
        bins[row].append(index)
        free[row] -= segments[index]
        if (left := room - lengths[index]) and free[row] >= fewest:
            if not growing.setdefault(left, []):
                insort(rooms, left)
            growing[left].append(row)
    return bins


def collate(rows: Rows, indices: Sequence[int]) -> AnyBatch:
    """The batch of rows `indices` as NumPy arrays; an index of -1 makes an empty row."""
    kind = KINDS[rows.kind]
    sizes = {"B": len(indices), "T": rows.row_length, "S": rows.max_segments}
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
    for b, index in enumerate(indices):
        start = segment = pair = 0
        for item in [rows.items[i] for i in rows.bins[index]] if index >= 0 else []:
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
    return kind.batch(**x)


def _place_prompts(x: dict[str, np.ndarray], rows: Rows, indices: Sequence[int]) -> None:
    for b, index in enumerate(indices):
        for prompt in [rows.items[i] for i in rows.bins[index]] if index >= 0 else []:
            slots = slice(rows.row_length - len(prompt.ids), rows.row_length)
            x["tokens"][b, slots] = prompt.ids
            x["positions"][b, slots] = np.arange(len(prompt.ids))
            x["segment_ids"][b, slots] = 1
            x["rows"][b] = prompt.row
            x["ending"][b, : len(prompt.ending)] = prompt.ending
