"""TRL and jaxalign in turn on the same work: seconds, tokens per second, memory, and the time to the first step.

    pip install -e '.[peers]'                              # torch and TRL
    pip install --no-deps --target trl_ppo trl==1.9.2      # the last TRL that has a PPO trainer
    python -m benchmarks.vs_trl --ppo=trl_ppo              # all rows; --rows=dpo,reward for some; --out=FILE.json

Both begin with the same weights and read the same rows, with the same optimizer. Before anything is timed, the losses
of three steps on 32 rows must agree to 1e-4. Every round runs one side after the other, in processes of their own. A
step is 32 sequences or pairs, 32 packed rows, or 64 completions of 64 tokens. Of the first two ours holds packed rows,
so many that they have about 32 records, and its time is that of 32.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.rows import BATCH, BEGAN, EPISODES, NEW_TOKENS, ROWS, Row
from benchmarks.work import LENGTHS, make_work
from jaxalign.host_memory import huge_pages

CHECKED_STEPS = 3
TOLERANCE = 1e-4
WARM_UP = 2  # steps of each side that are not counted: the first ones compile


def run_side(
    side: str, row: str, work: str, what: str, steps: int, env: dict[str, str], *flags: str
) -> dict[str, Any]:
    """What a side printed last, as JSON; raises SystemExit with what it said where it failed."""
    command = [sys.executable, "-m", f"benchmarks.{side}", row, work, what, str(steps), *flags]
    own = {BEGAN: str(time.time()), "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if side == "our_side":
        own |= huge_pages(os.environ)  # as the command `jaxalign` does
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | own | env, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def check_losses(row: Row, work: str, peer: dict[str, str], side: str) -> list[float]:
    """The losses of the first steps, the same on both sides.

    Args:
      peer: of its environment.
      side: the module of the peer.

    Raises:
      SystemExit: they differ by more than 1e-4.
    """
    name = row.checked or row.name
    theirs = run_side(side, name, work, "check", CHECKED_STEPS, peer)["losses"]
    ours = run_side("our_side", name, work, "check", CHECKED_STEPS, {})["losses"]
    if len(ours) != len(theirs) or any(abs(a - b) > TOLERANCE for a, b in zip(ours, theirs, strict=True)):
        sys.exit(f"{row.name}: not the same work, nothing is timed: losses {ours} here, {theirs} there")
    return ours


def time_row(
    row: Row,
    work: str,
    rounds: int,
    steps: int,
    peer: dict[str, str],
    env: dict[str, str],
    other: str,
) -> dict[str, Any]:
    """Medians of both sides, run in turn; `other` is the module of the peer."""
    found: dict[str, list[dict[str, Any]]] = {other: [], "our_side": []}
    packed = []
    by_records = row.stage not in ("", "ppo", "grpo") and not row.whole_rows
    if by_records:
        packed = [f"batch_size={run_side('our_side', row.name, work, 'rows', 0, {})['rows']}"]
    for _ in range(rounds):
        found[other].append(run_side(other, row.name, work, "time", steps, env | peer))
        found["our_side"].append(run_side("our_side", row.name, work, "time", steps, env, *packed))
    out: dict[str, Any] = {}
    for side, runs in found.items():
        size = runs[0].get("items", 0)
        # A step of ours has whole packed rows: one or two records more or less.
        scale = BATCH / size if size and by_records else 1.0
        seconds = statistics.median(x for run in runs for x in run["seconds"][WARM_UP:]) * scale
        out[side] = {
            "seconds": seconds,
            "first_step": statistics.median(run.get("first_step", 0.0) for run in runs),
            "peak_gb": statistics.median(run["peak_gb"] for run in runs),
        }
    out["peer"] = out.pop(other)
    out["ratio"] = out["our_side"]["seconds"] / out["peer"]["seconds"]
    tokens = found["our_side"][0].get("tokens", EPISODES * NEW_TOKENS)
    if by_records:
        tokens *= BATCH / found["our_side"][0]["items"]
    out["tokens"], out["device"] = tokens, found["our_side"][0]["device"]
    return out


def compare(
    given: argparse.Namespace, side: str, shape: dict[str, Any], peers: Mapping[str, dict[str, str]]
) -> dict[str, dict[str, Any]]:
    """The rows that the flags name, checked and timed on one work; each as `time_row` gives it, with its losses.

    Args:
      side: the module of the peer.
      shape: as for `make_work`.
      peers: by row what the environment of the peer needs; {} of those that are not named.

    Raises:
      SystemExit: a row that is not there, and as `check_losses`.
    """
    env = huge_pages(os.environ) if given.huge_pages else {}
    results: dict[str, dict[str, Any]] = {}
    agreed: dict[str, list[float]] = {}
    names = given.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        sys.exit(f"--rows: no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    with tempfile.TemporaryDirectory() as work:
        make_work(pathlib.Path(work), given.lengths, shape)
        for name in names:
            row, peer = ROWS[name], peers.get(name, {})
            if (checked := row.checked or name) not in agreed:
                agreed[checked] = check_losses(row, work, {} if row.checked else peer, side)
            results[name] = time_row(row, work, given.rounds, given.steps, peer, env, side)
            results[name]["losses"] = agreed[checked]
            print(
                f"{name}: losses {agreed[checked]} agree; ratio {results[name]['ratio']:.2f}",
                file=sys.stderr,
                flush=True,
            )
            if given.out:
                pathlib.Path(given.out).write_text(json.dumps(results, indent=1) + "\n")
    return results


def table(results: dict[str, dict[str, Any]], peer: str) -> str:
    """The results as a Markdown table."""
    own = f"{peer}'s"
    lines = [
        f"| | jaxalign, s | {peer}, s | ratio | tokens/s | {own} | GB | {own} | first step, s | {own} |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, x in results.items():
        ours, theirs = x["our_side"], x["peer"]
        cells = [name, f"{ours['seconds']:.3f}", f"{theirs['seconds']:.3f}", f"{x['ratio']:.2f}"]
        cells += [f"{x['tokens'] / side['seconds']:,.0f}" for side in (ours, theirs)]
        cells += [f"{side['peak_gb']:.2f}" for side in (ours, theirs)]
        cells += [f"{side['first_step']:.1f}" for side in (ours, theirs)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def make_parser(doc: str | None, rows: str) -> argparse.ArgumentParser:
    """The flags of a comparison, which compares `rows` where none are asked for."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--rows", default=rows, help="rows of the table, separated by commas")
    parser.add_argument("--lengths", choices=LENGTHS, default="natural")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="of each side and round")
    parser.add_argument(
        "--huge-pages", action="store_true", help="the peer, too, with memory in pages of 2 MiB"
    )
    parser.add_argument("--out", default="", help="a file for the results, as JSON")
    return parser


def main() -> None:
    """Compares and prints the table."""
    parser = make_parser(__doc__, ",".join(ROWS))
    parser.add_argument("--ppo", default="", help="a folder with TRL 1.9.2, for PPO")
    parser.add_argument("--shape", default="{}", help="changes to the model's config.json, as JSON")
    given = parser.parse_args()
    if "ppo" in given.rows.split(",") and not given.ppo:
        print("ppo: left out; name a folder with TRL 1.9.2 by --ppo", file=sys.stderr)
        given.rows = ",".join(name for name in given.rows.split(",") if name != "ppo")
    peers = {"ppo": {"PYTHONPATH": f"{given.ppo}:{os.getcwd()}"}}
    print(table(compare(given, "trl_side", json.loads(given.shape), peers), "TRL"))


if __name__ == "__main__":
    main()
