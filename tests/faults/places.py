"""Places that fail: a disk that fills up, that cannot be written, a folder that vanishes, a clock that goes back.

    python -m tests.faults.places --sizes=40 --out=tries.jsonl

A run is begun on a file system of so many sizes, from one that holds nothing to one that holds all; it must end with
words and exit code 1 or with its results, and once the disk is larger the same command must give the results of an
undisturbed run. Then every file that a finished or stopped run left is damaged in several ways, and it goes on from
what is whole, or says which file is not. Needs the right to mount.
"""

import contextlib
import json
import pathlib
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

from tests.faults.campaign import add_rows, make_parser, working_folder
from tests.faults.forks import CHANGES, Fault, attempt, server

server()  # before what it imports

from tests.faults.tasks import Task, all_tasks, prepare  # noqa: E402

NAME = "sft"
_TRACEBACK = "Traceback"


def can_mount() -> bool:
    """Whether this process may mount a file system of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return _mount(pathlib.Path(folder), 1 << 20) and not subprocess.call(["umount", folder])


def _mount(folder: pathlib.Path, size: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes at a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if not _mount(folder, size):
        raise PermissionError("mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: pathlib.Path, options: str) -> None:
    """Gives a mounted file system other options, such as "size=1000000" or "ro"."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def used(folder: pathlib.Path) -> int:
    """Bytes of the pages that the files of a folder take."""
    return sum(-(-file.stat().st_size // 4096) * 4096 + 4096 for file in folder.rglob("*"))


def fill_up(task: Task, whole: pathlib.Path, folder: pathlib.Path, size: int) -> dict[str, Any]:
    """A try on a disk of `size` bytes, which is made larger then."""
    log = folder.with_suffix(".log")
    with small_disk(folder, size):
        first = attempt(task.command(folder), log)
        faults = _ended_well(
            first.code, first.log, "disk takes no more", "No space left", "could not be written"
        )
        remount(folder, f"size={64 << 20}")
        second = attempt(task.command(folder), log)
        faults += [] if second.code == 0 else [f"{second.code} with room: {second.log[-500:]}"]
        faults += task.differences(folder, whole) if second.code == 0 else []
    return {"task": task.name, "fault": "full disk", "at": size, "code": first.code, "faults": faults}


def _ended_well(code: int, log: str, *words: str) -> list[str]:
    if _TRACEBACK in log:
        return [log[log.index(_TRACEBACK) :][:1500]]
    if code not in (0, 1, 75):
        return [f"exit code {code}: {log[-500:]}"]
    if code == 1 and not any(word in log for word in words):
        return [f"words: {log[-500:]}"]
    return []


def damage(
    task: Task, whole: pathlib.Path, stopped: pathlib.Path, folder: pathlib.Path, rng: random.Random
) -> dict[str, Any]:
    """A file of a stopped run is changed; the run goes on to the same results, or names the file and what is lost."""
    shutil.copytree(stopped, folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.stat().st_size)
    file = rng.choice(files)
    data = bytearray(file.read_bytes())
    kind = rng.choice(("flip", "cut", "zero", "gone"))
    at = rng.randrange(len(data))
    if kind == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        data[at : at + 4096] = bytes(len(data[at : at + 4096]))
    if kind == "gone":
        file.unlink()
    else:
        file.write_bytes(data[:at] if kind == "cut" else data)
    ended = attempt(task.command(folder), folder.with_suffix(".log"))
    name = str(file.relative_to(folder))
    faults = _ended_well(ended.code, ended.log, file.name, str(file.parent.name), "damaged", "not JSON")
    if ended.code == 0:
        found = task.differences(folder, whole)
        # Nothing can make up for lines of a history; then it is told.
        told = re.search(rf"/{file.name}: .*(is lost|not to be trusted)$", ended.log, re.MULTILINE)
        faults += [] if told and all(each.startswith(file.name) for each in found) else found
    row = {"task": task.name, "fault": kind, "at": name, "code": ended.code, "faults": faults}
    shutil.rmtree(folder)
    return row


def odd_places(task: Task, whole: pathlib.Path, folder: pathlib.Path) -> list[dict[str, Any]]:
    """A disk that only reads, a folder that vanishes, a file where a folder should be, and clocks that are wrong."""
    rows = []
    place, log = folder / "place", folder / "place.log"

    def add(fault: str, code: int, faults: list[str]) -> None:
        rows.append({"task": task.name, "fault": fault, "at": "", "code": code, "faults": faults})

    with small_disk(place, 64 << 20):
        remount(place, "ro")
        ended = attempt(task.command(place), log)
        add(
            "read-only disk", ended.code, _ended_well(ended.code, ended.log, "Read-only", "cannot be written")
        )
        remount(place, "rw")
        ended = attempt(task.command(place), log)
        add("writable again", ended.code, [] if ended.code == 0 else [ended.log[-500:]])
        rows[-1]["faults"] += task.differences(place, whole)
    place = folder / "file"
    place.mkdir()
    (place / "run").write_text("a file")
    ended = attempt(task.command(place), log)
    add("a file in place of the folder", ended.code, _ended_well(ended.code, ended.log, "run"))
    # About half of what an undisturbed run takes in its loop, after which it is killed.
    half = json.loads((whole / "run" / "summary.json").read_text())["seconds"] / 2
    for clock in (-86400.0, 86400.0, -1e9):
        place = folder / f"clock{clock:g}"
        place.mkdir()
        attempt(task.command(place), log, Fault(seconds=half, clock=-clock / 2))
        ended = attempt(task.command(place), log, Fault(number=0, seconds=0.0, clock=clock))
        add(f"clock {clock:+g} s", ended.code, [] if ended.code == 0 else [ended.log[-500:]])
        rows[-1]["faults"] += task.differences(place, whole) if ended.code == 0 else []
    return rows


def stop(task: Task, folder: pathlib.Path, log: pathlib.Path) -> None:
    """Leaves a run with at least two checkpoints that is not at its end."""
    folder.mkdir()
    undisturbed = attempt(task.command(folder), log, Fault(number=0, folder=str(folder)))
    changes = int(undisturbed.log.rpartition(CHANGES)[2])
    for share in range(60, 100, 4):
        shutil.rmtree(folder)
        folder.mkdir()
        attempt(task.command(folder), log, Fault(operation=changes * share // 100, folder=str(folder)))
        steps = [place for place in (folder / "run" / "checkpoints").glob("*") if place.name.isdigit()]
        if len(steps) >= 2 and not (folder / "run" / "summary.json").exists():
            return
    raise AssertionError("no kill left two checkpoints")


def main() -> int:
    """Makes all tries; 1 where one has found a fault."""
    parser = make_parser(__doc__)
    parser.add_argument("--sizes", type=int, default=40, help="sizes of the disk")
    parser.add_argument("--damages", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng, rows = random.Random(asked.seed), []
    with working_folder(asked) as folder:
        prepare(folder / "runs")
        task = all_tasks(folder / "runs")[NAME]
        tries = pathlib.Path(tempfile.mkdtemp(dir=folder))
        whole, stopped = tries / "whole", tries / "stopped"
        whole.mkdir()
        ended = attempt(task.command(whole), tries / "log")
        assert ended.code == 0, ended.log
        stop(task, stopped, tries / "log")
        rows += odd_places(task, whole, tries)
        total = used(whole)
        for number in range(asked.sizes):
            size = int(total * (number + 1) / asked.sizes)
            rows.append(fill_up(task, whole, tries / f"disk{number}", size))
        for number in range(asked.damages):
            rows.append(damage(task, whole, stopped, tries / f"damage{number}", rng))
        shutil.rmtree(tries, ignore_errors=True)
    add_rows(asked, *rows)
    for row in rows:
        if row["faults"]:
            print(json.dumps(row)[:800])
    bad = sum(bool(row["faults"]) for row in rows)
    print(f"{len(rows)} tries, {bad} with a fault")
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())
