"""Conversations in the forms that people store them in, as lists of {"role", "content"}.

[{"role": "user", "content": "Hi"}, ...]          OpenAI, Hugging Face; content may be a list of text parts
[{"from": "human", "value": "Hi"}, ...]           ShareGPT
[{"role": "user", "parts": [{"text": "Hi"}]}]     Gemini
{"role": ["user", ...], "content": ["Hi", ...]}   a struct of lists, as `datasets` stores a list of structs
[{"input": "Hi", "output": "Hello"}, ...]         an exchange each
[{"user": "Hi"}, {"assistant": "Hello"}]          the role as the name
'[{"role": "user", ...}]'                         any of them as JSON, in columns that are text
"""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.errors import DataError, shorten

Turn = dict[str, Any]

_ROLE = ("role", "from", "speaker", "author", "sender")
_CONTENT = ("content", "value", "parts", "text", "message")
_EXCHANGES = (
    ("input", "output"),
    ("question", "answer"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("instruction", "output"),
    ("query", "response"),
)
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_OF_A_PART = ("type", "text", "cache_control", "annotations", "index")
ALIASES = {
    alias: role
    for role, aliases in {
        "system": "system",
        "developer": "developer",
        "user": "user human prompter customer",
        "assistant": "assistant gpt ai bot chatbot model chatgpt bing bard claude llm agent",
        "tool": "tool function observation ipython tool_response function_response",
    }.items()
    for alias in aliases.split()
}

_ROLES = frozenset(ALIASES.values())


def read_role(name: Any) -> Any:
    """The role that a name stands for, in whatever case; a name that is not known stays as it is."""
    return ALIASES.get(name.strip().lower(), name) if isinstance(name, str) else name


def read_turns(value: Any, name: str) -> list[Turn] | None:
    """A conversation in any of the forms above as messages, or None where the value is none.

    Fields of a message beside its role and content stay with it, unless they are null.

    Raises:
      DataError, without the place: part of a content is not text, or lists of a struct differ in length.
    """
    if type(value) is list and value and all(map(_is_plain, value)):
        return value
    value = as_rows(_parsed(value), name)
    if isinstance(value, Mapping) and _key(value, _ROLE):
        value = [value]  # one message, as LLaMA-Factory writes an answer
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        return None
    if not all(isinstance(item, Mapping) for item in value):
        return None
    made: list[Turn] = []
    for index, item in enumerate(value):
        turns = _turns({key: x for key, x in item.items() if x is not None}, f"{name}[{index}]")
        if turns is None:
            return None
        made += turns
    return made


def _is_plain(item: Any) -> bool:
    """Whether an entry of a conversation is a message already, as most are."""
    if type(item) is not dict or type(item.get("content")) is not str:
        return False
    role = item.get("role")
    return type(role) is str and role in _ROLES and None not in item.values()


def as_rows(value: Any, name: str) -> Any:
    """A struct of lists as a list of structs; any other value as it is."""
    if not isinstance(value, Mapping) or not value:
        return value
    columns = {key: column for key, column in value.items() if column is not None}
    if not columns or not all(isinstance(column, list | tuple) for column in columns.values()):
        return value
    if len({len(column) for column in columns.values()}) > 1:
        sizes = ", ".join(f"{key} {len(column)}" for key, column in columns.items())
        raise DataError(
            f"{name} holds lists of different lengths ({sizes}); write one entry of each a message"
        )
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def join_parts(value: Any, name: str) -> Any:
    """Content as one text: of a list of text parts, one after the other as chat templates write them.

    Raises:
      DataError, without the place: a part is not text.
    """
    parts = [value] if isinstance(value, Mapping) else value
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        return value
    texts = []
    for index, part in enumerate(parts):
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            return value
        more = [key for key, item in part.items() if item not in (None, []) and key not in _OF_A_PART]
        if not isinstance(part.get("text"), str) or part.get("type") not in _TEXT_PARTS or more:
            kind = part.get("type") if part.get("type") not in _TEXT_PARTS else ", ".join(more) or "no text"
            raise DataError(
                f"{name}[{index}] is a part of type {kind!r} ({shorten(dict(part))}), and only text is read; "
                "take such rows out, or write what the part says as text"
            )
        texts.append(part["text"])
    return "".join(texts)


def _turns(item: Mapping[str, Any], name: str) -> list[Turn] | None:
    """The turns that one entry of a conversation holds; None: it is not one."""
    role, content = _key(item, _ROLE), _key(item, _CONTENT)
    if role is not None and isinstance(item[role], str):
        rest = {key: x for key, x in item.items() if key not in (role, content)}
        said = {} if content is None else {"content": join_parts(item[content], f"{name}.{content}")}
        return [{"role": read_role(item[role]), **said, **rest}]
    lower = {key.lower(): key for key in item}
    for asked, answered in _EXCHANGES:
        if asked in lower and answered in lower:
            used = (lower[asked], lower[answered])
            rest = {key: x for key, x in item.items() if key not in used}
            return [
                {"role": "user", "content": item[used[0]]},
                {"role": "assistant", "content": item[used[1]], **rest},
            ]
    if item and all(key.lower() in ALIASES and isinstance(x, str) for key, x in item.items()):
        return [{"role": read_role(key), "content": x} for key, x in item.items()]
    return None


def _key(item: Mapping[str, Any], names: Sequence[str]) -> str | None:
    lower = {key.lower(): key for key, value in item.items() if value is not None}
    return next((lower[name] for name in names if name in lower), None)


def _parsed(value: Any) -> Any:
    """What a text that is JSON, or a Python literal as tables are saved with, holds; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:2].strip() not in ("[", "{", "[{", '{"', "{'"):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value
