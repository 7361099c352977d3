"""JSON from elsewhere, read so that whatever is wrong with it is one kind of error that says what."""

import json
from typing import Any


class NotJSON(ValueError):
    """A text is no JSON; the message says why."""


class SaidTwice(NotJSON):
    """An object has one name twice, with different values."""


def parse_json(text: str | bytes) -> Any:
    """The value that a text, in UTF-8 if it is bytes, stands for.

    Raises:
      NotJSON: it stands for none, or Python cannot hold it; or an object has one name twice with different values.
    """
    try:
        return json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text, object_pairs_hook=_object
        )
    except NotJSON:
        raise
    # An integer of thousands of digits is a ValueError, as is what is not UTF-8.
    except (ValueError, RecursionError) as error:
        raise NotJSON(str(error)) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        values = [value for name, value in pairs if name == twice]
        if any(value != values[0] for value in values):
            raise SaidTwice(f"the field {twice!r} stands twice in one object; remove one of them")
    return found
