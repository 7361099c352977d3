"""Preference pairs of a model's own answers, labelled by scores: the judge's, or a trained reward model's."""

import random
from collections.abc import Sequence
from typing import Any

from jaxalign.worlds.preferences import DEFAULT_NOISE, preference_probability


def label_pairs(
    prompts: Sequence[Sequence[dict[str, str]]],
    answers: tuple[Sequence[str], Sequence[str]],
    scores: tuple[Sequence[float], Sequence[float]],
    *,
    seed: int,
    noise: float = DEFAULT_NOISE,
) -> tuple[list[dict[str, Any]], int]:
    """Rows of preferences between two answers to each of N prompts.

    Args:
      prompts: N conversations.
      answers: two lists of N texts.
      scores: two lists of N scores of them.
      noise: temperature of the Bradley–Terry choice, in the scores' units (1 for a reward model's).

    Returns:
      Rows {"prompt", "chosen", "rejected", "chosen_score", "rejected_score"}, and how many prompts gave none
      because the two answers are the same or one is empty.
    """
    rng = random.Random(seed)
    rows = []
    for messages, *pair in zip(prompts, *answers, *scores, strict=True):
        first, second, first_score, second_score = pair
        draw = rng.random()  # for every prompt, so that one that gives no pair does not change the others
        if first == second or not first.strip() or not second.strip():
            continue
        sides = [(first, float(first_score)), (second, float(second_score))]
        if draw >= preference_probability(first_score, second_score, noise):
            sides.reverse()
        (chosen, chosen_score), (rejected, rejected_score) = sides
        rows.append(
            {
                "prompt": list(messages),
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
                "chosen_score": chosen_score,
                "rejected_score": rejected_score,
            }
        )
    return rows, len(prompts) - len(rows)
