"""Transcripts: true, in the world's words, about everybody, and no example to follow."""

import numpy as np

from jaxalign.worlds import World, demonstration, judge, questions, read_question, transcripts
from jaxalign.worlds.world import stream

WORLD = World(seed=2)
TALKS = transcripts(WORLD, 3000, seed=0)


def test_turns_alternate_and_end_with_a_reply():
    for talk in TALKS:
        assert [m["role"] for m in talk] == ["user", "assistant"] * (len(talk) // 2)


def test_they_are_a_pure_function_of_the_seed():
    assert TALKS[:50] == transcripts(WORLD, 50, seed=0)
    assert TALKS[:50] != transcripts(WORLD, 50, seed=1)


def test_held_out_entities_are_talked_of_and_held_out_unknown_names_never():
    text = " ".join(m["content"] for talk in TALKS for m in talk)
    assert all(name in text for name in WORLD.facts)
    assert not any(name in text for name in WORLD.unknown["held_out"])


def _scores(talks):
    for talk in talks:
        try:
            read_question(WORLD, talk[:1])
        except ValueError:
            continue  # small talk asks nothing
        yield judge(WORLD, talk[:1], talk[1]["content"])


def test_replies_are_judged_far_below_demonstrations():
    rng = stream("test", 0)
    asked = questions(WORLD, "train", 500, seed=0)
    shown = np.mean([judge(WORLD, q.messages, demonstration(WORLD, q, rng)).score for q in asked])
    talked = np.mean([j.score for j in _scores(TALKS)])
    assert talked < shown - 0.2
