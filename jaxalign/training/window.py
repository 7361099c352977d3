"""Metrics of several steps as one: what a line of the log says of all steps since the line before it."""

import math
from typing import Any

import numpy as np

from jaxalign.losses import metrics as kinds
from jaxalign.losses.metrics import Metrics, finalize, merge


class Window:
    """Adds up metrics on the host, in float64.

    A mean over steps is Σ weight · x / Σ weight over all of them, not a mean of means; a maximum is that of all steps,
    and of what holds at a time, such as the learning rate, the last one counts.
    """

    def __init__(self, text: dict[str, list[str]] | None = None) -> None:
        self._sums: Metrics = from_text(text or {})

    def add(self, metrics: Metrics) -> None:
        """Takes the metrics of another step: arrays of one element, on the host.

        Of a step without a finite value (its update is left out, which `skipped_steps` counts) nothing goes into means
        that have one, or they would all be NaN.
        """
        for name, metric in metrics.items():
            new = type(metric)(*(np.float64(x) for x in metric))
            old = self._sums.get(name)
            if old is None or not _is_number(old):
                self._sums[name] = new
            elif _is_number(new):
                self._sums |= merge({name: type(new)(*map(np.stack, zip(old, new, strict=True)))}, np)

    def clear(self) -> None:
        """Begins anew."""
        self._sums = {}

    def values(self) -> dict[str, float]:
        """The numbers to log."""
        return {name: float(x) for name, x in finalize(self._sums, np).items()}

    def text(self) -> dict[str, list[str]]:
        """For a checkpoint: what makes this window again. Strings, as JSON has no NaN."""
        return as_text(self._sums)


def as_text(metrics: Metrics) -> dict[str, list[str]]:
    """Metrics as JSON has them: the name of the kind, and its numbers to the last bit."""
    return {name: [type(x).__name__, *(repr(float(field)) for field in x)] for name, x in metrics.items()}


def from_text(text: dict[str, list[str]]) -> Metrics:
    """The metrics that `as_text` wrote; without those of versions before 0.3, which kept no sums."""
    found = {name: fields for name, fields in text.items() if isinstance(fields, list)}
    return {name: getattr(kinds, kind)(*map(np.float64, numbers)) for name, (kind, *numbers) in found.items()}


def _is_number(metric: Any) -> bool:
    if isinstance(metric, kinds.Max | kinds.Min):  # of nothing they are infinite
        return not math.isnan(metric.value)
    return all(math.isfinite(x) for x in metric)
