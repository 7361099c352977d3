"""Runs of one config: twice on one device, on a mesh of eight devices, and over two processes of four devices.

    python -m tests.faults.meshes --steps=50 --only=sft,ppo --out=meshes.jsonl

The second run on one device must leave what the first one left, bit for bit: every array of the last checkpoint and of
the model, every line of metrics and samples. The others add up numbers in another order; of them the largest
difference is measured, of any parameter and of any logged loss, divided by one plus the size of the number.
"""

import json
import pathlib
import sys
import time
from typing import Any

import numpy as np

from tests.faults.campaign import add_rows, chosen, make_parser, working_folder
from tests.faults.forks import ROOT, server

server()  # before what it imports

from tiny import STAGES, baseline_changes, final_state, history  # noqa: E402

from tests.cluster import start, succeed  # noqa: E402
from tests.faults.tasks import prepare, run_differences  # noqa: E402

MEMBER = str(ROOT / "tests" / "stages" / "member.py")
AXES = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
# Name: processes, devices of each, and what is added to the config.
LAYOUTS = {"one": (1, 1, {}), "again": (1, 1, {}), "mesh": (1, 8, AXES), "processes": (2, 4, AXES)}
MOST = 1e-5


def train_all(stages: list[str], runs: pathlib.Path, folder: pathlib.Path, layout: str, steps: int) -> float:
    """Trains the stages one after the other; returns the seconds it took."""
    processes, devices, axes = LAYOUTS[layout]
    jobs = []
    for stage in stages:
        changes = baseline_changes(stage, runs) | {"num_steps": steps, "eval_every": steps // 2} | axes
        jobs.append([stage, stage, list(range(processes * devices)), changes])
    began = time.monotonic()
    arguments = [[MEMBER, str(runs), str(folder / layout), json.dumps(jobs)]] * processes
    succeed(start(arguments, devices=devices), timeout=3600)
    return time.monotonic() - began


def distance(a: Any, b: Any) -> float:
    """The largest difference of numbers, each relative to one plus its size."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.max(np.abs(a - b) / (1.0 + np.abs(b)), initial=0.0))


def compare(got: pathlib.Path, wanted: pathlib.Path) -> dict[str, float | int]:
    """How far the parameters and the logged losses of two runs are apart, and how many whole numbers differ."""
    mine, theirs = map(final_state, (got, wanted))
    assert mine.keys() == theirs.keys()
    counted = [name for name, array in theirs.items() if array.dtype.kind in "iu"]
    params = [name for name in theirs if "params" in name]
    losses = [
        distance(a[name], b[name])
        for (_, a), (_, b) in zip(history(got), history(wanted), strict=True)
        for name in ("loss", "critic/loss")
        if name in b
    ]
    return {
        "params": max(distance(mine[name], theirs[name]) for name in params),
        "losses": max(losses),
        "counts": sum(int(np.sum(mine[name] != theirs[name])) for name in counted),
    }


def main() -> int:
    """Trains every stage in every layout; 1 where one is further from the others than it may be."""
    parser = make_parser(__doc__, of="stages")
    parser.add_argument("--steps", type=int, default=50)
    asked = parser.parse_args()
    stages = chosen(asked, STAGES)
    rows = []
    with working_folder(asked) as folder:
        prepare(folder / "runs")
        for layout in LAYOUTS:
            print(
                layout, f"{train_all(stages, folder / 'runs', folder, layout, asked.steps):.0f} s", flush=True
            )
        for stage in stages:
            wanted = folder / "one" / stage
            row: dict[str, Any] = {"stage": stage, "steps": asked.steps}
            row["again"] = run_differences(folder / "again" / stage, wanted)
            row |= {layout: compare(folder / layout / stage, wanted) for layout in ("mesh", "processes")}
            far = max(row[layout][kind] for layout in ("mesh", "processes") for kind in ("params", "losses"))
            row["within"] = not row["again"] and far <= MOST
            rows.append(row)
            print(json.dumps(row), flush=True)
            add_rows(asked, row)
    return int(not all(row["within"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
