"""Long runs of tiny models: what grows with the number of steps, and should not.

    python -m tests.faults.long_runs --steps=10000 --only=sft,ppo --out=long.jsonl

Each stage runs in a process of its own. Every hundred steps the memory of the process, its open files and its threads
are read. What was freed is given back to the system before: how much of it the C library keeps goes up and down by tens
of megabytes. Some readings find the buffers of a step or a checkpoint under way, of ten megabytes: after the first
tenth of the steps, the least reading of each other tenth counts, and a line is laid through these by least squares.
Pages of files, such as those of libraries, are read apart: the system takes and gives them as it likes.
Files and threads come and go with each checkpoint: what is compared is the least number of them in the first and in the
last quarter. Pools of threads fill up as work comes to them, and are no limit. A row a stage goes to the file.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

from tests.faults.campaign import add_rows, chosen, make_parser, working_folder

ROOT = pathlib.Path(__file__).parents[2]
MOST_SLOPE = 1.0  # MB per 1,000 steps


def resident() -> tuple[float, float]:
    """The pages in memory of this process, in MB: its own, and those of files."""
    status = pathlib.Path("/proc/self/status").read_text()
    own, file = (re.search(rf"^Rss{kind}:\s+(\d+) kB", status, re.MULTILINE) for kind in ("Anon", "File"))
    assert own and file, status
    return int(own[1]) * 1.024e-3, int(file[1]) * 1.024e-3


def measure(stage: str, runs: pathlib.Path, steps: int) -> dict[str, Any]:
    """Runs a stage in this process, and says what has grown."""
    import numpy as np
    from tiny import FILES, make_config

    from jaxalign.host_memory import return_freed
    from jaxalign.stages import parse_config, train
    from jaxalign.training.writer import read_metrics

    changes = {
        "num_steps": steps,
        "log_every": 100,
        # Both for the first time before it counts: what they compile and open stays.
        "checkpoint_every": max(1, steps // 20),
        "eval_every": max(1, steps // 20),
        "data.eval": str(runs / f"{FILES.get(stage, 'pairs')}.jsonl"),
        # Small enough that no policy goes where its entropy is 0.
        "optimizer.learning_rate": 1e-5,
    }
    config = parse_config(make_config(stage, runs, **changes))
    seen: list[tuple[int, float, float, int, int]] = []

    def watch(step: int, phase: int) -> bool:
        if phase == 0 and step % 100 == 0:
            files, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
            return_freed()
            seen.append((step, *resident(), files, threads))
        return False

    with tempfile.TemporaryDirectory() as workdir:
        began = time.monotonic()
        train(config, workdir, stop_at=watch, quiet=True)
        seconds = time.monotonic() - began
        saved = [path for path in (pathlib.Path(workdir) / "checkpoints").iterdir() if path.name.isdigit()]
        lines = read_metrics(workdir)
    table = np.array([row for row in seen if row[0] >= steps / 10])
    least = np.array([part[part[:, 1].argmin(), :2] for part in np.array_split(table, 9)])
    slope = np.polyfit(least[:, 0] / 1000, least[:, 1], 1)[0]
    recompiled = max(line["values"].get("perf/recompiles", 0) for line in lines)
    quarter = len(table) // 4
    grown = {
        name: int(table[-quarter:, column].min() - table[:quarter, column].min())
        for name, column in (("files", 3), ("threads", 4))
    }
    return {
        "stage": stage,
        "steps": steps,
        "seconds": round(seconds),
        "memory": [round(float(table[at, 1]), 1) for at in (0, -1)],
        "of_files": [round(float(table[at, 2]), 1) for at in (0, -1)],
        "slope": round(float(slope), 3),
        "readings": [[int(row[0]), round(float(row[1]), 1), int(row[4])] for row in table],
        "recompiled": recompiled,
        **grown,
        "checkpoints": len(saved),
        "within": bool(slope < MOST_SLOPE and not recompiled and grown["files"] <= 0 and len(saved) <= 2),
    }


def main() -> int:
    """Runs the stages; 1 where something grows that should not."""
    parser = make_parser(__doc__, of="stages")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--here", default="", help="run this stage in this process")
    asked = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests" / "stages")]
    with working_folder(asked) as folder:
        if asked.here:
            print(json.dumps(measure(asked.here, folder / "runs", asked.steps)))
            return 0
        from tests.faults.forks import server

        server()
        from tiny import STAGES

        from tests.faults.tasks import prepare

        prepare(folder / "runs")
        rows = []
        for stage in chosen(asked, STAGES):
            command = [sys.executable, "-m", "tests.faults.long_runs", f"--here={stage}"]
            command += [f"--steps={asked.steps}", f"--folder={folder}"]
            made = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
            rows.append(json.loads(made.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
            add_rows(asked, rows[-1])
    return int(not all(row["within"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
