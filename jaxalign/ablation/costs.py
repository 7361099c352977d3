"""What a training of several runs measured on its way, and what it had cost until then."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxalign.training.writer import read_metrics

FLOPS, SECONDS = "perf/total_flos", "perf/step_time"


@dataclasses.dataclass(frozen=True)
class Leg:
    """A run that begins where the one before it ended, and what its data cost before its first step."""

    run: pathlib.Path
    flops: float = 0.0
    seconds: float = 0.0


def course(legs: Sequence[Leg], names: Sequence[str]) -> dict[str, np.ndarray]:
    """What was measured at each evaluation of all runs, [K] for each of `names`, and "flops" and "seconds" till then.

    Seconds are those of data and of steps: compiling, evaluations and checkpoints are left out.
    """
    found: dict[str, list[float]] = {name: [] for name in (*names, "flops", "seconds")}
    flops = seconds = 0.0
    for leg in legs:
        flops, seconds = flops + leg.flops, seconds + leg.seconds
        lines = read_metrics(leg.run)
        trained = [line for line in lines if line["kind"] == "train"]
        counted = np.array([(line["step"], line["values"][FLOPS]) for line in trained])
        # The first line of a run has only the time of a step that compiled.
        step_time = np.mean([line["values"][SECONDS] for line in trained if SECONDS in line["values"]])
        for line in lines:
            if line["kind"] == "eval":
                for name in names:
                    found[name].append(line["values"][name])
                found["flops"].append(flops + float(np.interp(line["step"], *counted.T)))
                found["seconds"].append(seconds + float(step_time) * line["step"])
        flops, seconds = flops + counted[-1, 1], seconds + float(step_time) * counted[-1, 0]
    return {name: np.array(numbers) for name, numbers in found.items()}


def cost_of(gain: np.ndarray, costs: np.ndarray, least: float) -> tuple[float, bool]:
    """What it cost until the gain was `least` first, and whether it was; the cost of all where it never was.

    Args:
      gain, costs: [K], of which the first is the start; between two points both are lines.
    """
    reached = np.flatnonzero(gain >= least)
    if not reached.size or not reached[0]:
        return float(costs[0 if reached.size else -1]), bool(reached.size)
    at = reached[0] - 1
    share = (least - gain[at]) / (gain[at + 1] - gain[at])
    return float(costs[at] + share * (costs[at + 1] - costs[at])), True
