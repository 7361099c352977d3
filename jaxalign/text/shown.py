"""Whether what a conversation says is in what a chat template wrote of it, and in what its tokens decode to."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any

from jaxalign.errors import DataError, shorten
from jaxalign.text.messages import REASONING, Message
from jaxalign.text.templates import ChatTemplate
from jaxalign.text.tokenizer import Tokenizer, unknown_id

# What may be left out, as templates document; counted, see `EncodingReport.remarks`.
THOUGHTS = "thoughts of earlier answers, which the chat template leaves out once another question follows"
PARTS_OF_TOOLS = "rows of whose tools the chat template leaves out parts"
NAMES = "names of speakers, which the chat template leaves out"
QUOTED = "arguments of tool calls that are JSON in a string, which the chat template quotes; write them as an object"

_THOUGHT_MARK = re.compile(r"\s*(</?think>)\s*")
_THOUGHT = re.compile(r"^(?:.*<think>)?.*</think>", re.DOTALL)
_SWITCH = re.compile(
    r"/no_think\b|/think\b|/system_override\b"
)  # to the template of SmolLM3, which takes them out


def check_decodes(ids: Sequence[int], answer: str, tokenizer: Tokenizer, what: str) -> None:
    """Raises DataError unless the text of `ids`, or its end, is `answer`, so that it is what the model would say.

    What the tokenizer has no piece for is left to `audit`, which counts it.
    """
    said = tokenizer.decode(ids)
    if said == answer or ends_with(said, answer) or ends_with(_normal(said), _normal(answer)):
        return
    if unknown_id(tokenizer) in ids:
        return
    raise DataError(
        f"the tokenizer loses part of {what}: {shorten(answer)} is decoded as {shorten(said)}, which is what a model "
        "trained on it would say; take a tokenizer that keeps white space and characters as they are"
    )


def check_shown(
    ids: Sequence[int],
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    tokens: Collection[str] = (),
) -> None:
    """Raises DataError unless the text of `ids`, rendered by `template`, has what every message says.

    Of answers, thoughts and `tokens`, which they may hold as control tokens, may be missing.
    """
    template = template or tokenizer.template
    said = normal = tokenizer.decode(ids)
    for index, message in enumerate(messages):
        answers = message.role == "assistant"
        content = without_thought(message.content) if answers else message.content
        cut = _cuts(tuple(tokens)) if answers else _SWITCH if message.role in ("system", "user") else None
        if content.strip() in said:
            continue
        for part in cut.split(content) if cut else (content,):
            part = part.strip()
            if part in said or any(spelled in said for spelled in _spellings(part)):
                continue
            normal = _normal(said) if normal is said else normal
            if _normal(part) not in normal and unknown_id(tokenizer) not in ids:
                name = template.filename if template else "in use"
                raise DataError(lost(f"messages[{index}], of the {message.role}", content, name))


def check_fields(
    message: Message, name: str, said: str, alone: Callable[[], str], template: ChatTemplate, told: Counter
) -> None:
    """Raises DataError unless the fields of a message are in `said`, the text that a template made of it.

    Args:
      name: of the message, for errors.
      alone: gives the text of the conversation when it ends with this message.
      told: counts what the template documents to leave out.
    """
    for field, value in message.more.items():
        if field in REASONING and not _shows(value, said):
            if not _shows(value, alone()):
                raise DataError(_ignored(f"{name}.{field}", value, field, template))
            told[THOUGHTS] += 1
        elif field == "tool_calls":
            for call in value:
                called = call.get("function", call)
                arguments = called.get("arguments", {})
                told[QUOTED] += (
                    isinstance(arguments, str) and json.dumps(arguments, ensure_ascii=False) in said
                )
                if not _shows(called.get("name", ""), said) or not _shows_arguments(arguments, said):
                    raise DataError(_ignored(f"{name}.tool_calls", called, field, template))
        elif field in ("tools", "functions") and not all(_shows(each, said) for each in _tool_names(value)):
            raise DataError(_ignored(f"{name}.{field}", value, field, template))
        elif field == "name" and message.role not in ("tool", "function", "ipython"):
            told[NAMES] += not _shows(value, said)


def check_tools(tools: str, said: str, template: ChatTemplate, told: Counter) -> None:
    """Raises DataError unless the name of every tool, of a JSON list, is in the text that a template made."""
    names, leaves = _known(tools)
    if missing := [name for name in names if not _shows(name, said)]:
        raise DataError(_ignored("tools", missing, "tools", template))
    told[PARTS_OF_TOOLS] += not all(_shows(leaf, said) for leaf in leaves)


def ends_with(said: str, answer: str) -> bool:
    """Whether text ends with an answer, white space around it and the marks of a thought left aside."""
    if said.endswith(answer):
        return True
    # Templates may open an answer with an empty thought, and set line breaks of their own around a thought's marks.
    said, answer = (_THOUGHT_MARK.sub(r"\1", text.strip()) for text in (said, answer))
    return said.endswith(answer)


def without_thought(content: str) -> str:
    """What an answer says after its thought."""
    return _THOUGHT.sub("", content, count=1) if "</think>" in content else content


def lost(what: str, content: str, template: str | None) -> str:
    """The error for text that a template does not write."""
    return (
        f"the chat template {template} leaves out or rewrites part of {what}: {shorten(content)} is not in what it "
        "writes, so the model would be trained on something else; take out what the template takes out, or use a "
        "template that keeps it (config.data.chat_template=FILE)"
    )


def _ignored(what: str, value: Any, field: str, template: ChatTemplate) -> str:
    return (
        f"the chat template {template.filename} leaves out {what} ({shorten(value)}); use a template that writes it "
        f"(config.data.chat_template=FILE), or leave it out on purpose with config.data.ignore_fields={field}"
    )


def _normal(text: str) -> str:
    # Tokenizers of published models may write characters in their composed or compatible form, as documented, and
    # SentencePiece's mark of a space as a space.
    return unicodedata.normalize("NFKC", text).replace("\u2581", " ")


@lru_cache(maxsize=16)
def _cuts(tokens: tuple[str, ...]) -> re.Pattern:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def _spellings(text: str) -> Iterator[str]:
    """How templates may write a text within JSON or Python."""
    for ascii_only in (False, True):
        yield json.dumps(text, ensure_ascii=ascii_only)[1:-1]
    yield repr(text)[1:-1]


def _shows(value: Any, said: str) -> bool:
    """Whether text has every word of a value: its strings, numbers, and names of fields."""
    if isinstance(value, str):
        value = value.strip()
        return value in said or any(spelled in said for spelled in _spellings(value))
    if isinstance(value, dict):
        return all(_shows(key, said) and _shows(item, said) for key, item in value.items())
    if isinstance(value, list):
        return all(_shows(item, said) for item in value)
    # Templates write true and none in the ways of JSON, Jinja and Python.
    return isinstance(value, bool) or value is None or str(value) in said or json.dumps(value) in said


def _shows_arguments(arguments: Any, said: str) -> bool:
    if _shows(arguments, said):
        return True
    try:
        return isinstance(arguments, str) and _shows(json.loads(arguments), said)
    except (ValueError, RecursionError):  # no JSON, or more than Python can hold of it
        return False


@lru_cache(maxsize=256)
def _known(tools: str) -> tuple[list[str], list[str]]:
    """The names of tools, and all else that their descriptions say."""
    listed = json.loads(tools)
    return _tool_names(listed), [leaf for leaf in _strings(listed) if leaf.strip()]


def _tool_names(tools: Any) -> list[str]:
    if isinstance(tools, str):
        return [tools]
    functions = [tool.get("function", tool) for tool in tools if isinstance(tool, dict)]
    return [f["name"] for f in functions if isinstance(f, dict) and isinstance(f.get("name"), str)]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            if key != "type":  # which formats write in their own way
                yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
