"""A record as tokens: what shares a row, from encoding to packing."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Item:
    """The sequences of a record that share a row, end to end as they will lie in it; most items have just one.

    A record that was dropped is an item without tokens, whose note says why.
    """

    ids: np.ndarray  # int32 [N]
    mask: np.ndarray  # float32 [N]; 1 on supervised targets, never on the first token of a sequence
    row: int = -1  # the number of the record
    cuts: tuple[int, ...] = ()  # where each sequence after the first begins
    # (preferred, other) sequences. Beside a demonstration there is no other one, nor beside a completion that is judged
    # alone and has no mismatched sequence.
    pairs: tuple[tuple[int, int | None], ...] = ((0, None),)
    weight: float = 1.0  # of each pair
    margin: float = 0.0  # the annotators', 0 where none was given
    # Of a completion judged alone, whose second sequence is the mismatched one.
    desirable: float | None = None
    ending: tuple[int, ...] = ()  # of a prompt: the stop token and what the format writes after it
    unread: tuple[str, ...] = ()  # fields of its record that nothing was made from, see `records.account_for`
    note: str = "whole"  # or "truncated", "split", or why the record was dropped
    remarks: tuple[str, ...] = ()  # what of the record is not in the tokens, as documented; see `text.shown`

    @property
    def examples(self) -> tuple["Item", ...]:
        """Each sequence as an item of its own, in segment order."""
        if not self.cuts:
            return (self,)
        spans = pairwise((0, *self.cuts, len(self.ids)))
        return tuple(Item(self.ids[start:end], self.mask[start:end], self.row) for start, end in spans)

    @property
    def own(self) -> tuple["Item", ...]:
        """The sequences that are the record's own: all but a mismatched one."""
        return self.examples if self.desirable is None else self.examples[:1]

    @property
    def shared(self) -> tuple[int, ...]:
        """Of each sequence, how many tokens of its prompt the first one begins with, too: of itself none.

        All but the last of those, off which it is read what comes after them.
        """
        first, *others = self.examples
        return (0, *(max(0, _common_prompt(first, other) - 1) for other in others))

    @property
    def prompt_length(self) -> int:
        """Tokens before the first supervised one; the whole length if none is."""
        return int(np.argmax(self.mask)) if self.mask.any() else len(self.ids)


def _common_prompt(a: Item, b: Item) -> int:
    size = min(a.prompt_length, b.prompt_length)
    differ = a.ids[:size] != b.ids[:size]
    return int(np.argmax(differ)) if differ.any() else size


def join(parts: Sequence[Item], **fields: Any) -> Item:
    """One item of the sequences of several, of which each has one; `fields` are the other fields of `Item`."""
    ids, mask = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "mask"))
    fields = {"remarks": tuple(remark for part in parts for remark in part.remarks), **fields}
    return Item(ids, mask, cuts=tuple(accumulate(len(part.ids) for part in parts[:-1])), **fields)


def dropped(row: int, reason: str) -> Item:
    """What stands for a record that is left out."""
    return Item(np.zeros(0, np.int32), np.zeros(0, np.float32), row, note=reason)


def join_mismatched(item: Item, other: Item, max_length: int) -> Item:
    """A completion judged alone, behind it its prompt before the completion of `other`, cut at `max_length` tokens."""
    begin, end = item.prompt_length, other.prompt_length
    ids = np.concatenate([item.ids[:begin], other.ids[end:]])[:max_length]
    mask = np.concatenate([item.mask[:begin], other.mask[end:]])[:max_length]
    fields = {"row": item.row, "desirable": item.desirable, "note": item.note}
    return join([item, Item(ids, mask)], pairs=((0, 1),), **fields)
