"""Which evaluation of a run was the best so far, and whether it is time to stop because no better one comes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxalign.errors import ConfigError
from jaxalign.fields import Checked, field

# What the last word of a metric's name says of its direction.
LOWER = {"loss", "nll", "perplexity", "kl"}
HIGHER = {"accuracy", "accuracies", "margin", "margins", "reward", "rewards", "score", "scores"}
EVAL = "eval/"


@dataclasses.dataclass(frozen=True)
class BestConfig(Checked, at="config.best"):
    """Of which evaluation the checkpoint is kept as RUN@best, and after how many without a better one a run ends."""

    metric: str = ""  # a number of the evaluation, such as eval/loss; empty: no checkpoint is the best
    # Whether less or more of it is better; "auto": as its name says.
    mode: str = field("auto", choices=("auto", "min", "max"))
    patience: int = field(0, at_least=0)  # evaluations without a better one that end the run; 0: none do
    export: bool = False  # model/ is the best checkpoint, in place of the last

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.metric and (self.patience or self.export):
            key = f"patience={self.patience}" if self.patience else "export=True"
            raise ConfigError(
                f"config.best.{key} needs config.best.metric: name a number of the evaluation, such as eval/loss"
            )
        if self.metric and self.mode == "auto" and self._direction() is None:
            raise ConfigError(
                f"config.best.metric={self.metric!r}: its name does not say whether less or more of it is better; "
                "set config.best.mode=min or max"
            )

    def _direction(self) -> int | None:
        if self.mode != "auto":
            return 1 if self.mode == "max" else -1
        words = set(self.metric.rsplit("/", 1)[-1].split("_"))
        lower, higher = bool(words & LOWER), bool(words & HIGHER)
        return None if lower == higher else (1 if higher else -1)

    def pick(self, values: Mapping[str, float]) -> float:
        """The metric among the values of an evaluation.

        Raises:
          ConfigError: it is not there; lists those that are.
        """
        for name in (self.metric, EVAL + self.metric):
            if name in values:
                return values[name]
        raise ConfigError(
            f"config.best.metric={self.metric!r} is no number of this evaluation, which gives "
            f"{', '.join(sorted(values))}"
        )

    def better(self, value: float, other: float) -> bool:
        """Whether `value` of the metric is better than `other`; NaN never is."""
        direction = self._direction() or 1
        return not math.isnan(value) and direction * value > direction * other


@dataclasses.dataclass
class Selection:
    """What a run remembers of its evaluations; a part of its checkpoints, so that a resumed run decides alike."""

    config: BestConfig
    evaluated: int = -1  # the last step of which an evaluation was taken
    waited: int = 0  # evaluations since the best one
    best: dict[str, Any] | None = None  # "step", "position" (the checkpoint's name), "value" and all "values"
    last: dict[str, float] | None = (
        None  # the values of the evaluation of `evaluated`, if it was made just now
    )

    @property
    def position(self) -> int | None:
        """The name of the best checkpoint."""
        return self.best["position"] if self.best else None

    @property
    def exhausted(self) -> bool:
        """Whether the run should end: no evaluation was better for `patience` of them."""
        return 0 < self.config.patience <= self.waited

    def take(self, step: int, position: int, values: dict[str, float]) -> bool:
        """Takes the values of an evaluation, each step's once; returns whether it is the best of all."""
        known = self.evaluated == step
        self.evaluated, self.last = step, values
        if known or not self.config.metric:
            return False
        value = self.config.pick(values)
        if self.best is None:
            better = not math.isnan(value)
        else:
            better = self.config.better(value, self.best["value"])
        if better:
            self.best = {"step": step, "position": position, "value": value, "values": values}
        self.waited = 0 if better else self.waited + 1
        return better

    def state(self) -> dict[str, Any]:
        """For the meta of a checkpoint. Numbers as strings, as JSON has no NaN."""
        best = None
        if self.best:
            values = {name: repr(float(x)) for name, x in self.best["values"].items()}
            best = self.best | {"value": repr(self.best["value"]), "values": values}
        return {
            "metric": self.config.metric,
            "mode": self.config.mode,
            "evaluated": self.evaluated,
            "waited": self.waited,
            "best": best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave; with another metric or mode the search begins anew."""
        self.evaluated = state["evaluated"]
        if (state["metric"], state["mode"]) != (self.config.metric, self.config.mode):
            return
        self.waited = state["waited"]
        if best := state["best"]:
            values = {name: float(x) for name, x in best["values"].items()}
            self.best = best | {"value": float(best["value"]), "values": values}

    def summary(self) -> dict[str, Any]:
        """For summary.json: empty where no metric is named."""
        if not self.config.metric:
            return {}
        found = {key: self.best[key] for key in ("step", "position", "value")} if self.best else {}
        return {"best": {"metric": self.config.metric} | found}
