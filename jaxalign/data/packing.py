"""Which sequences share a row, and rows to batches."""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxalign.data.batch import Batch, PairBatch, PromptBatch
from jaxalign.data.encode import Example, PairExample, members
from jaxalign.data.kinds import PAIRS, PAIRS_OR_DEMONSTRATIONS, PROMPTS, UNPAIRED

Item = Example | PairExample


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a fixed shape over encoded items. `bins[r]` lists the items of row r, in segment order.

    `bounds` delimits the rows of each source: source k owns rows bounds[k] to bounds[k + 1].
    `ref_logp` [R, S] float32, once known for all rows in order, is collated into `PairBatch.ref_logp`.
    """

    items: Sequence[Item]
    bins: Sequence[Sequence[int]]
    kind: str
    row_length: int
    max_segments: int
    bounds: tuple[int, ...]
    weights: tuple[float, ...] = ()
    pad_id: int = 0
    ref_logp: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.bins)

    @cached_property
    def max_pairs(self) -> int:
        """P of every batch: two segments make a pair, a ranking of more than three makes more."""
        most = max(sum(len(_pairs(self.items[i])) for i in bin) for bin in self.bins)
        return max(most, self.max_segments // 2)

    @cached_property
    def crowded(self) -> float:
        """Share of rows that hold as many sequences as a row may, and so take no more however much room is left."""
        counts = [sum(len(members(self.items[i])) for i in bin) for bin in self.bins]
        fewest = min(len(members(item)) for item in self.items)
        return sum(count + fewest > self.max_segments for count in counts) / len(counts)

    @cached_property
    def longest_ending(self) -> int:
        """L of every batch of prompts."""
        return max(1, *(len(item.ending) for item in self.items))

    @cached_property
    def efficiency(self) -> float:
        """Share of token slots that hold a token."""
        tokens = sum(len(example.ids) for item in self.items for example in members(item))
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
    if not packing or kind == "prompt":
        max_segments = max(len(members(item)) for item in items)
    for source in sources:
        if packing and kind != "prompt":
            lengths = [sum(len(example.ids) for example in members(item)) for item in source]
            packed = pack(lengths, row_length, max_segments, seed, [len(members(item)) for item in source])
        else:
            packed = [[index] for index in range(len(source))]
        bins += [[offset + index for index in bin] for bin in packed]
        bounds.append(len(bins))
        offset += len(source)
    return Rows(items, bins, kind, row_length, max_segments, tuple(bounds), weights, pad_id)


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


def collate(rows: Rows, indices: Sequence[int]) -> Batch | PairBatch | PromptBatch:
    """The batch of rows `indices` as NumPy arrays; an index of -1 makes an empty row."""
    if rows.kind == "prompt":
        return _collate_prompts(rows, indices)
    batch = _collate_sequences(rows, indices)
    return _with_pairs(rows, indices, batch) if rows.kind.startswith("preference") else batch


def _items(rows: Rows, index: int) -> list[Item]:
    return [] if index < 0 else [rows.items[i] for i in rows.bins[index]]


def _collate_sequences(rows: Rows, indices: Sequence[int]) -> Batch:
    shape = (len(indices), rows.row_length)
    tokens = np.full(shape, rows.pad_id, np.int32)
    positions, segment_ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    loss_mask = np.zeros(shape, np.float32)
    origin = np.full((len(indices), rows.max_segments), -1, np.int32)
    for b, index in enumerate(indices):
        start = 0
        examples = [example for item in _items(rows, index) for example in members(item)]
        for s, example in enumerate(examples):
            slots = slice(start, start + len(example.ids))
            tokens[b, slots] = example.ids
            positions[b, slots] = np.arange(len(example.ids))
            segment_ids[b, slots] = s + 1
            loss_mask[b, slots] = example.mask
            origin[b, s] = example.row
            start = slots.stop
    return Batch(tokens, positions, segment_ids, loss_mask, origin)


def _with_pairs(rows: Rows, indices: Sequence[int], batch: Batch) -> PairBatch:
    shape = (len(indices), rows.max_pairs)
    chosen, rejected = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    weight, margin = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    ref_logp = np.zeros((len(indices), rows.max_segments), np.float32)
    for b, index in enumerate(indices):
        pair, segment = 0, 1
        for item in _items(rows, index):
            for preferred, other in _pairs(item):
                chosen[b, pair] = segment + preferred
                rejected[b, pair] = 0 if other is None else segment + other
                weight[b, pair] = item.weight if isinstance(item, PairExample) else 1.0
                margin[b, pair] = item.margin if isinstance(item, PairExample) else 0.0
                pair += 1
            segment += len(members(item))
        if rows.ref_logp is not None and index >= 0:
            ref_logp[b] = rows.ref_logp[index]
    return PairBatch(
        **vars(batch), chosen=chosen, rejected=rejected, weight=weight, margin=margin, ref_logp=ref_logp
    )


def _pairs(item: Item) -> tuple[tuple[int, int | None], ...]:
    """(preferred, other) of an item; a demonstration is preferred to nothing."""
    return item.pairs if isinstance(item, PairExample) else ((0, None),)


def _collate_prompts(rows: Rows, indices: Sequence[int]) -> PromptBatch:
    shape = (len(indices), rows.row_length)
    tokens = np.full(shape, rows.pad_id, np.int32)
    positions, segment_ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    origin = np.full(len(indices), -1, np.int32)
    ending = np.full((len(indices), rows.longest_ending), -1, np.int32)
    for b, index in enumerate(indices):
        for prompt in _items(rows, index):
            ending[b, : len(prompt.ending)] = prompt.ending
            start = rows.row_length - len(prompt.ids)
            tokens[b, start:] = prompt.ids
            positions[b, start:] = np.arange(len(prompt.ids))
            segment_ids[b, start:] = 1
            origin[b] = prompt.row
    return PromptBatch(tokens, positions, segment_ids, origin, ending)


def abstract_batch(
    kind: str, config: Any, batch_size: int, make: Callable[[tuple[int, ...], Any], Any]
) -> Batch | PairBatch | PromptBatch:
    """The batch of a kind of data with every array made by `make(shape, dtype)`, as when rows are full."""
    B, T = batch_size, config.row_length
    if kind == PROMPTS:
        row = make((B, config.max_length), np.int32)
        return PromptBatch(row, row, row, make((B,), np.int32))
    paired = kind in (PAIRS, PAIRS_OR_DEMONSTRATIONS, UNPAIRED)
    S = config.segments if config.packing else 1 + paired
    row = make((B, T), np.int32)
    batch = Batch(row, row, row, make((B, T), np.float32), make((B, S), np.int32))
    if not paired:
        return batch
    pair, weight = make((B, S // 2), np.int32), make((B, S // 2), np.float32)
    return PairBatch(
        **vars(batch), chosen=pair, rejected=pair, weight=weight, margin=weight, ref_logp=make((B, S), np.float32)
    )
