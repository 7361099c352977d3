"""The whole main job at smoke size, interrupted once."""

import json
import math

import jax
import pytest

from jaxalign.errors import ConfigError
from jaxalign.quickstart import pipeline
from jaxalign.stages import parse_config
from jaxalign.training.loop import Stopped


@pytest.fixture
def _cheap_compilation():
    """As `jaxalign quickstart --fast` compiles."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
@pytest.mark.usefixtures("_cheap_compilation")
def test_an_interrupted_quickstart_goes_on_and_reports(tmp_path, monkeypatch):
    real = pipeline.train

    def interrupted(config, workdir, **kwargs):
        if config.stage == "reward":
            kwargs["stop_at"] = lambda step, phase: step == 1
        return real(config, workdir, **kwargs)

    monkeypatch.setattr(pipeline, "train", interrupted)
    with pytest.raises(Stopped):
        pipeline.quickstart(tmp_path, fast=True, seed=3)
    before = {stage: (tmp_path / stage / "summary.json").stat().st_mtime_ns for stage in ("pretrain", "sft")}
    assert not (tmp_path / "reward/summary.json").exists()

    monkeypatch.setattr(pipeline, "train", real)
    results = pipeline.quickstart(tmp_path, fast=True, seed=3)

    assert {stage: (tmp_path / stage / "summary.json").stat().st_mtime_ns for stage in before} == before
    assert json.loads((tmp_path / "results.json").read_text())["questions"] == results["questions"] == 64
    assert list(results["models"]) == ["pretrained", "sft", "ppo", "dpo", "orpo"]
    for name, model in results["models"].items():
        assert 0 < model["loss"] < 20 and 0 <= model["score"][0] <= 1
        assert (
            model["kl"][0] == pytest.approx(0, abs=1e-4) if name == "sft" else math.isfinite(model["kl"][0])
        )
    assert 0 <= results["reward_model"]["accuracy"][0] <= 1
    assert results["frontier"]["dpo"][0]["kl"] == 0
    assert {example["kind"] for example in results["examples"]} == set(results["models"]["sft"]["by_kind"])
    assert "<html" in (tmp_path / "report.html").read_text()

    with pytest.raises(ConfigError, match=r"holds a quickstart with .*'seed': 3"):
        pipeline.quickstart(tmp_path, fast=True, seed=4)


@pytest.mark.parametrize("stage", pipeline.STAGES)
def test_every_config_file_is_valid_and_points_into_its_root(stage, tmp_path):
    config = parse_config(pipeline.stage_config(stage, tmp_path, pipeline.FULL, seed=5))
    assert config.stage == stage and config.seed == 5 and config.num_steps > 0
    assert config.data.train.startswith(str(tmp_path))
    assert config.optimizer.warmup_steps < config.num_steps


def test_the_reviews_configs_are_valid():
    from jaxalign.config import load_config

    for stage in pipeline.STAGES:
        assert parse_config(load_config("reviews", f"{stage},data,runs")).stage == stage
