"""The command: `python -m tests.faults.fuzz --cases=1000000 --seed=0 [--surface=NAME] [--case=N]`."""

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.fuzz.runner import SURFACES, Tally, fault_lines, fuzz, shares, table
from tests.faults.fuzz.worker import generator, load


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="of all surfaces together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--surface", choices=SURFACES, help="this one alone; by default all, each with its share"
    )
    parser.add_argument("--processes", type=int, default=1, help="surfaces that are read at a time")
    parser.add_argument("--case", type=int, help="read one case of a surface here, with a traceback")
    asked = parser.parse_args()
    if asked.case is not None:
        return _one(asked.surface, asked.seed, asked.case)
    wanted = shares(asked.cases, (asked.surface,) if asked.surface else SURFACES)

    def run(surface: str) -> Tally:
        tally = fuzz(surface, asked.seed, range(wanted[surface]))
        print("\n".join([table([tally]).splitlines()[2], *fault_lines([tally])]), file=sys.stderr, flush=True)
        return tally

    with ThreadPoolExecutor(asked.processes) as pool:
        tallies = list(pool.map(run, wanted))
    print(table(tallies))
    return int(any(each.faults for each in tallies))


def _one(surface: str, seed: int, case: int) -> int:
    chosen = load(surface)
    chosen.prepare()
    with tempfile.TemporaryDirectory() as folder:
        given = chosen.write(generator(seed, surface, case), Path(folder))
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            print(f"{file.name}: {file.read_bytes()[:2_000]!r}", file=sys.stderr)
        print(f"{str(given)[:2_000]}", file=sys.stderr)
        chosen.read(given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
