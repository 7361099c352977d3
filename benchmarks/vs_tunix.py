"""Tunix and jaxalign in turn on the same work, as `vs_trl` compares TRL: what Tunix trains with the same loss.

    pip install google-tunix                               # on Python 3.11 or newer, without torch
    python -m benchmarks.vs_tunix                          # --rows=sft,dpo; --out=FILE.json

Tunix pads each record to the longest of the data, ours packs them. Its Llama turns positions by a base of 1,000,000,
whatever its config says, so both do. Its ORPO sums log-probabilities where ours takes their mean, as the paper has it:
no two losses to compare.
"""

import json
import os
import pathlib
import sys
import tempfile
from typing import Any

from benchmarks.rows import ROWS
from benchmarks.vs_trl import check_losses, make_parser, table, time_row
from benchmarks.work import make_work
from jaxalign.host_memory import huge_pages

SIDE = "tunix_side"


def main() -> None:
    """Compares and prints the table."""
    given = make_parser(__doc__, "sft,dpo").parse_args()
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as work:
        make_work(pathlib.Path(work), given.lengths, {"rope_theta": 1_000_000.0})
        for name in given.rows.split(","):
            row, env = ROWS[name], huge_pages(os.environ) if given.huge_pages else {}
            losses = check_losses(row, work, {}, SIDE)
            results[name] = time_row(row, work, given.rounds, given.steps, {}, env, SIDE) | {"losses": losses}
            print(f"{name}: losses {losses} agree; ratio {results[name]['ratio']:.2f}", file=sys.stderr)
            if given.out:
                pathlib.Path(given.out).write_text(json.dumps(results, indent=1) + "\n")
    print(table(results, "Tunix"))


if __name__ == "__main__":
    main()
