"""Alarms: a number of a run that leaves its bounds, and what is done about it.

    config.alarms = "grad_norm>10sd, objective/kl>50, eval/gold<best-0.05"

is three of them: of the steps of training, of which the second kind is how over-optimisation and collapse show (arXiv
2210.10760; 2203.02155, section 4.3), and of evaluations. An alarm is raised when its bound is crossed, and again only
when the number has come back in between.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.errors import ConfigError
from jaxalign.fields import nearest_hint

KEY = "config.alarms"
_FORM = re.compile(
    r"(?P<metric>[^<>\s]+)\s*(?P<side>[<>])\s*"
    r"(?:(?P<best>best)\s*(?P<sign>[+-])\s*)?(?P<number>-?\d+(?:\.\d*)?(?:e-?\d+)?)(?P<sd>sd)?"
)
_FORMS = (
    "METRIC>NUMBER, METRIC<NUMBER, METRIC>10sd (standard deviations above the mean of the last 100 steps), "
)
_FORMS += "METRIC<best-NUMBER (of evaluations)"
_EVAL = "eval/"
STEPS = 100  # of which the mean and the standard deviation are
_FEWEST = 20  # before which nothing is said of deviations


@dataclasses.dataclass(frozen=True)
class Alarm:
    """One bound of one metric."""

    text: str  # as the config has it
    metric: str
    above: bool
    number: float
    kind: str  # "value", "sd" or "best"

    @property
    def of_evaluations(self) -> bool:
        """Whether the metric is one of evaluations, and not of training steps."""
        return self.metric.startswith(_EVAL)


def parse_alarms(text: str) -> tuple[Alarm, ...]:
    """The alarms in a text, separated by commas.

    Raises:
      ConfigError: one is of no form that there is.
    """
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _FORM.fullmatch(part)
        if match is None or (match["best"] and match["sd"]):
            raise ConfigError(f"{KEY}: {part!r} is no alarm; write {_FORMS}")
        kind = "best" if match["best"] else "sd" if match["sd"] else "value"
        above = match["side"] == ">"
        if kind == "best" and (match["sign"] == "+") != above:
            raise ConfigError(
                f"{KEY}: {part!r} would ring at the best value; write <best-NUMBER or >best+NUMBER"
            )
        if kind == "best" and not match["metric"].startswith(_EVAL):
            raise ConfigError(f"{KEY}: {part!r} compares evaluations; name a metric that begins with {_EVAL}")
        found.append(Alarm(part, match["metric"], above, float(match["number"]), kind))
    return tuple(found)


class Alarms:
    """What a run remembers for its alarms; a part of its checkpoints, so that a resumed run raises the same ones."""

    def __init__(
        self, alarms: Sequence[Alarm], before: Mapping[str, Any] | None = None, *, asked: bool = True
    ) -> None:
        """`asked`: somebody named these metrics; else those that a run does not have are passed over."""
        self._alarms, self._asked = tuple(alarms), asked
        before = before or {}
        self.raised = int(before.get("raised", 0))
        self._ringing = set(before.get("ringing", ()))
        self._best = {text: float(value) for text, value in before.get("best", {}).items()}
        self._seen = {
            text: collections.deque(map(float, values), STEPS)
            for text, values in before.get("seen", {}).items()
        }

    def __bool__(self) -> bool:
        return bool(self._alarms)

    def state(self) -> dict[str, Any]:
        """For the meta of a checkpoint. Numbers as strings, to the last bit."""
        return {
            "raised": self.raised,
            "ringing": sorted(self._ringing),
            "best": {text: repr(value) for text, value in self._best.items()},
            "seen": {text: [repr(value) for value in values] for text, values in self._seen.items()},
        }

    def look(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Takes the numbers of a step, or by names that begin with eval/ those of an evaluation after it.

        Returns:
          What to say of each alarm that they raise.

        Raises:
          ConfigError: there is no metric of a name that an alarm has.
        """
        evaluation = any(name.startswith(_EVAL) for name in values)
        told = []
        for alarm in self._alarms:
            if alarm.of_evaluations != evaluation:
                continue
            if alarm.metric not in values and not self._asked:
                continue
            if alarm.metric not in values:
                what = "evaluations" if evaluation else "steps"
                hint = nearest_hint(alarm.metric, tuple(values))
                raise ConfigError(
                    f"{KEY}: {alarm.text!r}: no metric of {what} is called so{hint}; there are "
                    f"{', '.join(sorted(values))}"
                )
            bound, words = self._bound(alarm)
            value = values[alarm.metric]
            crossed = bound is not None and (value > bound if alarm.above else value < bound)
            self._remember(alarm, value, crossed)
            if crossed and alarm.text not in self._ringing:
                self.raised += 1
                side = "above" if alarm.above else "below"
                told.append(
                    f"step {step}: {alarm.metric} is {value:.6g}, {side} {words} ({KEY}: {alarm.text})"
                )
            (self._ringing.add if crossed else self._ringing.discard)(alarm.text)
        return told

    def _bound(self, alarm: Alarm) -> tuple[float | None, str]:
        if alarm.kind == "value":
            return alarm.number, f"{alarm.number:g}"
        sign = 1 if alarm.above else -1
        if alarm.kind == "best":
            best = self._best.get(alarm.text)
            if best is None:
                return None, ""
            return (
                best + sign * alarm.number,
                f"{best + sign * alarm.number:.6g}, with {best:.6g} the best so far",
            )
        seen = self._seen.get(alarm.text, ())
        if len(seen) < _FEWEST:
            return None, ""
        mean = math.fsum(seen) / len(seen)
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in seen) / len(seen))
        words = f"{alarm.number:g} standard deviations ({spread:.3g}) from the mean of {len(seen)} steps ({mean:.6g})"
        return mean + sign * alarm.number * spread, words

    def _remember(self, alarm: Alarm, value: float, crossed: bool) -> None:
        if not math.isfinite(value):
            return
        if alarm.kind == "best":
            better = min if alarm.above else max
            self._best[alarm.text] = better(value, self._best.get(alarm.text, value))
        # What is out of bounds shall not widen them.
        elif alarm.kind == "sd" and not crossed:
            self._seen.setdefault(alarm.text, collections.deque(maxlen=STEPS)).append(value)
