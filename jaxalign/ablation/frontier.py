"""Gold reward on the way of an optimisation: its best point, and its gain at a given KL."""

import numpy as np


def halves(x: np.ndarray) -> np.ndarray:
    """[..., questions] to the means of the even and the odd ones, [2, ...]."""
    return np.stack([x[..., side::2].mean(-1) for side in range(2)])


def best_point(gold: np.ndarray) -> tuple[float, list[int]]:
    """The gold reward of the best of K points, and where each half of the questions has its best one.

    The best point of one half is measured on the other, or noise would make a peak.

    Args:
      gold: [2, K], of the two halves.
    """
    tops = [int(half.argmax()) for half in gold]
    return float(np.mean([gold[1 - side, at] for side, at in enumerate(tops)])), tops


def gain_at(d: np.ndarray, gain: np.ndarray, kl: float) -> float:
    """The gain at so many nats, between the points next to it; beyond the last that of the last.

    Args:
      d: [K] √KL, in any order. gain: [K].
    """
    return float(np.interp(np.sqrt(kl), *np.array(sorted(zip(d, gain, strict=True))).T))


def gain_at_equal_length(
    gold: np.ndarray,
    lengths: np.ndarray,
    before: tuple[np.ndarray, np.ndarray],
    kinds: np.ndarray,
    width: int,
) -> float:
    """The gain in gold reward among answers of the same length to questions of the same kind.

    Answers before and after are compared within groups, each of one kind and `width` tokens. A group counts by
    n m / (n + m) of its n answers before and m after (Mantel and Haenszel), so that one without either counts nothing.

    Args:
      gold, lengths: [N] of the answers after. before: the same of those before. kinds: [N] of the questions.
    """
    groups = [list(zip(kinds, each // width, strict=True)) for each in (before[1], lengths)]
    total = weight = 0.0
    for group in set(groups[0]) & set(groups[1]):
        was, now = (
            scores[[own == group for own in each]]
            for scores, each in zip((before[0], gold), groups, strict=True)
        )
        share = was.size * now.size / (was.size + now.size)
        total, weight = total + share * (now.mean() - was.mean()), weight + share
    return float(total / weight) if weight else 0.0
