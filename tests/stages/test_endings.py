"""How a training command ends: by signals, without readers, with another one in the same folder."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tiny import run

from jaxalign.cli import main
from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.locks import LOCK, locked
from jaxalign.training.loop import Stopped
from jaxalign.training.workdir import finished
from jaxalign.training.writer import read_metrics

HERE = pathlib.Path(__file__).parent

CHILD = """
import signal, sys
signal.signal(signal.SIGHUP, getattr(signal, sys.argv.pop(1)))
from jaxalign.cli import main
sys.exit(main())
"""


def start(runs, workdir, *flags, hangup="SIG_DFL"):
    """A tiny pretraining by the command line; `hangup` is how the program that starts it takes SIGHUP."""
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
    flags = [f"--config={HERE / 'tiny_config.py'}:pretrain,{runs}", f"--workdir={workdir}", *flags]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, hangup, "train", *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def steps(workdir) -> int:
    return read_metrics(workdir)[-1]["step"] if (workdir / "metrics.jsonl").exists() else 0


def wait_for_step(step, workdir, child) -> None:
    deadline = time.monotonic() + 120
    while steps(workdir) < step and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert child.poll() is None and steps(workdir) >= step


def saved(workdir) -> list[str]:
    return [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]


@pytest.mark.slow
def test_a_hangup_saves_and_until_then_no_second_run_begins(runs, tmp_path, capsys):
    child = start(runs, tmp_path, "--config.num_steps=1000000")
    wait_for_step(3, tmp_path, child)
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    assert (
        main(["train", f"--config={HERE / 'tiny_config.py'}:pretrain,{runs}", f"--workdir={tmp_path}"]) == 1
    )
    said = capsys.readouterr().err
    owner = rf"--workdir={re.escape(str(tmp_path))} is in use by process {child.pid} on .* since 20"
    assert re.match(rf"jaxalign train: {owner}.*; wait until that has ended, stop it, or name another", said)
    wait_for_step(steps(tmp_path) + 2, tmp_path, child)  # the first goes on
    child.send_signal(signal.SIGHUP)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 75 and "stopping as soon as the state is saved" in said
    assert saved(tmp_path) == [re.search(r"stopped after step (\d+); state saved", said)[1]]
    written = [line["step"] for line in read_metrics(tmp_path)]
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(lines) and written == sorted(set(written))
    with locked(tmp_path / LOCK, "--workdir"):
        pass


@pytest.mark.slow
def test_a_hangup_that_nohup_ignores_stops_nothing(runs, tmp_path):
    child = start(runs, tmp_path, "--config.num_steps=1000000", hangup="SIG_IGN")
    wait_for_step(2, tmp_path, child)
    child.send_signal(signal.SIGHUP)
    wait_for_step(steps(tmp_path) + 3, tmp_path, child)
    child.terminate()
    assert "state saved" in child.communicate(timeout=60)[1] and child.returncode == 75


@pytest.mark.slow
def test_training_ends_with_a_model_though_nobody_reads(runs, tmp_path):
    child = start(runs, tmp_path, "--config.num_steps=30", "--config.eval_every=10")
    assert child.stdout.readline().startswith("pretrain: ")  # as `| head -1` does
    child.stdout.close()
    child.stderr.close()
    assert child.wait(120) == 0
    assert finished(tmp_path)["steps"] == steps(tmp_path) == 30


def test_a_start_that_is_refused_leaves_no_folder(runs, tmp_path):
    with pytest.raises(ConfigError, match="batch_size"):
        run("pretrain", runs, tmp_path / "run", devices=8, batch_size=12)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_signal_after_the_last_step_is_not_forgotten(runs, tmp_path, monkeypatch):
    from jaxalign.training import loop

    export = loop._export

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        export(*args)

    monkeypatch.setattr(loop, "_export", interrupted)
    with pytest.raises(Stopped, match="after the last step, with the model written") as stopped:
        run("pretrain", runs, tmp_path, num_steps=2)
    assert stopped.value.finished
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 2
    with locked(tmp_path / LOCK, "--workdir"):
        pass


@pytest.mark.slow
def test_a_run_that_has_ended_never_begins_anew_over_itself(runs, tmp_path):
    run("pretrain", runs, tmp_path, num_steps=2)
    shutil.rmtree(tmp_path / "checkpoints")
    files = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "summary.json")}
    for steps in (2, 3):
        with pytest.raises(
            CheckpointError, match=r"that run has ended, and its checkpoints are gone: .* or delete"
        ):
            run("pretrain", runs, tmp_path, num_steps=steps)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    (tmp_path / "summary.json").unlink()
    run("pretrain", runs, tmp_path, num_steps=2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
