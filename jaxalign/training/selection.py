"""Which evaluation of a run was the best so far, and whether it is time to stop because no better one comes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxalign.errors import ConfigError
from jaxalign.fields import Checked, field

# What a word of a metric's name says of its direction.
_LOWER = {"loss", "nll", "perplexity", "kl", "error"}
_HIGHER = {"accuracy", "accuracies", "margin", "margins", "reward", "rewards", "score", "scores"}
# A spread, a weight, a share or a time of what the other words name is not better for being less or more.
_NEITHER = {"std", "var", "coef", "frac", "time"}
EVAL = "eval/"


def direction_of(metric: str) -> int | None:
    """1 where more of a metric is better, -1 where less is; None where its name, behind the last /, does not say."""
    words = set(metric.rpartition("/")[2].split("_"))
    lower, higher = bool(words & _LOWER), bool(words & _HIGHER)
    return None if lower == higher or words & _NEITHER else (1 if higher else -1)


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
        return direction_of(self.metric)

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
    data: str = ""  # the fingerprint of the held-out data: on others a value says nothing of the best so far
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

    def take(self, step: int, position: int, values: dict[str, float], *, left_out: bool = False) -> bool:
        """Takes the values of an evaluation, each step's once; returns whether it is the best of all.

        Args:
          left_out: its weights are left out of the run, and no checkpoint has them.
        """
        known = self.evaluated == step
        self.evaluated, self.last = step, values
        if known or not self.config.metric:
            return False
        value = self.config.pick(values)
        if self.best is None:
            better = not math.isnan(value)
        else:
            better = self.config.better(value, self.best["value"])
        better = better and not left_out
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
            "data": self.data,
            "evaluated": self.evaluated,
            "waited": self.waited,
            "best": best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave; with another metric or mode, or other data, the search begins anew."""
        self.evaluated = state["evaluated"]
        same = (state["metric"], state["mode"]) == (self.config.metric, self.config.mode)
        if not same or self.on_other_data(state):
            return
        self.waited = state["waited"]
        if best := state["best"]:
            values = {name: float(x) for name, x in best["values"].items()}
            self.best = best | {"value": float(best["value"]), "values": values}

    def on_other_data(self, state: dict[str, Any]) -> bool:
        """Whether what `state` gave is of other held-out data; earlier versions did not say."""
        return state.get("data", self.data) != self.data

    def summary(self) -> dict[str, Any]:
        """For summary.json: empty where no metric is named."""
        if not self.config.metric:
            return {}
        found = {key: self.best[key] for key in ("step", "position", "value")} if self.best else {}
        return {"best": {"metric": self.config.metric} | found}
