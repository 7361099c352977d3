"""Rows of every shape, sound and changed, as each kind of data reads them."""

import json
from pathlib import Path
from typing import Any

from tests.faults.fuzz.cases import STRANGE_TEXTS, Random, Surface, any_value, chance, mutated

_CHAT = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "In the den."}]
_TOOLS = [
    {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
]
_CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "find", "arguments": "{}"}}],
}
_ROWS: tuple[dict[str, Any], ...] = (
    {"text": "The fox sleeps."},
    {"prompt": "The fox", "completion": " sleeps."},
    {"messages": _CHAT},
    {"messages": [*_CHAT, _CHAT[0], _CALL, {"role": "tool", "content": "den"}, _CHAT[1]], "tools": _TOOLS},
    {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
        "system": "Be brief.",
    },
    {
        "contents": [
            {"role": "user", "parts": [{"text": "Hi"}]},
            {"role": "model", "parts": [{"text": "Hello"}]},
        ]
    },
    {"messages": {"role": ["user", "assistant"], "content": ["Hi", "Hello"]}},
    {"messages": '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]'},
    {"prompt": "The fox", "chosen": " sleeps.", "rejected": " flies.", "margin": 1.5},
    {"chosen": _CHAT, "rejected": [_CHAT[0], {"role": "assistant", "content": "No."}], "score_chosen": 2},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away"},
    {"prompt": "Hi", "responses": ["Hello", "No", "Well"], "scores": [2, 0, "1.5"]},
    {
        "prompt": "Hi",
        "completions": [{"response": "a", "score": 1}, {"response": "b", "rank": 2, "score": 3}],
    },
    {"prompt": _CHAT[:1], "completion": _CHAT[1:], "label": True},
    {
        "question": "Where?",
        "response_a": "In the den.",
        "response_b": "No.",
        "preference": "b",
        "system": "Be brief.",
    },
    {"instruction": "Say hi", "input": "", "output": "Hi", "history": [["a", "b"]]},
    {"prompt": "Hi", "completion": "Hello", "finished": False, "prompt_ids": [1, 2]},
    {"instruction": "Hi", "models": ["m"], "completions": [{"response": "Hello", "overall_score": 3}]},
    {
        "info": {"post": "p", "title": "t", "subreddit": "s"},
        "summaries": [{"text": "a"}, {"text": "b"}],
        "choice": 1,
    },
    {"history": "h", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_ratio": 3.0},
    {"message_id": "m", "parent_id": None, "text": "t", "role": "prompter"},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, _CHAT[1]]},
    {"messages": [_CHAT[0], {**_CHAT[1], "reasoning_content": "Hm", "weight": 1}]},
)
_LIKELY = (
    *STRANGE_TEXTS,
    _CHAT,
    _CHAT[0],
    [],
    {},
    [[]],
    [{}],
    "",
    [None],
    {"role": "user"},
    [_CHAT],
    "[{]",
    "{'a': 1}",
    10**400,
)
_FIELDS = (
    "",
    "",
    "",
    "prompt=question",
    "prompt=a.b,completion=c",
    "chosen=chosen",
    "x=y",
    "prompt",
    "=",
    "messages=messages.x",
)


def write(rng: Random, folder: Path) -> tuple[Any, str, str]:
    row = mutated(rng, rng.choice(_ROWS), more=_LIKELY)
    if chance(rng, 0.2) and isinstance(row, dict):
        other = mutated(rng, rng.choice(_ROWS)) if chance(rng, 0.7) else None
        row |= other if isinstance(other, dict) else {"more": any_value(rng)}
    if chance(rng, 0.01) and isinstance(row, dict) and row:
        value: Any = "deep"
        for _ in range(rng.choice((50, 500, 900))):
            value = [value] if chance(rng, 0.5) else {"a": value}
        row[rng.choice(list(row))] = value
    from jaxalign.data.records import KINDS

    return row, rng.choice(list(KINDS)), rng.choice(_FIELDS)


def read(given: tuple[Any, str, str]) -> None:
    from jaxalign.data.fields import complete_prompt
    from jaxalign.data.files import parse_json
    from jaxalign.data.mapping import map_fields, parse_mapping
    from jaxalign.data.public.rows import read_shape
    from jaxalign.data.records import account_for
    from jaxalign.data.sources import Unusable
    from jaxalign.errors import DataError

    row, kind, fields = given
    try:
        row = parse_json(json.dumps(row).encode())
    except RecursionError:
        raise DataError("too deep to be written as JSON") from None
    mapping = parse_mapping(fields)
    try:
        row = map_fields(row, mapping) if mapping else row
        account_for(complete_prompt(read_shape(row, kind), kind), kind, "row")
    except Unusable as reason:
        raise DataError(str(reason)) from None


def prepare() -> None:
    import jaxalign.data.public.recipes
    import jaxalign.data.records  # noqa: F401


SURFACE = Surface(400, write, read, prepare)
