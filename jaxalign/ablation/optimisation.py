"""A policy that leaves the SFT model in one run or several, measured on its way."""

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxalign.ablation.costs import Leg, cost_of, course, trained_flops
from jaxalign.ablation.frontier import best_point, gain_at, gain_at_equal_length, halves
from jaxalign.ablation.language import examining, pair_logps, train_once, write_arrays
from jaxalign.ablation.preferences import judge_answers, make_pairs
from jaxalign.ablation.study import Outcome, Trial
from jaxalign.models import Params
from jaxalign.quickstart.evaluate import Examiner
from jaxalign.storage import write_whole
from jaxalign.training.saved_model import find_model
from jaxalign.worlds import World

START = "start.npz"  # the SFT model's answers: gold and KL, length [N]; margins of held-out pairs
MEASURED = ("even", "odd", "kl", "length", "same")
WIDTH = 4  # tokens, within which answers are as long


def measure_start(root: pathlib.Path, world: World, questions: int) -> None:
    """Writes what an `Optimisation` is compared with: answers of the model in `root`/sft, and its margins of pairs."""
    if not (root / START).is_file():
        with examining(root, world, take=questions) as examiner:
            answers, found = judge_answers(examiner, examiner.reference_params)
            chosen, rejected = pair_logps(root, examiner, examiner.reference_params)
            found |= {"length": answers.lengths, "margin": chosen - rejected}
        write_arrays(root / START, found)


def timed_pairs(root: pathlib.Path, world: World, path: pathlib.Path, seed: int, **settings: str) -> float:
    """Pairs of a model's own answers, see `make_pairs`, and how many seconds it took to make them."""
    clock = path.with_suffix(".json")
    if not clock.is_file():
        began = time.monotonic()
        make_pairs(root, world, seed, path=path, **settings)
        write_whole(clock, json.dumps(time.monotonic() - began).encode())
    return json.loads(clock.read_bytes())


class Optimisation:
    """The training of a policy, leg by leg, each from where the one before ended; the first from the SFT model."""

    def __init__(self, trial: Trial, examiner: Examiner) -> None:
        self.trial, self.examiner = trial, examiner
        self.root, self.world = trial.shared
        self.start = dict(np.load(self.root / START))
        self._kinds = np.array([record["kind"] for record in examiner.records])
        self._legs: list[Leg] = []

    @property
    def last(self) -> pathlib.Path:
        """The run of the newest model."""
        return self._legs[-1].run if self._legs else self.root / "sft"

    def train(self, stage: str, changes: Mapping[str, Any], flops: float = 0.0, seconds: float = 0.0) -> None:
        """Adds a leg, whose data cost so much."""
        run = self.trial.folder / f"leg_{len(self._legs)}"
        common = {"model.init_from": str(self.last), "data.eval": ""}
        train_once(stage, self.root, run, self.trial.seed, common | dict(changes), self._probe)
        self._legs.append(Leg(run, flops, seconds))

    def _probe(self, step: int, params: Params) -> dict[str, float]:
        del step  # the same draws at all of them: their noise falls out of differences
        answers, found = judge_answers(self.examiner, params)
        before = self.start["gold"], self.start["length"]
        same = gain_at_equal_length(found["gold"], answers.lengths, before, self._kinds, WIDTH)
        even, odd = map(float, halves(found["gold"]))
        kl, length = float(found["kl"].mean()), float(answers.lengths.mean())
        return {"even": even, "odd": odd, "kl": kl, "length": length, "same": same}

    def _points(self) -> dict[str, np.ndarray]:
        """What was measured, the start first: [K] each.

        even, odd: gold reward of either half of the questions; kl: nats an answer; length: tokens of it; same: gain in
        gold reward among answers of equal length; flops and seconds until then.
        """
        found = course(self._legs, MEASURED)
        first = dict.fromkeys(found, 0.0) | {"length": self.start["length"].mean()}
        first["even"], first["odd"] = halves(self.start["gold"])
        return {name: np.append(first[name], each) for name, each in found.items()}

    def outcome(self, *, kl: float, least: float) -> Outcome:
        """The numbers of all that was trained, and lines over √KL and over what they had cost.

        Args:
          kl: nats at which gains are compared. least: gain in gold reward that costs are compared for.
        """
        found = self._points()
        golds = np.stack((found["even"], found["odd"]))
        gold, d, longer = golds.mean(0), np.sqrt(found["kl"]), found["length"] - found["length"][0]
        gain, (top, _), flops = gold - gold[0], best_point(golds), found["flops"] / 1e12
        cost, reached = cost_of(gain, flops, least)
        params = find_model(str(self.last), "a run of the study").load(jax.sharding.get_mesh())
        chosen, rejected = pair_logps(self.root, self.examiner, params)
        measures = {
            "start": gold[0],
            "top": top,
            "last": gold[-1],
            "fall": top - gold[-1],
            "at": gain_at(d, gain, kl),
            "kl": found["kl"][-1],
            "length": longer[-1],
            "gain": gain[-1],
            "same": found["same"][-1],
            "slope": np.polyfit(self.start["length"], self.start["gold"], 1)[0],
            "accuracy": np.mean(chosen - rejected > self.start["margin"]),
            "flops": flops[-1],
            "cost": cost,
            "reached": reached,
            "reward_flops": trained_flops(self.root / "reward") / 1e12,
            "seconds": found["seconds"][-1],
        }
        lines = {
            "gold": (d, gain),
            "length": (d, longer),
            "flops": (flops, gain),
            "seconds": (found["seconds"], gain),
        }
        curves = {
            name: [(float(a), float(b)) for a, b in zip(*line, strict=True)] for name, line in lines.items()
        }
        return Outcome({name: float(x) for name, x in measures.items()}, curves)
