"""Questions put to the assistant, and the reader that recovers what a prompt asks from its text alone."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxalign.errors import ConfigError, DataError
from jaxalign.worlds.grammar import (
    ACTS,
    ATTRIBUTES,
    FACT_QUESTIONS,
    FOLLOWUPS,
    HARM_REQUESTS,
    PAIR_QUESTIONS,
    PREDICATES,
    RULES,
    SYSTEMS,
    pattern,
)
from jaxalign.worlds.world import World, stream

Kind = Literal["fact", "followup", "format", "unknown", "harmful"]
Split = Literal["train", "held_out"]
Messages = list[dict[str, str]]

# How often each kind is asked, in training and in evaluation alike.
KIND_WEIGHTS: dict[Kind, float] = {
    "fact": 0.3,
    "followup": 0.2,
    "format": 0.2,
    "unknown": 0.15,
    "harmful": 0.15,
}


@dataclass(frozen=True)
class Intent:
    """What a prompt asks: attributes of a name, with a rule of format or None; or help with a harmful act."""

    kind: Kind
    name: str
    attributes: tuple[str, ...] = ()
    rule: str | None = None
    act: str | None = None


@dataclass(frozen=True)
class Question:
    """A prompt of the world; its last message is the user's."""

    kind: Kind
    messages: Messages
    intent: Intent


def questions(world: World, split: Split, n: int, seed: int) -> list[Question]:
    """n questions of one split, kinds drawn by KIND_WEIGHTS.

    A training question uses training entities, unknown names and phrasings only; a held-out one always uses
    held-out entities or names, in held-out and training phrasings with equal chance. Raises ConfigError for
    another split.
    """
    if split not in ("train", "held_out"):
        raise ConfigError(f"split={split!r}: write 'train' or 'held_out'")
    rng = stream(f"questions/{split}", seed)
    kinds = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()), k=n)
    return [_ask(world, kind, split, rng) for kind in kinds]


def _ask(world: World, kind: Kind, split: Split, rng: random.Random) -> Question:
    names = world.unknown if kind == "unknown" else world.entities
    name = rng.choice(names[split])
    phrasing = split if split == "train" or rng.random() < 0.5 else "train"
    attribute, other = rng.sample(list(ATTRIBUTES), 2)
    system = rng.choice(SYSTEMS) if rng.random() < 0.2 else None
    history: Messages = []
    asked: tuple[str, ...] = (attribute,)
    rule = act = None

    if kind == "harmful":
        act, asked = rng.choice(ACTS), ()
        text = rng.choice(HARM_REQUESTS[phrasing]).format(act=act, n=name)
    elif kind == "followup":
        text = rng.choice(FOLLOWUPS[phrasing][attribute])
        earlier = rng.choice(FACT_QUESTIONS[phrasing][other]).format(n=name)
        answer = rng.choice(PREDICATES[other]).format(v=world.facts[name][other])
        history = [
            {"role": "user", "content": earlier},
            {"role": "assistant", "content": f"{name} {answer}."},
        ]
    elif kind == "fact" and rng.random() < 0.25:
        asked = (attribute, other)
        text = rng.choice(PAIR_QUESTIONS[phrasing]).format(a=attribute, b=other, n=name)
    else:
        text = rng.choice(FACT_QUESTIONS[phrasing][attribute]).format(n=name)
        if kind == "format":
            rule = rng.choice(list(RULES[phrasing]))
            instruction = rng.choice(RULES[phrasing][rule])
            if rng.random() < 0.3:
                system = instruction
            else:
                text = f"{text} {instruction}"

    first = [{"role": "system", "content": system}] if system else []
    messages = [*first, *history, {"role": "user", "content": text}]
    return Question(kind, messages, Intent(kind, name, asked, rule, act))


def _patterns(by_split: dict) -> list[tuple[str | None, re.Pattern[str]]]:
    """(attribute or None, pattern) of every phrasing of both splits."""
    found = []
    for phrasings in by_split.values():
        groups = phrasings if isinstance(phrasings, dict) else {None: phrasings}
        found += [(key, pattern(template)) for key, templates in groups.items() for template in templates]
    return found


_FACT = _patterns(FACT_QUESTIONS)
_PAIR = _patterns(PAIR_QUESTIONS)
_FOLLOWUP = _patterns(FOLLOWUPS)
_HARM = _patterns(HARM_REQUESTS)
_RULE_OF_TEXT = {text: rule for rules in RULES.values() for rule, texts in rules.items() for text in texts}


def read_question(world: World, messages: Sequence[dict[str, str]]) -> Intent:
    """What the messages ask, from their text alone: an optional system message, turns, the user's question.

    Raises DataError (a ValueError) for messages that no question of this world has.
    """
    turns = list(messages)
    for turn in turns:
        if not (isinstance(turn, dict) and isinstance(turn.get("content"), str) and "role" in turn):
            raise DataError(f"messages: {turn!r} is no message; write {{'role': ..., 'content': ...}}")
    rule = None
    if turns and turns[0]["role"] == "system":
        system = turns.pop(0)["content"]
        rule = _RULE_OF_TEXT.get(system)
        if rule is None and system not in SYSTEMS:
            raise DataError(
                f"messages[0]: the system message {system!r} is not of this world; see grammar.SYSTEMS"
            )
    roles = [turn["role"] for turn in turns]
    if not turns or roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise DataError(f"messages: roles {roles} must alternate user, assistant, ..., user")

    text = turns[-1]["content"]
    for instruction, named in _RULE_OF_TEXT.items():
        if text.endswith(" " + instruction):
            text, rule = text[: -len(instruction) - 1], named
    if match := _match(_HARM, text):
        return Intent("harmful", match[1]["n"], act=match[1]["act"])
    name, asked = _asked(text)
    followed = name is None
    for turn in reversed(turns[:-1]):
        if name is None and turn["role"] == "user":
            name, _ = _asked(turn["content"])
    if not asked or name is None:
        raise DataError(
            f"messages[-1]: {turns[-1]['content']!r} is no question of this world; use one of questions()"
        )
    if name not in world.facts:
        return Intent("unknown", name, asked, rule)
    return Intent("format" if rule else "followup" if followed else "fact", name, asked, rule)


def _match(patterns: list[tuple[Any, re.Pattern[str]]], text: str) -> tuple[Any, re.Match] | None:
    for key, compiled in patterns:
        if match := compiled.fullmatch(text):
            return key, match
    return None


def _asked(text: str) -> tuple[str | None, tuple[str, ...]]:
    """(name, attributes) of a question; the name is None after "its"; (None, ()) for any other text."""
    if match := _match(_FACT, text):
        return match[1]["n"], (match[0],)
    if match := _match(_PAIR, text):
        return match[1]["n"], (match[1]["a"], match[1]["b"])
    if match := _match(_FOLLOWUP, text):
        return None, (match[0],)
    return None, ()
