"""Kills and signals: a command is ended again and again, started anew, and leaves what it leaves undisturbed.

    python -m tests.faults.kill --kills=100 --only=sft,dpo --jobs=2 --out=tries.jsonl

A try begins a command in an empty folder, or goes on with it, and ends it at a random instant, at a random change of
a file in its folder, or asks it to end by a signal. After a few of these the command runs to its end, and its results
are compared with those of a run that nobody disturbed, bit for bit. One row a try goes to the file, and a table is
printed; a row whose `faults` is not empty is a fault of jaxalign.
"""

import collections
import concurrent.futures
import pathlib
import random
import re
import shutil
import signal
import time
from typing import Any

from jaxalign.signals import TRY_AGAIN
from tests.faults.campaign import add_rows, chosen, make_parser, working_folder
from tests.faults.forks import CHANGES, Ended, Fault, attempt, server

server()  # before what it imports

from tests.faults.tasks import Task, all_tasks, prepare  # noqa: E402

IN_A_ROW = 5  # tries of a folder before the command may end
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
INTERRUPTED = 130
_WORDS_OF_A_FAULT = re.compile(r"Traceback|Fatal Python error|core dumped")


class Campaign:
    """The tries of one task."""

    def __init__(self, task: Task, folder: pathlib.Path, rng: random.Random) -> None:
        self.task, self.folder, self.rng = task, folder, rng
        self.whole = folder / "whole"
        self.rows: list[dict[str, Any]] = []
        self._seconds, self._changes = 0.0, 0

    def measure(self) -> None:
        """Runs the command undisturbed, twice: the second time all is compiled, and its time and changes count."""
        for _ in range(2):
            shutil.rmtree(self.whole, ignore_errors=True)
            self.whole.mkdir(parents=True)
            watched = Fault(number=0, folder=str(self.whole))
            ended = attempt(self.task.command(self.whole), self.folder / "whole.log", watched)
            assert ended.code == 0, ended.log
        self._seconds = ended.seconds
        self._changes = int(ended.log.rpartition(CHANGES)[2])

    def run(self, kills: int) -> list[dict[str, Any]]:
        """Makes tries until so many have met the command at work."""
        number = 0
        while sum(row["met"] for row in self.rows) < kills:
            number += 1
            self._one_folder(self.folder / str(number), min(IN_A_ROW, kills))
        return self.rows

    def _one_folder(self, place: pathlib.Path, tries: int) -> None:
        place.mkdir(parents=True)
        rows = [self._disturbed(place) for _ in range(self.rng.randint(1, tries))]
        for _ in range(3):
            ended = attempt(self.task.command(place), place.with_suffix(".log"))
            if ended.code != TRY_AGAIN:
                break
        done = ended.code == 0 or _is_refusal(ended)
        faults = [] if done else [f"the last start ended with {ended.code}: {ended.log[-300:]}"]
        faults += _words(ended.log)
        if done:
            faults += self.task.differences(place, self.whole)
        rows[-1]["faults"] += faults
        self.rows += rows
        if not faults:
            shutil.rmtree(place)

    def _disturbed(self, place: pathlib.Path) -> dict[str, Any]:
        kind = self.rng.choice(("kill", "kill", "operation", "operation", "signal"))
        fault = Fault(seconds=self.rng.uniform(0.0, self._seconds))
        if kind == "operation":
            fault = Fault(operation=self.rng.randint(1, self._changes), folder=str(place))
        elif kind == "signal":
            fault = Fault(number=self.rng.choice(ASKING), seconds=fault.seconds)
        ended = attempt(self.task.command(place), place.with_suffix(".log"), fault)
        # A signal may come before the process has begun with the command, and written a word.
        met = ended.code != 0 and not _is_refusal(ended) and (ended.code < 0 or bool(ended.log))
        faults = _words(ended.log)
        allowed = (0, -signal.SIGKILL) if kind != "signal" else (0, TRY_AGAIN, INTERRUPTED, -fault.number)
        if met and ended.code not in allowed:
            faults.append(f"exit code {ended.code}: {ended.log[-300:]}")
        return {
            "task": self.task.name,
            "fault": kind if kind != "signal" else signal.Signals(fault.number).name,
            "at": fault.operation or round(fault.seconds, 3),
            "code": ended.code,
            "met": met,
            "faults": faults,
        }


def _is_refusal(ended: Ended) -> bool:
    """Whether a verb that does not go on, such as convert, finds that an earlier try has come to its end."""
    return ended.code == 1 and "--out=" in ended.log and " exists" in ended.log


def _words(log: str) -> list[str]:
    found = _WORDS_OF_A_FAULT.search(log)
    return [f"{found[0]}: {log[found.start() : found.start() + 2000]}"] if found else []


def _campaign(name: str, runs: str, folder: str, kills: int, seed: int) -> list[dict[str, Any]]:
    task = all_tasks(pathlib.Path(runs))[name]
    campaign = Campaign(task, pathlib.Path(folder) / name, random.Random(f"{name} {seed}"))
    campaign.measure()
    return campaign.run(kills)


def table(rows: list[dict[str, Any]]) -> str:
    """Tries and faults by task, as Markdown."""
    count: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row in rows:
        kind = {"kill": "instant", "operation": "file operation"}.get(row["fault"], "signal")
        count[row["task"]][kind] += row["met"]
        count[row["task"]]["faults"] += bool(row["faults"])
    lines = [
        "| | killed at an instant | at a change of a file | asked to end | lost or changed |",
        "|---|---|---|---|---|",
    ]
    for task, found in count.items():
        numbers = [found[kind] for kind in ("instant", "file operation", "signal", "faults")]
        lines.append(f"| {task} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def main() -> int:
    """Makes the tries that the flags ask for; 1 where one has found a fault."""
    parser = make_parser(__doc__, of="tasks")
    parser.add_argument("--kills", type=int, default=100, help="of each task")
    parser.add_argument("--jobs", type=int, default=1, help="tasks at a time")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with working_folder(asked) as folder:
        runs = folder / "runs"
        prepare(runs)
        names = chosen(asked, all_tasks(runs))
        rows, began = [], time.monotonic()
        tries = folder / f"tries-{time.time_ns()}"
        with concurrent.futures.ThreadPoolExecutor(asked.jobs) as pool:
            futures = [
                pool.submit(_campaign, name, str(runs), str(tries), asked.kills, asked.seed) for name in names
            ]
            for future in concurrent.futures.as_completed(futures):
                name, found = names[futures.index(future)], future.result()
                rows += found
                add_rows(asked, *found)
                bad = [row for row in found if row["faults"]]
                print(
                    f"{name}: {len(found)} tries, {len(bad)} with a fault", *bad[:3], sep="\n  ", flush=True
                )
        print(table(rows))
        print(f"{time.monotonic() - began:.0f} s")
    return int(any(row["faults"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
