"""Results of a study as tidy rows, one for each run and measure, and what they say."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.ablation.claims import Verdict, decide
from jaxalign.ablation.effects import Table, arm_name
from jaxalign.ablation.study import TUNING, Study
from jaxalign.errors import DataError
from jaxalign.storage import write_whole

FILE = "results.jsonl"
POINTS = 60  # of a curve that are kept


@dataclasses.dataclass(frozen=True)
class Results:
    """What was measured, however it was read."""

    table: Table
    chosen: Mapping[str, str]  # arm -> the name of the settings that its runs got
    tuning: Mapping[tuple[str, str], Mapping[int, Mapping[str, float]]]  # (arm, settings) -> seed -> measures
    curves: Mapping[str, Mapping[tuple[int, str], np.ndarray]]  # name -> (seed, arm) -> [n, 2]
    seconds: float  # of all runs together
    flops: float
    declarations: tuple[str, ...]  # hashes of those that the rows were made by
    commits: tuple[str, ...]

    def of_arm(self, measure: str, arm: str) -> list[float]:
        """A measure of each seed."""
        return [found[measure] for (_, name), found in sorted(self.table.items()) if name == arm]


def rows(outcomes: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each measure and each curve of each run; "tuned" names the settings of an arm that has some."""
    for x in outcomes:
        run = {"study": x["study"], "arm": arm_name(x["arm"]), "seed": x["seed"]}
        run |= {"part": x["part"], "tuned": arm_name(x["tuned"])} if x["tuned"] else {}
        cost = {key: x[key] for key in ("seconds", "flops", "declaration", "commit", "version")}
        for name, number in x["measures"].items():
            yield run | {"measure": name, "value": number} | cost
        for name, points in x["curves"].items():
            yield run | {"curve": name, "points": _thinned(points)}


def _thinned(points: Sequence[Sequence[float]]) -> list[list[float]]:
    at = np.unique(np.linspace(0, len(points) - 1, min(POINTS, len(points))).round().astype(int))
    return [[float(f"{number:.6g}") for number in points[i]] for i in at]


def write_results(outcomes: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Writes the rows as JSONL."""
    write_whole(path, "".join(f"{json.dumps(row)}\n" for row in rows(outcomes)).encode())


def read_results(path: pathlib.Path) -> Results:
    """Reads what `write_results` wrote.

    Raises:
      DataError: the file is missing, or a line of it is no such row; names it.
    """
    table: dict[tuple[int, str], dict[str, float]] = {}
    curves: dict[str, dict[tuple[int, str], np.ndarray]] = {}
    tuning: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    chosen: dict[str, str] = {}
    cost: dict[tuple[int, str, str], tuple[float, float]] = {}
    declarations, commits = [], []
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; run the study first") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            run = int(row["seed"]), str(row["arm"])
            tuned = str(row.get("tuned", ""))
            tried = row.get("part") == TUNING
            if "curve" in row:
                if tried:
                    continue
                curves.setdefault(row["curve"], {})[run] = np.asarray(row["points"], np.float64).reshape(
                    -1, 2
                )
                continue
            if tried:
                found = tuning.setdefault((run[1], tuned), {}).setdefault(run[0], {})
            else:
                found = table.setdefault(run, {})
                chosen |= {run[1]: tuned} if tuned else {}
            found[row["measure"]] = float(row["value"])
            cost[*run, tuned if tried else ""] = float(row["seconds"]), float(row["flops"])
            declarations.append(row["declaration"])
            commits.append(row["commit"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: no row of results ({error}); make the file again"
            ) from None
    seconds, flops = (sum(each) for each in zip(*cost.values(), strict=True)) if cost else (0.0, 0.0)
    return Results(
        table,
        chosen,
        tuning,
        curves,
        seconds,
        flops,
        tuple(dict.fromkeys(declarations)),
        tuple(dict.fromkeys(filter(None, commits))),
    )


def verdicts(study: Study, results: Results) -> list[Verdict]:
    """What the results say of the study's claims."""
    return decide(study.claims, results.table, study.seeds)
