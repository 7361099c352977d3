"""What a training of several runs measured on its way, and what it had cost until then."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxalign.training.writer import FILE_NAME, read_metrics

FLOPS, SECONDS = "perf/total_flos", "perf/step_time"


def trained_flops(folder: pathlib.Path) -> float:
    """Of all training in a folder, as its metrics say."""
    histories = (read_metrics(file) for file in folder.rglob(FILE_NAME))
    last = [[x["values"] for x in lines if x["kind"] == "train"][-1:] for lines in histories]
    return sum(values.get(FLOPS, 0.0) for each in last for values in each)


@dataclasses.dataclass(frozen=True)
class Leg:
    """A run that begins where the one before it ended, and what all of its data cost."""

    run: pathlib.Path
    flops: float = 0.0
    seconds: float = 0.0


def course(legs: Sequence[Leg], names: Sequence[str]) -> dict[str, np.ndarray]:
    """What was measured at each evaluation of all runs, [K] for each of `names`, and "flops" and "seconds" till then.

    Data count as they are used, the same for each step. Seconds are those of data and of steps: compiling, evaluations
    and checkpoints are left out.
    """
    found: dict[str, list[float]] = {name: [] for name in (*names, "flops", "seconds")}
    flops = seconds = 0.0
    for leg in legs:
        lines = read_metrics(leg.run)
        trained = [line for line in lines if line["kind"] == "train"]
        steps = trained[-1]["step"]
        counted = np.array([(0, 0.0), *((line["step"], line["values"][FLOPS]) for line in trained)])
        # The first line of a run has only the time of a step that compiled; other work may hold up a few steps.
        timed = [line["values"][SECONDS] for line in trained if SECONDS in line["values"]]
        per_step = leg.seconds / steps + float(np.median(timed))
        for line in lines:
            if line["kind"] == "eval":
                for name in names:
                    found[name].append(line["values"][name])
                used = leg.flops * line["step"] / steps
                found["flops"].append(flops + used + float(np.interp(line["step"], *counted.T)))
                found["seconds"].append(seconds + per_step * line["step"])
        flops, seconds = flops + leg.flops + counted[-1, 1], seconds + per_step * steps
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
