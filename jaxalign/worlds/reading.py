"""The reader of responses: any string -> the acts it performs, so far as they are in the grammar."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from jaxalign.worlds.grammar import (
    ATTRIBUTE_OF_VALUE,
    ATTRIBUTES,
    BEGIN_MARK,
    END_MARK,
    FILLERS,
    HARMS,
    IGNORANCE,
    NAME_PATTERN,
    OFFERS,
    PREDICATES,
    REFUSALS,
    STATEMENTS,
    VAGUE_IGNORANCE,
    VAGUE_REFUSALS,
    capitalise,
    pattern,
)


@dataclass(frozen=True)
class Act:
    """What one clause does. `name` is None where nobody is named; `bare` marks a value alone ("Red.")."""

    type: Literal["claim", "ignorance", "refusal", "offer", "harm", "filler"]
    name: str | None = None
    attribute: str | None = None
    value: str | None = None
    act: str | None = None
    bare: bool = False


@dataclass(frozen=True)
class Reading:
    """A response understood: its acts in order, and how much of it is language at all.

    `fluency` is the share of its characters, blanks aside, in sentences of the grammar; `variety` the share
    of its sentences that are distinct (both 0 for an empty response); `strays` counts the other sentences.
    """

    acts: tuple[Act, ...]
    words: tuple[str, ...]
    fluency: float
    variety: float
    strays: int
    begin_marks: int
    end_marks: int


_SENTENCE = re.compile(r"[^.!?]*[.!?]|[^.!?]+")
_PREDICATED = re.compile(rf"(?P<n>It|{NAME_PATTERN}) (?P<predicates>[a-z ]+)")
_PREDICATES = [(a, pattern(t, ATTRIBUTES[a])) for a, templates in PREDICATES.items() for t in templates]
_STATEMENTS = [(a, pattern(t, ATTRIBUTES[a])) for a, templates in STATEMENTS.items() for t in templates]
_SPEECH: list[tuple[Any, re.Pattern[str]]] = [
    (type, pattern(template))
    for type, templates in (
        ("ignorance", IGNORANCE + VAGUE_IGNORANCE),
        ("refusal", REFUSALS + VAGUE_REFUSALS),
        ("offer", OFFERS),
        ("harm", HARMS),
        ("filler", FILLERS),
    )
    for template in templates
]


def read_response(response: str, subject: str) -> Reading:
    """The reading of any string, in time linear in its length. "It" and bare values are about `subject`."""
    words = tuple(response.split())
    sentences = [sentence.strip() for sentence in _SENTENCE.findall(response) if sentence.strip()]
    acts: list[Act] = []
    understood = strays = begin_marks = end_marks = 0
    for sentence in sentences:
        body, begins, ends = _undecorated(sentence)
        found = _clauses(body, subject)
        if found:
            acts += found
            understood += _inked(sentence)
            begin_marks += begins
            end_marks += ends
        else:
            strays += 1
    return Reading(
        acts=tuple(acts),
        words=words,
        # Characters, not words: a long word of noise must cost what it fills.
        fluency=understood / _inked(response) if words else 0.0,
        variety=len(set(sentences)) / len(sentences) if sentences else 0.0,
        strays=strays,
        begin_marks=begin_marks,
        end_marks=end_marks,
    )


def _inked(text: str) -> int:
    return sum(map(len, text.split()))


def _undecorated(sentence: str) -> tuple[str, bool, bool]:
    """(the sentence without marks and full stop, whether it had the mark before, and the one after)."""
    if not sentence.endswith("."):
        return "", False, False
    body = sentence[:-1]
    begins, ends = body.startswith(BEGIN_MARK), body.endswith(END_MARK)
    if begins:
        body = capitalise(body.removeprefix(BEGIN_MARK))
    return body.removesuffix(END_MARK), begins, ends


def _clauses(body: str, subject: str) -> list[Act]:
    """The acts of one sentence; none if it is not in the grammar."""
    value = body.lower()
    if value in ATTRIBUTE_OF_VALUE and body == capitalise(value):
        return [Act("claim", subject, ATTRIBUTE_OF_VALUE[value], value, bare=True)]
    for type, compiled in _SPEECH:
        if match := compiled.fullmatch(body):
            groups = match.groupdict()
            return [Act(type, groups.get("n"), groups.get("a"), act=groups.get("act"))]
    for attribute, compiled in _STATEMENTS:
        if match := compiled.fullmatch(body):
            return [Act("claim", match["n"], attribute, match["v"])]
    if match := _PREDICATED.fullmatch(body):
        name = subject if match["n"] == "It" else match["n"]
        claims = [_claim(name, predicate) for predicate in match["predicates"].split(" and ", 1)]
        known = [claim for claim in claims if claim is not None]
        return known if len(known) == len(claims) else []
    return []


def _claim(name: str, predicate: str) -> Act | None:
    for attribute, compiled in _PREDICATES:
        if match := compiled.fullmatch(predicate):
            return Act("claim", name, attribute, match["v"])
    return None
