"""Every block of docs/library.md, one after the other, in a folder with tiny runs and data."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from tiny import write_jsonl

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_every_block_runs(runs, tmp_path):
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
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 3
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sft-hf/model.safetensors").is_file() and (
        tmp_path / "runs/dpo/summary.json"
    ).is_file()
    value, gradient = done.stdout.splitlines()[-1].split(" ", 1)
    assert float(value) == pytest.approx(0.5981, abs=1e-4)  # -log σ(0.1 · 2)
    assert gradient == "[-0.045017]" or float(gradient.strip("[]")) == pytest.approx(-0.045017, abs=1e-5)
