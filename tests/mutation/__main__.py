"""Mutation testing: are there tests that fail when the code is wrong?

    python -m tests.mutation --room=losses --sample=60 --seed=0 --out=mutants.jsonl

Needs `pip install cosmic-ray`. A random sample of the mutants of a room is tried, each in a copy of the repository: its
own tests first, then, if they pass, wider ones. A row a mutant goes to the file, and a table is printed, with the
mutants that survived all. Those that were killed, by this file, are not tried again.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jaxalign.evaluation.intervals import proportion_interval
from tests.mutation.mutants import ROOT, Mutant, all_mutants, drawn, first_change
from tests.mutation.rooms import ROOMS, files_of, steps_of

SLOWER = 4  # a mutant may take so many times longer than the code does, and MORE_SECONDS besides
MORE_SECONDS = 15
LONGEST = 1_200


class Workshop:
    """A copy of the working tree, in which a file is changed and tests are run."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.copy, self.log, self.temporary = folder / "copy", folder / "log", folder / "tests"
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in names.split("\0"):
            if name and os.path.lexists(ROOT / name):
                (self.copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.copy / name, follow_symlinks=False)
        # A file that is changed twice in a second must not be taken for what it was: nothing is compiled but here.
        python = [sys.executable, "-m"]
        subprocess.run([*python, "compileall", "-q", "jaxalign", "tests"], cwd=self.copy, check=True)
        for file in map(Path, files):
            for compiled in (self.copy / file.parent / "__pycache__").glob(f"{file.stem}.*"):
                compiled.unlink()
        environment = {"PYTHONPATH": str(self.copy), "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu"}
        self.server = subprocess.Popen(
            [*python, "tests.mutation.forked"],
            cwd=self.copy,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.undisturbed: dict[tuple[str, ...], float] = {}

    def __enter__(self) -> "Workshop":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.kill()
        self.server.communicate()

    def run(self, tests: tuple[str, ...], limit: float) -> dict[str, Any]:
        arguments = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={self.temporary}", *tests]
        asked = {"arguments": arguments, "limit": limit, "log": str(self.log)}
        assert self.server.stdin and self.server.stdout
        print(json.dumps(asked), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())

    def limit(self, tests: tuple[str, ...]) -> float:
        """How long tests may take with a mutant, from how long they take without.

        Raises:
          RuntimeError: they fail without.
        """
        if tests not in self.undisturbed:
            done = self.run(tests, LONGEST)
            if done["code"]:
                said = self.log.read_text(errors="replace")[-2_000:]
                raise RuntimeError(f"{' '.join(tests)} fail without a mutant, code {done['code']}:\n{said}")
            self.undisturbed[tests] = done["seconds"]
        return SLOWER * self.undisturbed[tests] + MORE_SECONDS

    def try_mutant(self, mutant: Mutant, source: str, steps: list[tuple[str, ...]]) -> tuple[str, float]:
        """What became of a mutant, and the seconds of all tests that it took."""
        limits = {tests: self.limit(tests) for tests in steps[:1]}
        path, seconds = self.copy / mutant.file, 0.0
        for tests in steps:
            limit = limits.get(tests) or self.limit(tests)
            before = path.read_bytes()
            path.write_text(source, encoding="utf-8")
            done = self.run(tests, limit)
            path.write_bytes(before)
            seconds += done["seconds"]
            if done["code"]:
                return ("timeout" if done["code"] == -9 else "killed"), seconds
        return "survived", seconds


def try_room(
    room: str, sample: int, seed: int, out: Path | None, count: int
) -> tuple[int, list[dict[str, Any]]]:
    """The number of mutants of a room, and a row of each that was tried."""
    files = files_of(room)
    mutants = all_mutants(files)
    killed: dict[Mutant, dict[str, Any]] = {}
    for line in out.read_text(encoding="utf-8").splitlines() if out and out.exists() else ():
        row = json.loads(line)
        if row["outcome"] != "survived":
            killed[Mutant(**{field.name: row[field.name] for field in dataclasses.fields(Mutant)})] = row
    tried = []
    temporary = tempfile.TemporaryDirectory(prefix="jaxalign-mutants-")
    with temporary as folder, Workshop(Path(folder), files) as workshop:
        for mutant, source in drawn(mutants, sample, seed):
            if mutant in killed:
                tried.append(killed[mutant])
                continue
            was, now = first_change((ROOT / mutant.file).read_text(encoding="utf-8"), source)
            outcome, seconds = workshop.try_mutant(mutant, source, steps_of(room, mutant.file)[:count])
            row = {"room": room, **dataclasses.asdict(mutant), "seed": seed, "was": was, "now": now}
            tried.append(row | {"outcome": outcome, "seconds": round(seconds, 1)})
            print(f"{len(tried)}/{sample} {line_of(tried[-1])}", file=sys.stderr, flush=True)
            if out:
                with out.open("a", encoding="utf-8") as file:
                    print(json.dumps(tried[-1]), file=file)
    return len(mutants), tried


def line_of(row: dict[str, Any]) -> str:
    return f"{row['outcome']} {row['file']}:{row['line']} {row['was']} → {row['now']} ({row['seconds']} s)"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--room", choices=ROOMS, action="append", help="several may be named; by default all")
    parser.add_argument("--sample", type=int, default=60, help="mutants of each room")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--out", type=Path, help="a row a mutant is added to this file")
    parser.add_argument(
        "--again", action="store_true", help="those that survive in --out, in place of a sample"
    )
    parser.add_argument(
        "--steps", type=int, default=9, help="1: the tests of the file alone, and no wider ones"
    )
    asked = parser.parse_args()
    if importlib.util.find_spec("cosmic_ray") is None:
        parser.error("cosmic-ray makes the mutants and is not installed; run `pip install cosmic-ray`")
    lines = ["| room | mutants | sampled | killed | survived | share killed |", "|---|---|---|---|---|---|"]
    survivors = []
    for room in asked.room or ROOMS:
        count, tried = try_room(room, asked.sample, asked.seed, asked.out, asked.steps)
        left = [row for row in tried if row["outcome"] == "survived"]
        killed = len(tried) - len(left)
        share, low, high = (f"{100 * x:.0f}" for x in proportion_interval(killed, len(tried)))
        lines.append(
            f"| {room} | {count:,} | {len(tried)} | {killed} | {len(left)} | {share} % ({low}-{high}) |"
        )
        survivors += left
    print("\n".join([*lines, "", *map(line_of, survivors)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
