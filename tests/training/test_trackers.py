"""Trackers get every metric by its full name, know a run again, and never end one. Modules of their surface stand in
for the packages; with these, offline, the same was tried by hand."""

import json
import sys
import threading
import types

import pytest

from jaxalign.errors import ConfigError
from jaxalign.stages import sft
from jaxalign.training import trackers as module
from jaxalign.training.config import default_config, parse_config
from jaxalign.training.trackers import Trackers, check_trackers
from jaxalign.training.writer import MetricWriter, read_metrics

SETTINGS = {"config.seed": 0, "config.dpo.beta": 0.1}
SAMPLE = {"prompt": "who?", "completion": "the fox", "score": 0.5}


class Calls(list):
    """What a stand-in for a package was asked, in order."""

    def named(self, name):
        return [rest for found, *rest in self if found == name]


@pytest.fixture
def wandb(monkeypatch):
    calls = Calls()

    class Run:
        def __init__(self, **options):
            calls.append(("init", options))

        def define_metric(self, name, **options):
            calls.append(("define", name, options))

        def log(self, values):
            calls.append(("log", values))

        def finish(self, exit_code):
            calls.append(("finish", exit_code))

    fake = types.SimpleNamespace(
        init=Run, Settings=lambda **x: x, Table=lambda columns, data: (columns, data)
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.fixture
def mlflow(monkeypatch):
    calls = Calls()

    class Client:
        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            calls.append(("experiment", name))
            return "7"

        def create_run(self, experiment, run_name):
            calls.append(("create", experiment, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="given"))

        def __getattr__(self, name):
            return lambda *args, **options: calls.append((name, *args, options))

    made = types.SimpleNamespace(Param=lambda *x: x, Metric=lambda key, value, time, step: (key, value, step))
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=Client, entities=made))
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return calls


def write(folder, names, step, error=None):
    with MetricWriter(
        folder, tensorboard=False, sets=["a"], trackers=Trackers(names, folder, SETTINGS)
    ) as writer:
        writer.write(step, {"loss": 1.5})
        writer.write(step, {"eval/loss": 2.0, "eval/a/loss": 3.0}, kind="eval")
        writer.write_samples(step, [SAMPLE])
        if error:
            raise error


def test_wandb_gets_every_metric_and_a_killed_run_is_the_same_one_again(wandb, tmp_path):
    folder = tmp_path / "dpo"
    with pytest.raises(KeyError):
        write(folder, ["wandb"], 3, KeyError("a kill"))
    write(folder, ["wandb"], 4)
    first, second = (options for (options,) in wandb.named("init"))
    assert first == second and first["resume"] == "allow"
    assert (first["project"], first["name"], first["config"], first["dir"]) == (
        "jaxalign",
        "dpo",
        SETTINGS,
        str(folder),
    )
    assert json.loads((folder / "trackers.json").read_text()) == {"wandb": first["id"]}
    assert wandb.named("define")[1] == ["*", {"step_metric": "train/global_step", "step_sync": True}]
    assert [values for (values,) in wandb.named("log")] == [
        values | {"train/global_step": step}
        for step in (3, 4)
        for values in (
            {"train/loss": 1.5},
            {"eval/loss": 2.0, "eval/a/loss": 3.0},
            {"samples": (["prompt", "completion", "score"], [["who?", "the fox", 0.5]])},
        )
    ]
    assert wandb.named("finish") == [[1], [0]]
    write(tmp_path / "other", ["wandb"], 1)
    assert wandb.named("init")[-1][0]["id"] != first["id"]


def test_mlflow_keeps_the_run_that_its_server_made(mlflow, tmp_path, monkeypatch):
    write(tmp_path / "grpo", ["mlflow"], 3)
    write(tmp_path / "grpo", ["mlflow"], 4)
    assert mlflow.named("create") == [["7", "grpo"]] and mlflow.named("experiment") == [["jaxalign"]]
    assert mlflow.named("update_run") == [["given", {"status": "RUNNING"}]]
    batches = [options for run, options in mlflow.named("log_batch")]
    assert batches[0] == {"params": [("config.seed", "0"), ("config.dpo.beta", "0.1")]}
    assert batches[1:] == [
        {"metrics": metrics}
        for step in (3, 4)
        for metrics in ([("train/loss", 1.5, step)], [("eval/loss", 2.0, step), ("eval/a/loss", 3.0, step)])
    ]
    assert mlflow.named("set_terminated") == [["given", "FINISHED", {}]] * 2


@pytest.mark.parametrize("place", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_one_warning_and_no_more(place, wandb, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise SystemExit("no network\nat all")

    fake = sys.modules["wandb"]
    monkeypatch.setattr(fake if place == "init" else fake.init, place, fail)
    write(tmp_path, ["wandb"], 1)
    said = capsys.readouterr().err
    assert said == (
        "config.trackers: wandb failed (SystemExit: no network); the run is not affected, and its metrics.jsonl has "
        "all values\n"
    )
    assert [line["kind"] for line in read_metrics(tmp_path)] == ["train", "eval"]


def test_a_tracker_that_does_not_answer_is_not_waited_for(wandb, tmp_path, monkeypatch, capsys):
    answer = threading.Event()
    monkeypatch.setattr(sys.modules["wandb"].init, "log", lambda self, values: answer.wait())
    monkeypatch.setattr(module, "SECONDS", 0.1)
    write(tmp_path, ["wandb"], 1)
    assert "wandb has not taken everything within 0 s; the run is not affected" in capsys.readouterr().err
    answer.set()
    for thread in threading.enumerate():
        if thread.name == "jaxalign-wandb":
            thread.join()


def test_a_package_that_is_missing_is_told_at_the_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match=r"^config\.trackers names trackio, .*: pip install trackio$"):
        check_trackers(["trackio"])


def test_the_config_names_trackers_with_commas_between():
    values = default_config(sft.STAGE.name, sft.STAGE.options)
    values.trackers = "wandb, mlflow"
    assert parse_config(values, sft.STAGE).tracker_names == ("wandb", "mlflow")
    values.trackers = "wand"
    with pytest.raises(
        ConfigError, match=r"config\.trackers='wand': 'wand' is not one of .* did you mean 'wandb'"
    ):
        parse_config(values, sft.STAGE)
