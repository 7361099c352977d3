"""Items as flat arrays, in memory or mapped from a file, from which each is made when it is asked for.

An `Item` takes some hundred bytes beside its tokens, and a list of them cannot be shared by processes. Here a token
takes two or four bytes and a bit, and a record about a hundred bytes.
"""

import bisect
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from jaxalign.data.arrays import release
from jaxalign.data.items import Item, join_mismatched

# Columns of which a code stands in the array, and the values themselves, each once, in `Part.words`.
CODED = ("pairs", "ending", "item_note", "remarks", "note", "unread")


@dataclass(frozen=True, eq=False)
class Part:
    """Some records of a source, one after the other, and their items. T tokens, N items, R records, C cuts."""

    ids: np.ndarray  # uint16 or int32 [T]
    mask: np.ndarray  # uint8 [T / 8], a bit for each token
    start: np.ndarray  # int64 [N + 1]: item i has tokens start[i] to start[i + 1]
    cuts: np.ndarray  # int32 [C]
    cut_start: np.ndarray  # int32 [N + 1]
    row: np.ndarray  # int32 [N]: the record of an item, counted from the first of its source
    prompt: np.ndarray  # int32 [N], `Item.prompt_length`
    supervised: np.ndarray  # int32 [N], tokens
    shared: np.ndarray  # int32 [N], the sum of `Item.shared`
    weight: np.ndarray  # float64 [N], as are the next two
    margin: np.ndarray
    desirable: np.ndarray  # NaN for None
    pairs: np.ndarray  # codes [N], as are the next three
    ending: np.ndarray
    item_note: np.ndarray
    remarks: np.ndarray
    digest: np.ndarray  # uint64 [N, 2], see `digest_of`
    completion: np.ndarray  # uint64 [N], a hash of what follows the prompt; 0 where nobody asks for it
    first: np.ndarray  # int32 [R + 1]: record r has items first[r] to first[r + 1]
    note: np.ndarray  # codes [R]: "whole" or another note of its first item, or why it was dropped
    unread: np.ndarray  # codes [R]
    prompt_key: np.ndarray  # uint64 [R], the beginning of `overlap.prompt_key`; 0 of what was dropped
    record_key: np.ndarray  # uint64 [R], likewise of `overlap.sequence_key`
    words: Mapping[str, list]
    bad: Sequence[tuple[int, str, bool]] = ()  # records that cannot be used, see `invalid.Noted`

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        return {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("words", "bad")
        }

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each item: int32 [N]."""
        return np.diff(self.start).astype(np.int32)

    def items(self, record: int) -> list[Item]:
        """The items of a record, counted from the first of this part; of a dropped one there are none."""
        return [self.item(i) for i in range(int(self.first[record]), int(self.first[record + 1]))]

    def item(self, index: int, first_row: int = 0) -> Item:
        """One item, made anew; `first_row` is the number of its source's first record."""
        start, stop = int(self.start[index]), int(self.start[index + 1])
        bits = np.unpackbits(self.mask[start >> 3 : (stop + 7) >> 3], bitorder="little")
        at = start & 7
        desirable = float(self.desirable[index])
        words = self.words
        return Item(
            self.ids[start:stop].astype(np.int32),
            bits[at : at + stop - start].astype(np.float32),
            row=first_row + int(self.row[index]),
            cuts=tuple(self.cuts[self.cut_start[index] : self.cut_start[index + 1]].tolist()),
            pairs=words["pairs"][self.pairs[index]],
            weight=float(self.weight[index]),
            margin=float(self.margin[index]),
            desirable=None if desirable != desirable else desirable,
            ending=words["ending"][self.ending[index]],
            note=words["item_note"][self.item_note[index]],
            remarks=words["remarks"][self.remarks[index]],
        )


def digest_of(item: Item) -> bytes:
    """16 bytes that are the same for the same tokens, masks, pairs, margin and label; nothing else counts."""
    digest = hashlib.blake2b(digest_size=16)
    if item.cuts:  # which of the sequences is preferred, and by how much
        pairs = [(first, -1 if second is None else second) for first, second in item.pairs]
        digest.update(np.asarray((*item.cuts, len(item.cuts)), "<i4").tobytes())
        digest.update(np.asarray(pairs, "<i4").tobytes())
        digest.update(np.float32(item.margin).astype("<f4").tobytes())
    if item.desirable is not None:
        digest.update(np.float32(item.desirable).astype("<f4").tobytes())
    digest.update(len(item.ids).to_bytes(8, "little"))
    digest.update(item.ids.astype("<i4").tobytes())
    digest.update(np.packbits(item.mask > 0).tobytes())
    return digest.digest()


def make_part(
    records: Sequence[Sequence[Item]],
    keys: Callable[[Sequence[Item]], tuple[bytes, bytes]],
    *,
    first_row: int = 0,
    small_ids: bool = False,
    completions: bool = False,
    bad: Sequence[tuple[int, str, bool]] = (),
) -> Part:
    """Lays the items of some records, of each one at least, into flat arrays.

    Args:
      keys: items of a record -> (its prompt's key, its own), of which 8 bytes are kept.
      first_row: what `Item.row` counts from.
      small_ids: every id is below 65,536.
      completions: fills in `Part.completion`.
    """
    items = [item for record in records for item in record if len(item.ids)]
    words: dict[str, dict[Any, int]] = {name: {} for name in CODED}

    def code(name: str, values: Iterable[Any]) -> np.ndarray:
        known = words[name]
        codes = [known.setdefault(value, len(known)) for value in values]
        return np.asarray(codes, np.min_scalar_type(max(len(known) - 1, 0)))

    def flat(arrays: Sequence[Any], dtype: Any) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype, copy=False)

    def starts(counts: Iterable[int], dtype: Any) -> np.ndarray:
        return np.asarray([0, *accumulate(counts)], dtype)

    made = {
        "ids": flat([item.ids for item in items], np.uint16 if small_ids else np.int32),
        "mask": np.packbits(flat([item.mask > 0 for item in items], bool), bitorder="little"),
        "start": starts((len(item.ids) for item in items), np.int64),
        "cuts": flat([item.cuts for item in items if item.cuts], np.int32),
        "cut_start": starts((len(item.cuts) for item in items), np.int32),
        "row": np.asarray([item.row - first_row for item in items], np.int32),
        "prompt": np.asarray([item.prompt_length for item in items], np.int32),
        "supervised": np.asarray([np.count_nonzero(item.mask) for item in items], np.int32),
        "shared": np.asarray([sum(item.shared) for item in items], np.int32),
        "weight": np.asarray([item.weight for item in items], np.float64),
        "margin": np.asarray([item.margin for item in items], np.float64),
        "desirable": np.asarray(
            [np.nan if item.desirable is None else item.desirable for item in items], np.float64
        ),
        "pairs": code("pairs", (item.pairs for item in items)),
        "ending": code("ending", (tuple(item.ending) for item in items)),
        "item_note": code("item_note", (item.note for item in items)),
        "remarks": code("remarks", (item.remarks for item in items)),
        "digest": np.frombuffer(b"".join(map(digest_of, items)), np.uint64).reshape(-1, 2),
        "completion": np.asarray(
            [_short(item.ids[item.prompt_length :].tobytes()) if completions else 0 for item in items],
            np.uint64,
        ),
        "first": starts((sum(len(item.ids) > 0 for item in record) for record in records), np.int32),
        "note": code("note", (record[0].note for record in records)),
        "unread": code("unread", (record[0].unread for record in records)),
    }
    found = [keys(record) if len(record[0].ids) else (b"", b"") for record in records]
    for column, name in enumerate(("prompt_key", "record_key")):
        made[name] = np.asarray([int.from_bytes(each[column][:8]) for each in found], np.uint64)
    return Part(**made, words={name: list(known) for name, known in words.items()}, bad=bad)


def _short(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


class Items(Sequence[Item]):
    """Items of one source or several, each made when it is asked for.

    Args:
      parts: with the number of the first record of the source that each is of.
      chosen: int [M], which of the items of all parts these are; None: all.
      partner: int32 [M], which of them has the completion that stands beside each as mismatched, -1 for none; cut at
        `max_length` tokens together with its prompt. None: there are none such.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Part, int]],
        chosen: np.ndarray | None = None,
        partner: np.ndarray | None = None,
        max_length: int = 0,
    ) -> None:
        self.parts, self.chosen, self.partner, self.max_length = tuple(parts), chosen, partner, max_length
        self._ends = list(accumulate(len(part.row) for part, _ in parts))

    @classmethod
    def join(cls, several: Sequence["Items"]) -> "Items":
        """The items of several, one after the other."""
        if len(several) == 1:
            return several[0]
        parts = [part for each in several for part in each.parts]
        bases = [0, *accumulate(each._ends[-1] if each._ends else 0 for each in several)]
        chosen = partner = None
        if any(each.chosen is not None for each in several):
            chosen = np.concatenate([base + each.indices for each, base in zip(several, bases, strict=False)])
        if any(each.partner is not None for each in several):
            counts = [0, *accumulate(map(len, several))]
            partner = np.concatenate(
                [
                    np.where(each.partners < 0, -1, count + each.partners)
                    for each, count in zip(several, counts, strict=False)
                ]
            )
        return cls(parts, chosen, partner, max(each.max_length for each in several))

    @property
    def indices(self) -> np.ndarray:
        """Which of the items of all parts these are."""
        return np.arange(self._ends[-1] if self._ends else 0) if self.chosen is None else self.chosen

    @property
    def partners(self) -> np.ndarray:
        """`partner`, with -1 everywhere where there is none."""
        return np.full(len(self), -1) if self.partner is None else self.partner

    def __len__(self) -> int:
        if self.chosen is not None:
            return len(self.chosen)
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = int(index)
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        item = self._own(index)
        if self.partner is None or self.partner[index] < 0:
            return item
        return join_mismatched(item, self._own(int(self.partner[index])), self.max_length)

    def _own(self, index: int) -> Item:
        if self.chosen is not None:
            index = int(self.chosen[index])
        number = bisect.bisect_right(self._ends, index)
        part, first_row = self.parts[number]
        return part.item(index - (self._ends[number - 1] if number else 0), first_row)

    def column(self, read: Callable[[Part], np.ndarray]) -> np.ndarray:
        """What `read` gives of each part, [N], for these items: [M]."""
        found = []
        for part, _ in self.parts:
            found.append(read(part))
            release(
                part.start
            )  # all that is mapped of it: of a large store, hundreds of MiB that are read once
        whole = found[0] if len(found) == 1 else np.concatenate(found)
        return whole if self.chosen is None else whole[self.chosen]

    def measure(self, name: str, size: Callable[[Any], int]) -> np.ndarray:
        """The size of each item's value in a column of codes: int32 [M]."""
        return self.column(
            lambda part: (
                np.asarray([size(word) for word in part.words[name]], np.int32)[getattr(part, name)]
                if len(part.row)
                else np.zeros(0, np.int32)
            )
        )

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each item, those of a mismatched sequence, too: int32 [M]."""
        own = self.column(lambda part: part.lengths)
        if self.partner is None:
            return own
        prompt = self.column(lambda part: part.prompt)
        with_other = np.minimum(prompt + (own - prompt)[self.partner], self.max_length)
        return own + np.where(self.partner < 0, 0, with_other)

    @cached_property
    def shared(self) -> np.ndarray:
        """Tokens of each item that need not be computed twice, `Item.shared` added up: int32 [M]."""
        own = self.column(lambda part: part.shared)
        if self.partner is None:
            return own
        prompt = self.column(lambda part: part.prompt)
        return own + np.where(self.partner < 0, 0, np.maximum(np.minimum(prompt, self.max_length) - 1, 0))

    @property
    def segments(self) -> np.ndarray:
        """Sequences of each item: int32 [M]."""
        own = 1 + self.column(lambda part: np.diff(part.cut_start))
        return own if self.partner is None else own + (self.partner >= 0)

    @property
    def pair_counts(self) -> np.ndarray:
        """Pairs of each item: int32 [M]."""
        return self.measure("pairs", len)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the digests of all items, and of which stands beside which: equal data, equally tokenised."""
        digest = hashlib.sha256()
        for part, chosen in self.by_part():
            rows = part.digest if chosen is None else part.digest[chosen]
            digest.update(np.ascontiguousarray(rows).data)
            release(part.digest)
        if self.partner is not None:
            digest.update(f"mismatched {self.max_length}".encode())
            digest.update(self.partner.astype("<i8").tobytes())
        return digest.hexdigest()

    def by_part(self) -> Iterator[tuple[Part, np.ndarray | None]]:
        """Each part, and which of its items are among these, in ascending order; None: all."""
        if self.chosen is None:
            yield from ((part, None) for part, _ in self.parts)
            return
        edges = np.searchsorted(self.chosen, [0, *self._ends])
        for (part, _), base, begin, end in zip(self.parts, [0, *self._ends], edges, edges[1:], strict=False):
            yield part, self.chosen[begin:end] - base


def as_items(items: Sequence[Item]) -> Items:
    """Items that are made already, each a record of its own, as flat arrays."""
    if isinstance(items, Items):
        return items
    return Items([(make_part([[item] for item in items], lambda _: (b"", b""), completions=True), 0)])
