"""The end of a run: the last evaluation as a table, and commands that can be given as they stand."""

import dataclasses
import shlex
import types

import pytest

import jaxalign.verbs.train as train
from jaxalign.cli import main
from jaxalign.data import DataConfig
from jaxalign.stages import NAMES, find_stage
from jaxalign.training.loop import Stopped
from jaxalign.verbs import load_verb
from jaxalign.verbs.results import closing_lines, next_steps, result_rows

WANTED = {
    "pretrain": ["chat", "train", "convert"],
    "sft": ["chat", "train", "convert"],
    "reward": ["label", "train", "convert"],
}


def finished(name, **data):
    options = types.SimpleNamespace(functions=("judge.py:score",)) if name == "grpo" else None
    return types.SimpleNamespace(stage=find_stage(name), options=options, data=DataConfig(**data))


@pytest.mark.parametrize("name", NAMES)
def test_three_commands_fit_the_stage_and_are_understood(name):
    commands = [shlex.split(command) for command in next_steps(finished(name), "my runs/one")]
    assert [verb for _, verb, *_ in commands] == WANTED.get(name, ["chat", "evaluate", "convert"])
    for program, verb, *flags in commands:
        request = load_verb(verb)[1].parse(flags)
        assert program == "jaxalign" and "my runs/one" in str(dataclasses.asdict(request))
        assert not getattr(request, "workdir", "") or request.workdir.startswith("my runs/")


def test_what_the_run_was_given_is_in_them():
    grpo = finished("grpo", eval="held.jsonl")
    assert next_steps(grpo, "runs/grpo")[1] == (
        "jaxalign evaluate --model=runs/grpo --prompts=held.jsonl --reward=judge.py:score"
    )
    assert next_steps(finished("pretrain"), "gs://b/p")[0] == "jaxalign chat --model=gs://b/p --plain"
    first, _, *rest = closing_lines(finished("dpo"), "runs/dpo")
    assert first.startswith("The model is runs/dpo/model; ") and "--logdir=runs/dpo" in first
    assert rest[2] == "  jaxalign convert --from=runs/dpo --out=runs/dpo-hf --to=hf"


def test_an_evaluation_has_a_column_for_each_set():
    values = {
        "loss": 1.0,
        "rewards/margins": 0.5,
        "old/loss": 2.0,
        "new/loss": 0.0,
        "old/rewards/margins": 1.5,
    }
    summary = {"eval": values, "eval_sets": ["old", "new"], "train": {"loss": 3.0, "perf/mfu": 0.5}}
    assert result_rows(summary) == [
        {"metric": "loss", "evaluation": 1.0, "old": 2.0, "new": 0.0},
        {"metric": "rewards/margins", "evaluation": 0.5, "old": 1.5},
    ]
    assert result_rows(summary | {"eval": {}, "eval_sets": []}) == [
        {"metric": "loss", "training, last line": 3.0}
    ]


def test_a_run_that_is_stopped_at_its_end_says_so_and_no_more(monkeypatch, capsys):
    def stop(request):
        raise Stopped("stopped after the last step, with the model written", finished=True)

    monkeypatch.setattr(train, "run", stop)
    assert main(["train", "--config=sft", "--workdir=run"]) == 75
    assert capsys.readouterr().err == "jaxalign train: stopped after the last step, with the model written\n"


def test_a_run_that_stops_says_what_goes_on(monkeypatch, capsys):
    def stop(request):
        raise Stopped("stopped after step 3; state saved")

    monkeypatch.setattr(train, "run", stop)
    assert main(["train", "--config=sft", "--workdir=my runs/one", "--config.data.train=a b.jsonl"]) == 75
    assert capsys.readouterr().err == (
        "jaxalign train: stopped after step 3; state saved; this goes on:\n"
        "  jaxalign train --config=sft '--workdir=my runs/one' '--config.data.train=a b.jsonl'\n"
    )
