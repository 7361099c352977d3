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

COUNTED, TUNING = "seeds", "tuning"  # the parts of a study: runs that count, and those that are tried first


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run: an arm with a seed."""

    arm: Arm
    seed: int
    folder: pathlib.Path  # of its own, to work in; what is left there is found again after an interruption
    shared: Any  # what `Study.share` gave for the seed
    # One of `Tuning.trials`: to be tried, or the arm's best.
    tuned: Arm = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Settings that are tried for every arm before its runs, the same for all of them, on seeds of their own.

    The runs of an arm get the settings whose `measure` was best, in the mean over these seeds. All trials are listed
    on the study's page.
    """

    trials: tuple[Arm, ...]
    seeds: tuple[int, ...]
    measure: str
    smallest: bool = False  # is best, and not the largest


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run found: a number for each measure, and lines to draw."""

    measures: Mapping[str, float]
    curves: Mapping[str, Sequence[tuple[float, float]]] = dataclasses.field(default_factory=dict)
    flops: float = 0.0  # by the one count, 0: not counted


@dataclasses.dataclass(frozen=True)
class Chart:
    """A picture of the results.

    Of `kind` "bars" it is a measure by arm, of "claims" the effects on a measure that claims are about, of "lines" a
    curve, its mean over seeds by arm.
    """

    title: str
    of: str  # a measure, or a curve
    kind: str = "bars"
    arms: tuple[str, ...] = ()  # by name; none: all
    x: str = ""  # what the horizontal axis is
    y: str = ""


@dataclasses.dataclass(frozen=True)
class Sources:
    """Factors among which the page shares out the variance of a measure: every combination of levels is an arm.

    It is a description, without a rule or a verdict.
    """

    measure: str
    factors: Mapping[str, tuple[str, ...]]  # name -> the keys of arms whose values together are its level
    says: str  # what a reader is to know of the levels


def _nothing(seed: int, folder: pathlib.Path) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared, and how it is decided.

    Raises:
      ConfigError: a claim names an arm or a measure that does not exist, or needs more seeds than there are; two arms,
        claims or trials have one name; a seed is both tuned on and counted.
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
    tuning: Tuning | None = None
    # That `get_study` makes; of "paper" models and data are the paper's own.
    sizes: tuple[str, ...] = ("small",)
    charts: tuple[Chart, ...] = ()
    sources: Sources | None = None
    # Of arms, by name: the training of the paper's own size, `--config=papers:RECIPE`.
    recipes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    discussion: str = ""  # where results differ from the paper, why, as far as it was tested

    def __post_init__(self) -> None:
        where = f"study {self.name!r}"
        names = [arm_name(arm) for arm in self.arms]
        trials = [arm_name(trial) for trial in self.tuning.trials] if self.tuning else []
        claims = [claim.name for claim in self.claims]
        for arm in self.recipes:
            if arm not in names:
                raise ConfigError(f"{where}, recipes: there is no arm {arm!r}{nearest_hint(arm, names)}")
        for kind, listed in (("arms", names), ("claims", claims), ("trials", trials)):
            if twice := sorted({name for name in listed if listed.count(name) > 1}):
                raise ConfigError(f"{where}: two {kind} are named {twice[0]!r}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"{where}: a seed stands twice in {self.seeds}")
        if self.tuning:
            if both := sorted(set(self.seeds) & set(self.tuning.seeds)):
                raise ConfigError(
                    f"{where}: seed {both[0]} is tuned on and counted; tune on seeds of their own"
                )
            self._check_measure(self.tuning.measure, f"{where}, tuning")
        for claim in self.claims:
            for x in claim.effect.values():
                if x.arm not in names:
                    hint = nearest_hint(x.arm, names)
                    raise ConfigError(f"{where}, claim {claim.name!r}: there is no arm {x.arm!r}{hint}")
                self._check_measure(x.measure, f"{where}, claim {claim.name!r}")
            if claim.seeds > len(self.seeds):
                raise ConfigError(
                    f"{where}, claim {claim.name!r} needs {claim.seeds} seeds for its verdict, and the study has "
                    f"{len(self.seeds)}; add seeds"
                )

    def _check_measure(self, name: str, where: str) -> None:
        if name not in self.measures:
            raise ConfigError(
                f"{where}: there is no measure {name!r}{nearest_hint(name, list(self.measures))}"
            )

    def trials(self, only: Sequence[str] = ()) -> Iterator[Arm]:
        """The arms to run, with each seed."""
        return (arm for arm in self.arms if not only or arm_name(arm) in only)

    def declaration(self) -> dict[str, Any]:
        """What is fixed before the runs: the setting, arms, seeds, what is tuned, and the rule of every claim."""
        tuning = {}
        if self.tuning is not None:
            tuning = {
                "tuning": {
                    "trials": [arm_name(trial) for trial in self.tuning.trials],
                    "seeds": list(self.tuning.seeds),
                    "measure": self.tuning.measure,
                    "smallest": self.tuning.smallest,
                }
            }
        return tuning | {
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
