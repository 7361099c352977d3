"""Every block of docs/library.md, one after the other, in a folder with tiny runs and data."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tiny import write_jsonl

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "docs/library.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def block(title: str) -> str:
    return re.search(rf"\n## {title}\n.*?```python\n(.*?)```", TEXT, re.DOTALL)[1]


def test_loops_are_short_and_need_jaxalign_alone():
    for title, most in (("REINFORCE on a Session", 30), ("DPO by hand", 25), ("A stage of one's own", 40)):
        lines = [line for line in block(title).splitlines() if line.strip()]
        assert len(lines) + 2 <= most, title  # import jaxalign and jax stand in an earlier block
    imported = set(re.findall(r"^(?:import|from) (\S+)", "\n".join(BLOCKS), re.MULTILINE))
    assert imported == {"jaxalign", "jax", "jax.numpy", "optax", "numpy", "dataclasses"}


@pytest.mark.slow
def test_every_block_runs_and_the_loops_learn(runs, tmp_path):
    for name in ("sft", "reward"):
        shutil.copytree(runs / name, tmp_path / name)
    pair = {
        "chosen": [{"role": "assistant", "content": "a fox"}],
        "rejected": [{"role": "assistant", "content": "a dog"}],
    }
    rows = [
        {"prompt": [{"role": "user", "content": f"who wrote {word}?"}]} | pair for word in ("this", "that")
    ]
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data/preference_held_out.jsonl", rows * 8)
    more = [
        "import json",
        "for one in (jaxalign.load('sft'), session.model):",
        "    texts = one.generate(question, n=128, max_new_tokens=12, seed=9)",
        "    print('rewards', json.dumps([reward(text) for text in texts]))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*BLOCKS, *more])],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    for made in ("sft-hf/model.safetensors", "runs/dpo/summary.json", "runs/state", "runs/model"):
        assert (tmp_path / made).exists(), made
    said = {}
    for line in done.stdout.splitlines():
        for start in ("by hand", "DPO", "rewards"):
            if line.startswith(start):
                said.setdefault(start, []).append(line.removeprefix(start).strip())

    value, gradient = said["by hand"][0].split(" ", 1)
    assert float(value) == pytest.approx(0.5981, abs=1e-4)  # -log σ(0.1 · 2)
    assert float(gradient.strip("[]")) == pytest.approx(-0.045017, abs=1e-5)

    (first, _), (last, accuracy) = (map(float, line.split()) for line in said["DPO"])
    assert first == pytest.approx(0, abs=1e-4) and last > 0.5 and accuracy == 1

    before, after = (np.array(json.loads(line)) for line in said["rewards"])
    error = np.sqrt((before.var(ddof=1) + after.var(ddof=1)) / len(before))
    assert after.mean() - before.mean() > 5 * error
