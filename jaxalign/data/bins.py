"""Which items share a row: bin packing."""

import hashlib
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Bins(Sequence[np.ndarray]):
    """Which items share a row: row r has items members[starts[r]:starts[r + 1]], in segment order."""

    members: np.ndarray  # int32 or int64 [M]
    starts: np.ndarray  # int64 [R + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[r] for r in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        return self.members[self.starts[row] : self.starts[row + 1]]

    @property
    def digest(self) -> str:
        """What says which items share a row, and in which order."""
        found = hashlib.sha256(self.members.astype("<i8").tobytes())
        found.update(self.starts.astype("<i8").tobytes())
        return found.hexdigest()

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sum over the items of each row of `values` [M]: [R]."""
        return np.add.reduceat(values[self.members], self.starts[:-1])  # no row is empty

    @classmethod
    def join(cls, several: Sequence["Bins"]) -> "Bins":
        """The rows of several sources, whose items stand one after the other."""
        if len(several) == 1:
            return several[0]
        bases = np.cumsum([0, *(len(bins.members) for bins in several)])
        members = np.concatenate([bins.members + base for bins, base in zip(several, bases, strict=False)])
        starts = [bins.starts[:-1] + base for bins, base in zip(several, bases, strict=False)]
        return cls(members, np.concatenate([*starts, bases[-1:]]))


def pack(
    lengths: Sequence[int] | np.ndarray,
    row_length: int,
    max_segments: int,
    seed: int | None = None,
    segments: Sequence[int] | np.ndarray | None = None,
) -> Bins:
    """Best-fit decreasing bin packing: the fullest row that still has room takes the next longest item.

    Args:
      lengths: tokens of each item; no item is ever split.
      row_length, max_segments: room of a row.
      seed: which of equally long items become neighbours; None keeps their order.
      segments: sequences of each item, 1 each if left out.

    Returns the item indices of each row. The same arguments give the same rows. Raises ValueError for an item
    that is longer, or has more sequences, than a row.
    """
    lengths = np.asarray(lengths, np.int32)
    segments = (
        np.broadcast_to(np.int32(1), lengths.shape) if segments is None else np.asarray(segments, np.int32)
    )
    too_large = np.flatnonzero((lengths > row_length) | (segments > max_segments))
    if len(too_large):
        index = too_large[0]
        raise ValueError(
            f"item {index} has {lengths[index]} tokens in {segments[index]} segments, a row {row_length} in "
            f"{max_segments}"
        )
    count = len(lengths)
    order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
    order = order.astype(np.int32 if count < 2**31 else np.int64)
    shortness = row_length - lengths[order]
    # Of small integers NumPy sorts the digits, in a tenth of the time.
    shortness = shortness.astype(np.uint16) if row_length < 2**16 else shortness
    order = order[np.argsort(shortness, kind="stable")]
    alike = count == 0 or segments.min() == segments.max()
    place = _place_alike if alike else _place
    rows = place(lengths[order], segments[order], row_length, max_segments)
    # The items of a row stand in the order in which it took them.
    starts = (
        np.concatenate([[0], np.cumsum(np.bincount(rows), dtype=np.int64)])
        if count
        else np.zeros(1, np.int64)
    )
    return Bins(order[np.argsort(rows, kind="stable")], starts)


def _place(lengths: np.ndarray, segments: np.ndarray, row_length: int, max_segments: int) -> np.ndarray:
    """The row of each item, item by item."""
    rows = np.zeros(len(lengths), np.int32)
    free: list[int] = []  # segments left in each row
    rooms: list[int] = []  # sorted token counts for which `growing` has rows with that many left
    growing: dict[int, list[int]] = {}
    fewest = int(segments.min(initial=max_segments))
    for index, (length, count) in enumerate(zip(lengths.tolist(), segments.tolist(), strict=True)):
        for room in rooms[bisect_left(rooms, length) :]:
            if free[growing[room][-1]] >= count:
                row = growing[room].pop()
                if not growing[room]:
                    rooms.remove(room)
                break
        else:
            room, row = row_length, len(free)
            free.append(max_segments)
        rows[index] = row
        free[row] -= count
        if (left := room - length) and free[row] >= fewest:
            if not growing.setdefault(left, []):
                insort(rooms, left)
            growing[left].append(row)
    return rows


def _place_alike(lengths: np.ndarray, segments: np.ndarray, row_length: int, max_segments: int) -> np.ndarray:
    """The same for items that all have as many sequences: those of one length are placed together.

    A row that takes an item has less room than it had, so it is the fullest one and takes the next item, too, as often
    as it can. So the rows with the least room that is enough are filled one after the other, the last of them first.
    """
    rows = np.empty(len(lengths), np.int32)
    most = max_segments // int(segments[0]) if len(segments) else 1  # items of a row
    held = np.zeros(max(len(lengths), 1), np.int32)  # items in each row
    stacks: dict[int, list[np.ndarray]] = defaultdict(list)  # rows by the tokens that they have room for
    rooms: list[int] = []  # the keys of `stacks`, sorted
    opened = done = 0

    def leave(room: int, left: np.ndarray) -> None:
        if room and len(left):
            if not stacks[room]:
                insort(rooms, room)
            stacks[room].append(left)

    edges = np.flatnonzero(np.diff(lengths, prepend=-1, append=-1))
    for begin, end in pairwise(edges.tolist()):
        length, done = int(lengths[begin]), begin
        while done < end:
            at = bisect_left(rooms, length)
            if at < len(rooms):
                room = rooms[at]
                taken = stacks[room].pop()[::-1]
                if not stacks[room]:
                    del rooms[at]
            else:
                room = row_length
                needed = -(-(end - done) // min(room // length, most))
                taken = np.arange(opened, opened + needed, dtype=np.int32)
                opened += needed
            takes = np.minimum(room // length, most - held[taken])
            upto = np.cumsum(takes)
            used = int(np.searchsorted(upto, end - done)) + 1  # rows that take something
            if used < len(taken):
                leave(room, taken[used:][::-1])
                taken, takes, upto = taken[:used], takes[:used], upto[:used]
            if over := max(0, int(upto[-1]) - (end - done)):
                takes[-1] -= over
            rows[done : done + int(takes.sum())] = np.repeat(taken, takes)
            done += int(takes.sum())
            held[taken] += takes
            open_still = held[taken] < most
            left = room - takes * length
            # All but the last have taken as many as their room allows, or have no segment free.
            for size in {room % length, int(left[-1])}:
                leave(size, taken[open_still & (left == size)])
    return rows
