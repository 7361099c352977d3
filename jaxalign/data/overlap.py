"""The same prompt on both sides of the line between training and evaluation: found, and kept apart.

Records are compared by their prompt as the model sees it: the tokens before the first supervised one. Where there is
no prompt, as in text, all tokens of the record count. Of each key 8 bytes are kept with the tokens; of records in which
these are equal the keys are made again and compared whole.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

from jaxalign.data.items import Item

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


def record_keys(items: Sequence[Item]) -> tuple[bytes, bytes]:
    """A record's key by its prompt, and by itself."""
    return prompt_key(items), sequence_key(items)


def _digest(parts: Iterable) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for ids in parts:
        digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i4").tobytes())
    return digest.digest()
