"""Many factors at two levels in few arms: a design in which the main effect of each is orthogonal to all others."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.ablation.effects import Arm, Effect, Value, Weighted, arm_name

# Of the design of Plackett and Burman 1946 (Biometrika 33, table for N = 12); the others are its cyclic shifts.
_FIRST = (1, 1, -1, 1, 1, 1, -1, -1, -1, 1, -1)


def plackett_burman(*, mirrored: bool = False) -> np.ndarray:
    """The levels, 1 and -1, of up to 11 factors in 12 arms: int [12, 11].

    Main effects are estimated apart from each other. What two factors do only together adds a third of itself to the
    effects of all others, or takes it away, unless the design is `mirrored`: twice as many arms, the other half of
    which have all levels the other way round.
    """
    shifts = [np.roll(_FIRST, by) for by in range(len(_FIRST))]
    design = np.array([*shifts, [-1] * len(_FIRST)])
    return np.concatenate([design, -design]) if mirrored else design


def assign(factors: Mapping[str, tuple[Any, Any]], design: np.ndarray) -> list[dict[str, Any]]:
    """The settings of each row of a design, from the two levels of each factor: that of 1, that of -1."""
    return [
        {
            name: levels[0 if sign > 0 else 1]
            for (name, levels), sign in zip(factors.items(), row, strict=False)
        }
        for row in design
    ]


def table_of(settings: Sequence[Mapping[str, Any]]) -> str:
    """Settings of numbered rows as a Markdown table."""
    lines = [f"| row | {' | '.join(settings[0])} |", f"|---|{'---|' * len(settings[0])}"]
    for number, levels in enumerate(settings, 1):
        lines.append(f"| {number} | {' | '.join(map(str, levels.values()))} |")
    return "\n".join(lines)


def contrast(measure: str, arms: Sequence[Arm], signs: Sequence[int] | np.ndarray) -> Effect:
    """The mean of a measure over the arms with sign 1, less that over the arms with sign -1, seed by seed.

    Of a column of a two-level design this is the factor's main effect, twice its coefficient by least squares.
    """
    signs = [int(sign) for sign in signs]
    terms = zip(signs, arms, strict=True)
    return Weighted(tuple((sign / signs.count(sign), Value(measure, arm_name(arm))) for sign, arm in terms))
