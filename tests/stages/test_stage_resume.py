"""N steps are k steps, a stop and N - k steps, bit for bit; and the same numbers on any mesh."""

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny import ON_POLICY, STAGES, assert_same_bits, baseline_changes, every_stage, final_state, history, run

from jaxalign.errors import CheckpointError
from jaxalign.training.loop import Stopped
from jaxalign.training.writer import SAMPLES, read_metrics

MESHES = {
    "data8": {"mesh.data": 8},
    "fsdp4-tensor2": {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2},
    "fsdp2-context4": {"mesh.data": 1, "mesh.fsdp": 2, "mesh.context": 4},
    "data2-fsdp2-tensor2": {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
}
ON_MESHES = [(stage, "fsdp2-context4") for stage in STAGES] + [("sft", "data8"), ("reward", "fsdp4-tensor2")]
# After the second step; for stages that sample also between the third rollout and the update on it.
STOPS = [
    pytest.param(stage, (2, 0), marks=() if stage in ("pretrain", "dpo") else pytest.mark.slow)
    for stage in STAGES
] + [("ppo", (2, 1)), ("grpo", (2, 1)), ("distill", (2, 1))]


def stop(stage, runs, workdir, place, **options):
    with pytest.raises(Stopped):
        run(stage, runs, workdir, stop_at=lambda *now: now == place, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "place"), STOPS)
def test_a_stopped_run_goes_on_bit_for_bit(stage, place, runs, baseline, tmp_path):
    changes = baseline_changes(stage, runs)
    stop(stage, runs, tmp_path, place, **changes)
    summary = run(stage, runs, tmp_path, **changes)
    whole = baseline(stage)
    assert_same_bits(final_state(tmp_path), final_state(whole))
    assert_same_bits(final_state(tmp_path, "model"), final_state(whole, "model"))
    assert history(tmp_path) == history(whole)
    assert history(tmp_path, "eval") == history(whole, "eval")
    assert [step for step, _ in history(whole, "eval")] == [2, 4]
    assert [step for step, _ in history(whole)] == [1, 3, 4]
    for path in (tmp_path, whole):
        assert (path / SAMPLES).exists() == (stage in (*ON_POLICY, "sft"))
    if (whole / SAMPLES).exists():
        assert (tmp_path / SAMPLES).read_bytes() == (whole / SAMPLES).read_bytes()
    assert summary["eval"] == history(whole, "eval")[-1][1]


@pytest.mark.slow
def test_a_finished_run_that_is_started_again_changes_nothing(runs, baseline, tmp_path):
    changes = baseline_changes("pretrain", runs)
    first = run("pretrain", runs, tmp_path, **changes)
    lines = read_metrics(tmp_path)
    again = run("pretrain", runs, tmp_path, **changes)
    assert read_metrics(tmp_path) == lines
    assert again == first  # the seconds, too
    assert_same_bits(final_state(tmp_path, "model"), final_state(baseline("pretrain"), "model"))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "mesh"), ON_MESHES)
def test_a_mesh_changes_no_number(stage, mesh, runs, baseline, tmp_path):
    run(stage, runs, tmp_path, devices=8, **baseline_changes(stage, runs), **MESHES[mesh])
    assert_same_numbers(tmp_path, baseline(stage))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reward", "dpo", "ppo"])
def test_a_run_goes_on_on_another_mesh(stage, runs, baseline, tmp_path):
    changes = baseline_changes(stage, runs)
    stop(stage, runs, tmp_path, (2, 0), **changes)
    run(stage, runs, tmp_path, devices=8, **changes, **MESHES["data2-fsdp2-tensor2"])
    assert_same_numbers(tmp_path, baseline(stage))


def assert_same_numbers(got: pathlib.Path, wanted: pathlib.Path) -> None:
    mine, theirs = final_state(got), final_state(wanted)
    assert mine.keys() == theirs.keys()
    for name, array in theirs.items():
        if array.dtype.kind in "iu":  # counters, the random key and, for PPO, the sampled tokens
            np.testing.assert_array_equal(mine[name], array, err_msg=name)
        elif "params" in name or name.startswith(("average", "reference", "kl_coef", "rollout/old_logp")):
            np.testing.assert_allclose(mine[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
    for (step, a), (_, b) in zip(history(got), history(wanted), strict=True):
        for name in ("loss", "grad_norm", "critic/loss", "critic/grad_norm", "objective/kl"):
            if name in b:
                assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5), (step, name)


CHILD = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import jax
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
import time, tiny
from jaxalign.training import step_files
write = step_files.ListedArrays.finalize
# A checkpoint is being written most of the time, while steps go on.
step_files.ListedArrays.finalize = lambda self, directory: (time.sleep(0.1), write(self, directory))
tiny.run("orpo", *map(pathlib.Path, sys.argv[2:4]), num_steps=40, checkpoint_every=2)
"""


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_bit_for_bit(runs, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("orpo", runs, whole, num_steps=40, checkpoint_every=20)
    here = pathlib.Path(__file__).parent
    arguments = [str(here), str(runs), str(killed)]
    environment = os.environ | {"PYTHONPATH": str(here.parents[1])}
    child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments], env=environment)
    moment = random.randint(1, 20)
    deadline = time.monotonic() + 120
    while newest(killed) < moment and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.random() * 0.2)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    run("orpo", runs, killed, num_steps=40, checkpoint_every=1)
    assert_same_bits(final_state(killed), final_state(whole))
    assert history(killed) == history(whole)


def newest(workdir: pathlib.Path) -> int:
    folder = workdir / "checkpoints"
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return max(steps, default=0)


@pytest.mark.slow
def test_checkpoint_every_counts_steps_and_not_phases(runs, tmp_path):
    changes = {"num_steps": 3, "checkpoint_every": 2, "keep_checkpoints": 5}
    run("ppo", runs, tmp_path, **changes)
    saved = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert saved == [4, 6]  # positions: two phases a step


@pytest.mark.slow
def test_other_data_or_another_reference_is_refused_on_resume(runs, tmp_path):
    for number, changes in enumerate(({}, {"dpo.precompute_reference": True})):
        workdir = tmp_path / str(number)
        stop("dpo", runs, workdir, (1, 0), **changes)
        with pytest.raises(
            CheckpointError, match="the training data or its tokenisation is not what this run"
        ):
            run("dpo", runs, workdir, **changes, **{"data.train": str(runs / "rankings_as_pairs.jsonl")})
        with pytest.raises(CheckpointError, match=r"a frozen model .* is not what this run began with"):
            run("dpo", runs, workdir, **changes, **{"model.init_from": str(runs / "pretrain")})


REFUSED = {
    "pretrain": [
        ("seed", 0, 1),
        ("batch_size", 8, 16),
        ("optimizer.learning_rate", 0.001, 0.002),
        ("model.attention_softcap", 0.0, 30.0),  # though model.attention may change
    ],
    "dpo": [("dpo.beta", 0.1, 0.2), ("frozen.dtype", "float32", "bfloat16")],
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", REFUSED)
def test_other_settings_are_refused_on_resume_by_name(stage, runs, tmp_path):
    stop(stage, runs, tmp_path, (1, 0))
    for key, was, value in REFUSED[stage]:
        message = (
            f"{tmp_path}: began with config.{key}={was!r}, and now has {value!r}; go on with the former, or"
        )
        with pytest.raises(CheckpointError, match=re.escape(message)):
            run(stage, runs, tmp_path, **{key: value})


@pytest.mark.slow
def test_settings_that_change_no_number_may_change_on_resume(runs, baseline, tmp_path, capsys):
    changes = baseline_changes("dpo", runs)
    stop("dpo", runs, tmp_path / "run", (2, 0), **changes)
    (tmp_path / "moved.jsonl").write_bytes((runs / "pairs.jsonl").read_bytes())
    moved = {"checkpoint_every": 1, "data.train": str(tmp_path / "moved.jsonl")}
    capsys.readouterr()
    run("dpo", runs, tmp_path / "run", **changes, **moved)
    said = capsys.readouterr().err
    assert f"{tmp_path / 'run'}: goes on with config.checkpoint_every=1 instead of 0\n" in said
    assert (
        said.count("goes on with") == 2 and f"config.data.train='{tmp_path}/moved.jsonl' instead of" in said
    )
    assert_same_bits(final_state(tmp_path / "run"), final_state(baseline("dpo")))


@pytest.mark.slow
def test_a_half_written_checkpoint_is_named(runs, tmp_path):
    stop("pretrain", runs, tmp_path, (1, 0))
    manifest = next((tmp_path / "checkpoints" / "1" / "arrays").rglob("*.ocdbt"))
    manifest.write_bytes(manifest.read_bytes()[:10])
    with pytest.raises(CheckpointError, match=r"checkpoints/1 is half-written or damaged: .* has 10 of"):
        run("pretrain", runs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", every_stage("pretrain", "dpo"))
def test_every_metric_is_explained(stage, baseline):
    page = (pathlib.Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    items = re.findall(r"^- ((?:`[^`]+`,?\s+)*`[^`]+`):", page, re.MULTILINE)
    explained = {name for item in items for name in re.findall(r"`([^`]+)`", item)}
    lines = read_metrics(baseline(stage))
    written = {name for line in lines for name in line["values"]}
    assert {"loss", "epoch", "num_tokens", "perf/step_time"} <= written and len(explained) > 50
    assert written - explained == set()
    for line in lines[1:]:
        if line["kind"] == "train":
            assert line["values"]["perf/recompiles"] == 0, line["step"]
        else:
            assert line["values"]["perf/evaluate_time"] > 0
