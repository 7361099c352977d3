"""A study: arms, seeds and claims, declared before anything runs. One file of configs/ablations/ is one study."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxalign.ablation.claims import Claim
from jaxalign.ablation.effects import Arm, arm_name
from jaxalign.errors import ConfigError
from jaxalign.fields import nearest_hint


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run: an arm with a seed."""

    arm: Arm
    seed: int
    folder: pathlib.Path  # of its own, to work in; what is left there is found again after an interruption
    shared: Any  # what `Study.share` gave for the seed


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run found: a number for each measure, and lines to draw."""

    measures: Mapping[str, float]
    curves: Mapping[str, Sequence[tuple[float, float]]] = dataclasses.field(default_factory=dict)
    flops: float = 0.0  # by the one count, 0: not counted


@dataclasses.dataclass(frozen=True)
class Chart:
    """A picture of the results: `kind` "bars" draws a measure by arm, "lines" a curve, its mean over seeds by arm."""

    title: str
    of: str  # a measure, or a curve
    kind: str = "bars"
    arms: tuple[str, ...] = ()  # by name; none: all
    x: str = ""  # what the horizontal axis is
    y: str = ""


def _nothing(seed: int, folder: pathlib.Path) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared, and how it is decided.

    Raises:
      ConfigError: a claim names an arm or a measure that does not exist, or needs more seeds than there are; two arms
        or claims have one name.
    """

    name: str
    title: str
    papers: tuple[str, ...]  # where the claims come from
    question: str  # what it asks, in a paragraph
    setting: str  # what is trained on what, in a paragraph
    arms: tuple[Arm, ...]  # levels of factors
    seeds: tuple[int, ...]
    measures: Mapping[str, str]  # name -> what it is, with its unit
    run: Callable[[Trial], Outcome]
    claims: tuple[Claim, ...] = ()
    # Made once for a seed, for all its arms; resumable by itself, as it keeps what it made in the folder.
    share: Callable[[int, pathlib.Path], Any] = _nothing
    charts: tuple[Chart, ...] = ()
    discussion: str = ""  # where results differ from the paper, why, as far as it was tested

    def __post_init__(self) -> None:
        where = f"study {self.name!r}"
        names = [arm_name(arm) for arm in self.arms]
        for kind, listed in (("arms", names), ("claims", [claim.name for claim in self.claims])):
            if twice := sorted({name for name in listed if listed.count(name) > 1}):
                raise ConfigError(f"{where}: two {kind} are named {twice[0]!r}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"{where}: a seed stands twice in {self.seeds}")
        for claim in self.claims:
            for x in claim.effect.values():
                if x.arm not in names:
                    hint = nearest_hint(x.arm, names)
                    raise ConfigError(f"{where}, claim {claim.name!r}: there is no arm {x.arm!r}{hint}")
                if x.measure not in self.measures:
                    hint = nearest_hint(x.measure, list(self.measures))
                    raise ConfigError(
                        f"{where}, claim {claim.name!r}: there is no measure {x.measure!r}{hint}"
                    )
            if claim.seeds > len(self.seeds):
                raise ConfigError(
                    f"{where}, claim {claim.name!r} needs {claim.seeds} seeds for its verdict, and the study has "
                    f"{len(self.seeds)}; add seeds"
                )

    def trials(self, only: Sequence[str] = ()) -> Iterator[Arm]:
        """The arms to run, with each seed."""
        return (arm for arm in self.arms if not only or arm_name(arm) in only)

    def declaration(self) -> dict[str, Any]:
        """What is fixed before the runs: the setting, arms, seeds, and the rule of every claim."""
        return {
            "study": self.name,
            "setting": self.setting,
            "arms": [arm_name(arm) for arm in self.arms],
            "seeds": list(self.seeds),
            "measures": sorted(self.measures),
            "claims": [
                {
                    "claim": claim.name,
                    "effect": str(claim.effect),
                    "smallest": claim.smallest,
                    "near": claim.near,
                    "seeds": claim.seeds,
                }
                for claim in self.claims
            ],
        }

    @property
    def hash(self) -> str:
        """Of the declaration: another rule is another hash."""
        return hashlib.sha256(json.dumps(self.declaration(), sort_keys=True).encode()).hexdigest()[:16]


def cross(**factors: Sequence[Any]) -> tuple[Arm, ...]:
    """Every combination of the factors' levels: `cross(method=("dpo", "ipo"), beta=(0.1, 1.0))`."""
    return tuple(dict(zip(factors, levels, strict=True)) for levels in itertools.product(*factors.values()))
