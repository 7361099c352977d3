"""What the loop knows of a stage."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxalign.losses.metrics import Metrics
from jaxalign.training.open import Run

State = Any
Batch = Any
Phase = Callable[[State, Batch], tuple[State, Metrics]]


def _nothing(*_: Any) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage as the loop runs it.

    A step runs the phases in order; a run may stop, be checkpointed and resumed after each. Only the first
    phase gets the batch: what a later one needs is in the state.
    """

    run: Run
    abstract_state: State  # jax.ShapeDtypeStruct leaves with their shardings
    init: Callable[[], State]  # a fresh state, laid out as abstract_state says
    phases: tuple[tuple[str, Phase], ...]
    evaluate: Callable[[State], dict[str, float]]
    params: Callable[[State], Any]  # the weights that the stage is for
    scalar: bool = False  # those weights are a scalar model's
    verify: Callable[[State, Batch], None] = _nothing  # truths before the first update; raises StepZeroError
    headlines: tuple[str, ...] = ()  # of its metrics, those that a line of the log shows; none named: all
    fingerprint: str = ""  # of the frozen models; a resumed run must find the same
