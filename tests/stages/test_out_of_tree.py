"""A stage in one file of a user's own, of which jaxalign knows nothing: it is trained, audited and planned."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from tiny import final_state, history, make_config, run, write_jsonl

import jaxalign
from jaxalign.cli import main
from jaxalign.losses import masked_mean, normalized
from jaxalign.stages import parse_config, train

ROOT = pathlib.Path(__file__).parents[2]

# SimPO (arXiv 2405.14734), equation 6.
SIMPO = """
import dataclasses

import jax
import jax.numpy as jnp

import jaxalign
from jaxalign.losses import masked_mean, normalized


@dataclasses.dataclass(frozen=True)
class SimPOConfig:
    beta: float = 2.0
    gamma: float = 1.0


def totals(batch, options):
    return {"pairs": batch.weight.sum()}


def loss(policy, batch, frozen, options, total):
    sums, lengths = batch.pair_sums(policy.logp), batch.pair_lengths()
    chosen, rejected = (options.beta * x / jnp.maximum(n, 1) for x, n in zip(sums, lengths))
    losses = -jax.nn.log_sigmoid(chosen - rejected - options.gamma)
    metrics = {"rewards/margins": masked_mean(chosen - rejected, batch.weight)}
    return normalized(masked_mean(losses, batch.weight), total["pairs"]), metrics


STAGE = jaxalign.Stage("simpo", data=jaxalign.data.PAIRS, options=SimPOConfig, loss=loss, totals=totals)


def get_config(arg=""):
    return jaxalign.default_config(STAGE)
"""
OPTIMIZER = {"learning_rate": 1e-3, "eps": 1e-3, "schedule": "constant"}


@pytest.fixture
def simpo(tmp_path):
    def write(*changes: tuple[str, str]) -> str:
        text = SIMPO
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "my_simpo.py").write_text(text)
        return str(tmp_path / "my_simpo.py")

    return write


def flags(file: str, runs: pathlib.Path) -> list[str]:
    values = {"num_steps": 3, "batch_size": 8, "log_every": 1, "model.init_from": runs / "sft"}
    values |= {"data.train": runs / "pairs.jsonl", "data.eval": runs / "pairs.jsonl", "data.overlap": "allow"}
    values |= {"data.max_length": 48, "data.row_length": 96, "data.max_segments": 8}
    values |= {f"optimizer.{key}": value for key, value in OPTIMIZER.items()}
    return [f"--config={file}", *(f"--config.{key}={value}" for key, value in values.items())]


@pytest.mark.slow
def test_its_numbers_are_those_of_dpo_with_the_same_settings(simpo, runs, tmp_path, capsys):
    assert len(SIMPO.strip().splitlines()) <= 40
    asked = [*flags(simpo(), runs), "--config.simpo.gamma=0.5"]
    assert main(["train", *asked, f"--workdir={tmp_path / 'simpo'}"]) == 0
    assert "simpo: 3 steps" in capsys.readouterr().out
    settings = {"beta": 2.0, "target_margin": 0.5, "length_normalized": True, "reference_free": True}
    changes = {f"dpo__{key}": value for key, value in settings.items()}
    run("dpo", runs, tmp_path / "dpo", devices=8, data__eval=str(runs / "pairs.jsonl"), **changes)
    for kind in ("train", "eval"):
        mine, theirs = (history(tmp_path / name, kind) for name in ("simpo", "dpo"))
        assert len(mine) == len(theirs) > 0
        for (step, values), (_, wanted) in zip(mine, theirs, strict=True):
            # DPO reports the margin of sums, as TRL does, whatever its loss is of.
            same = (values.keys() & wanted.keys()) - {"rewards/margins"}
            assert same >= {"loss", *(["grad_norm"] if kind == "train" else [])}
            for name in same:
                assert values[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-6), (step, name)
    got, wanted = final_state(tmp_path / "simpo"), final_state(tmp_path / "dpo")
    for name, x in wanted.items():
        if name.startswith("params/"):
            assert abs(got[name] - x).max() < 1e-6, name


def test_it_is_audited(simpo, runs, capsys):
    assert main(["audit", *flags(simpo(), runs)]) in (0, 1)  # 1: the tiny data have problems of their own
    said = capsys.readouterr()
    assert "pairs.jsonl" in said.out and "Traceback" not in said.err and "jaxalign audit:" not in said.err


@pytest.mark.slow
def test_it_is_planned_for_a_slice_that_is_not_here(simpo, runs, tmp_path):
    command = [sys.executable, "-m", "jaxalign", "plan", *flags(simpo(), runs)]
    done = subprocess.run(
        [*command, "--topology=v5e:2x2", f"--json={tmp_path / 'plan.json'}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["stage"] == "simpo" and found["chips"] == 4
    assert [step["fits"] for step in found["steps"]] == [True] and found["steps"][0]["model_flops"] > 0


MEAN = 'return normalized(masked_mean(losses, batch.weight), total["pairs"]), metrics'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("jaxalign.data.PAIRS", '"preferences"'),
            "'preferences' is no kind of data; did you mean 'preference'?",
        ),
        (('"simpo", data', '"dpo", data'), "'dpo' is one of jaxalign's own; give yours another name"),
        (
            (MEAN, "return normalized(masked_mean(losses, batch.weight)), losses.mean()"),
            "my_simpo.loss) returns (float32[], float32[]); return (loss, metrics)",
        ),
        ((MEAN, "return losses.mean()"), "return (loss, metrics), a dict of metrics"),
        ((MEAN, "return losses, metrics"), "returns a loss of type float32[8, 4]; return one float32 number"),
        ((MEAN, "return 0.5, metrics"), "returns a loss of type float; return one float32 number"),
        (
            (MEAN, 'return losses.mean(), {"accuracy": 0.5}'),
            "its metric 'accuracy' is float; give a Mean, Max or Min of jaxalign.losses",
        ),
        (
            ('total["pairs"]', 'total["pair"]'),
            "the loss of stage 'simpo' (jaxalign.config_file.my_simpo.loss) reads 'pair'",
        ),
        (("policy.logp", 'frozen["reference"].logp'), "its `frozen` has no model"),
        (('{"pairs": batch.weight.sum()}', "batch.weight.sum()"), "the totals of stage 'simpo'"),
        (
            ('{"pairs": batch.weight.sum()}', '{"pairs": batch.weight}'),
            "'pairs' is float32[8, 4]; give one float32",
        ),
    ],
)
def test_mistakes_in_it_are_named(change, said, simpo, runs, tmp_path, capsys):
    assert main(["train", *flags(simpo(change), runs), f"--workdir={tmp_path / 'run'}"]) == 1
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("flag", "code", "said"),
    [
        ("--config.simpo.gama=1.0", 2, "did you mean --config.simpo.gamma=1.0?"),
        ("--config.simpo.beta=strong", 2, "config.simpo.beta=strong"),
        ("--config.stage=simp", 1, "stage.simp does not exist; did you mean stage.simpo?"),
    ],
)
def test_flags_that_cannot_work_are_named(flag, code, said, simpo, runs, tmp_path, capsys):
    assert main(["train", *flags(simpo(), runs), flag, f"--workdir={tmp_path / 'run'}"]) == code
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


@dataclasses.dataclass(frozen=True)
class TaughtConfig:
    teacher: str = ""


def taught_loss(policy, batch, frozen, options, total):
    """The NLL of what was chosen; what a teacher says of both is told."""
    mine, _ = batch.pair_sums(policy.logp)
    sides = zip(("chosen", "rejected"), batch.pair_sums(frozen["teacher"].logp), strict=True)
    metrics = {f"teacher/{side}": masked_mean(x, batch.weight) for side, x in sides}
    return normalized(masked_mean(-mine, batch.weight), total["pairs"]), metrics


TAUGHT = jaxalign.Stage(
    "taught",
    jaxalign.data.PAIRS,
    TaughtConfig,
    taught_loss,
    lambda batch, options: {"pairs": batch.weight.sum()},
    reads=lambda batch, options: batch.loss_mask,
    frozen=lambda options: {
        "teacher": jaxalign.training.stage.FrozenModel(options.teacher, "config.taught.teacher")
    },
)


@pytest.mark.slow
def test_a_teacher_reads_whole_sequences_where_it_cannot_read_shared_ones(runs, tmp_path):
    """Of "longrope" the positions of a prompt depend on how long the answer is: here only the rejected one is long."""
    model = jaxalign.load(runs / "sft")
    pairs = model.config.rotary_dim // 2
    longrope = {"rope_scaling": "longrope", "rope_factor": 16.0, "rope_original_length": 30}
    longrope |= {"rope_short_factors": (1.0,) * pairs, "rope_long_factors": (8.0,) * pairs}
    config = dataclasses.replace(model.config, **longrope)
    dataclasses.replace(model, config=config).save(tmp_path / "teacher")
    jaxalign.default_config(TAUGHT)  # which makes it known
    rows = [
        {
            "prompt": f"who wrote this reply to that question {word}?",
            "chosen": "a fox",
            "rejected": "the quick brown fox jumps over a lazy dog",
        }
        for word in ("fox", "dog", "over", "lazy", "quick", "brown", "asks", "jumps")
    ]
    changes = {"data.train": write_jsonl(tmp_path / "rows.jsonl", rows), "data.max_length": 96}
    changes |= {"data.row_length": 192, "taught.teacher": str(tmp_path / "teacher"), "num_steps": 1}
    found = {}
    for sharing in (True, False):
        values = make_config(TAUGHT, runs, **changes, **{"data.share_prompts": sharing})
        values.data.eval = values.data.train
        config = parse_config(values)
        found[sharing] = train(config, tmp_path / str(sharing), devices=jax.devices()[:1], quiet=True)["eval"]
    for side in ("chosen", "rejected"):
        assert found[True][f"teacher/{side}"] == pytest.approx(found[False][f"teacher/{side}"], abs=1e-4)
