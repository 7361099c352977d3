"""Fields of a row as text, messages and numbers. The errors here do not name the place of the row."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from jaxalign.data.accounts import SWITCHES, canonical
from jaxalign.data.conversations import read_turns
from jaxalign.data.fields import check_message, is_learned
from jaxalign.errors import DataError, shorten
from jaxalign.strict_json import NotJSON, parse_json
from jaxalign.text.messages import REASONING, ROLES, Message, Turns

Row = Mapping[str, Any]

TOOLS = ("tools", "functions")
# Of a message, beside role and content: what makes it another message.
MEANT = ("tool_calls", *TOOLS, *REASONING, "name", "tool_call_id")
_SPELLED = {canonical(name): name for name in (*MEANT, "function_call")}


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
    learned = is_learned(value, name)
    value = {key: item for key, item in value.items() if item is not None}
    if value.keys() <= {"role", "content"}:
        more, notes = {}, {}
    else:
        more, notes = _read_more(value, name)
    spoken: Row = value
    if more.get("tool_calls") and "content" not in value:
        spoken, more = {**value, "content": ""}, {"content": None, **more}
    role, content = read_texts(spoken, ("role", "content"), inside=name)
    if role not in ROLES:
        raise DataError(f"{name} has unknown role {role!r}; use {', '.join(ROLES)}")
    if role == "assistant" and not content.strip() and "tool_calls" not in more:
        raise blank(content, f"{name}.content")
    return Message(role, content, _to_json(more, name), _to_json(notes, name), learned)


def _read_more(value: Row, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a message says beside role and content: what makes it another message, and the rest."""
    rest = {
        _SPELLED.get(canonical(key), key): item
        for key, item in value.items()
        if key not in ("role", "content") and canonical(key) not in SWITCHES
    }
    if "function_call" in rest and "tool_calls" not in rest:  # as OpenAI wrote the only call there could be
        rest["tool_calls"] = rest.pop("function_call")
    more = {key: item for key, item in rest.items() if key in MEANT and item not in ("", [], {}, False)}
    if "tool_calls" in more:
        more["tool_calls"] = [
            _call(item, f"{name}.tool_calls") for item in _listed(more["tool_calls"], f"{name}.tool_calls")
        ]
        if not more["tool_calls"]:
            del more["tool_calls"]
    for key in TOOLS:
        if key in more and not _listed(more[key], f"{name}.{key}"):
            del more[key]
    for key in REASONING:
        if key in more and not isinstance(more[key], str):
            raise DataError(f"{name}.{key} is a {type(more[key]).__name__}; write the thought as text")
    return more, {key: item for key, item in rest.items() if key not in MEANT}


def _call(call: Any, name: str) -> Row:
    if isinstance(call, Mapping) and isinstance(call.get("arguments"), str | Mapping) and "name" in call:
        call = {"type": "function", "function": call}  # without its wrapper, as function_call has it
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(
            f'{name} has {shorten(call)}; write calls as {{"function": {{"name": ..., "arguments": {{...}}}}}}'
        )
    return call


def read_tools(row: Row) -> str:
    """The tools of a row as a JSON list, as chat templates get them; "" where there are none.

    `functions`, of OpenAI's older form, become tools.

    Raises:
      DataError: they are no list of objects, or there are two lists.
    """
    found = []
    for name in TOOLS:
        if tools := _listed(row.get(name) or [], name):
            wrapped = name == "functions" and not any("function" in tool for tool in tools)
            found.append([{"type": "function", "function": tool} for tool in tools] if wrapped else tools)
    if len(found) == 2 and found[0] != found[1]:
        raise DataError("tools and functions say different things; keep one of them")
    return _to_json(found[0], "tools") if found else ""


def _listed(value: Any, name: str) -> list[Row]:
    """A list of objects, which may be written as JSON, whole or each."""
    way_out = (
        f"write a list of objects, or leave it out with config.data.ignore_fields={name.rpartition('.')[2]}"
    )
    try:
        value = parse_json(value or "[]") if isinstance(value, str) else value
        value = [value] if isinstance(value, Mapping) else [] if value is None else value
        if isinstance(value, Sequence) and not isinstance(value, str):
            listed: list[Any] = [
                parse_json(item) if isinstance(item, str) and item else item for item in value
            ]
            listed = [item for item in listed if item not in (None, "", {})]
            if all(isinstance(item, Mapping) for item in listed):
                return listed
    except NotJSON as error:
        raise DataError(f"{name} is {shorten(value)}, which is not JSON ({error}); {way_out}") from None
    raise DataError(f"{name} is {shorten(value)}; {way_out}")


def _to_json(value: Any, name: str) -> str:
    """A value as JSON, "" where it says nothing."""
    if not value:
        return ""
    text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} is not Unicode text ({error}); remove the surrogate") from None
    return text


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
    try:
        number = float(number)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{name} is {shorten(value)}; write a finite number")
    return number


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
