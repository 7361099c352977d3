"""Data that is read as it comes and never stored: windows of a source, and batches of them.

A window is the next `config.data.stream_buffer` records. It is tokenised and packed by itself, its rows are shuffled
among each other, and rows of one window after the other fill the batches. So a batch is a pure function of the seed and
of where its first row stands: a record, at which the window begins, and a row of it. That is what a checkpoint keeps.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxalign.data.invalid import BadRow
from jaxalign.data.loader import share_of
from jaxalign.data.packing import AnyBatch, collate
from jaxalign.data.sources import Records, find_files, read_records, stream_hub
from jaxalign.errors import DataError

if TYPE_CHECKING:
    from jaxalign.data.dataset import Dataset


class _Neighbours(Sequence):
    """Some neighbouring rows of a source that stays open, with the places that they have in it."""

    def __init__(self, whole: Records, first: int, count: int) -> None:
        self._whole, self._first, self._count = whole, first, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._whole.rows[self._first + index]

    def where(self, index: int) -> str:
        """`file:row`."""
        return self._whole.where(self._first + index)

    def text(self, index: int) -> Any:
        """A row as its file has it."""
        return self._whole.raw(self._first + index)


class Reader:
    """Reads a source from any record on: a file by its places, a hub dataset in order."""

    def __init__(self) -> None:
        self._files: Records | None = None
        self._coming: Iterator[Any] = iter(())
        self._next = -1  # the record that `_coming` gives next

    def read(
        self,
        name: str,
        *,
        start: int,
        split: str,
        take: int | None,
        hub_options: Mapping[str, str],
        max_row_bytes: int,
    ) -> Records:
        """Up to `take` records from number `start` on, none where the source has ended; else as `read_records`."""
        assert take is not None
        if self._files is None and not find_files(name, split):
            if start != self._next:
                self._coming, self._next = stream_hub(name, split, hub_options, start), start
            rows = list(itertools.islice(self._coming, take))
            self._next = start + take  # where it has ended, nothing comes from there on either
            return Records(rows, name, origin=_Numbered(rows, name, start))
        if self._files is None:
            self._files = read_records(name, split=split, max_row_bytes=max_row_bytes)
        count = max(0, min(take, len(self._files) - start))
        return Records(_Neighbours(self._files, start, count), name)


class _Numbered(list):
    """Rows with the number that each has in its source."""

    def __init__(self, rows: Sequence[Any], name: str, first: int) -> None:
        super().__init__(rows)
        self._name, self._first = name, first

    def where(self, index: int) -> str:
        """`source:row`, counted from 1."""
        return f"{self._name}:{self._first + index + 1}"


@dataclasses.dataclass(frozen=True, eq=False)
class Emptied:
    """A window behind the first of which no record is left: batches go on with the next one."""

    report: str  # why
    invalid: tuple[BadRow, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """A source that is read a window at a time.

    Attributes:
      read: (start, count) -> the records from number `start` on.
      make: (records, start) -> the dataset of the window that begins at record `start`.
      size: records of a window.
      take: records of the source that are read; None: all.
    """

    name: str
    read: Callable[[int, int], Records]
    make: Callable[[Records, int], "Dataset | Emptied"]
    size: int
    take: int | None = None

    def window(self, start: int) -> "Dataset | Emptied | None":
        """The window that begins at record `start`; None: the source has ended before it."""
        count = self.size if self.take is None else max(0, min(self.size, self.take - start))
        records = self.read(start, count) if count else ()
        return self.make(records, start) if records else None


class StreamLoader:
    """Batches for ever; see `data.make_loader`, whose place it takes."""

    def __init__(
        self,
        stream: Stream,
        batch_size: int,
        seed: int,
        *,
        parts: Sequence[int] = (0,),
        num_parts: int = 1,
        note: Callable[["Dataset | Emptied", int], None] = lambda window, start: None,
    ) -> None:
        """`note` is told of every window, and at which record it begins."""
        self._stream, self._seed, self._size, self._note = stream, seed, batch_size, note
        self._share = share_of(batch_size, parts, num_parts)
        self._pool = ThreadPoolExecutor(1, "window")
        self._ahead: tuple[int, Future] | None = None  # a window that is made meanwhile, and where it begins
        self._at = (0, 0)  # the pass and the record at which the present window begins
        self._row = 0
        self._window: Dataset | None = None
        self._order = np.zeros(0, np.int64)

    def get_state(self) -> dict[str, int]:
        """Where the next batch begins."""
        return {"pass": self._at[0], "record": self._at[1], "row": self._row}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes there."""
        self._at, self._row, self._window = (state["pass"], state["record"]), state["row"], None

    def __iter__(self) -> "StreamLoader":
        return self

    def __next__(self) -> AnyBatch:
        parts: list[AnyBatch] = []
        filled = 0
        while filled < self._size:
            rows = self._present().rows
            chosen = self._order[self._row : self._row + self._size - filled]
            mine = [int(chosen[i - filled]) for i in self._share if filled <= i < filled + len(chosen)]
            if mine:
                parts.append(collate(rows, mine))
            filled += len(chosen)
            self._row += len(chosen)
            if self._row == len(rows):
                self._at, self._row, self._window = (self._at[0], self._next), 0, None
        return parts[0] if len(parts) == 1 else jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

    @property
    def _next(self) -> int:
        return self._at[1] + self._stream.size

    def _present(self) -> "Dataset":
        """The window that the next row is of."""
        while self._window is None:
            window = self._make()
            if window is None and not self._at[1]:
                raise DataError(
                    f"{self._stream.name}: has no records any more; it has changed since the start"
                )
            if window is None:  # the source has ended, and is read once more
                self._at = (self._at[0] + 1, 0)
                continue
            self._note(window, self._at[1])
            if isinstance(window, Emptied):
                self._at = (self._at[0], self._next)
                continue
            self._window = window
            self._order = np.random.default_rng([self._seed, *self._at]).permutation(len(window.rows))
            self._ahead = self._next, self._pool.submit(self._stream.window, self._next)
        return self._window

    def _make(self) -> "Dataset | Emptied | None":
        start, ahead = self._at[1], self._ahead
        self._ahead = None
        # Waited for in any case: a source is read by one at a time.
        found = None if ahead is None else ahead[1].result()
        return found if ahead is not None and ahead[0] == start else self._stream.window(start)
