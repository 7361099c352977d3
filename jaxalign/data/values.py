"""Fields of a row as text, messages and numbers. The errors here do not name the place of the row."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from jaxalign.data.conversations import read_turns
from jaxalign.data.fields import check_message
from jaxalign.errors import DataError
from jaxalign.text.messages import ROLES, Message, Turns

Row = Mapping[str, Any]


def read(
    row: Row,
    names: Sequence[str],
    *,
    need: Sequence[str] = (),
    or_else: str = "",
    inside: str = "",
    messages: bool = True,
) -> list[Turns]:
    """The fields called `names`: text as it is, anything else as messages.

    Args:
      need: further fields that must be there, and are not read here.
      or_else: what may stand in place of all of them, for errors.
      inside: the name of the value that the row is, where it is part of another row.
      messages: allow messages; otherwise only text.

    Raises:
      DataError: a field is missing or of another type, or its text is no Unicode.
    """
    if missing := [name for name in (*names, *need) if row.get(name) is None]:
        place = f"{inside}: " if inside else ""
        wanted = ", ".join((*names, *need)) + (f" (or {or_else})" if or_else else "")
        found = ", ".join(row) or "no fields"
        hint = "" if inside else f"; {_naming(missing)}" if row else ""
        raise DataError(f"{place}missing {', '.join(missing)}; expected {wanted}; found {found}{hint}")
    values: list[Turns] = []
    for name in names:
        value, path = row[name], f"{inside}.{name}" if inside else name
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"{path} is not Unicode text ({error}); remove the surrogate") from None
        elif messages:
            value = read_messages(value, path)
        else:
            raise DataError(f"{path} is a {type(value).__name__}, not a string; quote it")
        values.append(value)
    return values


def _naming(missing: Sequence[str]) -> str:
    fields = ",".join(f"{name}=FIELD" for name in missing)
    return f"if fields of other names hold them, say so with config.data.fields={fields}"


def read_texts(row: Row, names: Sequence[str], *, inside: str = "") -> list[str]:
    """`read` of fields that must be text."""
    return cast(list[str], read(row, names, inside=inside, messages=False))


def read_messages(value: Any, name: str) -> tuple[Message, ...]:
    """A conversation in any form of `conversations.read_turns`, or one message, as LLaMA-Factory writes an answer.

    Raises:
      DataError: it is neither, or a message cannot be used.
    """
    turns = None if isinstance(value, str) else read_turns(value, name)
    if turns is not None:
        value = turns
    elif isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, bytes | str):
        raise DataError(
            f"{name} is a {type(value).__name__}; "
            'write a list of messages [{"role": ..., "content": ...}] or, where allowed, text'
        )
    return tuple(_message(item, f"{name}[{index}]") for index, item in enumerate(value))


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, Mapping):
        raise DataError(f"{name} is a {type(value).__name__}; write an object with role and content")
    check_message(value, name)
    role, content = read_texts(value, ("role", "content"), inside=name)
    if role not in ROLES:
        raise DataError(f"{name} has unknown role {role!r}; use {', '.join(ROLES)}")
    if role == "assistant" and not content.strip():
        raise blank(content, f"{name}.content")
    return Message(role, content)


def blank(text: str, name: str) -> DataError:
    """What to raise for text that says nothing."""
    return DataError(f"{name} is empty or only whitespace ({text!r}); fill it or remove the row")


def is_gap(value: Any) -> bool:
    """Whether a score is missing, as tables write it."""
    if isinstance(value, str):
        return value.strip().lower() in ("", "n/a", "na", "nan", "none", "null")
    return value is None or (isinstance(value, float) and math.isnan(value))


def read_number(value: Any, name: str) -> float:
    """Raises DataError unless the value is a finite number, or text that is one."""
    number = value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            raise DataError(f"{name} is {value!r}, not a number; write one") from None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise DataError(f"{name} is a {type(value).__name__}, not a number; write one")
    if not math.isfinite(number):
        raise DataError(f"{name} is {value}; write a finite number")
    return float(number)


_LABELS = dict.fromkeys("true 1 yes good desirable thumbs_up upvote liked 👍 chosen accepted".split(), True)
_LABELS |= dict.fromkeys(
    "false 0 no bad undesirable thumbs_down downvote disliked 👎 rejected".split(), False
)


def read_label(value: Any, name: str) -> bool:
    """Whether a completion is desirable.

    Raises:
      DataError: the value is none of true and false, 1 and 0, and the words for them; another number may be a score.
    """
    number = isinstance(value, int | float) and value in (0, 1)
    word = str(int(value)) if number else value
    if isinstance(word, str) and (word := word.strip().lower().replace(" ", "_")) in _LABELS:
        return _LABELS[word]
    raise DataError(
        f"{name} is {value!r}, a {type(value).__name__}; write true for a desirable completion and false for an "
        f"undesirable one, or one of {', '.join(_LABELS)}"
    )
