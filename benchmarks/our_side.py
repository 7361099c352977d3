"""One row of the comparison by jaxalign, in a process of its own: prints one line of JSON; see `vs_trl`.

python -m benchmarks.our_side ROW WORK {check,time,rows} STEPS [KEY=VALUE ...]
"""

import json
import os
import pathlib
import shutil
import sys
import time
from itertools import pairwise
from typing import Any

import jax
import numpy as np

import jaxalign
from benchmarks.rows import ADAMW, BATCH, BEGAN, EPISODES, GROUP, NEW_TOKENS, ROWS, Row
from benchmarks.work import LONGEST
from benchmarks.work import ROWS as ROWS_OF_DATA
from jaxalign.config import read_config
from jaxalign.data.dataset import build_datasets
from jaxalign.parallel import make_mesh
from jaxalign.parallel.chips import peak_host_memory, peak_memory
from jaxalign.stages import parse_config
from jaxalign.training.open import open_inputs
from jaxalign.training.writer import read_metrics

REWARD = "benchmarks.rows:reward"


def settings(row: Row, work: str, steps: int, *, check: bool) -> dict[str, Any]:
    """Flags of a run of the row."""
    sampled = row.stage in ("ppo", "grpo")
    found = {
        "model.init_from": f"{work}/{'scorer' if row.scalar else 'start'}",
        "data.train": f"{work}/{row.data}{'_first' if check else ''}.jsonl",
        "data.max_length": LONGEST,
        "num_steps": steps,
        "batch_size": EPISODES if sampled else BATCH,
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 0,
        "log_every": 1,
        "hang_timeout": 0,
    } | {f"optimizer.{key}": value for key, value in ADAMW.items()}
    if check:  # the very rows of a batch of TRL's
        found |= {"data.packing": False}
    if sampled:
        found |= {f"{row.stage}.sampling.max_new_tokens": NEW_TOKENS, "log_samples": 0}
    if row.stage == "grpo":
        found |= {"grpo.reward": REWARD, "grpo.group_size": GROUP}
    if row.stage == "ppo":
        found |= {"ppo.reward": f"{work}/scorer", "ppo.num_minibatches": 4, "ppo.missing_eos_penalty": 1.0}
    return found | dict(setting.split("=", 1) for setting in row.settings)


def train(row: Row, work: str, steps: int, given: list[str], *, check: bool) -> dict[str, Any]:
    """Losses of the first steps, or the time of each, scaled to BATCH items."""
    workdir = pathlib.Path(work) / "ours" / row.name
    shutil.rmtree(workdir, ignore_errors=True)
    flags = settings(row, work, steps, check=check) | dict(x.split("=", 1) for x in given)
    config = read_config(row.stage, [f"--config.{key}={value}" for key, value in flags.items()])
    at: list[float] = []

    def clock(step: int, phase: int) -> bool:
        if phase == 0:
            at.append(time.time())
        return False

    jaxalign.train(config, workdir, stop_at=clock, quiet=True)
    lines = [line["values"] for line in read_metrics(workdir) if line["kind"] == "train"]
    if check:
        return {"losses": [line["loss"] for line in lines]}
    # Of packed rows there are several records to each, and the first pass over all of them is not over.
    items = ROWS_OF_DATA * lines[-1]["epoch"] / len(lines)
    tokens = lines[-1]["num_tokens"] / len(lines)
    gaps = [b - a for a, b in pairwise(at)]
    return {"seconds": gaps, "first_step": at[0] - float(os.environ[BEGAN]), "items": items, "tokens": tokens}


def packed_rows(row: Row, work: str) -> int:
    """How many packed rows hold about BATCH records."""
    flags = settings(row, work, 1, check=False)
    config = read_config(row.stage, [f"--config.{key}={value}" for key, value in flags.items()])
    inputs = open_inputs(parse_config(config))
    train, _ = build_datasets(inputs.config.data, inputs.tokenizer, inputs.config.stage.data)
    return max(1, round(BATCH * len(train.rows) / len(train.rows.items)))


def generate(work: str, turns: int) -> dict[str, Any]:
    """Seconds of each turn of 64 prompts with NEW_TOKENS each."""
    from jaxalign.sampling.generate import SamplingConfig
    from jaxalign.sampling.generate import generate as sample

    model = jaxalign.load(f"{work}/start")
    prompts = [
        json.loads(line)["prompt"] for line in (pathlib.Path(work) / "prompts.jsonl").read_text().splitlines()
    ]
    ids = [model.tokenizer.encode(prompt) for prompt in prompts[:64]]
    width = max(map(len, ids))
    tokens, segments = np.zeros((64, width), np.int32), np.zeros((64, width), np.int32)
    for i, row in enumerate(ids):
        tokens[i, width - len(row) :], segments[i, width - len(row) :] = row, 1
    positions = np.maximum(np.cumsum(segments, axis=1) - 1, 0)
    sampling = SamplingConfig(max_new_tokens=NEW_TOKENS)
    seconds = []
    for turn in range(turns):
        start = time.time()
        jax.block_until_ready(
            sample(
                model.params,
                model.config,
                tokens,
                positions,
                segments,
                jax.random.key(turn),
                sampling=sampling,
                stop_ids=(),
            )
        )
        seconds.append(time.time() - start)
    return {"seconds": seconds}


def main() -> None:
    """Prints {"losses": [...]}, {"seconds": [...], "first_step": ..., "peak_gb": ...}, or {"rows": ...}."""
    row, work, what, steps = ROWS[sys.argv[1]], sys.argv[2], sys.argv[3], int(sys.argv[4])
    if what == "rows":
        print(json.dumps({"rows": packed_rows(row, work)}))
        return
    if row.name == "generate":
        out = generate(work, steps)
    else:
        out = train(row, work, steps, sys.argv[5:], check=what == "check")
    peak = peak_memory(make_mesh(devices=jax.devices()[:1])) or peak_host_memory()
    print(json.dumps(out | {"device": jax.default_backend(), "peak_gb": peak / 1e9}))


if __name__ == "__main__":
    main()
