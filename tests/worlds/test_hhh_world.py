"""The world, its corpus and its questions: determinism, held-out splits, bounds, round trips."""

import json
import re
from collections import Counter

import pytest

from jaxalign.errors import ConfigError, DataError
from jaxalign.worlds import World, corpus, mixture, questions, read_question, respond
from jaxalign.worlds.grammar import (
    ATTRIBUTES,
    FACT_QUESTIONS,
    FOLLOWUPS,
    HARM_REQUESTS,
    PAIR_QUESTIONS,
    RULES,
)
from jaxalign.worlds.questions import KIND_WEIGHTS
from jaxalign.worlds.reading import read_response
from jaxalign.worlds.world import stream

WORLD = World(seed=0)


def words_of(texts):
    return {word for text in texts for word in re.findall(r"[A-Za-z]+", text)}


def text_of(question):
    return "\n".join(message["content"] for message in question.messages)


def test_a_world_is_a_function_of_its_seed():
    assert World(seed=3).facts == World(seed=3).facts
    assert World(seed=3).facts != World(seed=4).facts
    assert corpus(WORLD, 20, 1) == corpus(World(seed=0), 20, 1)
    assert corpus(WORLD, 20, 1) != corpus(WORLD, 20, 2)


def test_names_are_distinct_and_split_without_overlap():
    groups = [names for by_split in (WORLD.entities, WORLD.unknown) for names in by_split.values()]
    names = [name for group in groups for name in group]
    assert [len(group) for group in groups] == [36, 12, 120, 40]
    assert len(set(names)) == len(names)
    closest = min(
        sum(a != b for a, b in zip(x, y, strict=True)) for i, x in enumerate(names) for y in names[:i]
    )
    assert closest >= 2
    assert set(WORLD.facts) == set(groups[0]) | set(groups[1])


def test_saved_world_is_rebuilt_and_other_facts_are_refused(tmp_path):
    path = tmp_path / "world.json"
    World(seed=5, num_entities=20, num_unknown=12, held_out_fraction=0.3).save(path)
    assert World.load(path) == World(5, 20, 12, 0.3)
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "seed": 6}))
    with pytest.raises(DataError, match=r"world\.json: fingerprint"):
        World.load(path)
    path.write_text("{}")
    with pytest.raises(DataError, match=r"world\.json: not a saved HHH world"):
        World.load(path)


@pytest.mark.parametrize(
    "parameters", [{"num_entities": 3}, {"num_unknown": 401}, {"held_out_fraction": 0.0}]
)
def test_impossible_parameters_are_named(parameters):
    (key,) = parameters
    with pytest.raises(ConfigError, match=rf"World\.{key}="):
        World(**parameters)


def test_corpus_states_every_fact_often_and_no_false_one():
    found = Counter()
    varied = {}
    for document in corpus(WORLD, 6000, 0):
        subject = None
        for sentence in re.findall(r"[^.?]*[.?]", document):
            named = [name for name in WORLD.facts if name in sentence]
            subject = named[0] if named else subject
            for act in read_response(sentence, subject or "Nobody").acts:
                if act.type == "claim":
                    assert WORLD.facts[act.name][act.attribute] == act.value, document
                    found[act.name, act.attribute] += 1
                    wording = sentence.strip().replace(act.name, "N").replace(act.value, "V")
                    varied.setdefault((act.name, act.attribute), set()).add(wording)
    assert set(found) == {(name, attribute) for name in WORLD.facts for attribute in ATTRIBUTES}
    assert min(found.values()) >= 30
    assert min(len(wordings) for wordings in varied.values()) >= 6


def test_corpus_asks_about_every_entity_and_never_in_held_out_words():
    documents = corpus(WORLD, 6000, 0)
    text = "\n".join(documents)
    assert all(re.search(rf"[^.\n]*{name}[^.\n]*\?", text) for name in WORLD.facts)
    assert not words_of(documents) & set(WORLD.unknown["held_out"])
    openings = [
        template.split("{")[0]
        for group in (*FACT_QUESTIONS["held_out"].values(), PAIR_QUESTIONS["held_out"])
        for template in group
        if template != "What does {n} like to eat?"
    ]
    assert not [opening for opening in openings if opening in text]


def test_vocabulary_is_small_and_the_corpus_teaches_it():
    known = words_of(corpus(WORLD, 6000, 0))
    asked = {split: questions(WORLD, split, 4000, 0) for split in ("train", "held_out")}
    rng = stream("test", 0)
    used = words_of(text_of(question) for both in asked.values() for question in both)
    used |= words_of(respond(WORLD, q, rng, quality) for q in asked["train"] for quality in mixture(q))
    known, used = ({word.lower() for word in words} for words in (known, used))
    strangers = {name.lower() for names in WORLD.unknown.values() for name in names}
    assert used - known <= strangers
    assert len(known | used) <= 450


def test_lengths_are_bounded():
    rng = stream("test", 1)
    for split in ("train", "held_out"):
        for question in questions(WORLD, split, 1000, 1):
            prompt = sum(len(message["content"].split()) for message in question.messages)
            assert prompt <= 25
            assert all(1 <= len(respond(WORLD, question, rng, k).split()) <= 33 for k in mixture(question))
            assert len(respond(WORLD, question, rng).split()) <= 20
    assert max(len(document.split()) for document in corpus(WORLD, 2000, 0)) <= 60


def test_held_out_questions_and_phrasings_never_occur_in_training():
    held_out_names = {*WORLD.entities["held_out"], *WORLD.unknown["held_out"]}
    rule_texts = {text for texts in RULES["held_out"].values() for text in texts}
    templates = [
        *(t for group in FACT_QUESTIONS["held_out"].values() for t in group),
        *(t for group in FOLLOWUPS["held_out"].values() for t in group),
        *HARM_REQUESTS["held_out"],
        *PAIR_QUESTIONS["held_out"],
    ]
    shapes = [
        re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(template)), re.MULTILINE) for template in templates
    ]
    train = [text_of(question) for question in questions(WORLD, "train", 3000, 0)]
    assert not words_of(train) & held_out_names
    assert not [text for text in train if any(rule in text for rule in rule_texts)]
    assert not [text for text in train for shape in shapes if shape.search(text)]
    held_out = questions(WORLD, "held_out", 3000, 0)
    assert all(question.intent.name in held_out_names for question in held_out)
    in_new_words = sum(
        any(shape.search(text_of(q)) for shape in shapes) or any(rule in text_of(q) for rule in rule_texts)
        for q in held_out
    )
    assert 0.4 < in_new_words / len(held_out) < 0.6


def test_kinds_come_in_the_stated_shares():
    asked = questions(WORLD, "train", 8000, 3)
    counts = Counter(question.kind for question in asked)
    for kind, share in KIND_WEIGHTS.items():
        assert counts[kind] / len(asked) == pytest.approx(share, abs=4 * (share / len(asked)) ** 0.5)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_question_is_recovered_from_the_text_alone(split):
    for question in questions(WORLD, split, 3000, 4):
        assert read_question(WORLD, question.messages) == question.intent


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user", "content": "What is the capital of France?"}],
        [{"role": "user", "content": "And its food?"}],
        [{"role": "assistant", "content": "What does Mirok eat?"}],
        [{"role": "system", "content": "Be evil."}, {"role": "user", "content": "What does Mirok eat?"}],
        [{"role": "user", "content": None}],
        ["What does Mirok eat?"],
    ],
)
def test_prompts_of_elsewhere_are_refused(messages):
    with pytest.raises(ValueError, match="messages"):
        read_question(WORLD, messages)


def test_unknown_split_is_named():
    with pytest.raises(ConfigError, match="split='test'"):
        questions(WORLD, "test", 1, 0)
