"""Preference pairs of a model's own answers, labelled by scores: the judge's, or a trained reward model's."""

import random
from collections.abc import Sequence
from typing import Any

from jaxalign.worlds.preferences import DEFAULT_NOISE, preference_row


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
    for messages, *texts, first_score, second_score in zip(prompts, *answers, *scores, strict=True):
        first, second = ([{"role": "assistant", "content": text}] for text in texts)
        # Drawn for every prompt, so that one that gives no pair does not change the others.
        row = preference_row(
            list(messages), (first, first_score), (second, second_score), rng=rng, noise=noise
        )
        if first != second and all(text.strip() for text in texts):
            rows.append(row)
    return rows, len(prompts) - len(rows)
