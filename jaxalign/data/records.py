"""What a row must hold to be used, and every reason it may be refused."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxalign.data import kinds
from jaxalign.data.accounts import (
    CONTEXT,
    COUNTERPARTS,
    MATERIAL,
    TEACHING,
    canonical,
    canonicals,
    check_unread,
    is_harmless,
)
from jaxalign.data.batch import Batch, PairBatch, PromptBatch, UnpairedBatch
from jaxalign.data.fields import SWITCHES, UNREAD_OF_MESSAGES, check_no_question
from jaxalign.data.prompts import as_completion, split_common_prompt, without_repeated_prompt
from jaxalign.data.values import (
    MEANT,
    TOOLS,
    blank,
    is_gap,
    read,
    read_label,
    read_messages,
    read_number,
    read_texts,
    read_tools,
)
from jaxalign.errors import ConfigError, DataError, shorten
from jaxalign.text.messages import Message, Turns

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class PromptCompletion:
    prompt: Turns
    completion: Turns
    tools: str = ""  # that the model may call, a JSON list; here and below


@dataclass(frozen=True)
class Chat:
    messages: tuple[Message, ...]
    tools: str = ""


@dataclass(frozen=True)
class Transcript:
    """A conversation to be learned whole, every speaker's words, as text is."""

    messages: tuple[Message, ...]
    tools: str = ""


@dataclass(frozen=True)
class Prompt:
    prompt: Turns
    tools: str = ""


@dataclass(frozen=True)
class Preference:
    prompt: Turns
    chosen: Turns
    rejected: Turns
    margin: float = 0.0
    scores: tuple[float, float] | None = None  # annotators' scores of (chosen, rejected); not a margin
    tools: str = ""


@dataclass(frozen=True)
class Ranking:
    prompt: Turns
    responses: tuple[Turns, ...]
    scores: tuple[float, ...]  # higher is better; equal scores are ties and make no pair
    tools: str = ""


@dataclass(frozen=True)
class Unpaired:
    """Completions that are judged one by one: a labelled one, or both of a pair."""

    prompt: Turns
    completions: tuple[Turns, ...]
    desirable: tuple[bool, ...]
    tools: str = ""


Record = Text | Transcript | PromptCompletion | Chat | Prompt | Preference | Ranking | Unpaired
_SCORES = ("chosen_score", "rejected_score", "score_chosen", "score_rejected")
READ = {
    Text: ("text",),
    Transcript: ("messages",),
    PromptCompletion: ("prompt", "completion"),
    Chat: ("messages",),
    Prompt: ("prompt",),
    Preference: ("prompt", "chosen", "rejected", "margin", *_SCORES),
    Ranking: ("prompt", "responses", "scores"),
    Unpaired: ("prompt", "completion", "label", "chosen", "rejected"),
}
# Of plain text, classification data has the class in `label`, and what it was made from in a prompt.
MEANING = {Prompt: CONTEXT - canonicals(["messages"]), Text: TEACHING - canonicals(["label"])}
_OF_MESSAGES = canonicals(("role", "content", "function_call", *MEANT, *SWITCHES, *UNREAD_OF_MESSAGES))


def parse_record(row: Row, kind: str, where: str = "") -> Record:
    """Turn a raw row into a checked record.

    Args:
      row: fields by name, see `fields.complete_prompt`; one that is None counts as absent.
      kind: one of `KINDS`, which says what each of them reads.
      where: `file:row`, put at the head of every error; without it the caller is to add the place.

    Raises:
      ConfigError: there is no such kind.
      DataError: the row lacks a field, has one that cannot be used, or one that carries meaning and is not read.
    """
    return account_for(row, kind, where)[0]


def account_for(row: Row, kind: str, where: str = "") -> tuple[Record, tuple[str, ...]]:
    """The record of a row, see `parse_record`, and the names of what it does not read, harmless ones left out."""
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of data {kind!r}; {known_kinds(kind)}")
    row = {name: value for name, value in row.items() if value is not None}
    try:
        record = KINDS[kind].parse(row)
        fields, meaning = READ[type(record)], MEANING.get(type(record), CONTEXT | TEACHING | MATERIAL)
        if isinstance(record, Text) and kind != kinds.TEXT:
            meaning |= COUNTERPARTS
        spoken = getattr(record, "messages", None) or getattr(record, "prompt", "")
        if not isinstance(record, Text) and not isinstance(spoken, str):
            record, fields = replace(record, tools=read_tools(row)), fields + TOOLS
        listed = check_unread(row, meaning, fields, record)
    except DataError as error:
        raise DataError(f"{where}: {error}" if where else str(error)) from None
    inside = dict.fromkeys(f"{name}[].{key}" for name in fields for key in _unread_in(row.get(name)))
    if isinstance(record, Ranking) and len(record.responses) < len(row["responses"]):
        listed += ("responses without a score",)
    return record, (*listed, *inside)


def _unread_in(messages: Any) -> list[str]:
    """What messages hold beside what is read, checked or harmless."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        return []
    return [
        name
        for message in messages
        if isinstance(message, Mapping)
        for name, value in message.items()
        if canonical(name) not in _OF_MESSAGES and value not in (None, "", [], {}) and not is_harmless(name)
    ]


def known_kinds(kind: str) -> str:
    """How an error goes on after a kind of data that there is not."""
    near = difflib.get_close_matches(kind, KINDS, 1)
    return f"write one of {', '.join(KINDS)}" + (f"; did you mean {near[0]!r}?" if near else "")


def _parse_text(row: Row) -> Text | Transcript:
    if "messages" in row and "text" not in row:
        return Transcript(read_messages(row["messages"], "messages"))
    (text,) = read_texts(row, ("text",))
    if not text.strip():
        raise blank(text, "text")
    return Text(text)


def _parse_sft(row: Row) -> Chat | PromptCompletion | Text | Transcript:
    if "messages" in row:
        messages = read_messages(row["messages"], "messages")
        if all(message.role != "assistant" for message in messages):
            raise DataError("messages has no assistant turn, so nothing to learn; add the answer")
        return Chat(messages)
    if "text" in row and "prompt" not in row and "completion" not in row:
        return _parse_text(row)
    prompt, completion = read(row, ("prompt", "completion"), or_else="messages")
    return PromptCompletion(*_with_completion(row, prompt, completion))


def _with_completion(row: Row, prompt: Turns, completion: Turns) -> tuple[Turns, Turns]:
    if "finished" not in row:  # what a model was seen to write may well repeat its prompt
        prompt, (completion,) = without_repeated_prompt(prompt, (completion,))
    return prompt, as_completion(completion, "completion", prompt)


def _parse_prompt(row: Row) -> Prompt:
    (prompt,) = read(row, ("prompt",))
    if isinstance(prompt, str):
        if not prompt.strip():
            raise blank(prompt, "prompt")
    elif all(message.role == "assistant" for message in prompt):
        raise DataError(
            "prompt has no turn but an assistant's, so there is nothing to answer; add the question"
        )
    return Prompt(prompt)


def _parse_preference(row: Row) -> Preference | Ranking:
    if "responses" in row and ("scores" in row or "chosen" not in row):
        return _parse_ranking(row)
    chosen, rejected = read(row, ("chosen", "rejected"), or_else="prompt, responses and scores")
    if chosen == rejected:
        raise DataError("chosen equals rejected, so the pair prefers nothing; remove the row")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError("one of chosen and rejected is text, the other messages; write both alike")
    (prompt,) = read(row, ("prompt",)) if "prompt" in row else (None,)
    # Common on the hub: the question as text, beside whole conversations that have it.
    restated = isinstance(prompt, str) and not isinstance(chosen, str) and Message("user", prompt) in chosen
    if prompt is None or restated:
        if isinstance(chosen, str):
            check_no_question(row, ("chosen", "rejected"))
        _check_one_question(chosen, rejected)
        prompt, chosen, rejected = split_common_prompt(chosen, rejected)
    else:
        prompt, (chosen, rejected) = without_repeated_prompt(prompt, (chosen, rejected))
    chosen = as_completion(chosen, "chosen", prompt)
    rejected = as_completion(rejected, "rejected", prompt)
    if not isinstance(prompt, str) and all(message.role == "assistant" for message in prompt):
        raise DataError(
            f"chosen and rejected are answers to nothing: there is no prompt, and neither begins with the question; "
            f"write it as prompt (the row has {', '.join(row)})"
        )
    margin = read_number(row["margin"], "margin") if "margin" in row else 0.0
    scores = None
    for names in (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected")):
        # One alone, the annotators' of either, compares nothing.
        if scores is None and not any(is_gap(row.get(name)) for name in names):
            scores = (read_number(row[names[0]], names[0]), read_number(row[names[1]], names[1]))
    return Preference(prompt, chosen, rejected, margin, scores)


def _check_one_question(chosen: Turns, rejected: Turns) -> None:
    """Raises DataError if two whole conversations differ before the first answer."""
    for a, b in zip(chosen, rejected, strict=False):
        if isinstance(a, str) or isinstance(b, str) or a.role == b.role == "assistant":
            return
        if a != b:
            raise DataError(
                f"chosen and rejected answer different prompts: {shorten(a.content)} ({a.role}) and "
                f"{shorten(b.content)} ({b.role}); a pair needs two answers to one question"
            )


def _parse_preference_or_sft(row: Row) -> Record:
    if any(name in row for name in ("chosen", "rejected", "responses")):
        return _parse_preference(row)
    return _parse_sft(row)


def _parse_ranking(row: Row) -> Ranking:
    (prompt,) = read(row, ("prompt",), need=("responses", "scores"))
    for name in ("responses", "scores"):
        if isinstance(row[name], str) or not isinstance(row[name], Sequence):
            raise DataError(f"{name} is a {type(row[name]).__name__}; write a list")
    if len(row["responses"]) < 2:
        raise DataError(f"responses has {len(row['responses'])} entries; a ranking needs at least 2")
    if len(row["responses"]) != len(row["scores"]):
        raise DataError(
            f"{len(row['responses'])} responses but {len(row['scores'])} scores; give one score each"
        )
    scored = [i for i, score in enumerate(row["scores"]) if not is_gap(score)]
    if len(scored) < 2:
        raise DataError(f"scores has {len(scored)} numbers; a ranking needs at least 2")
    names = [f"responses[{i}]" for i in scored]
    turns = tuple(read({f"responses[{i}]": row["responses"][i] for i in scored}, names))
    prompt, turns = without_repeated_prompt(prompt, turns)
    responses = tuple(as_completion(r, name, prompt) for r, name in zip(turns, names, strict=True))
    scores = tuple(read_number(row["scores"][i], f"scores[{i}]") for i in scored)
    if len(set(scores)) == 1:
        raise DataError(f"all scores equal {scores[0]}, so nothing is preferred; remove the row")
    if len(set(zip(responses, scores, strict=True))) != len(set(responses)):
        raise DataError("the same response has two different scores; remove one of them")
    return Ranking(prompt, responses, scores)


def _parse_unpaired(row: Row) -> Unpaired:
    paired = [name for name in ("chosen", "rejected", "responses") if name in row]
    if paired and ("completion" in row or "label" in row):
        raise DataError(
            f"{', '.join(paired)} beside a completion or a label; write either prompt, completion and label, or "
            "prompt, chosen and rejected"
        )
    if "responses" in row:
        raise DataError(
            "scores of responses say which of them is better, and not which are good; write a row with prompt, "
            "completion and label for each"
        )
    if paired:
        pair = _parse_preference(row)
        assert isinstance(pair, Preference)  # there are no responses
        return Unpaired(pair.prompt, (pair.chosen, pair.rejected), (True, False))
    prompt, completion = read(row, ("prompt", "completion"), need=("label",), or_else="chosen and rejected")
    label = read_label(row["label"], "label")
    prompt, completion = _with_completion(row, prompt, completion)
    return Unpaired(prompt, (completion,), (label,))


@dataclass(frozen=True)
class Kind:
    """What one kind of data reads, and how its rows and batches are made."""

    parse: Callable[[Row], Record]
    batch: type = Batch
    sequences: int = 1  # the fewest that any row must have room for
    one_per_row: bool = False  # an item a row, its last token in the last slot
    # Of a batch of pairs: its fields for the first and second sequence of each pair, and those of `Item` that it has.
    pair: tuple[str, str] | None = None
    values: tuple[str, ...] = ()
    mismatched: bool = False  # beside every completion stands its prompt before another record's completion


_COMPARED = {
    "batch": PairBatch,
    "sequences": 2,
    "pair": ("chosen", "rejected"),
    "values": ("weight", "margin"),
}
KINDS = {
    # text, or messages
    kinds.TEXT: Kind(_parse_text),
    # messages, or prompt and completion, or text to mix in
    kinds.DEMONSTRATIONS: Kind(_parse_sft),
    # chosen and rejected, after a prompt or what both begin with; or prompt, responses and scores
    kinds.PAIRS: Kind(_parse_preference, **_COMPARED),
    # either of the two above
    kinds.PAIRS_OR_DEMONSTRATIONS: Kind(_parse_preference_or_sft, **_COMPARED),
    # prompt
    kinds.PROMPTS: Kind(_parse_prompt, PromptBatch, one_per_row=True),
    # prompt, completion and label; or chosen and rejected as above, as one desirable and one undesirable completion
    kinds.UNPAIRED: Kind(
        _parse_unpaired,
        UnpairedBatch,
        sequences=2,
        pair=("completion", "mismatched"),
        values=("weight", "desirable"),
        mismatched=True,
    ),
}
