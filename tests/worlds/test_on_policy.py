"""Pairs of a model's own answers."""

import numpy as np

from jaxalign.worlds import label_pairs, preference_probability

PROMPT = [{"role": "user", "content": "What colour is Mirok?"}]


def test_labels_follow_bradley_terry():
    n = 4000
    answers = (["good"] * n, ["bad"] * n)
    rows, without = label_pairs([PROMPT] * n, answers, ([0.6] * n, [0.4] * n), seed=0, noise=0.2)
    share = np.mean([row["chosen"][0]["content"] == "good" for row in rows])
    expected = preference_probability(0.6, 0.4, 0.2)
    assert without == 0
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_rows_carry_texts_with_their_own_scores():
    rows, _ = label_pairs(
        [PROMPT] * 50, (["a"] * 50, ["b"] * 50), ([1.0] * 50, [0.0] * 50), seed=3, noise=0.5
    )
    assert {row["chosen"][0]["content"] for row in rows} == {"a", "b"}
    for row in rows:
        assert row["prompt"] == PROMPT
        assert (row["chosen"][0]["content"] == "a") == (row["chosen_score"] == 1.0)
        assert (row["rejected"][0]["content"] == "a") == (row["rejected_score"] == 1.0)


def test_equal_and_empty_answers_give_no_pair_and_are_counted():
    answers = (["a", "a", " ", "a"], ["b", "a", "b", ""])
    rows, without = label_pairs([PROMPT] * 4, answers, ([1.0] * 4, [0.0] * 4), seed=0)
    assert len(rows) == 1 and without == 3


def test_a_prompt_without_a_pair_does_not_change_the_others():
    scores = ([0.5] * 20, [0.5] * 20)
    first = [f"a{i}" for i in range(20)]
    second = [f"b{i}" for i in range(20)]
    whole, _ = label_pairs([PROMPT] * 20, (first, second), scores, seed=1)
    part, _ = label_pairs([PROMPT] * 20, (first, [*second[:7], first[7], *second[8:]]), scores, seed=1)
    assert part == [row for i, row in enumerate(whole) if i != 7]
