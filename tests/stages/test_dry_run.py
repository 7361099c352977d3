"""`train --dry-run` says what a run would be and leaves nothing; errors are those of training."""

import io

import jax
import pytest
from rich.console import Console
from tiny import make_config

from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.parallel import make_mesh, use_mesh
from jaxalign.plan.estimate import ACTIVATIONS, GRADIENTS
from jaxalign.stages import parse_config, train
from jaxalign.training.memory import OPTIMIZER, PARAMETERS
from jaxalign.training.open import open_run
from jaxalign.verbs.dry_run import measure_memory, print_dry_run
from jaxalign.verbs.train import TrainRequest


def said(stage, runs, workdir="", **changes):
    console = Console(record=True, width=200, file=io.StringIO())
    print_dry_run(parse_config(make_config(stage, runs, **changes)), str(workdir), console)
    return console.export_text()


@pytest.mark.slow
def test_it_says_the_first_lines_of_the_run_and_writes_nothing(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = said("sft", runs, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    config = parse_config(make_config("sft", runs))
    train(config, tmp_path / "run", devices=jax.devices())
    for line in capsys.readouterr().out.splitlines()[:2]:
        assert line in text
    assert "sft.jsonl:" in text and "⟦" in text and "total" in text and "nothing was written" in text


def test_memory_is_that_of_the_arrays(runs, tmp_path):
    config = parse_config(make_config("dpo", runs))
    with use_mesh(make_mesh(devices=jax.devices()[:1])):
        run = open_run(config, tmp_path / "none")
        (held,) = measure_memory(run).values()
        size = sum(x.size * 4 for x in jax.tree.leaves(run.abstract_params()))
    assert held[PARAMETERS] == size and held["frozen models"] == size
    assert held[OPTIMIZER] == 2 * size + 8 and held[GRADIENTS] > size and held[ACTIVATIONS] > 0


@pytest.mark.parametrize(
    ("stage", "changes", "error", "message"),
    [
        ("sft", {"model.init_from": "nowhere"}, CheckpointError, "init_from='nowhere'"),
        ("sft", {"data.train": "missing.jsonl"}, Exception, "missing.jsonl"),
        ("ppo", {"ppo.reward": "nowhere"}, CheckpointError, r"config\.ppo\.reward='nowhere'"),
        ("grpo", {"grpo.reward": "tiny:absent"}, ConfigError, "cannot be imported"),
        ("distill", {"distill.teacher": "nowhere"}, CheckpointError, "teacher='nowhere'"),
        ("distill", {"distill.teacher": ""}, ConfigError, "teacher is empty"),
    ],
)
def test_errors_are_those_of_training(stage, changes, error, message, runs, tmp_path):
    with pytest.raises(error, match=message):
        said(stage, runs, **changes)


def test_it_needs_no_workdir():
    assert TrainRequest.parse(["--config=sft", "--dry-run"]).workdir == ""
    with pytest.raises(ConfigError, match="--workdir=DIR is missing"):
        TrainRequest.parse(["--config=sft"])
