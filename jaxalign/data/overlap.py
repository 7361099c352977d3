"""The same prompt on both sides of the line between training and evaluation: found, and kept apart.

Records are compared by their prompt as the model sees it: the tokens before the first supervised one. Where there is
no prompt, as in text, all tokens of the record count.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from jaxalign.data.items import Item, dropped

ALSO_IN_EVAL = "also in eval"
HELD_OUT = "held out for eval"


def prompt_key(items: Sequence[Item]) -> bytes:
    """What two records share exactly if their prompts are the same; `items` are those of one record."""
    first = items[0].own[0]
    # One token of prompt is none: the first token is never supervised, be it BOS or text.
    if first.prompt_length > 1:
        return _digest([first.ids[: first.prompt_length]])
    return _digest(example.ids for item in items for example in item.own)


def sequence_key(items: Sequence[Item]) -> bytes:
    """What two records share exactly if all their tokens are the same."""
    return _digest(example.ids for item in items for example in item.own)


def by_record(items: Iterable[Item]) -> dict[int, list[Item]]:
    """Items by the number of their record."""
    groups = defaultdict(list)
    for item in items:
        groups[item.row].append(item)
    return dict(groups)


KEYS = {"prompt": prompt_key, "record": sequence_key}


def drop_shared(encoded: Sequence[list[Item]], keys: Collection[bytes], by: str) -> list[list[Item]]:
    """The records, those whose key (a name of `KEYS`) is among `keys` dropped as "also in eval"."""
    return [
        [dropped(items[0].row, ALSO_IN_EVAL)] if len(items[0].ids) and KEYS[by](items) in keys else items
        for items in encoded
    ]


def hold_out(encoded: Sequence[list[Item]], fraction: float) -> tuple[list[list[Item]], list[list[Item]]]:
    """(training, held-out) records: about `fraction` of all prompts is held out, by their hash alone.

    So a prompt is on one side only, whatever source, order or number of records it comes with.
    """
    kept, held = [], []
    for items in encoded:
        if len(items[0].ids) and int.from_bytes(prompt_key(items)[:8]) < fraction * 2**64:
            held.append(items)
            items = [dropped(items[0].row, HELD_OUT)]
        kept.append(items)
    return kept, held


def _digest(parts: Iterable) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for ids in parts:
        digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i4").tobytes())
    return digest.digest()
