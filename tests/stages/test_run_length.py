"""How long a run is, what it says of it, and that no part of it is left out."""

import contextlib
import json

import jax
import numpy as np
import pytest
from tiny import assert_tree_close, final_state, history, make_config, run, write_jsonl

from jaxalign import parallel
from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.stages import parse_config, train
from jaxalign.training.introduction import warnings
from jaxalign.training.loop import Stopped
from jaxalign.training.open import open_run

ROWS = [
    {"prompt": f"who wrote {word}?", "completion": "the fox"}
    for word in ("this", "that", "a", "the", "reply")
]


def few(tmp_path, count=5):
    return {
        "data.train": write_jsonl(tmp_path / "few.jsonl", ROWS[:count]),
        "data.packing": False,
        "num_steps": 0,
    }


def params(workdir):
    return {
        name: x for name, x in final_state(workdir).items() if name.startswith(("params/", "policy/params/"))
    }


@pytest.mark.parametrize("stage", ["sft", pytest.param("ppo", marks=pytest.mark.slow)])
def test_a_batch_of_one_row_trains(stage, runs, tmp_path):
    run(stage, runs, tmp_path, num_steps=2, batch_size=1)
    assert [step for step, _ in history(tmp_path)] == [1, 2]


@pytest.mark.slow
def test_empty_rows_at_the_end_of_an_epoch_change_nothing(runs, tmp_path):
    """5 rows in a batch of 8 are trained on as 5 rows in a batch of 5."""
    for size in (5, 8):
        run("sft", runs, tmp_path / str(size), batch_size=size, **few(tmp_path))
        assert len(history(tmp_path / str(size))) == 1
    assert_tree_close(params(tmp_path / "8"), params(tmp_path / "5"), 1e-6)


@pytest.mark.slow
def test_ppo_trains_on_the_prompts_that_there_are(runs, tmp_path):
    """With one minibatch a rollout of 8 rows, 3 of them empty, has the tokens of 5 episodes."""
    changes = few(tmp_path) | {
        "data.train": write_jsonl(tmp_path / "p.jsonl", [{"prompt": r["prompt"]} for r in ROWS])
    }
    run("ppo", runs, tmp_path / "run", batch_size=8, **changes)
    ((_, values),) = history(tmp_path / "run")
    state = final_state(tmp_path / "run")
    assert (state["rollout/mask"].sum(1) > 0).sum() == 5
    assert np.isfinite(values["loss"]) and values["val/ratio"] == pytest.approx(1, abs=0.2)


@pytest.mark.slow
def test_the_first_line_says_epochs_and_what_the_last_batch_holds(runs, tmp_path, capsys):
    def said(**changes):
        config = parse_config(make_config("sft", runs, **few(tmp_path), **changes))
        train(config, tmp_path / "run", devices=jax.devices()[:1])
        return capsys.readouterr().out

    out = said(batch_size=4, num_epochs=1.0)
    assert "2 of 2 steps to go = 1 epochs in all; a step is 4 rows, about " in out
    assert "the learning rate begins at 0.001, constant" in out
    assert "warning: only 2 steps" in out and "config.num_epochs=10" in out
    assert "the last batch holds 1 row and 3 empty ones" in out


@pytest.mark.slow
def test_rows_that_cannot_be_used_are_left_out_and_written_down(runs, tmp_path, capsys):
    bad = [{"prompt": "who?", "completion": ""}, {"prompt": "who?"}]
    mixed = write_jsonl(tmp_path / "mixed.jsonl", [bad[0], *ROWS[:3], bad[1], *ROWS[3:]])
    changes = few(tmp_path) | {"batch_size": 4}
    run("sft", runs, tmp_path / "good", **changes)
    changes |= {"data.train": mixed, "data.invalid": "drop"}
    train(parse_config(make_config("sft", runs, **changes)), tmp_path / "mixed", devices=jax.devices()[:1])
    assert f"2 rows left out as invalid: see {tmp_path}/mixed/dropped.jsonl" in capsys.readouterr().out
    dropped = [json.loads(line) for line in (tmp_path / "mixed/dropped.jsonl").read_text().splitlines()]
    assert [(row["row"], row["data"]) for row in dropped] == [(1, bad[0]), (5, bad[1])]
    good, left = (params(tmp_path / name) for name in ("good", "mixed"))
    assert good.keys() == left.keys() and all(np.array_equal(good[name], left[name]) for name in good)
    # The run goes on with the file mended, and not with another one.
    changes |= {
        "data.train": write_jsonl(tmp_path / "mended.jsonl", ROWS),
        "data.invalid": "stop",
        "num_epochs": 2.0,
    }
    run("sft", runs, tmp_path / "mixed", **changes)
    with pytest.raises(
        CheckpointError, match="the training data or its tokenisation is not what this run began with"
    ):
        run("sft", runs, tmp_path / "mixed", **changes | {"data.train": few(tmp_path, 4)["data.train"]})


@pytest.mark.slow
def test_what_looks_wrong_is_said_with_the_way_out(runs, tmp_path, capsys):
    def said(name, **changes):
        config = make_config("sft", runs, data__train=rows, num_steps=0, **changes)
        train(parse_config(config), tmp_path / name, devices=jax.devices()[:1])
        return capsys.readouterr().out

    rows = write_jsonl(tmp_path / "rows.jsonl", ROWS * 8)
    out = said("one", batch_size=64, num_epochs=1.0)
    assert "warning: config.num_epochs=1 is a single step, as a batch holds all rows" in out
    assert "or 0 to have it chosen" in out
    out = said("apart", batch_size=8, num_epochs=1.0, data__packing=False)
    assert "warning: only 5 steps" in out
    assert "set config.batch_size=2 in place of 8 or config.num_epochs=4" in out
    open_keys = {"batch_size": 0, "data__row_length": 0, "data__max_segments": 0, "num_microbatches": 0}
    out = said("chosen", num_epochs=1.0, optimizer__warmup=0.1, **open_keys)
    assert "20 of 20 steps to go = 1 epochs in all; a step is " in out
    assert "warning" not in out and "rises for 2 steps to 0.001" in out
    assert (
        "chosen where the config leaves it open: data.row_length=" in out and "few data: not 128 rec" in out
    )


@pytest.mark.slow
def test_what_was_chosen_is_written_and_kept(runs, tmp_path):
    """On other devices and with another batch to be chosen, the run goes on with the one that it began with."""
    changes = {"batch_size": 0, "optimizer.learning_rate": 0.0, "data.row_length": 0, "num_steps": 2}
    changes |= {"data.max_length": 0, "num_microbatches": 0}
    with pytest.raises(Stopped):
        run("sft", runs, tmp_path, devices=2, stop_at=lambda step, phase: step == 1, **changes)
    written = json.loads((tmp_path / "settings.json").read_text())
    keys = ("batch_size", "optimizer.learning_rate", "data.row_length", "data.max_length", "num_microbatches")
    first = {key: written[f"config.{key}"] for key in keys}
    assert first["optimizer.learning_rate"] == 1e-3 and first["data.max_length"] == 512
    assert first["batch_size"] % 2 == 0 and first["num_microbatches"] == 1
    run("sft", runs, tmp_path, devices=1, **changes)
    written = json.loads((tmp_path / "settings.json").read_text())
    assert {key: written[f"config.{key}"] for key in keys} == first
    assert [step for step, _ in history(tmp_path)] == [1, 2]


@pytest.mark.slow
def test_rows_that_take_no_more_sequences_are_told(runs, tmp_path, capsys):
    for number, (segments, told) in enumerate(((2, True), (0, False))):
        config = make_config("sft", runs, data__max_segments=segments, num_steps=1)
        train(parse_config(config), tmp_path / str(number), devices=jax.devices()[:1])
        out = capsys.readouterr().out
        assert (
            "take no more sequences, though they have room: raise config.data.max_segments=2" in out
        ) == told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "changes", "told"),
    [
        ("sft", {}, None),
        ("sft", {"data.row_length": 97}, (97, "data.row_length=100")),
        ("distill", {}, None),  # prompts of 16 tokens and answers of 8
        ("distill", {"distill.sampling.max_new_tokens": 9}, (25, "distill.sampling.max_new_tokens=8")),
        ("distill", {"distill.sampling.max_new_tokens": 1}, (17, "distill.sampling.max_new_tokens=4")),
    ],
)
def test_rows_that_the_context_axis_does_not_split_are_told(stage, changes, told, runs, tmp_path):
    changes = {"mesh.data": 2, "mesh.context": 4} | changes
    config = parse_config(make_config(stage, runs, **changes))
    with parallel.use_mesh(parallel.make_mesh(config.mesh)):
        found = [line for line in warnings(open_run(config, tmp_path)) if "config.mesh.context" in line]
    if told is None:
        assert not found
    else:
        length, way_out = told
        (line,) = found
        assert line.startswith(
            f"rows of {length} tokens cannot be split over config.mesh.context=4, and every"
        )
        assert line.endswith(f": set config.{way_out}")


@pytest.mark.slow
def test_prompts_have_rows_of_their_own_and_that_is_no_fault(runs, tmp_path, capsys):
    config = make_config("ppo", runs, num_steps=1)
    train(parse_config(config), tmp_path, devices=jax.devices()[:1])
    assert "max_segments" not in capsys.readouterr().out


def test_rows_of_many_tokens_take_many_sequences(runs, tmp_path):
    config = parse_config(make_config("sft", runs, data__max_segments=0, data__row_length=16_384))
    assert config.data.segments == 512
    assert parse_config(make_config("sft", runs, data__max_segments=0)).data.segments == 32


@pytest.mark.slow
def test_a_run_says_where_it_goes_on_and_that_it_is_finished(runs, tmp_path, capsys):
    def said(stage, **changes):
        config = make_config(stage, runs, num_steps=4, optimizer__schedule="linear", **changes)
        with contextlib.suppress(Stopped):
            train(
                parse_config(config),
                tmp_path,
                devices=jax.devices()[:1],
                stop_at=lambda step, phase: step == 3,
            )
        return capsys.readouterr().out

    out = said("dpo", dpo__beta=0.3)
    assert "\n4 of 4 steps to go" in out and "config.dpo: beta=0.3; the rest as in docs/config.md" in out
    out = said("dpo", dpo__beta=0.3)
    assert (
        "\ngoes on after step 3: 1 of 4 steps to go" in out
        and "begins at 0.001, linear, now 0.00025\n" in out
    )
    assert said("dpo", dpo__beta=0.3) == f"{tmp_path}: all of its 4 steps are done; nothing is trained\n"
    with pytest.raises(
        CheckpointError, match=r"a run of the stage dpo lies there, and this is sft; name another --w"
    ):
        said("sft")


@pytest.mark.slow
def test_a_run_that_has_done_more_than_is_asked_for_is_refused(runs, tmp_path):
    run("sft", runs, tmp_path, num_steps=3)
    before = final_state(tmp_path, "model")
    with pytest.raises(
        ConfigError, match=r"has done 3 steps, and config.num_steps=2 are asked for; ask for more"
    ):
        run("sft", runs, tmp_path, num_steps=2)
    assert final_state(tmp_path, "model").keys() == before.keys()
    run("sft", runs, tmp_path, num_steps=4)
    assert [step for step, _ in history(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        ({"schedule": "linear", "warmup_steps": 4}, 5e-4),
        ({"schedule": "wsd", "warmup_steps": 4}, 1e-3),
        ({"schedule": "linear", "warmup": 0.67}, 5e-4),
    ],
)
def test_ppo_warms_up_over_updates(schedule, last, runs, tmp_path):
    """Two rollouts with three updates each: a warm-up of four updates is longer than the rollouts, and fits."""
    changes = {f"optimizer.{key}": value for key, value in schedule.items()}
    run("ppo", runs, tmp_path, num_steps=2, ppo__ppo_epochs=3, **changes)
    rates = [values["learning_rate"] for _, values in history(tmp_path)]
    warm = [1e-3 * min(1, (step + 1) / 5) for step in range(4)]
    assert rates[0] == pytest.approx(warm[2], rel=1e-5)  # of the last of its updates
    assert rates[1] == pytest.approx(last, rel=1e-5)
