"""What a paper says, written as a rule that decides by the seeds whether it holds here; fixed before the runs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxalign.ablation.effects import Effect, Table
from jaxalign.ablation.statistics import holm, interval, p_above, p_below

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided"
LEVEL = 0.05  # of a verdict, for all claims of a page together


@dataclasses.dataclass(frozen=True)
class Claim:
    """An effect and what it must be.

    Without `near` the effect is said to be positive, and smaller than `smallest` does not count: the claim is

        reproduced      where the mean is at least `smallest` and above 0 beyond doubt,
        not reproduced  where it is below `smallest` beyond doubt.

    With `near` it is said to be that number, give or take `smallest`: reproduced where it lies between beyond doubt,
    not reproduced where it lies outside beyond doubt. All else is undecided. Beyond doubt is a p-value of Student's
    test, with Holm's correction over the claims of a page, below `LEVEL`.
    """

    name: str  # a few words, unique in a study
    says: str  # what the paper says, in a sentence
    effect: Effect
    smallest: float
    near: float | None = None
    paper: str = ""  # the paper's own figure, and where it stands
    seeds: int = 5  # that a verdict needs
    unit: str = ""  # of the effect

    def p_values(self, values: Sequence[float]) -> tuple[float, float]:
        """Of the test for the claim, and of that against it."""
        if self.near is None:
            return p_above(values, 0.0), p_below(values, self.smallest)
        low, high = self.near - self.smallest, self.near + self.smallest
        inside = max(p_above(values, low), p_below(values, high))
        return inside, min(1.0, 2 * min(p_below(values, low), p_above(values, high)))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim, decided: the effect of each seed, its mean and 95 % interval, and the two adjusted p-values."""

    claim: Claim
    per_seed: dict[int, float]
    mean: float
    low: float
    high: float
    p_for: float
    p_against: float
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """All of it, by name."""
        return {
            "claim": self.claim.name,
            "says": self.claim.says,
            "paper": self.claim.paper,
            "effect": str(self.claim.effect),
            "smallest": self.claim.smallest,
            "near": self.claim.near,
            "seeds": len(self.per_seed),
            "mean": self.mean,
            "low": self.low,
            "high": self.high,
            "p_for": self.p_for,
            "p_against": self.p_against,
            "verdict": self.verdict,
        }


def decide(claims: Sequence[Claim], table: Table, seeds: tuple[int, ...]) -> list[Verdict]:
    """The verdict of every claim of a page; one whose runs are not all there stays undecided."""
    found = [claim.effect.per_seed(table, seeds) for claim in claims]
    pairs = [claim.p_values(list(each.values())) for claim, each in zip(claims, found, strict=True)]
    adjusted = list(zip(*(holm(p) for p in zip(*pairs, strict=True)), strict=True)) if pairs else []
    out = []
    for claim, each, (p_for, p_against) in zip(claims, found, adjusted, strict=True):
        mean, low, high = interval(list(each.values()))
        verdict = UNDECIDED
        if len(each) >= claim.seeds:
            if p_for < LEVEL and (claim.near is not None or mean >= claim.smallest):
                verdict = REPRODUCED
            elif p_against < LEVEL:
                verdict = NOT_REPRODUCED
        out.append(Verdict(claim, each, mean, low, high, p_for, p_against, verdict))
    return out
