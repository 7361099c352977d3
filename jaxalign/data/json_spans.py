"""Where the rows of a JSON file begin and end, found without parsing it: only brackets, commas and strings matter."""

import re
from collections.abc import Iterator
from typing import Any

from jaxalign.errors import DataError
from jaxalign.strict_json import NotJSON, parse_json

# Possessive: a string is passed over in one go, however long it is.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TOKEN = re.compile(_STRING + rb"|[][{},]", re.DOTALL)
_KEY = re.compile(rb"\s*(" + _STRING + rb")\s*:\s*", re.DOTALL)
_TEXT = re.compile(rb"\S")
# Fields of one row that hold lists of objects.
_OF_A_ROW = frozenset(
    "messages conversations conversation prompt completion completions chosen rejected responses history contents "
    "context_messages tools tool_calls".split()
)
# What a file may say of itself beside its rows, and no row is meant by it.
_OF_A_FILE = frozenset(
    "version name dataset split count total size num_rows num_examples license description comment source url homepage "
    "citation author authors date created created_at updated language lang format schema type id title".split()
)
Data = Any  # bytes, or a file mapped into memory


class NotWhole(Exception):
    """A bracket is never closed, or something follows the last one; the message is what."""


def spans_of_array(data: Data, start: int) -> Iterator[tuple[int, int]]:
    """The elements of the array that opens at or after `start`, and nothing else may follow it but what closes it.

    Raises:
      NotWhole: the array has no end, or is not the last value.
    """
    opening = _TEXT.search(data, start)
    assert opening is not None and data[opening.start()] == ord("[")
    end = yield from _parts(data, opening.start())
    rest = _TEXT.search(data, end)
    if rest is not None and data[rest.start()] not in b"},":  # the object around it
        raise NotWhole(f"something follows the array, from byte {rest.start()} on")


def spans_of_values(data: Data, start: int) -> Iterator[tuple[int, int]]:
    """Objects one after the other, however many lines each has; what stands between them is a span, too.

    Raises:
      NotWhole: the last one has no end.
    """
    while (found := _TEXT.search(data, start)) is not None:
        begin = found.start()
        if data[begin] in b"{[":
            start = _skip(data, begin)
        else:
            following = data.find(b"{", begin)
            start = len(data) if following < 0 else following
        yield begin, start


def first_line(data: Data, start: int) -> tuple[bytes, bool, bool]:
    """(its first character, whether one object or array fills it, whether more follows); blank lines do not count."""
    found = _TEXT.search(data, start)
    if found is None:
        return b"", False, False
    end = data.find(b"\n", found.start())
    end = len(data) if end < 0 else end
    whole = False
    if found[0] in (b"{", b"["):
        try:
            closed = _skip(data, found.start())
            whole = closed <= end and _TEXT.search(data, closed, end) is None
        except NotWhole:
            pass
    return found[0], whole, _TEXT.search(data, end) is not None


def opens_alone(data: Data, start: int) -> bool:
    """Whether the first line is one bracket, as where rows are written over several lines."""
    found = _TEXT.search(data, start)
    assert found is not None
    end = data.find(b"\n", found.start())
    return end >= 0 and _TEXT.search(data, found.start() + 1, end) is None


def one_value(data: Data, start: int) -> bool:
    """Whether the file is one object."""
    spans = spans_of_values(data, start)
    return next(spans, None) is not None and next(spans, None) is None


def list_of_rows(data: Data, start: int, name: str) -> int | None:
    """Where the list of rows opens in a file that is one object; None: the object is a row itself.

    Raises:
      DataError: it has several lists of rows, columns instead of rows, or a field beside its rows that means something.
    """
    opening = _TEXT.search(data, start)
    assert opening is not None
    fields: dict[str, tuple[int, int]] = {}
    for begin, end in _parts(data, opening.start()):
        key = _KEY.match(data, begin, end)
        if key is None:
            return None  # no JSON, here and below: parsing the row will say so
        try:
            fields[parse_json(key[1])] = (key.end(), end)
        except NotJSON:
            return None
    lists = [field for field, span in fields.items() if _holds(data, span, b"{")]
    if not lists:
        columns = [field for field, span in fields.items() if data[span[0]] == ord("[")]
        rows = [field for field, span in fields.items() if data[span[0]] == ord("{")]
        wrong = "columns" if len(columns) == len(fields) else "rows under names of their own"
        if fields and len(fields) in (len(columns), len(rows)):
            raise DataError(
                f"{name}: one object of {wrong} ({', '.join(list(fields)[:5])}); write an array of rows, or one row a "
                "line (pandas: to_json(orient='records', lines=True))"
            )
        return None
    if _OF_A_ROW & {field.lower() for field in lists}:
        return None
    if len(lists) > 1:
        raise DataError(
            f"{name}: holds several lists of rows ({', '.join(lists)}); write each to a file of its own, as an array "
            "or one row a line"
        )
    beside = [field for field in fields if field != lists[0]]
    for field in beside:
        if field.lower() not in _OF_A_FILE:
            raise DataError(
                f"{name}: the field {field!r} stands beside the list of rows {lists[0]!r}, and no row would have it; "
                "write it into the rows, or remove it"
            )
    return fields[lists[0]][0]


def _holds(data: Data, span: tuple[int, int], bracket: bytes) -> bool:
    """Whether a value is a list whose first element opens with `bracket`."""
    if data[span[0]] != ord("["):
        return False
    found = _TEXT.search(data, span[0] + 1, span[1])
    return found is not None and found[0] == bracket


def _parts(data: Data, opening: int) -> Iterator[tuple[int, int]]:
    """What the commas of one container separate; returns where the container ends."""
    begin = opening + 1
    for start, end, closes in _marks(data, opening):
        if not closes or _TEXT.search(data, begin, start):
            yield _stripped(data, begin, start)
        begin = end
    return begin


def _skip(data: Data, opening: int) -> int:
    """Where a container ends."""
    return max(end for _, end, _ in _marks(data, opening))


def _marks(data: Data, opening: int) -> Iterator[tuple[int, int, bool]]:
    """Start and end of each comma of one container itself, and at last of what closes it, which is True of it alone."""
    depth = 0
    for token in _TOKEN.finditer(data, opening):
        # Not the token itself: a string may have a hundred megabytes.
        char = data[token.start() : token.start() + 1]
        if char in b"{[":
            depth += 1
        elif char in b"}]":
            depth -= 1
            if depth == 0:
                yield token.start(), token.end(), True
                return
        elif char == b"," and depth == 1:
            yield token.start(), token.end(), False
    raise NotWhole("it ends within an array or object, so a part of it is missing")


def _stripped(data: Data, begin: int, end: int) -> tuple[int, int]:
    found = _TEXT.search(data, begin, end)
    return (end, end) if found is None else (found.start(), end)
