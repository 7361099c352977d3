"""The records of a source as tokens, in the order of the source, and which of them are left out."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np

from jaxalign.data.arrays import release
from jaxalign.data.items import Item
from jaxalign.data.overlap import record_keys
from jaxalign.data.parts import Items, Part, make_part
from jaxalign.data.store import Store


@dataclass(frozen=True, eq=False)
class Encoded:
    """Parts of a source, and which of their R records are kept.

    What is not kept is counted as dropped for `reason`; where that is "", as if it were not in the source.
    """

    parts: tuple[Part, ...]
    first_row: int = 0  # the number of the first record in the dataset
    kept: np.ndarray | None = None  # bool [R]; None: all
    reason: str = ""
    store: Store | None = None  # that they are in

    @classmethod
    def of(cls, records: Sequence[Sequence[Item]], first_row: int = 0) -> "Encoded":
        """Records that `encode_records` has encoded, in memory."""
        return cls((make_part(records, record_keys, first_row=first_row, completions=True),), first_row)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(part.first) - 1 for part in self.parts))

    @cached_property
    def has_tokens(self) -> np.ndarray:
        """Records of which there are tokens, be they kept or not: bool [R]."""
        return self._of_records(lambda part: part.first[1:] > part.first[:-1], bool)

    @cached_property
    def items(self) -> Items:
        """The items of the records that are kept."""
        parts = [(part, self.first_row) for part in self.parts]
        if self.kept is None:
            return Items(parts)
        counts = self._of_records(lambda part: np.diff(part.first), np.int32)
        return Items(parts, np.flatnonzero(np.repeat(self.kept, counts)))

    def record(self, index: int) -> list[Item]:
        """The items of a record, counted from the first of the source; of a dropped one there are none."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[number].items(index - (self._ends[number - 1] if number else 0))

    def keys(self, by: str) -> np.ndarray:
        """The first 8 bytes of each record's key as big-endian integers, see `overlap.KEYS`: uint64 [R]."""
        return self._of_records(lambda part: getattr(part, f"{by}_key"), np.uint64)

    def without(self, left_out: np.ndarray, reason: str) -> "Encoded":
        """The same without some records, bool [R], which count as dropped."""
        return replace(self, kept=~left_out, reason=reason) if left_out.any() else self

    def only(self, chosen: np.ndarray) -> "Encoded":
        """Some of the records, bool [R], as if there were no others."""
        return replace(self, kept=chosen, reason="")

    def count(self, name: str, *, with_tokens: bool) -> Counter:
        """How many of the kept records that have tokens, or have none, have each value of a column of codes."""
        chosen = self.has_tokens if with_tokens else ~self.has_tokens
        chosen = chosen if self.kept is None else chosen & self.kept
        found: Counter = Counter()
        for part, begin, end in zip(self.parts, [0, *self._ends], self._ends, strict=False):
            _add_counts(found, getattr(part, name)[chosen[begin:end]], part.words[name])
        return found

    def count_items(self, name: str) -> Counter:
        """How many of the items of kept records have each value of a column of codes."""
        found: Counter = Counter()
        for part, chosen in self.items.by_part():
            codes = getattr(part, name)
            _add_counts(found, codes if chosen is None else codes[chosen], part.words[name])
        return found

    def _of_records(self, read: Callable[[Part], np.ndarray], dtype: type) -> np.ndarray:
        found = [np.zeros(0, dtype)]
        for part in self.parts:
            found.append(read(part))
            release(part.start)
        return np.concatenate(found).astype(dtype, copy=False)


def _add_counts(found: Counter, codes: np.ndarray, words: Sequence) -> None:
    counts = np.bincount(codes, minlength=len(words)).tolist()
    found.update({word: count for word, count in zip(words, counts, strict=True) if count})
