"""The row shapes of public datasets, each turned into the fields that `records` reads.

A function here takes one row as the dataset has it and returns our fields. It raises `Unusable` for a row that the
dataset is known to hold and no stage can use, and DataError, without the place, for a row of another shape.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from jaxalign.data.conversations import ALIASES, read_turns
from jaxalign.data.sources import Unusable
from jaxalign.errors import DataError, shorten

Row = Mapping[str, Any]
Fields = dict[str, Any]
Adapter = Callable[[Row], Fields]
Messages = list[dict[str, Any]]


def as_messages(row: Row) -> Fields:
    """{"messages": [{"role", "content"}]}: HuggingFaceH4/ultrachat_200k and the SFT splits of its kin."""
    return sound_chat(_messages(_field(row, "messages", Sequence), "messages"))


def generated(row: Row) -> Fields:
    """A completion by a model, as `jaxalign generate` writes it; one that has no end, or no words, teaches neither."""
    if not _field(row, "finished", bool):
        raise Unusable("completion not finished")
    text = row.get("completion")
    if isinstance(text, Sequence) and not isinstance(text, str) and text and isinstance(text[-1], Mapping):
        text = text[-1].get("content")
    if isinstance(text, str) and not text.strip():
        raise Unusable("empty completion")
    return dict(row)


def sharegpt(row: Row) -> Fields:
    """{"conversations": [{"from": "human" | "gpt" | "system", "value"}]}."""
    return sound_chat(_conversation(row))


def sharegpt_pair(row: Row) -> Fields:
    """ShareGPT's conversations, then `chosen` and `rejected`, each as text, one turn or a list of turns."""
    prompt = _conversation(row)
    chosen, rejected = (_reply(row, name) for name in ("chosen", "rejected"))
    return pair(prompt, chosen, rejected)


def sharegpt_either(row: Row) -> Fields:
    """A pair where there is one, else a conversation."""
    return sharegpt_pair(row) if row.get("chosen") is not None else sharegpt(row)


def instruction(context: str, response: str) -> Adapter:
    """{"instruction", `context`, `response`}: Alpaca (arXiv 2212.10560 has its form) and Dolly.

    The context, if any, follows the instruction after a blank line.
    """

    def adapt(row: Row) -> Fields:
        parts = [_field(row, "instruction", str), row.get(context) or ""]
        if not isinstance(parts[1], str):
            raise DataError(f"{context} is a {type(parts[1]).__name__}; write text, or nothing")
        prompt = "\n\n".join(part.strip() for part in parts if part.strip())
        return sound_chat([_turn("user", prompt), _turn("assistant", _field(row, response, str))])

    return adapt


def hh_dialogues(row: Row) -> Fields:
    """{"chosen", "rejected"}: two texts "\\n\\nHuman: ...\\n\\nAssistant: ...", alike but for the last reply.

    Anthropic/hh-rlhf (arXiv 2204.05862). The prompt ends where the last "\\n\\nAssistant:" begins.
    """
    chosen, rejected = (_dialogue(_field(row, name, str), name) for name in ("chosen", "rejected"))
    if not all(side and side[-1]["role"] == "assistant" for side in (chosen, rejected)):
        raise Unusable("does not end with a reply")
    if chosen[:-1] != rejected[:-1]:
        raise Unusable("chosen and rejected answer different prompts")
    return pair(chosen[:-1], chosen[-1:], rejected[-1:])


def binarized(row: Row) -> Fields:
    """{"chosen", "rejected"}: whole conversations, with "score_chosen" and "score_rejected".

    HuggingFaceH4/ultrafeedback_binarized. Its `prompt` repeats the first turn as text.
    """
    chosen, rejected = (_messages(_field(row, name, Sequence), name) for name in ("chosen", "rejected"))
    if not chosen or chosen[:-1] != rejected[:-1]:
        raise Unusable("chosen and rejected answer different prompts")
    scores = {name: _field(row, name, int | float) for name in ("score_chosen", "score_rejected")}
    fields = pair(chosen[:-1], chosen[-1:], rejected[-1:])
    if scores["score_chosen"] == scores["score_rejected"]:
        raise Unusable("tie")
    return fields | scores


def prompt_text(row: Row) -> Fields:
    """{"prompt"}: text that stands for a conversation of one turn."""
    return {"prompt": _sound([_turn("user", _field(row, "prompt", str))])}


def ultrafeedback(row: Row) -> Fields:
    """{"instruction", "completions": [{"response", "annotations": {aspect: {"Rating"}}}]}: a ranking.

    openbmb/UltraFeedback (arXiv 2310.01377). A score is the mean of the aspects' ratings, those of "N/A" left
    out: `overall_score` was wrong in some 2,600 rows of the first release.
    """
    completions = _field(row, "completions", Sequence)
    replies = [[_turn("assistant", _field(item, "response", str))] for item in completions]
    scores = [_mean_rating(_field(item, "annotations", Mapping)) for item in completions]
    return ranking([_turn("user", _field(row, "instruction", str))], replies, scores)


def prompt_completion(row: Row) -> Fields:
    """{"prompt", "completion"} of text: trl-lib/tldr."""
    prompt, completion = (_field(row, name, str) for name in ("prompt", "completion"))
    _filled((prompt,), "empty prompt")
    _filled((completion,), "empty reply")
    return {"prompt": prompt, "completion": completion}


def labelled(row: Row) -> Fields:
    """{"prompt", "completion", "label"}, text or messages, and whether it is desirable: trl-lib/kto-mix-14k."""
    return {name: _field(row, name, object) for name in ("prompt", "completion", "label")}


def text_pair(row: Row) -> Fields:
    """{"prompt", "chosen", "rejected"} of text: trl-lib/tldr-preference."""
    return pair(*(_field(row, name, str) for name in ("prompt", "chosen", "rejected")))


def human_preferences(row: Row) -> Fields:
    """{"history", "human_ref_A", "human_ref_B", "labels"}: stanfordnlp/SHP (arXiv 2110.08420); 1: A is preferred."""
    label = _field(row, "labels", int)
    if label not in (0, 1):
        raise DataError(f"labels={label}; expected 1 where human_ref_A is preferred, or 0")
    replies = [[_turn("assistant", _field(row, f"human_ref_{side}", str))] for side in "AB"]
    chosen, rejected = replies if label else replies[::-1]
    return pair([_turn("user", _field(row, "history", str))], chosen, rejected)


def summaries(row: Row) -> Fields:
    """{"info", "summaries": [{"text"}, {"text"}], "choice"}: openai/summarize_from_feedback, comparisons.

    arXiv 2009.01325. The prompts are those of trl-lib/tldr-preference, for posts and for news articles.
    """
    info, texts = _field(row, "info", Mapping), _field(row, "summaries", Sequence)
    choice = _field(row, "choice", int)
    if len(texts) != 2 or choice not in (0, 1):
        raise DataError(f"{len(texts)} summaries, choice={choice}; expected 2 and a choice of 0 or 1")
    if info.get("post"):
        head = (
            f"SUBREDDIT: r/{_field(info, 'subreddit', str)}\n\nTITLE: {_field(info, 'title', str)}\n\nPOST: "
        )
        body = _field(info, "post", str)
    else:
        head, body = f"TITLE: {_field(info, 'title', str)}\n\n", _field(info, "article", str)
    prompt = head + re.sub("\n\n", "\n", body) + "\n\nTL;DR:"
    return pair(prompt, *(_field(texts[index], "text", str) for index in (choice, 1 - choice)))


def review(row: Row) -> Fields:
    """{"text"}: stanfordnlp/imdb."""
    text = _field(row, "text", str)
    _filled((text,), "empty text")
    return {"text": text}


def review_opening(row: Row) -> Fields:
    """The first 2 to 8 words of a review, as many as a hash of it says, for controlled sentiment.

    arXiv 2305.18290, section 6, takes 2 to 8 tokens; words need no tokenizer.
    """
    text = _field(row, "text", str)
    count = 2 + hashlib.sha256(text.encode()).digest()[0] % 7
    opening = re.match(rf"\s*\S+(?:\s+\S+){{{count - 1}}}", text)
    if opening is None:
        raise Unusable("shorter than a prompt")
    return {"prompt": opening[0]}


def preferred(adapt: Adapter) -> Adapter:
    """The best reply of a pair or ranking, as a demonstration."""

    def best(row: Row) -> Fields:
        fields = adapt(row)
        if "chosen" in fields:
            return {"prompt": fields["prompt"], "completion": fields["chosen"]}
        top = max(range(len(fields["scores"])), key=fields["scores"].__getitem__)
        return {"prompt": fields["prompt"], "completion": fields["responses"][top]}

    return best


def only_prompt(adapt: Adapter) -> Adapter:
    """What a reply, the last one of a conversation, answers to."""

    def prompt(row: Row) -> Fields:
        fields = adapt(row)
        if "prompt" in fields:
            return {"prompt": fields["prompt"]}
        messages = fields["messages"]
        return {"prompt": messages[:-1] if messages[-1]["role"] == "assistant" else messages}

    return prompt


def ranking(prompt: Messages, replies: list[Messages], scores: list[float]) -> Fields:
    """Fields of a ranking that has a first and a last."""
    if len(replies) < 2:
        raise Unusable("fewer than two replies")
    texts = [reply[0]["content"] for reply in replies]
    _filled(texts, "empty reply")
    if len(set(scores)) == 1:
        raise Unusable("tie")
    if len(set(zip(texts, scores, strict=True))) != len(set(texts)):
        raise Unusable("one reply with two scores")
    return {"prompt": _sound(prompt), "responses": replies, "scores": scores}


def sound_chat(messages: Messages) -> Fields:
    """Fields of a conversation with a reply in it."""
    if all(message.get("role") != "assistant" for message in _sound(messages)):
        raise Unusable("no reply")
    return {"messages": messages}


# Who may speak after whom.
_FOLLOW = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant")}


def _sound(messages: Messages) -> Messages:
    roles = [_field(message, "role", str) for message in messages]
    roles = roles[1:] if roles[:1] in (["system"], ["developer"]) else roles
    if roles[:1] != ["user"]:
        raise Unusable("does not begin with a human turn")
    if any(after not in _FOLLOW.get(before, ()) for before, after in pairwise(roles)):
        raise Unusable("turns do not alternate")
    for message in messages:
        content = message.get("content")
        more = message["role"] == "tool" or any(message.get(name) for name in _MORE)
        if not more and (content is None or (isinstance(content, str) and not content.strip())):
            raise Unusable("empty turn")
    return messages


# What an assistant may say beside its content, or in place of it.
_MORE = ("tool_calls", "function_call", "reasoning_content")


def pair(prompt: Any, chosen: Any, rejected: Any) -> Fields:
    """Fields of two answers that differ, after a question."""
    sides = [side if isinstance(side, str) else side[0].get("content") or "" for side in (chosen, rejected)]
    if isinstance(chosen, str) or not any(side[0].get(name) for side in (chosen, rejected) for name in _MORE):
        _filled(sides, "empty reply")
    if chosen == rejected:
        raise Unusable("chosen equals rejected")
    if isinstance(prompt, str):
        _filled((prompt,), "empty prompt")
    else:
        _sound(prompt)
        if prompt[-1]["role"] == "assistant":
            raise Unusable("turns do not alternate")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _filled(texts: Sequence[str], reason: str) -> None:
    if not all(text.strip() for text in texts):
        raise Unusable(reason)


def _dialogue(text: str, name: str) -> Messages:
    opening, *parts = re.split(r"\n\n(Human|Assistant):", text)
    if opening.strip() or not parts:
        raise DataError(f"{name} does not begin with '\\n\\nHuman:' but {text[:40]!r}; is this hh-rlhf?")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [_turn(roles[parts[i]], parts[i + 1].strip()) for i in range(0, len(parts), 2)]


def speakers(value: Any, name: str) -> Messages:
    """A conversation in any form of `conversations.read_turns`.

    Raises:
      DataError, without the place: it is none, or someone speaks who is not known.
    """
    turns = read_turns(value, name)
    if turns is None:
        raise DataError(
            f'{name} is {shorten(value)}; write a list of messages [{{"role": ..., "content": ...}}] or of '
            '{"from": ..., "value": ...}'
        )
    for index, turn in enumerate(turns):
        if turn["role"] not in ALIASES.values():
            raise DataError(f"{name}[{index}] is by {turn['role']!r}; write one of {', '.join(ALIASES)}")
    return turns


def _conversation(row: Row) -> Messages:
    turns = _field(row, "conversations", Sequence | Mapping)
    if not turns:
        raise Unusable("does not begin with a human turn")
    return speakers(turns, "conversations")


def _reply(row: Row, name: str) -> Messages:
    value = _field(row, name, str | Mapping | Sequence)
    if isinstance(value, str):
        return [_turn("assistant", value)]
    turns = speakers(value, name)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise DataError(f"{name} is not one reply of the assistant but {[turn['role'] for turn in turns]}")
    return turns


def _messages(turns: Sequence[Any], name: str) -> Messages:
    out = []
    for index, item in enumerate(turns):
        if not isinstance(item, Mapping):
            raise DataError(
                f'{name}[{index}] is a {type(item).__name__}; write {{"role": ..., "content": ...}}'
            )
        out.append({**item} | _turn(_field(item, "role", str), _field(item, "content", str)))
    return out


def _mean_rating(annotations: Mapping[str, Any]) -> float:
    ratings = [str(_field(aspect, "Rating", str | int)) for aspect in annotations.values()]
    numbers = [float(rating) for rating in ratings if rating != "N/A"]
    if not numbers:
        raise Unusable("reply without a rating")
    return sum(numbers) / len(numbers)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _field(row: Row, name: str, kind: Any) -> Any:
    value = row.get(name) if isinstance(row, Mapping) else None
    if value is None:
        found = ", ".join(row) if isinstance(row, Mapping) else repr(row)
        raise DataError(f"missing {name}; found {found or 'no fields'}")
    if not isinstance(value, kind) or (kind is Sequence and isinstance(value, str)):
        raise DataError(f"{name} is a {type(value).__name__}, not what this dataset has there")
    return value
