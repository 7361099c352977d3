"""The shapes of rows that have no recipe, told row by row by the names of their fields.

Tables say which names there are; `read_shape` turns each into ours, which are text as they stand. Any other name of an
answer (`response`, `output`, …) is an assistant's turn, and the question before it a user's. What is ambiguous is
refused with the names, to be told apart by `config.data.fields`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.data.accounts import HISTORY, QUESTIONS, REPLIES, SYSTEM, Watched, canonical, canonicals
from jaxalign.data.conversations import Turn, as_rows, join_parts, read_role, read_turns
from jaxalign.data.kinds import DEMONSTRATIONS, PAIRS, PAIRS_OR_DEMONSTRATIONS, PROMPTS, TEXT, UNPAIRED
from jaxalign.data.mapping import OWN
from jaxalign.data.public import shapes
from jaxalign.data.sources import Unusable
from jaxalign.data.values import is_gap, read_number
from jaxalign.errors import DataError, shorten

Row = Mapping[str, Any]

_PAIRED = (PAIRS, PAIRS_OR_DEMONSTRATIONS, UNPAIRED)
_LEARNED = (DEMONSTRATIONS, PAIRS_OR_DEMONSTRATIONS, TEXT)

# Fields that hold a conversation, beside our own `messages`.
CONVERSATIONS = tuple(
    "conversations conversation contents dialogue dialog chat turns context_messages context input".split()
)
_CERTAIN = ("conversations", "conversation", "contents")  # that can be nothing else
# (better, worse) answers.
BETTER_WORSE = (
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_answer", "rejected_answer"),
    ("chosen_output", "rejected_output"),
    ("chosen", "reject"),
    ("accepted", "rejected"),
    ("preferred", "dispreferred"),
    ("preferred", "rejected"),
    ("preferred_response", "dispreferred_response"),
    ("preferred_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
    ("better", "worse"),
    ("better_response", "worse_response"),
    ("better_answer", "worse_answer"),
    ("win", "lose"),
    ("winner", "loser"),
    ("winning_response", "losing_response"),
    ("response_j", "response_k"),
    ("response_w", "response_l"),
    ("y_w", "y_l"),
)
# Two answers and a field that says which is better: by the name of one or its ending, or by a number's sign.
_ALTERNATIVES = tuple(
    (f"{stem}{mark}{a}", f"{stem}{mark}{b}")
    for a, b in (("a", "b"), ("0", "1"), ("1", "2"))
    for stem in ("response", "answer", "output", "completion", "conversation")
    for mark in ("_", "")
)
_JUDGES = tuple(
    "preference preferred preferred_response winner choice better better_response_id better_response chosen".split()
)
_SIGNED = ("preference_strength", "overall_preference")  # HelpSteer2 and 3: below 0 the first is better
_TIES = frozenset("tie tiebothbad both neither equal none same".split())
# Lists of answers, and lists of what each is worth, or its place.
_LISTS = ("responses", "completions", "answers", "candidates", "outputs", "generations", "replies")
_SCORES = ("scores", "score", "ratings", "rewards")
_RANKS = ("ranks", "rankings")
_ITEM_ANSWERS = ("response", "answer", "completion", "output", "text", "content")
_SPELLINGS = {canonical(name): name for name in reversed((*OWN, *SYSTEM, *HISTORY, *QUESTIONS))}
_REPLIES = canonicals(REPLIES)
_ANSWERS = (
    "completion",
    *REPLIES,
    *_LISTS[:3],
    *(name for pair in (*BETTER_WORSE, *_ALTERNATIVES) for name in pair),
)
_LABELS = ("label", "kto_tag", "desirable", "is_desirable", "thumbs_up", "feedback")


@dataclass(frozen=True)
class Shape:
    """Rows of one data set, known by these fields: what each kind of data makes of them, or the recipe to name."""

    fields: tuple[str, ...]
    kinds: Mapping[str, shapes.Adapter]
    recipe: str = ""

    def fits(self, row: Watched) -> bool:
        return all(name in row for name in self.fields)


def compared(adapt: shapes.Adapter) -> dict[str, shapes.Adapter]:
    """What pairs or a ranking give for each kind."""
    return {PAIRS: adapt, DEMONSTRATIONS: shapes.preferred(adapt), PROMPTS: shapes.only_prompt(adapt)}


SHARED = (
    Shape(
        ("completion", "finished"),
        dict.fromkeys((DEMONSTRATIONS, PAIRS_OR_DEMONSTRATIONS, UNPAIRED), shapes.generated),
    ),
    Shape(("instruction", "models", "completions"), compared(shapes.ultrafeedback)),
    Shape(("info", "summaries", "choice"), compared(shapes.summaries)),
    Shape(("history", "human_ref_A", "human_ref_B", "labels"), compared(shapes.human_preferences)),
    Shape(("message_id", "parent_id", "text", "role"), {}, recipe="oasst1"),
    Shape(("message_id", "text", "role", "message_tree_id"), {}, recipe="oasst1"),
)


def read_shape(row: Row, kind: str) -> Mapping[str, Any]:
    """A row of any shape with our fields for `kind`; what they were not made from stays beside them.

    Raises:
      Unusable: the row holds nothing to learn, as public data sets are known to.
      DataError, without the place: it can be read in two ways, or a part of it cannot be read.
    """
    found = Watched(row)
    for shape in SHARED:
        if shape.fits(found):
            if shape.recipe:
                raise DataError(
                    f"the row looks like {shape.recipe} ({', '.join(shape.fields)}); write {shape.recipe}: before the "
                    "file, so that it is read as that"
                )
            adapt = shape.kinds.get(kind) or (shape.kinds.get(PAIRS) if kind in _PAIRED else None)
            if adapt is not None:
                watched = Watched(row)
                return _replaced(watched, adapt(watched))
    if kind in _PAIRED and _is_dialogue(found):
        watched = Watched(row)
        return _replaced(watched, shapes.hh_dialogues(watched))
    unanswered = any(value is None and canonical(name) in _REPLIES for name, value in row.items())
    own, row = row, _spelled(row)
    if kind != TEXT or "text" not in row:
        row = _with_messages(row, kind)
    if kind in _PAIRED:
        row = _with_pair(_with_ranking(row), kind)
        if own.get("messages") is None:
            row = _sound_pair(row)
    if kind == UNPAIRED:
        row = _with_label(row)
    if kind in (*_LEARNED, UNPAIRED):
        row = _with_reply(row, kind, unanswered)
    if kind == PROMPTS:
        row = _with_prompt(row)
    return row


def _replaced(watched: Watched, made: Mapping[str, Any]) -> dict[str, Any]:
    """What was made, beside what has not been read."""
    return {name: value for name, value in watched.rest.items() if name not in made} | dict(made)


def _is_dialogue(row: Watched) -> bool:
    """Whether a row has the form of Anthropic/hh-rlhf."""
    sides = [row.row.get(name) for name in ("chosen", "rejected")]
    return "prompt" not in row and all(
        isinstance(side, str) and re.match(r"\s*\n\nHuman:.*\n\nAssistant:", side, re.DOTALL)
        for side in sides
    )


def _spelled(row: Row) -> dict[str, Any]:
    """The row without nulls, names that we read as we spell them, and conversations as messages."""
    made: dict[str, Any] = {}
    for name, value in row.items():
        ours = _SPELLINGS.get(canonical(name), name)
        # `prompts` is no `prompt`, and a list of questions no question.
        same = ours.endswith("s") == name.lower().endswith("s") or (
            ours in QUESTIONS and isinstance(value, str)
        )
        if value is not None:
            made[ours if same and row.get(ours) is None else name] = value
    for name in SYSTEM:
        if isinstance(made.get(name), Mapping | list):
            made[name] = _system_text(made[name], name)
    for name in ("messages", "prompt", "completion", "chosen", "rejected", *HISTORY):
        if name in made and (turns := read_turns(made[name], name)) is not None:
            made[name] = turns
    if isinstance(made.get("responses"), list):
        made["responses"] = [
            value if (turns := read_turns(value, f"responses[{i}]")) is None else turns
            for i, value in enumerate(made["responses"])
        ]
    return made


def _system_text(value: Any, name: str) -> Any:
    """A system message given as parts, or as a message."""
    turns = read_turns(value, name)
    if turns is not None and len(turns) == 1:
        return turns[0].get("content")
    if isinstance(value, Mapping) and isinstance(value.get("parts"), list):
        value = value["parts"]
    return join_parts(value, name)


def _with_messages(row: dict[str, Any], kind: str) -> dict[str, Any]:
    """A conversation under another name as `messages`, without what only says how it is stored."""
    own_prompt = kind == PROMPTS and not isinstance(row.get("prompt", ""), str)
    if "messages" in row or own_prompt or _is_own(row, kind):
        return row
    watched = Watched(row)
    for name in CONVERSATIONS:
        theirs = watched.name(name)
        if theirs is None:
            continue
        value: Any = row[theirs]
        inner = value.get("messages") if isinstance(value, Mapping) else None
        turns = read_turns(value if inner is None else inner, theirs)
        if turns is None and (name not in _CERTAIN or isinstance(value, str)):
            continue
        if turns is None and isinstance(value, Sequence) and not value:
            raise Unusable("does not begin with a human turn")
        rest = {other: x for other, x in row.items() if other != theirs}
        if inner is not None and isinstance(value, Mapping):  # {"input": {"messages": [...], "tools": [...]}}
            rest |= {key: x for key, x in value.items() if key != "messages" and key not in rest}
        row = _unmasked(rest) | {"messages": shapes.speakers(value if inner is None else inner, theirs)}
        if kind in _LEARNED and not any(name in Watched(row) for name in _ANSWERS):
            shapes.sound_chat(row["messages"])
        return row
    return row


def _unmasked(row: dict[str, Any]) -> dict[str, Any]:
    """The row without NeMo's `mask` where it names the user, whose turns are never learned."""
    if isinstance(row.get("mask"), str) and read_role(row["mask"]) in ("user", "system"):
        return {name: value for name, value in row.items() if name != "mask"}
    return row


def _sound_pair(row: dict[str, Any]) -> dict[str, Any]:
    """A pair after a conversation that is not our own: without what public data sets are known to hold."""
    sides = [_turns(row.get(name), name) for name in ("chosen", "rejected")]
    single = all(isinstance(side, list) and len(side) == 1 and _ends_with_reply(side) for side in sides)
    if not single or "messages" not in row or "prompt" in row:
        return row
    rest = {name: value for name, value in row.items() if name != "messages"}
    return rest | shapes.pair(row["messages"], *sides)


def _is_own(row: Row, kind: str) -> bool:
    """Whether the row has all of our fields already."""
    if kind in _PAIRED and "chosen" in row and "rejected" in row and "prompt" in row:
        return True
    return kind != PAIRS and "prompt" in row and "completion" in row


def _with_pair(row: dict[str, Any], kind: str) -> dict[str, Any]:
    """Two answers under other names as `chosen` and `rejected`, turns of an assistant."""
    if ("chosen" in row and "rejected" in row) or "responses" in row:
        return row
    watched = Watched(row)
    for better, worse in BETTER_WORSE:
        if better in watched and worse in watched:
            return _answered(watched, {"chosen": watched[better], "rejected": watched[worse]})
    for first, second in _ALTERNATIVES:
        if first in watched and second in watched:
            better = _choice(watched, first, second)
            if better is None:
                if kind == UNPAIRED and watched.first(_LABELS) is not None:
                    return row
                raise DataError(
                    f"{watched.name(first)} and {watched.name(second)} are there, but no field says which is better; "
                    "add one (preference, winner or choice, with the name of the better one), or write chosen and "
                    "rejected"
                )
            names = (first, second) if better == 0 else (second, first)
            return _answered(watched, {"chosen": watched[names[0]], "rejected": watched[names[1]]})
    return row


def _choice(row: Watched, first: str, second: str) -> int | None:
    """Which of two answers is better, as a field says by name, ending or sign; None: no field does."""
    for name in _SIGNED:
        value = row.peek(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            row[name]
            if value == 0:
                raise Unusable("tie")
            return int(value > 0)
    judge = row.first(name for name in _JUDGES if name not in (first, second))
    if judge is None:
        return None
    value = row[judge]
    said = canonical(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if said in _TIES:
        raise Unusable("tie")
    for index, name in enumerate((first, second)):
        ending = canonical(name)[-1]
        words = (canonical(name), ending, f"model{ending}", f"response{ending}", f"answer{ending}")
        if said in words:
            return index
    raise DataError(
        f"{row.name(judge)} is {shorten(value)}, which does not say whether {row.name(first)} or {row.name(second)} is "
        "better; write the name of one of them, or write chosen and rejected"
    )


def _with_ranking(row: dict[str, Any]) -> dict[str, Any]:
    """A list of answers with scores or ranks, in two lists or one of objects, as `responses` and `scores`."""
    if ("chosen" in row and "rejected" in row) or ("responses" in row and "scores" in row):
        return row
    watched = Watched(row)
    name = next((n for n in _LISTS if isinstance(watched.peek(n), list | Mapping)), None)
    if name is None:
        return row
    place = watched.name(name)
    values = as_rows(watched.row[place or name], str(place))
    if not isinstance(values, list) or len(values) < 1:
        return row
    scores = watched.first((*_SCORES, *_RANKS))
    if scores is not None and isinstance(watched.peek(scores), list):
        watched[name]
        worth = watched[scores]
        worth = _worth(worth, str(scores)) if scores in _RANKS else worth
        return _answered(watched, {"responses": values, "scores": worth})
    if not all(isinstance(value, Mapping) for value in values):
        return row
    items = [Watched(value) for value in values]
    answer, worth = (items[0].first(names) for names in (_ITEM_ANSWERS, (*_SCORES, "rank")))
    if answer is None or worth is None:
        return row
    if missing := [i for i, item in enumerate(items) if answer not in item]:
        raise DataError(f"{place}[{missing[0]}] has no {answer}; fill it, or take the entry out")
    watched[name]
    numbers = [item.get(worth) for item in items]
    numbers = _worth(numbers, f"{place}.rank") if worth == "rank" else numbers
    return _answered(watched, {"responses": [item[answer] for item in items], "scores": numbers})


def _worth(ranks: Sequence[Any], name: str) -> list[float | None]:
    """Scores of places, of which the first is the best."""
    return [None if is_gap(rank) else -read_number(rank, f"{name}[{i}]") for i, rank in enumerate(ranks)]


def _with_label(row: dict[str, Any]) -> dict[str, Any]:
    """The judgement of a completion under another name as `label`, and a judged conversation's last turn as it."""
    if "label" not in row and "chosen" not in row and "responses" not in row:
        watched = Watched(row)
        name = watched.first(_LABELS)
        if name is None:
            return row
        label = watched[name]
        row = watched.rest | {"label": label}
    turns: Any = row.get("messages")
    if not any(name in row for name in ("completion", "chosen", *REPLIES)) and _ends_with_reply(turns):
        row = {name: value for name, value in row.items() if name != "messages"}
        row |= {"prompt": turns[:-1], "completion": turns[-1:]}
    return row


def _with_reply(row: dict[str, Any], kind: str, unanswered: bool) -> dict[str, Any]:
    """An answer under another name than `completion`, after its question, as turns of a conversation."""
    compared = any(name in row for name in ("chosen", "rejected", "responses"))
    if compared or "completion" in row or (kind == TEXT and "text" in row):
        return row
    if "messages" in row and _ends_with_reply(row["messages"]):
        return row
    watched = Watched(row)
    names = _filled(watched, REPLIES, _is_answer)
    question = _asked(watched, names)
    if not names or (question is None and "messages" not in row):
        if question is not None and unanswered:
            raise Unusable("no reply")
        return row
    if len(names) > 1:
        spelled = [str(watched.name(name)) for name in names]
        raise DataError(
            f"{' and '.join(spelled)} may each be the answer; say which is with "
            f"config.data.fields=completion={spelled[0]}, or leave the other out with "
            f"config.data.ignore_fields={spelled[-1]}"
        )
    if kind == UNPAIRED or "messages" in row or not isinstance(row.get(question or ""), str):
        known = question is None or question in ("prompt", *QUESTIONS)
        asked = {} if known else {"prompt": [{"role": "user", "content": watched[question or ""]}]}
        return asked | _answered(watched, {"completion": watched[names[0]]})
    about = {"instruction": ("input", "context"), "question": ("input",)}.get(question or "", ())
    parts = [watched[name] for name in (question or "", *_filled(watched, about, _is_text)[:1])]
    content = "\n\n".join(part.strip() for part in parts if part.strip())
    answer = watched[names[0]]
    reply = read_turns(answer, names[0]) or [{"role": "assistant", "content": answer}]
    opening = _hh_turns(content) or [{"role": "user", "content": content}]
    return _replaced(watched, shapes.sound_chat([*opening, *reply]))


def _asked(row: Watched, answers: Sequence[str]) -> str | None:
    """The field that holds the question: a prompt, or the first of the names of one, that is no answer."""
    names = ["prompt", *QUESTIONS]
    if "text" not in row:  # elsewhere these are whoever wrote the text, and where it is from
        names += ["source"] if "target" in answers else ["user", "human"]
    return next(iter(_filled(row, [name for name in names if name not in answers])), None)


def _filled(row: Watched, names: Sequence[str], fits: Callable[[Any], bool] = bool) -> list[str]:
    """Those of `names` that say something, or if none does, those that the row has."""
    found = {name: row.peek(name) for name in names if name in row}
    found = {name: value for name, value in found.items() if fits(value) or value == ""}
    return [name for name, value in found.items() if not isinstance(value, str) or value.strip()] or list(
        found
    )


def _with_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """A conversation as a prompt: up to its last answer, which is left in `reply` for reward functions."""
    turns = row.get("messages")
    if "prompt" not in row and "messages" not in row:
        watched = Watched(row)
        answers = _filled(watched, REPLIES, _is_answer)
        question = _asked(watched, answers)
        if answers and question is not None and question not in QUESTIONS:
            return {"prompt": [{"role": "user", "content": watched[question]}]} | watched.rest
    if "prompt" in row or not isinstance(turns, list) or not turns:
        return row
    rest = {name: value for name, value in row.items() if name != "messages"}
    if not _ends_with_reply(turns):
        return rest | {"prompt": turns}
    return {"reply": turns[-1].get("content")} | rest | {"prompt": turns[:-1]}


def _answered(row: Watched, answers: Mapping[str, Any]) -> dict[str, Any]:
    """The row with answers as turns of an assistant, and its prompt, where it is text, as the user's."""
    made: dict[str, Any] = dict(row.rest)
    if isinstance(made.get("prompt"), str) and made["prompt"].strip():
        made["prompt"] = _hh_turns(made["prompt"]) or [{"role": "user", "content": made["prompt"]}]
    for name, value in answers.items():
        if name == "responses":
            made[name] = [_turns(response, f"{name}[{i}]") for i, response in enumerate(value)]
        else:
            made[name] = value if name == "scores" else _turns(value, name)
    return made


def _turns(value: Any, name: str) -> Any:
    turns = read_turns(value, name)
    if turns is not None:
        return turns
    return [{"role": "assistant", "content": value}] if isinstance(value, str) else value


def _hh_turns(text: str) -> list[Turn] | None:
    """A prompt written as "\\n\\nHuman: ...\\n\\nAssistant:" as turns."""
    if not re.fullmatch(r"\s*Human:.*\n\nAssistant:\s*", text, re.DOTALL):
        return None
    parts = re.split(r"\n\n(Human|Assistant):", "\n\n" + text.strip())[1:-2]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[parts[i]], "content": parts[i + 1].strip()} for i in range(0, len(parts), 2)]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_answer(value: Any) -> bool:
    return isinstance(value, str) or read_turns(value, "") is not None


def _ends_with_reply(turns: Any) -> bool:
    last = turns[-1] if isinstance(turns, list) and turns else None
    return isinstance(last, Mapping) and last.get("role") == "assistant"
