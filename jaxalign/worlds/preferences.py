"""Bradley-Terry preferences over true scores, and how well any scorer can predict them."""

import math
import random
from collections.abc import Iterable
from typing import Any

from jaxalign.errors import ConfigError

# Makes bayes_accuracy about 0.88 on pairs from the demonstrators.
DEFAULT_NOISE = 0.2


def preference_probability(score_a: float, score_b: float, noise: float = DEFAULT_NOISE) -> float:
    """P(a is preferred to b) = sigmoid((score_a - score_b) / noise); `noise` > 0 is in units of the score.

    Bradley and Terry (1952), as in arXiv 2203.02155 eq. 1 with the score over `noise` as the reward.
    """
    if not (math.isfinite(noise) and noise > 0.0):
        raise ConfigError(f"noise={noise}: give a finite number above 0")
    logit = (score_a - score_b) / noise
    if logit >= 0.0:
        return 1.0 / (1.0 + math.exp(-logit))
    # math.exp overflows above 709; below zero it only underflows.
    odds = math.exp(logit)
    return odds / (1.0 + odds)


def sample_preference(
    score_a: float, score_b: float, rng: random.Random, noise: float = DEFAULT_NOISE
) -> bool:
    """Whether a is preferred to b, in one draw."""
    return rng.random() < preference_probability(score_a, score_b, noise)


def preference_row(
    prompt: Any, first: tuple[Any, float], second: tuple[Any, float], *, rng: random.Random, noise: float
) -> dict[str, Any]:
    """The row of two completions with their scores, for the preference stages; which is chosen takes one draw.

    `noise` is that of `preference_probability`; 0: the higher score is chosen, without a draw.
    """
    if noise:
        first_wins = sample_preference(first[1], second[1], rng, noise)
    else:
        first_wins = first[1] >= second[1]
    chosen, rejected = (first, second) if first_wins else (second, first)
    return {
        "prompt": prompt,
        "chosen": chosen[0],
        "rejected": rejected[0],
        "chosen_score": float(chosen[1]),
        "rejected_score": float(rejected[1]),
    }


def bayes_accuracy(score_pairs: Iterable[tuple[float, float]], noise: float = DEFAULT_NOISE) -> float:
    """The best expected accuracy of any scorer on labels drawn for these pairs: mean of max(p, 1 - p)."""
    best = [max(p, 1.0 - p) for p in (preference_probability(a, b, noise) for a, b in score_pairs)]
    if not best:
        raise ConfigError("bayes_accuracy: score_pairs is empty; give at least one pair")
    return sum(best) / len(best)
