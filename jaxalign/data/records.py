"""What a row must hold to be used, and every reason it may be refused."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.data.fields import CONTEXT, TEACHING, check_message, check_no_question, check_unread
from jaxalign.errors import ConfigError, DataError
from jaxalign.text.messages import ROLES, Message, Turns


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class PromptCompletion:
    prompt: Turns
    completion: Turns


@dataclass(frozen=True)
class Chat:
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Transcript:
    """A conversation to be learned whole, every speaker's words, as text is."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Prompt:
    prompt: Turns


@dataclass(frozen=True)
class Preference:
    prompt: Turns
    chosen: Turns
    rejected: Turns
    margin: float = 0.0
    scores: tuple[float, float] | None = None  # annotators' scores of (chosen, rejected); not a margin


@dataclass(frozen=True)
class Ranking:
    prompt: Turns
    responses: tuple[Turns, ...]
    scores: tuple[float, ...]  # higher is better; equal scores are ties and make no pair


Record = Text | Transcript | PromptCompletion | Chat | Prompt | Preference | Ranking
READ = {
    Text: ("text",),
    Transcript: ("messages",),
    PromptCompletion: ("prompt", "completion"),
    Chat: ("messages",),
    Prompt: ("prompt",),
    Preference: ("prompt", "chosen", "rejected"),
    Ranking: ("prompt", "responses", "scores"),
}


# Fields beside those that carry meaning. Of plain text, classification data has the class in `label`, and what it was
# made from in a prompt.
MEANING = {Prompt: CONTEXT - {"messages"}, Text: TEACHING - {"label", "labels"}}


def parse_record(row: Mapping[str, Any], kind: str, where: str) -> Record:
    """Turn a raw row into a checked record.

    Args:
      row: fields by name, see `fields.complete_prompt`; one that is None counts as absent.
      kind: "text" (text, or messages), "sft" (messages, or prompt + completion, or text to mix in),
        "preference" (chosen + rejected with an explicit or implicit prompt, or prompt + responses + scores),
        "preference or sft" (either) or "prompt" (prompt).
      where: `file:row`, put at the head of every error.

    Raises:
      DataError: the row lacks a field, has one that cannot be used, or one that carries meaning and is not read.
    """
    if kind not in _PARSERS:
        raise ConfigError(f"unknown kind of data '{kind}'; write one of {', '.join(_PARSERS)}")
    row = {name: value for name, value in row.items() if value is not None}
    record = _PARSERS[kind](row, where)
    check_unread(row, READ[type(record)], record, MEANING.get(type(record), CONTEXT | TEACHING), where)
    return record


def _parse_text(row: Mapping[str, Any], where: str) -> Text | Transcript:
    if "messages" in row and "text" not in row:
        return Transcript(_messages(row["messages"], "messages", where))
    _require(row, ("text",), where)
    return Text(_filled(_string(row["text"], "text", where), "text", where))


def _parse_sft(row: Mapping[str, Any], where: str) -> Chat | PromptCompletion | Text:
    if "messages" in row:
        messages = _messages(row["messages"], "messages", where)
        if all(message.role != "assistant" for message in messages):
            raise DataError(f"{where}: messages has no assistant turn, so nothing to learn; add the answer")
        return Chat(messages)
    if "text" in row and "prompt" not in row and "completion" not in row:
        return _parse_text(row, where)
    _require(row, ("prompt", "completion"), where, or_else="messages")
    prompt, completion = (_turns(row[name], name, where) for name in ("prompt", "completion"))
    if "finished" not in row:  # what a model was seen to write may well repeat its prompt
        prompt, (completion,) = _without_repeated_prompt(prompt, (completion,))
    return PromptCompletion(prompt, _completion(completion, "completion", prompt, where))


def _parse_prompt(row: Mapping[str, Any], where: str) -> Prompt:
    _require(row, ("prompt",), where)
    prompt = _turns(row["prompt"], "prompt", where)
    if isinstance(prompt, str):
        return Prompt(_filled(prompt, "prompt", where))
    if not prompt or prompt[-1].role == "assistant":
        raise DataError(f"{where}: prompt must end with a user or system message, so that a reply can follow")
    return Prompt(prompt)


def _parse_preference(row: Mapping[str, Any], where: str) -> Preference | Ranking:
    if "responses" in row and ("scores" in row or "chosen" not in row):
        return _parse_ranking(row, where)
    _require(row, ("chosen", "rejected"), where, or_else="prompt, responses and scores")
    chosen, rejected = (_turns(row[name], name, where) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise DataError(f"{where}: chosen equals rejected, so the pair prefers nothing; remove the row")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(f"{where}: one of chosen and rejected is text, the other messages; write both alike")
    prompt = _turns(row["prompt"], "prompt", where) if "prompt" in row else None
    # Common on the hub: the question as text, beside whole conversations that have it.
    restated = isinstance(prompt, str) and not isinstance(chosen, str) and Message("user", prompt) in chosen
    if prompt is None or restated:
        if isinstance(chosen, str):
            check_no_question(row, ("chosen", "rejected"), where)
        prompt, chosen, rejected = _split_common_prompt(chosen, rejected)
    else:
        prompt, (chosen, rejected) = _without_repeated_prompt(prompt, (chosen, rejected))
    chosen, rejected = (
        _completion(chosen, "chosen", prompt, where),
        _completion(rejected, "rejected", prompt, where),
    )
    if not isinstance(prompt, str) and all(message.role == "assistant" for message in prompt):
        raise DataError(
            f"{where}: chosen and rejected are answers to nothing: there is no prompt, and neither begins with the "
            f"question; write it as prompt (the row has {', '.join(row)})"
        )
    return Preference(
        prompt,
        chosen,
        rejected,
        _number(row["margin"], "margin", where) if "margin" in row else 0.0,
        _pair_scores(row, where),
    )


def _parse_preference_or_sft(row: Mapping[str, Any], where: str) -> Record:
    if any(name in row for name in ("chosen", "rejected", "responses")):
        return _parse_preference(row, where)
    return _parse_sft(row, where)


def _parse_ranking(row: Mapping[str, Any], where: str) -> Ranking:
    _require(row, ("prompt", "responses", "scores"), where)
    prompt = _turns(row["prompt"], "prompt", where)
    for name in ("responses", "scores"):
        if isinstance(row[name], str) or not isinstance(row[name], Sequence):
            raise DataError(f"{where}: {name} is a {type(row[name]).__name__}; write a list")
    if len(row["responses"]) < 2:
        raise DataError(f"{where}: responses has {len(row['responses'])} entries; a ranking needs at least 2")
    if len(row["responses"]) != len(row["scores"]):
        raise DataError(
            f"{where}: {len(row['responses'])} responses but {len(row['scores'])} scores; give one score each"
        )
    turns = tuple(_turns(r, f"responses[{i}]", where) for i, r in enumerate(row["responses"]))
    prompt, turns = _without_repeated_prompt(prompt, turns)
    responses = tuple(_completion(r, f"responses[{i}]", prompt, where) for i, r in enumerate(turns))
    scores = tuple(_number(score, f"scores[{i}]", where) for i, score in enumerate(row["scores"]))
    if len(set(scores)) == 1:
        raise DataError(f"{where}: all scores equal {scores[0]}, so nothing is preferred; remove the row")
    if len(set(zip(responses, scores, strict=True))) != len(set(responses)):
        raise DataError(f"{where}: the same response has two different scores; remove one of them")
    return Ranking(prompt, responses, scores)


def _pair_scores(row: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    for names in (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected")):
        if any(name in row for name in names):
            _require(row, names, where)
            return _number(row[names[0]], names[0], where), _number(row[names[1]], names[1], where)
    return None


def _split_common_prompt(chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    """Longest common beginning, cut back to where both can go on: before an assistant turn or a space."""
    differ = (index for index, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    size = next(differ, min(len(chosen), len(rejected)))
    begins = _begins_word if isinstance(chosen, str) else _begins_answer
    while size and not (begins(chosen, size) and begins(rejected, size)):
        size -= 1
    return chosen[:size], chosen[size:], rejected[size:]


def _without_repeated_prompt(prompt: Turns, answers: tuple[Turns, ...]) -> tuple[Turns, tuple[Turns, ...]]:
    """Takes the prompt off answers that all begin with it: many data sets store prompt and answer in one field.

    An answer may also begin like its prompt (a corrected sentence, a greeting): the prompt is taken off only where it
    ends with white space or a colon, or white space follows it, and where something is left. A single short word is
    left as it is.
    """
    if isinstance(prompt, str) and len(prompt.split()) < 2 and len(prompt.strip()) < 8:
        return prompt, answers
    shorter = prompt.rstrip() if isinstance(prompt, str) else prompt
    for start in (prompt, shorter):
        size = len(start)
        if not size or not all(
            isinstance(answer, type(start)) and answer[:size] == start for answer in answers
        ):
            continue
        rests = tuple(answer[size:] for answer in answers)
        if not isinstance(start, str):
            return start, rests
        ends = start[-1].isspace() or start[-1] in ":："
        if all(rest.strip() and (ends or rest[0].isspace()) for rest in rests):
            return start, rests
    return prompt, answers


def _begins_word(text: str, index: int) -> bool:
    return text[index : index + 1].isspace() and not text[index - 1].isspace()


def _begins_answer(messages: tuple[Message, ...], index: int) -> bool:
    return index < len(messages) and messages[index].role == "assistant"


def _completion(turns: Turns, name: str, prompt: Turns, where: str) -> Turns:
    """A completion in the prompt's form: text that is not blank, or messages from and to assistant."""
    if isinstance(turns, str) != isinstance(prompt, str):
        forms = ("text", "messages") if isinstance(prompt, str) else ("messages", "text")
        raise DataError(f"{where}: prompt is {forms[0]} but {name} is {forms[1]}; write both alike")
    if isinstance(turns, str):
        return _filled(turns, name, where)
    if not turns or turns[0].role != "assistant" or turns[-1].role != "assistant":
        roles = ", ".join(message.role for message in turns) or "no messages"
        raise DataError(
            f"{where}: {name} must begin and end with an assistant message after its prompt; found {roles}"
        )
    return turns


def _turns(value: Any, name: str, where: str) -> Turns:
    return _string(value, name, where) if isinstance(value, str) else _messages(value, name, where)


def _messages(value: Any, name: str, where: str) -> tuple[Message, ...]:
    value = [value] if isinstance(value, Mapping) else value  # one message, as LLaMA-Factory writes an answer
    if not isinstance(value, Sequence) or isinstance(value, bytes | str):
        raise DataError(
            f"{where}: {name} is a {type(value).__name__}; "
            'write a list of messages [{"role": ..., "content": ...}] or, where allowed, text'
        )
    return tuple(_message(item, f"{name}[{index}]", where) for index, item in enumerate(value))


def _message(value: Any, name: str, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: {name} is a {type(value).__name__}; write an object with role and content")
    check_message(value, name, where)
    _require(value, ("role", "content"), f"{where}: {name}")
    if value["role"] not in ROLES:
        raise DataError(f"{where}: {name} has unknown role {value['role']!r}; use {', '.join(ROLES)}")
    content = _string(value["content"], f"{name}.content", where)
    if value["role"] == "assistant":
        _filled(content, f"{name}.content", where)
    return Message(value["role"], content)


def _require(row: Mapping[str, Any], names: Sequence[str], where: str, or_else: str = "") -> None:
    if missing := [name for name in names if row.get(name) is None]:
        wanted = ", ".join(names) + (f" (or {or_else})" if or_else else "")
        raise DataError(
            f"{where}: missing {', '.join(missing)}; expected {wanted}; found {', '.join(row) or 'no fields'}"
        )


def _string(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is a {type(value).__name__}, not a string; quote it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {name} is not Unicode text ({error}); remove the surrogate") from None
    return value


def _filled(text: str, name: str, where: str) -> str:
    if not text.strip():
        raise DataError(f"{where}: {name} is empty or only whitespace ({text!r}); fill it or remove the row")
    return text


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: {name} is a {type(value).__name__}, not a number; write it without quotes")
    if not math.isfinite(value):
        raise DataError(f"{where}: {name} is {value}; write a finite number")
    return float(value)


_PARSERS = {
    "text": _parse_text,
    "sft": _parse_sft,
    "preference": _parse_preference,
    "preference or sft": _parse_preference_or_sft,
    "prompt": _parse_prompt,
}
KINDS = tuple(_PARSERS)
