"""Evaluation during training: every set apart and all together, and answers to held-out prompts, by value."""

import json
import pathlib

import jax
import numpy as np
import pytest
from tiny import (
    assert_same_bits,
    final_state,
    history,
    make_config,
    reward_function,
    run,
)

import jaxalign
from jaxalign import parallel
from jaxalign.errors import ConfigError
from jaxalign.stages import parse_config
from jaxalign.training.open import open_run
from jaxalign.training.samples import choose_prompts
from jaxalign.training.writer import SAMPLES, MetricWriter


def evaluate(stage, runs, workdir, devices=1, **changes):
    """The evaluation of the model that a run starts from."""
    config = parse_config(make_config(stage, runs, **changes))
    with parallel.use_mesh(parallel.make_mesh(config.mesh, jax.devices()[:devices])):
        trainer = config.stage.build(open_run(config, workdir))
        return trainer.evaluate(trainer.init(), lambda: True)


@pytest.fixture
def split(tmp_path):
    """(file, sizes) -> the rows of a file in files of so many, and how a config names them."""

    def cut(path, *sizes):
        rows, names, start = path.read_text().splitlines(), [], 0
        for size, folder in zip(sizes, ("new", "old"), strict=True):
            (tmp_path / folder).mkdir()
            names.append(tmp_path / folder / "test.jsonl")
            names[-1].write_text("".join(row + "\n" for row in rows[start : start + size]))
            start += size
        (tmp_path / "both.jsonl").write_text("".join(row + "\n" for row in rows[:start]))
        return [str(name) for name in names], str(tmp_path / "both.jsonl")

    return cut


FAMILIES = [
    ("sft", "sft", "nll"),
    pytest.param("orpo", "pairs", "nll_loss", marks=pytest.mark.slow),  # two sums to divide by
]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "file", "name"), FAMILIES)
def test_each_set_is_what_it_is_alone_and_all_are_one_set_together(stage, file, name, runs, split, tmp_path):
    parts, both = split(runs / f"{file}.jsonl", 5, 7)
    data = {"data.train": str(runs / f"{file}.jsonl"), "batch_size": 2}
    found = evaluate(stage, runs, tmp_path, **data, **{"data.eval": ",".join(parts)})
    whole = evaluate(stage, runs, tmp_path, **data, **{"data.eval": both})
    assert {f"eval/{part}/{x.removeprefix('eval/')}" for part in ("new-test", "old-test") for x in whole} | {
        *whole
    } == {*found}
    for key, value in whole.items():
        assert found[key] == pytest.approx(value, rel=2e-5, abs=1e-6), key
    for part, path in zip(("new-test", "old-test"), parts, strict=True):
        alone = evaluate(stage, runs, tmp_path, **data, **{"data.eval": path})
        for key, value in alone.items():
            own = found[f"eval/{part}/{key.removeprefix('eval/')}"]
            assert own == pytest.approx(value, rel=2e-5, abs=1e-6), key
    assert found[f"eval/new-test/{name}"] != pytest.approx(found[f"eval/old-test/{name}"], rel=1e-3)


def test_a_share_of_several_sources_is_measured_by_source(runs, tmp_path):
    """The weighted mean over the tokens of both, as NumPy has it from the two."""
    changes = {"data.train": f"{runs}/sft.jsonl,{runs}/pretrain.jsonl", "data.eval_fraction": 0.2}
    config = parse_config(make_config("sft", runs, **changes))
    with parallel.use_mesh(parallel.make_mesh(config.mesh, jax.devices()[:1])):
        opened = open_run(config, tmp_path)
        trainer = config.stage.build(opened)
        found = trainer.evaluate(trainer.init(), lambda: True)
    rows = opened.held_out.rows
    tokens = {
        name: sum(float(rows.items[i].mask.sum()) for row in span for i in rows.bins[row])
        for name, span in opened.eval_sets.items()
    }
    assert [*tokens] == ["sft", "pretrain"] and min(tokens.values()) > 0
    mean = np.average([found[f"eval/{name}/loss"] for name in tokens], weights=[*tokens.values()])
    assert found["eval/loss"] == pytest.approx(mean, rel=1e-6)


@pytest.mark.slow
def test_of_a_stage_that_samples_too(runs, split, tmp_path):
    parts, _ = split(runs / "prompts.jsonl", 3, 9)
    given = {"data.eval": ",".join(parts), "data.max_length": 48}
    given |= {"grpo.reward": "tiny:prompt_length_reward"}
    found = evaluate("grpo", runs, tmp_path, **given)
    for part, path in zip(("new-test", "old-test"), parts, strict=True):
        lengths = [len(json.loads(line)["prompt"]) for line in pathlib.Path(path).read_text().splitlines()]
        assert found[f"eval/{part}/objective/scores"] == pytest.approx(np.mean(lengths), rel=1e-6)
    mean = (3 * found["eval/new-test/objective/scores"] + 9 * found["eval/old-test/objective/scores"]) / 12
    assert found["eval/objective/scores"] == pytest.approx(mean, rel=1e-6)


def read_samples(workdir):
    return [json.loads(line) for line in (workdir / SAMPLES).read_text().split("\n")[:-1]]


@pytest.mark.slow
def test_answers_to_held_out_prompts_are_those_of_the_model_and_change_no_training(runs, tmp_path):
    changes = {"num_steps": 2, "eval_every": 1, "data.eval": str(runs / "sft.jsonl")}
    run("sft", runs, tmp_path / "off", **changes)
    assert not (tmp_path / "off" / SAMPLES).exists()
    run("sft", runs, tmp_path / "one", log_samples=3, **changes)
    assert_same_bits(final_state(tmp_path / "one"), final_state(tmp_path / "off"))
    assert history(tmp_path / "one", "eval") == history(tmp_path / "off", "eval")
    rows = [json.loads(line) for line in (runs / "sft.jsonl").read_text().splitlines()[:3]]
    model = jaxalign.load(tmp_path / "one")
    found = read_samples(tmp_path / "one")
    assert [sample["step"] for sample in found] == [1, 1, 1, 2, 2, 2]
    for number, (row, sample) in enumerate(zip(rows, found[3:], strict=True), 1):
        assert row["prompt"] in sample["prompt"] and sample["reference"] == row["completion"]
        assert sample["row"] == f"{runs / 'sft.jsonl'}:{number}" and "score" not in sample
        (wanted,) = model.generate(row["prompt"], n=1, max_new_tokens=128, temperature=0.0)
        assert sample["completion"] == wanted


@pytest.mark.slow
@pytest.mark.parametrize("call", ["write", "write_samples"])
def test_a_run_that_ends_between_the_lines_of_an_evaluation_writes_both(call, runs, tmp_path, monkeypatch):
    changes = {"num_steps": 2, "data.eval": str(runs / "sft.jsonl"), "log_samples": 2}
    run("sft", runs, tmp_path / "whole", **changes)
    real = getattr(MetricWriter, call)

    def killed(self, step, values, **kind):
        if call == "write_samples" or kind:
            raise MemoryError("here")
        real(self, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, call, killed)
        with pytest.raises(MemoryError, match="here"):
            run("sft", runs, tmp_path / "killed", **changes)
    run("sft", runs, tmp_path / "killed", **changes)
    for kind in ("train", "eval"):
        assert history(tmp_path / "killed", kind) == history(tmp_path / "whole", kind)
    samples, wanted = (read_samples(tmp_path / name) for name in ("killed", "whole"))
    assert samples == wanted and len(samples) == 2


@pytest.mark.parametrize(
    ("stage", "file", "reference"),
    [
        ("dpo", "pairs", "chosen"),
        ("orpo", "rankings", None),
        ("kto", "unpaired", "completion"),
        ("pretrain", "pretrain", ""),
    ],
)
def test_the_prompt_of_a_pair_or_a_text_is_answered(stage, file, reference, runs, tmp_path):
    config = parse_config(make_config(stage, runs, **{"data.eval": str(runs / f"{file}.jsonl")}))
    with parallel.use_mesh(parallel.make_mesh(config.mesh, jax.devices()[:1])):
        asked = [x.beside for x in choose_prompts(open_run(config, tmp_path), 2)]
    rows = [json.loads(line) for line in (runs / f"{file}.jsonl").read_text().splitlines()]
    for number, (row, sample) in enumerate(zip(rows[:2], asked, strict=True), 1):
        assert sample["row"] == f"{runs / file}.jsonl:{number}"
        if reference == "":  # a text is its beginning and what follows
            beginning = sample["prompt"].removeprefix("<bos>")
            assert row["text"].startswith(beginning + sample["reference"]) and beginning
            continue
        assert row["prompt"] in sample["prompt"]
        best = (
            max(zip(row["scores"], row["responses"], strict=True))[1] if reference is None else row[reference]
        )
        assert sample["reference"] == best


@pytest.mark.slow
def test_answers_of_a_stage_that_samples_are_its_evaluations(runs, tmp_path):
    lines = (runs / "prompts.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"answer": f"no {i}"} for i, line in enumerate(lines)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
    changes = {
        "num_steps": 2,
        "eval_every": 1,
        "data.eval": str(tmp_path / "held.jsonl"),
        "data.max_length": 48,
    }
    changes["grpo.reward"] = "tiny:reward_function"
    for name, count in (("off", 0), ("on", None)):
        run("grpo", runs, tmp_path / name, log_samples=count, **changes)
    assert_same_bits(final_state(tmp_path / "on"), final_state(tmp_path / "off"))
    assert history(tmp_path / "on", "eval") == history(tmp_path / "off", "eval")
    found = read_samples(tmp_path / "on")
    assert not (tmp_path / "off" / SAMPLES).exists() and [x["step"] for x in found] == [1] * 4 + [2] * 4
    for row, sample in zip(rows[:4] * 2, found, strict=True):
        assert row["prompt"] in sample["prompt"] and sample["reference"] == row["answer"]
        assert sample["score"] == pytest.approx(
            reward_function(row["prompt"], sample["completion"]), rel=1e-6
        )


def test_samples_that_cannot_be_are_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.log_samples=2: the prompts are those of held-out data"):
        run("sft", runs, tmp_path, log_samples=2)
    with pytest.raises(ConfigError, match=r"config\.log_samples=2: a reward model writes no text"):
        run("reward", runs, tmp_path, log_samples=2, **{"data.eval": str(runs / "pairs.jsonl")})
