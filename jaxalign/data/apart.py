"""Training and held-out records kept apart, by the keys of `overlap`."""

import math
from collections.abc import Sequence

import numpy as np

from jaxalign.data.encoded import Encoded
from jaxalign.data.overlap import ALSO_IN_EVAL, HELD_OUT, KEYS

# A record of the source `source`, counted from 0 in it.
Place = tuple[int, int]


def find_shared(train: Sequence[Encoded], held: Sequence[Encoded], by: str) -> list[dict[int, Place]]:
    """For each training source: the records whose key is in the held-out data, with the last one there that has it.

    Args:
      by: a name of `KEYS`.
    """
    known = np.unique(np.concatenate([each.keys(by)[each.has_tokens] for each in held]))
    suspects = [np.flatnonzero(each.has_tokens & np.isin(each.keys(by), known)) for each in train]
    if not any(map(len, suspects)):
        return [{} for _ in train]
    # 64 bits are equal: among so many records that may be chance, so the keys of these are compared whole.
    asked = np.unique(
        np.concatenate([each.keys(by)[found] for each, found in zip(train, suspects, strict=True)])
    )
    places: dict[bytes, Place] = {}
    for number, each in enumerate(held):
        for index in np.flatnonzero(each.has_tokens & np.isin(each.keys(by), asked)).tolist():
            places[KEYS[by](each.record(index))] = (number, index)
    shared = []
    for each, found in zip(train, suspects, strict=True):
        keys = ((index, KEYS[by](each.record(index))) for index in found.tolist())
        shared.append({index: places[key] for index, key in keys if key in places})
    return shared


def drop_shared(train: Sequence[Encoded], shared: Sequence[dict[int, Place]]) -> list[Encoded]:
    """The training records without what `find_shared` found, which counts as "also in eval"."""
    return [
        each.without(np.isin(np.arange(len(each)), list(found)), ALSO_IN_EVAL)
        for each, found in zip(train, shared, strict=True)
    ]


def hold_out(records: Encoded, fraction: float) -> tuple[Encoded, Encoded]:
    """(training, held-out) records: about `fraction` of all prompts is held out, by their hash alone.

    So a prompt is on one side only, whatever source, order or number of records it comes with.
    """
    held = records.has_tokens & (records.keys("prompt") < np.uint64(math.ceil(fraction * 2**64)))
    return records.without(held, HELD_OUT), records.only(held)
