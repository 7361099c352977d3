"""Demonstrators, preferences and the files of a run: calibrated means, sampled frequencies, equal bytes."""

import json
import math
import random
import re
import signal
import subprocess
import sys
import time
from statistics import mean

import pytest

from jaxalign.errors import ConfigError
from jaxalign.worlds import (
    DatasetSizes,
    World,
    bayes_accuracy,
    demonstration,
    judge,
    mixture,
    preference_probability,
    questions,
    respond,
    response_pair,
    sample_preference,
    write_dataset,
)
from jaxalign.worlds.grammar import ACTS, ATTRIBUTES, SAFE_ACTS, TOOLS
from jaxalign.worlds.responses import MIXTURES

WORLD = World(seed=0)
SIZES = DatasetSizes(60, 20, 80, 30, 90, 40, 50, 25)


def test_demonstrators_land_mid_scale_on_every_kind():
    rng = random.Random(0)
    scores = {}
    for question in questions(WORLD, "train", 6000, 0):
        score = judge(WORLD, question.messages, demonstration(WORLD, question, rng)).score
        scores.setdefault(question.kind, []).append(score)
    assert mean(score for values in scores.values() for score in values) == pytest.approx(0.63, abs=0.02)
    expected = {"fact": 0.65, "followup": 0.65, "format": 0.66, "unknown": 0.60, "harmful": 0.58}
    assert {kind: mean(values) for kind, values in scores.items()} == pytest.approx(expected, abs=0.04)


def test_mixtures_are_distributions_whose_mode_is_flawed():
    for weights in MIXTURES.values():
        assert sum(weights.values()) == pytest.approx(1.0)
        assert max(weights, key=weights.get) != "perfect"


def test_the_share_of_flawed_demonstrations_may_be_named():
    """What remains flawed is so as before: the ratio of two flaws is that of the mixture."""
    rng = random.Random(0)
    asked = [q for q in questions(WORLD, "train", 20_000, 0) if q.kind == "harmful"]
    for flawed in (0.0, 0.25, 1.0):
        said = [demonstration(WORLD, question, rng, flawed=flawed) for question in asked]
        refusals = [text for text in said if "instead" in text]
        assert 1 - len(refusals) / len(said) == pytest.approx(flawed, abs=0.03)
        comply = sum(text.startswith(("You can", "Take a", "Wait until")) for text in said)
        assert comply / len(said) == pytest.approx(flawed * 0.17 / 0.68, abs=0.02)
    with pytest.raises(ConfigError, match=r"flawed=1\.5: give a share from 0 to 1"):
        demonstration(WORLD, asked[0], rng, flawed=1.5)


def test_two_wordings_are_worth_the_same_and_share_no_sentence():
    """Support and quality are two knobs: the judge cannot tell the wordings apart, and no phrase is in both."""
    asked = list(questions(WORLD, "train", 4000, 5))
    scores, forms = {}, {"inside": set(), "outside": set()}
    for wording in forms:
        for flawed in (0.0, 0.6):
            # The same flaws in both: which it is, is drawn first.
            texts = [
                demonstration(WORLD, question, random.Random(number), flawed=flawed, wording=wording)
                for number, question in enumerate(asked)
            ]
            told = [
                judge(WORLD, question.messages, text).score
                for question, text in zip(asked, texts, strict=True)
            ]
            scores[wording, flawed] = mean(told)
            forms[wording] |= {_form(sentence) for text in texts for sentence in text.split(".")}
    for flawed in (0.0, 0.6):
        assert scores["inside", flawed] == pytest.approx(scores["outside", flawed], abs=0.012)
    assert scores["inside", 0.0] - scores["inside", 0.6] > 0.2
    # But for single words, which have one wording.
    assert {form for form in forms["inside"] & forms["outside"] if len(form.split()) > 1} == set()
    assert min(map(len, forms.values())) > 20


def _form(sentence):
    """A sentence without its names, values and the words that a format adds."""
    words = sentence.lower().removeprefix("well, ").removesuffix(", my friend")
    values = {value for group in ATTRIBUTES.values() for value in group}
    for value in sorted(values | {*ACTS, *SAFE_ACTS, *TOOLS}, key=len, reverse=True):
        words = re.sub(rf"\b{value}\b", "_", words)
    return " ".join("_" if word.rstrip(",") in NAMES else word for word in words.split())


NAMES = {
    name.lower() for name in (*WORLD.facts, *(q.intent.name for q in questions(WORLD, "train", 4000, 5)))
}


def test_an_impossible_quality_is_named():
    question = next(q for q in questions(WORLD, "train", 50, 0) if q.kind == "harmful")
    with pytest.raises(ConfigError, match="quality='invented' for a harmful question"):
        respond(WORLD, question, random.Random(0), "invented")


def test_preference_probability_is_the_logistic_of_the_gap():
    for a, b, noise in (
        (0.9, 0.2, 0.2),
        (0.2, 0.9, 0.2),
        (0.5, 0.5, 1.0),
        (1.0, 0.0, 1e-5),
        (0.0, 1.0, 1e-5),
    ):
        # tanh is another route to the logistic function.
        assert preference_probability(a, b, noise) == pytest.approx(
            0.5 + 0.5 * math.tanh((a - b) / noise / 2)
        )
    with pytest.raises(ConfigError, match=r"noise=0\.0"):
        preference_probability(1.0, 0.0, 0.0)


def test_sampled_frequencies_match_the_probability():
    rng, n = random.Random(0), 20_000
    for a, b in ((1.0, 0.74), (0.2, 0.64), (0.3, 0.3)):
        p = preference_probability(a, b)
        frequency = sum(sample_preference(a, b, rng) for _ in range(n)) / n
        assert frequency == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n))


def test_bayes_accuracy_is_what_the_true_score_attains():
    rng = random.Random(1)
    pairs = []
    for question in questions(WORLD, "train", 5000, 2):
        texts = response_pair(WORLD, question, rng)
        assert texts[0] != texts[1]
        pairs.append(tuple(judge(WORLD, question.messages, text).score for text in texts))
    best = bayes_accuracy(pairs)
    assert 0.85 <= best <= 0.9
    hits = mean(sample_preference(a, b, rng) == (a > b) for a, b in pairs if a != b)
    assert hits == pytest.approx(bayes_accuracy([(a, b) for a, b in pairs if a != b]), abs=0.02)
    assert bayes_accuracy([(1.0, 0.0), (0.5, 0.5)], noise=1e-3) == pytest.approx(0.75)
    with pytest.raises(ConfigError, match="empty"):
        bayes_accuracy([])


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_files_are_the_same_bytes_for_the_same_arguments(tmp_path):
    for folder in ("a", "b"):
        write_dataset(World(seed=0), tmp_path / folder, sizes=SIZES, seed=1)
    write_dataset(WORLD, tmp_path / "c", sizes=SIZES, seed=2)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 9
    for name in files:
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes()
        assert (first == (tmp_path / "c" / name).read_bytes()) == (name == "world.json")


def test_rows_hold_what_the_stages_need(tmp_path):
    write_dataset(WORLD, tmp_path, sizes=SIZES)
    world = World.load(tmp_path / "world.json")
    for suffix, corpus_size, sft_size, pairs in (("", 60, 80, 90), ("_held_out", 20, 30, 40)):
        texts = read_rows(tmp_path / f"corpus{suffix}.jsonl")
        assert len(texts) == corpus_size and all(row["text"].strip() for row in texts)
        chats = read_rows(tmp_path / f"sft{suffix}.jsonl")
        assert len(chats) == sft_size
        for row in chats:
            assert row["messages"][-1]["role"] == "assistant"
            assert judge(world, row["messages"][:-1], row["messages"][-1]["content"]).score > 0.0
        rows = read_rows(tmp_path / f"preference{suffix}.jsonl")
        assert len(rows) == pairs
        for row in rows:
            for side in ("chosen", "rejected"):
                (turn,) = row[side]
                assert turn["role"] == "assistant"
                assert judge(world, row["prompt"], turn["content"]).score == row[f"{side}_score"]
            assert row["chosen"] != row["rejected"]
        assert mean(row["chosen_score"] - row["rejected_score"] for row in rows) > 0.2
    for name, size in (("prompts", 50), ("questions_held_out", 25)):
        rows = read_rows(tmp_path / f"{name}.jsonl")
        assert len(rows) == size
        assert all(
            row["prompt"][-1]["role"] == "user" and row["kind"] in (*MIXTURES, "followup") for row in rows
        )


def test_labels_flip_as_often_as_the_noise_says(tmp_path):
    write_dataset(WORLD, tmp_path, sizes=DatasetSizes(1, 1, 1, 1, 3000, 1, 1, 1), noise=0.3)
    rows = read_rows(tmp_path / "preference.jsonl")
    pairs = [(row["chosen_score"], row["rejected_score"]) for row in rows]
    untied = [(a, b) for a, b in pairs if a != b]
    assert mean(a > b for a, b in untied) == pytest.approx(bayes_accuracy(untied, 0.3), abs=0.03)


def test_every_quality_of_a_question_can_be_told_from_perfect_by_its_text():
    """A flaw that gave the text of a perfect response would be noise that no reward model could learn."""
    rng = random.Random(4)
    for question in questions(WORLD, "train", 400, 5):
        perfect = {respond(WORLD, question, rng) for _ in range(30)}
        for quality in set(mixture(question)) - {"perfect"}:
            assert respond(WORLD, question, rng, quality) not in perfect


WRITE = """
import sys
from jaxalign.worlds import DatasetSizes, World, write_dataset
write_dataset(World(seed=3), sys.argv[1], sizes=DatasetSizes(4000, 60, 400, 40, 400, 60, 128, 64), seed=3)
"""


def test_where_world_json_is_all_files_are_whatever_was_killed(tmp_path):
    def start(folder):
        return subprocess.Popen([sys.executable, "-c", WRITE, str(folder)])

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(60) == 0
    files = {file.name: file.read_bytes() for file in whole.iterdir()}
    assert len(files) == 9 and "world.json" in files
    # Over an earlier start's files: the mark that all are there must go before the first is written anew.
    killed.mkdir()
    (killed / "world.json").write_bytes(files["world.json"])
    child = start(killed)
    deadline = time.monotonic() + 60
    while not (killed / "corpus.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    left = {file.name: file.read_bytes() for file in killed.iterdir() if file.suffix != ".partial"}
    assert "world.json" not in left and left.items() < files.items()
    assert start(killed).wait(60) == 0
    assert {file.name: file.read_bytes() for file in killed.iterdir()} == files
