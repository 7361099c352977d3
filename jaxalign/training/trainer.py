"""What a stage becomes once a run is open: functions for the loop."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from jaxalign.losses.metrics import Metrics
from jaxalign.models import Params
from jaxalign.training.open import Run

State = Any
Batch = Any
Phase = Callable[[State, Batch], tuple[State, Metrics]]


def _nothing(*_: Any) -> None:
    return None


def _no_samples(*_: Any) -> list[dict[str, Any]]:
    return []


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A stage as the loop runs it.

    A step runs the phases in order; a run may stop, be checkpointed and resumed after each. Only the first
    phase gets the batch: what a later one needs is in the state.
    """

    run: Run
    abstract_state: State  # jax.ShapeDtypeStruct leaves with their shardings
    init: Callable[[], State]  # a fresh state, laid out as abstract_state says
    phases: tuple[tuple[str, Phase], ...]
    # (state, go_on): asks `go_on()` before each batch, and gives what it has where the answer is False; by full names:
    # eval/loss, eval/SET/loss.
    evaluate: Callable[[State, Callable[[], bool]], dict[str, float]]
    # What the model answers to some held-out prompts, as lines of samples.jsonl; asked for after `evaluate`.
    samples: Callable[[State], list[dict[str, Any]]] = _no_samples
    scalar: bool = False  # those weights are a scalar model's
    verify: Callable[[State, Batch], None] = _nothing  # truths before the first update; raises StepZeroError
    headlines: tuple[str, ...] = ()  # the metrics that a line of the log shows; none named: all
    changeable: tuple[str, ...] = ()  # keys of the stage's options with which a run may go on, set otherwise
    fingerprint: str = ""  # of the frozen models; a resumed run must find the same
    fresh: tuple[str, ...] = ()  # fields of the state that a run with config.resume_from begins without

    def params(self, state: State) -> Params:
        """The weights that the stage is for."""
        where = self.run.config.stage.weights(self.run.config.options)
        return functools.reduce(getattr, where.split("/"), state)
