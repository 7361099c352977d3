"""The whole main job at smoke size, interrupted once."""

import json
import math
import os
import pathlib
import re
import subprocess
import sys

import pytest
from rich.console import Console

from jaxalign.cli import main
from jaxalign.errors import ConfigError
from jaxalign.locks import LOCK, locked
from jaxalign.quickstart import pipeline
from jaxalign.stages import parse_config
from jaxalign.training.loop import Stopped
from jaxalign.training.workdir import finished

README = pathlib.Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_an_interrupted_quickstart_goes_on_by_the_command_of_the_readme_and_reports(tmp_path, monkeypatch):
    real = pipeline.train

    def interrupted(config, workdir, **kwargs):
        if config.stage.name == "reward":
            kwargs["stop_at"] = lambda step, phase: step == 1
        return real(config, workdir, **kwargs)

    monkeypatch.setattr(pipeline, "train", interrupted)
    with pytest.raises(Stopped):
        pipeline.quickstart(tmp_path, fast=True, seed=3)
    before = {stage: (tmp_path / stage / "summary.json").stat().st_mtime_ns for stage in ("pretrain", "sft")}
    assert not (tmp_path / "reward/summary.json").exists()

    monkeypatch.setattr(pipeline, "train", real)
    (command,) = re.findall(r"jaxalign (quickstart.*)", README.read_text("utf-8").split("## ")[1])
    assert main([*command.split(), "--fast", "--seed=3", f"--workdir={tmp_path}"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())

    assert {stage: (tmp_path / stage / "summary.json").stat().st_mtime_ns for stage in before} == before
    assert results["questions"] == 64
    assert list(results["models"]) == ["pretrained", "sft", "ppo", "grpo", "dpo", "orpo"]
    for name, model in results["models"].items():
        assert 0 < model["loss"] < 20 and 0 <= model["score"][0] <= 1
        assert (
            model["kl"][0] == pytest.approx(0, abs=1e-4) if name == "sft" else math.isfinite(model["kl"][0])
        )
    assert 0 <= results["reward_model"]["accuracy"][0] <= 1
    assert list(results["frontier"]) == ["ppo", "grpo", "dpo", "orpo"]
    assert results["frontier"]["dpo"][0]["kl"] == results["frontier"]["grpo"][0]["kl"] == 0
    assert {example["kind"] for example in results["examples"]} == set(results["models"]["sft"]["by_kind"])
    assert "<html" in (tmp_path / "report.html").read_text()

    with pytest.raises(ConfigError, match=r"holds a quickstart with .*'seed': 3"):
        pipeline.quickstart(tmp_path, fast=True, seed=4)


@pytest.mark.parametrize("stage", pipeline.STAGES)
def test_every_config_file_is_valid_and_points_into_its_root(stage, tmp_path):
    config = parse_config(pipeline.stage_config(stage, tmp_path, pipeline.FULL, seed=5))
    assert config.stage.name == stage and config.seed == 5 and config.num_steps > 0
    assert config.data.train.startswith(str(tmp_path))
    assert config.optimizer.warmup_steps < config.num_steps


def test_the_reviews_configs_are_valid():
    from jaxalign.config import load_config

    for stage in ("pretrain", "sft", "reward", "ppo", "dpo", "orpo"):
        assert parse_config(load_config("reviews", f"{stage},data,runs")).stage.name == stage


def test_files_that_an_earlier_version_left_torn_stop_nothing_for_ever(tmp_path, capsys):
    seconds = tmp_path / "seconds.json"
    clock = pipeline._Clock(seconds, Console())
    for torn in (b"", b'{"data": 1', b"[1]", b'{"data": null}', b"\xff"):
        seconds.write_bytes(torn)
        with clock.part("data", "a world"):
            pass
        assert json.loads(seconds.read_bytes()).keys() == {"data"}
    assert capsys.readouterr().out.count("the times of the parts begin anew") == 5
    assert clock.seconds()["total"] < 1
    (tmp_path / "quickstart.json").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"quickstart\.json: not JSON .*; delete it if this quickstart began"
    ):
        pipeline.quickstart(tmp_path, fast=True, seed=3)
    (tmp_path / "summary.json").write_bytes(b"")
    assert finished(tmp_path) is None


def test_a_second_quickstart_in_the_same_folder_ends_at_once(tmp_path):
    with locked(tmp_path / LOCK, "--workdir"):
        with pytest.raises(
            ConfigError, match=rf"^--workdir={tmp_path} is in use by process {os.getpid()} on"
        ):
            pipeline.quickstart(tmp_path, fast=True)
    assert [file.name for file in tmp_path.iterdir()] == [LOCK]


# Says which part it has begun, and stays in that of the tokenizer.
CHILD = """
import sys, time
from jaxalign.cli import main
from jaxalign.quickstart import data
data.write_dataset = lambda *_, **__: None
def train_sentencepiece(*_):
    print("ready", flush=True)
    time.sleep(600)
data.train_sentencepiece = train_sentencepiece
sys.exit(main(["quickstart", "--fast", f"--workdir={sys.argv[1]}"]))
"""


@pytest.mark.slow
def test_a_signal_between_the_stages_asks_for_the_same_command(tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while child.stdout.readline().strip() not in ("ready", ""):
        pass
    child.terminate()
    said = child.communicate(timeout=60)[1]
    assert said == "\njaxalign quickstart: stopped by SIGTERM; run the same command to go on\n"
    assert child.returncode == 75
    with locked(tmp_path / LOCK, "--workdir"):
        assert json.loads((tmp_path / "seconds.json").read_text()).keys() == {"data"}
