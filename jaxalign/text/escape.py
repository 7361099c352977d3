"""Texts of a conversation that cannot make a control token, whatever a chat template does with them.

The first character of whatever could read as a control token, whole or together with neighbouring text, is replaced by
a private-use character that occurs nowhere in the conversation. All else stays as it is, so a template may still
trim, split or test its contents; `Escaped.originals` puts the rendered text back as it was.
"""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jaxalign.text.messages import Message
from jaxalign.text.templates import CLOSE, OPEN

_PRIVATE_USE = range(0xF0000, 0xFFFFE)
_PRIVATE = re.compile("[\U000f0000-\U000ffffd]")


@dataclass(frozen=True)
class Escaped:
    """What a template is given, and the translation table that restores its text."""

    turns: list[dict[str, Any]]
    tools: list[Any] | None
    originals: dict[int, str]


def escape(
    messages: Sequence[Message], tools: str, controls: tuple[str, ...], answer_tokens: Collection[str] = ()
) -> Escaped:
    """The messages and tools (a JSON list, or "") of a conversation for a template.

    Args:
      controls: names of control tokens, which no text can make but for
      answer_tokens: those of them that the content of assistant messages may hold.
    """
    spoken = tuple(name for name in controls if name not in answer_tokens) if answer_tokens else controls
    given = [message.to_dict() for message in messages]
    listed = json.loads(tools) if tools else None
    strings = [m.content if len(turn) == 2 else _dump(turn) for m, turn in zip(messages, given, strict=True)]
    strings += [_dump(listed)] if listed else []
    stand_in = _stand_ins(controls, frozenset(char for text in strings for char in _PRIVATE.findall(text)))
    turns = []
    for turn in given:
        content, names = turn.pop("content"), spoken if turn["role"] == "assistant" else controls
        if isinstance(content, str):
            content = _text(content, names, controls, stand_in)
        rest = {key: _deep(value, controls, stand_in) for key, value in turn.items() if key != "role"}
        turns.append({"role": turn["role"], "content": content, **rest})
    originals = {ord(new): old for old, new in stand_in.items()}
    return Escaped(turns, listed and _deep(listed, controls, stand_in), originals)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _deep(value: Any, controls: tuple[str, ...], stand_in: dict[str, str]) -> Any:
    if isinstance(value, str):
        return _text(value, controls, controls, stand_in)
    if isinstance(value, dict):
        return {_deep(k, controls, stand_in): _deep(v, controls, stand_in) for k, v in value.items()}
    if isinstance(value, list):
        return [_deep(item, controls, stand_in) for item in value]
    return value


def _text(text: str, names: tuple[str, ...], controls: tuple[str, ...], stand_in: dict[str, str]) -> str:
    """The text without any of `names`, and without a beginning or an end that could become one of `controls`."""
    marked = set()
    if control_names(names).search(text):
        marked = {match.start() for match in _begins(names).finditer(text)}
    if OPEN in text or CLOSE in text:
        marked |= {i for i, char in enumerate(text) if char in (OPEN, CLOSE)}
    inner = text.strip()
    start = text.find(inner)
    end = start + len(inner)
    heads, tails = _parts(controls)
    marked |= {end - len(head) for head in heads.get(inner[-1:], ()) if inner.endswith(head)}
    if any(inner.startswith(tail) for tail in tails.get(inner[:1], ())):
        marked.add(start)
    return "".join(stand_in[c] if i in marked else c for i, c in enumerate(text)) if marked else text


@lru_cache(maxsize=32)
def control_names(controls: tuple[str, ...]) -> re.Pattern:
    """Matches, in its only group, a control token's name, of two that begin alike the longer one."""
    longest_first = sorted(controls, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


@lru_cache(maxsize=32)
def _begins(controls: tuple[str, ...]) -> re.Pattern:
    """Matches the first character of every name; a lookahead, so that of two overlapping names both are found."""
    return re.compile(f"(?={control_names(controls).pattern}).", re.DOTALL)


@lru_cache(maxsize=8)
def _parts(controls: tuple[str, ...]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Proper beginnings of names by their last character, and proper endings of names by their first."""
    heads: dict[str, list[str]] = {}
    tails: dict[str, list[str]] = {}
    for head in {control[:size] for control in controls for size in range(1, len(control))}:
        heads.setdefault(head[-1], []).append(head)
    for tail in {control[size:] for control in controls for size in range(1, len(control))}:
        tails.setdefault(tail[0], []).append(tail)
    return heads, tails


@lru_cache(maxsize=64)
def _stand_ins(controls: tuple[str, ...], used: frozenset[str]) -> dict[str, str]:
    free = (chr(point) for point in _PRIVATE_USE if chr(point) not in used)
    return {letter: next(free) for letter in sorted({OPEN, CLOSE, *"".join(controls)})}
