"""jaxalign and its peers on TPUs, MaxText and Tunix: the same step compiled for the same slice, counted by the same
analysis, `jaxalign plan`'s. Nothing runs, and no TPU is needed.

    pip install 'maxtext[tpu]==0.2.5' google-metrax perfetto -e .    # on Python 3.12 or newer
    pip install --no-deps google-tunix==0.1.7                        # its bounds and MaxText's exclude each other
    python -m benchmarks.tpu --table=sft_v6e                         # or sft_v5p, dpo_v5p; --out=FILE.json

Llama 3.1 8B, rows full of sequences of 8,192 tokens, parameters and AdamW's state float32, products bfloat16. Each side
compiles in a process of its own, minutes on two cores.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections import Counter
from typing import Any

from jaxalign.parallel.chips import GIB
from jaxalign.verbs.plan import NO_TPU

LONG = {"data.max_length": 8192, "data.row_length": 8192}
PAIRS = LONG | {"data.row_length": 16_384, "data.max_segments": 32}


@dataclasses.dataclass(frozen=True)
class Table:
    """A step that both sides compile."""

    topology: str
    config: str  # of ours
    settings: dict[str, Any]  # changes to it
    peers: dict[str, Any]  # settings of MaxText
    pairs: bool = False  # DPO, by Tunix, on MaxText's model


TABLES = {
    # Layers computed again whole, as MaxText does where nothing is said.
    "sft_v6e": Table(
        "v6e:16x16",
        "sft:llama3_1_8b",
        LONG | {"batch_size": 256, "model.remat": "full"},
        {"compile_topology": "v6e-256", "per_device_batch_size": 1, "remat_policy": "full"},
    ),
    # Of each the policy that computes least again and fits.
    "sft_v5p": Table(
        "v5p:4x4x4",
        "sft:llama3_1_8b",
        LONG | {"batch_size": 128, "mesh.data": 4},
        {
            "compile_topology": "v5p-128",
            "per_device_batch_size": 2,
            "ici_data_parallelism": 4,
            "remat_policy": "minimal_with_context",
        },
    ),
    "dpo_v5p": Table(
        "v5p:4x4x4",
        "dpo:llama3_1_8b",
        PAIRS | {"batch_size": 128, "mesh.data": 4},
        {
            "compile_topology": "v5p-128",
            "per_device_batch_size": 2,
            "ici_data_parallelism": 4,
            "remat_policy": "full",
            "use_dpo": True,
            "packing": False,  # it cannot pack pairs
        },
        pairs=True,
    ),
}


def compile_ours(table: Table, folder: str) -> dict[str, Any]:
    """What `jaxalign plan --json` writes."""
    out = pathlib.Path(folder) / "ours.json"
    flags = [f"--config.{key}={value}" for key, value in table.settings.items()]
    command = [
        "jaxalign",
        "plan",
        f"--config={table.config}",
        f"--topology={table.topology}",
        f"--json={out}",
    ]
    said = _run([*command, *flags])
    if not out.exists():
        sys.exit(f"{' '.join(command)} failed:\n{said}")
    return json.loads(out.read_text())


def compile_peers(name: str) -> dict[str, Any]:
    """The plan of each of their programs, as `plan.measure` gives it."""
    command = ["benchmarks.maxtext_side", name]
    said = _run(command)
    try:
        return json.loads(said.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        sys.exit(f"{' '.join(command)} failed:\n{said[-3000:]}")


def _run(module: list[str]) -> str:
    env = os.environ | NO_TPU | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    command = [sys.executable, "-m", *module]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    return done.stdout if done.returncode == 0 else f"{done.stdout}\n{done.stderr}"


def count(steps: list[dict[str, Any]], chip: dict[str, Any], model_flops: float) -> dict[str, float]:
    """The cells of a column: programs that run one after another, of which the largest must fit.

    Args:
      model_flops: of one device, of both sides alike.
    """
    for step in steps:
        if "memory" not in step:
            sys.exit(f"{step['name']} does not fit: {step['error']}")
    sent: Counter[str] = Counter()
    for step in steps:
        sent.update(step["sent_by_kind"])
    seconds = sum(max(step["seconds"].values()) for step in steps)
    return {
        "total, GiB": max(step["memory"]["total"] for step in steps) / GIB,
        "in use at most, GiB": max(step["peak"] for step in steps) / GIB,
        "TFLOP, matmul": sum(step["flops"]["matmul"] for step in steps) / 1e12,
        "TFLOP, attention": sum(step["flops"]["attention"] for step in steps) / 1e12,
        "HBM traffic, GB": sum(step["hbm_bytes"] for step in steps) / 1e9,
        "sent, GB": sum(sent.values()) / 1e9,
        **{f"by {kind}, GB": size / 1e9 for kind, size in sorted(sent.items())},
        "least time, s": seconds,
        "MFU at most, %": 100 * model_flops / (chip["flops"] * seconds),
        "compiled in, s": sum(step["compile_seconds"] for step in steps),
    }


def render(columns: dict[str, dict[str, float]]) -> str:
    """The columns as a Markdown table."""
    lines = [f"| of one chip | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for label in dict.fromkeys(label for cells in columns.values() for label in cells):
        digits = 0 if label == "compiled in, s" else 2 if "GiB" in label or "time" in label else 1
        cells = (f"{cells.get(label, 0.0):,.{digits}f}" for cells in columns.values())
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Compiles both sides and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":", maxsplit=1)[0])
    parser.add_argument("--table", choices=TABLES, required=True)
    parser.add_argument("--out", default="", help="a file for all numbers of both plans, as JSON")
    given = parser.parse_args()
    table = TABLES[given.table]
    theirs = compile_peers(given.table)
    with tempfile.TemporaryDirectory() as folder:
        ours = compile_ours(table, folder)
    plans = {"MaxText and Tunix" if table.pairs else "MaxText": theirs, "jaxalign": ours}
    if given.out:
        pathlib.Path(given.out).write_text(json.dumps(plans, indent=1) + "\n")
    needed = sum(step["model_flops"] for step in ours["steps"])
    print(render({name: count(plan["steps"], ours["chip"], needed) for name, plan in plans.items()}))


if __name__ == "__main__":
    main()
