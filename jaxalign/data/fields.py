"""A system message, earlier turns and a question in fields of their own, as turns; and what else a message may say.

What is left beside the fields that a record reads is accounted for in `accounts`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxalign.data.accounts import HISTORY, QUESTIONS, SYSTEM, canonical, is_empty, says_nothing, strings
from jaxalign.data.kinds import PROMPTS, TEXT
from jaxalign.errors import DataError, shorten

Row = Mapping[str, Any]

ANSWERS = ("completion", "chosen", "rejected")
# Of a single message: whether it is learned, and what is not read.
SWITCHES = frozenset("weight loss_weight mask loss_mask loss train training trainable".split())
UNREAD_OF_MESSAGES = frozenset("mask train_detail prefix image images audio audios video videos".split())


def without_fields(row: Row, names: Iterable[str]) -> Row:
    """The row without the fields called `names`, in the row itself and in the messages that it lists."""
    names = frozenset(names)
    return {name: _without(value, names) for name, value in row.items() if name not in names}


def without_inner_fields(row: Row, names: Iterable[str]) -> Row:
    """The row without the fields called `names` in its messages, and in objects that a path of `mapping` led into."""
    names = frozenset(names)
    return {
        name: _without(value, names) for name, value in row.items() if "." not in name or name not in names
    }


def _without(value: Any, names: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        return {name: item for name, item in value.items() if name not in names}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without(item, names) for item in value]
    return value


def complete_prompt(row: Row, kind: str) -> dict[str, Any]:
    """The row with its question, history and system message as turns of the conversation, where it has one.

    A prompt that is plain text has no turns: what stands beside it is left for `check_unread`.

    Raises:
      DataError, without the place: history of another form, or a second system message.
    """
    row = {name: value for name, value in row.items() if value is not None}
    if row.get("prompt") == "" and _is_messages(row.get("messages")):
        del row["prompt"]
    if isinstance(row.get("prompt"), str) and row["prompt"].strip():
        if not any(isinstance(value, Sequence) and not isinstance(value, str) for value in row.values()):
            return row  # all of it is plain text
    row = _in_one_form(row)
    if kind == PROMPTS and isinstance(row.get("prompt"), str) and _is_messages(row.get("messages")):
        row["prompt"] = _asked(row["prompt"], row["messages"])
    row = _with_question(row, kind)
    conversations = _conversations(row, kind)
    if not conversations:
        return row
    history = next((name for name in HISTORY if name in row), "")
    earlier = row.pop(history, None)
    turns = [] if is_empty(earlier) else _history(earlier)
    system = next((name for name in SYSTEM if isinstance(row.get(name), str) and row[name].strip()), None)
    for name in conversations:
        row[name] = _opened(row[name], None if system is None else row[system], turns, system)
    if system is not None:
        del row[system]
    return row


def check_message(message: Row, name: str) -> None:
    """Refuse a message that has more to it than is read: pictures, marks of single letters, a beginning to go on from.

    Raises:
      DataError, without the place: names the field.
    """
    for key, value in message.items():
        if key.lower() not in UNREAD_OF_MESSAGES or value is None or says_nothing(canonical(key), value):
            continue
        if key.lower() == "mask" and value == (1 if message.get("role") == "assistant" else 0):
            continue  # every assistant turn is learned, and no other
        raise DataError(
            f"{name} has {key}={shorten(value)}, which is not read; give messages as text, with weight 0 for answers "
            f"that are not to be learned, or leave it out on purpose with config.data.ignore_fields={key}"
        )


def is_learned(message: Row, name: str) -> bool:
    """Whether an answer is learned, as its weight says (OpenAI's `weight`, Axolotl's `train`): 1 or 0.

    Raises:
      DataError, without the place: another number, or a message of another role that is to be learned.
    """
    learned = set()
    for key, value in message.items():
        if key.lower() not in SWITCHES - UNREAD_OF_MESSAGES or value is None:
            continue
        if not isinstance(value, int | float) or value not in (0, 1):
            raise DataError(
                f"{name} has {key}={shorten(value)}; an answer is learned or it is not: write 1 or 0, or leave it out "
                f"with config.data.ignore_fields={key}"
            )
        if value and message.get("role") != "assistant":
            raise DataError(
                f"{name} has {key}={shorten(value)}, but only what the assistant says is learned; write 0, or leave it "
                f"out with config.data.ignore_fields={key}"
            )
        learned.add(bool(value))
    if len(learned) > 1:
        raise DataError(f"{name} is to be learned by one of its fields and not by another; keep one of them")
    return learned != {False}


def check_no_question(row: Row, read: Iterable[str]) -> None:
    """Refuse a pair of texts without a prompt where another field may be the question to them.

    Raises:
      DataError, without the place: names the field, a text of some words that the answers do not repeat.
    """
    said = "\n".join(strings({name: row[name] for name in read}))
    for name, value in row.items():
        words = isinstance(value, str) and len(value.split()) > 2
        if name not in read and name != "margin" and words and value.strip() not in said:
            raise DataError(
                f"chosen and rejected are texts without a prompt, and {name!r} may be the question to them "
                f"({shorten(value)}); if it is, say so with config.data.fields=prompt={name} (text that the answers "
                f"go on from) or question={name} (a chat), or leave it out with config.data.ignore_fields={name}"
            )


def _with_question(row: dict[str, Any], kind: str) -> dict[str, Any]:
    """A question beside answers, or alone, as a prompt of one user turn; a row that has a prompt stays as it is."""
    if isinstance(row.get("prompt"), str) and not row["prompt"].strip() and _question(row):
        del row["prompt"]
    answers = [name for name in ANSWERS if name in row]
    responses = row["responses"] if isinstance(row.get("responses"), list) else []
    if kind == TEXT or "prompt" in row or not (answers or responses or kind == PROMPTS):
        return row
    values = [row[name] for name in answers] + responses
    whole = any(_begins_with_user(value) for value in values)
    if "messages" in row and not whole and _awaits_reply(row["messages"]):
        row["prompt"] = row.pop("messages")
        return row | {name: _reply(row[name]) for name in answers}
    name = _question(row)
    if name is None or whole or _begin_with(row[name].strip(), values):
        return row
    question = row.pop(name)
    if isinstance(row.get("input"), str):  # what an instruction is about
        question = "\n\n".join(part.strip() for part in (question, row.pop("input")) if part.strip())
    row |= {name: _reply(row[name]) for name in answers}
    if responses:
        row["responses"] = [_reply(response) for response in responses]
    return {"prompt": [{"role": "user", "content": question}]} | row


def _in_one_form(row: dict[str, Any]) -> dict[str, Any]:
    """Text beside messages as a turn: a question of which the answers are turns, answers to a conversation."""
    answers = [name for name in ANSWERS if name in row]
    if _is_messages(row.get("prompt")):
        return row | {name: _reply(row[name]) for name in answers}
    replies = [row[name] for name in answers]
    if "responses" in row and isinstance(row["responses"], list):
        replies += row["responses"]
    alone = replies and all(_is_messages(value) and value[0]["role"] == "assistant" for value in replies)
    if alone and isinstance(row.get("prompt"), str) and row["prompt"].strip():
        return row | {"prompt": [{"role": "user", "content": row["prompt"]}]}
    return row


def _asked(prompt: str, messages: Sequence[Row]) -> Any:
    """The conversation up to the turn that a prompt of text restates, or the prompt where none does."""
    for end in range(len(messages), 0, -1):
        turn = messages[end - 1]
        if turn["role"] == "user" and str(turn.get("content")).strip() == prompt.strip():
            return list(messages[:end])
    return prompt


def _begin_with(question: str, answers: Sequence[Any]) -> bool:
    """Whether answers are texts that repeat the question in what they begin with alike; a word or two is chance."""
    if len(question) < 8 or len(answers) < 2 or not all(isinstance(answer, str) for answer in answers):
        return False
    end = answers[0].find(question) + len(question)
    return question in answers[0] and all(answer[:end] == answers[0][:end] for answer in answers)


def _question(row: Row) -> str | None:
    return next((name for name in QUESTIONS if isinstance(row.get(name), str) and row[name].strip()), None)


def _conversations(row: Row, kind: str) -> list[str]:
    """The fields that hold the conversation from its beginning, as messages."""
    if "prompt" in row and kind != TEXT:
        names: tuple[str, ...] = ("prompt",)
        # A prompt of text that restates what whole conversations begin with.
        if isinstance(row["prompt"], str) and all(
            _begins_with_user(row.get(n)) for n in ("chosen", "rejected")
        ):
            names = ("chosen", "rejected")
    elif "chosen" in row and "rejected" in row:
        names = ("chosen", "rejected")
    else:
        names = ("messages",)
    return list(names) if all(_is_messages(row.get(name)) for name in names) else []


def _opened(messages: Sequence[Row], system: str | None, turns: list[Row], name: str | None) -> list[Row]:
    """The conversation with a system message and earlier turns before it."""
    head = list(messages[:1]) if messages[0]["role"] == "system" else []
    rest = messages[len(head) :]
    if system is not None:
        if head and str(head[0].get("content")).strip() != system.strip():
            raise DataError(
                f"{name} is {shorten(system)}, but the first message is another system message, "
                f"{shorten(head[0].get('content'))}; keep one of them"
            )
        head = [{"role": "system", "content": system}]
    return [*head, *turns, *rest]


def _history(value: Any) -> list[Row]:
    if _is_messages(value):
        return list(value)
    pairs = value if isinstance(value, Sequence) and not isinstance(value, str) else [None]
    turns: list[Row] = []
    for pair in pairs:
        if not (
            isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        ):
            raise DataError(
                f"history is {shorten(value)}; write earlier turns as pairs [[question, answer], ...] or as messages"
            )
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


def _reply(value: Any) -> Any:
    return [{"role": "assistant", "content": value}] if isinstance(value, str) else value


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(item, Mapping) and "role" in item for item in value)
    )


def _begins_with_user(value: Any) -> bool:
    return _is_messages(value) and value[0]["role"] != "assistant"


def _awaits_reply(value: Any) -> bool:
    return _is_messages(value) and value[-1]["role"] != "assistant"
