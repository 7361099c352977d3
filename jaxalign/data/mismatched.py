"""Beside every completion that is judged alone: its prompt before the completion of another record."""

from collections.abc import Sequence

import numpy as np

from jaxalign.data.items import Item
from jaxalign.data.parts import Items, as_items


def add_mismatched(items: Sequence[Item], max_length: int) -> Items:
    """Completions judged alone, each with its prompt before the completion of another record behind it.

    That is the next one, in the order of the data and from its end on to its beginning, of another record and with
    another completion; where there is none, nothing is added. It is cut at `max_length` tokens. The mean of
    log pi(y'|x) - log pi_ref(y'|x) over such pairs estimates the reference point z_0 of KTO (arXiv 2402.01306).
    """
    items = as_items(items)
    # Neighbours are compared, and not all with all: hashes of 64 bits do.
    partner = _partners(_rows(items), items.column(lambda part: part.completion))
    return Items(items.parts, items.chosen, partner, max_length)


def _rows(items: Items) -> np.ndarray:
    """The record of each item; all are of one source."""
    return items.column(lambda part: part.row)


def _partners(rows: np.ndarray, completions: np.ndarray) -> np.ndarray:
    """The first index after each, on a second round if need be, with another row and completion: int32 [M], or -1."""
    count = len(rows)
    # following[i]: the first index after i with another completion than i, both counted over two rounds.
    changes = np.resize(completions != np.roll(completions, -1), 2 * count)
    changes[-1] = True
    ends = np.where(changes, np.arange(1, 2 * count + 1), 2 * count)
    following = np.minimum.accumulate(ends[::-1])[::-1]
    found = following[:count].copy()
    asking = np.arange(count)
    while len(asking := asking[found[asking] < asking + count]):
        at = found[asking] % count
        alike = completions[at] == completions[asking]
        refused = alike | (rows[at] == rows[asking])
        asking, alike = asking[refused], alike[refused]
        found[asking] = np.where(alike, following[found[asking]], found[asking] + 1)
    return np.where(found < np.arange(count) + count, found % count, -1).astype(np.int32)
