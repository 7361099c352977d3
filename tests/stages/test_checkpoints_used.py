"""Any checkpoint of a run is a model: by its step, as the latest or the best, wherever a model is named."""

import json
import shutil

import jax
import numpy as np
import pytest
from tiny import assert_same_bits, final_state, run, set_reward_function

import jaxalign
from jaxalign import parallel
from jaxalign.cli import main
from jaxalign.errors import CheckpointError
from jaxalign.training.loop import Stopped
from jaxalign.training.saved_model import find_model

EVERY = {"checkpoint_every": 1, "keep_checkpoints": 9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sft")


@pytest.fixture
def sft(runs, folder):
    """A run of three steps that keeps all of them, and a best one; made in the first test."""
    changes = {"eval_every": 1, "best.metric": "loss", "data.eval": str(runs / "sft.jsonl")}
    if not (folder / "summary.json").exists():
        run("sft", runs, folder, **EVERY, **changes, **{"optimizer.learning_rate": 1e-2})
    return folder


def leaves(place):
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    with parallel.use_mesh(mesh):
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
            for path, x in jax.tree_util.tree_flatten_with_path(find_model(str(place), "--model").load(mesh))[
                0
            ]
        }


def at(workdir, position, prefix="params/"):
    only = workdir / f"only-{position}"
    if not only.exists():
        only.mkdir()
        (only / str(position)).symlink_to(workdir / "checkpoints" / str(position))
    return {
        name.removeprefix(prefix): x
        for name, x in final_state(workdir, only.name).items()
        if name.startswith(prefix)
    }


def test_a_step_the_latest_and_the_best_are_these_very_weights(sft):
    for place, position in (("@1", 1), ("@2", 2), ("@3", 3), ("@latest", 3), ("/checkpoints/2", 2)):
        assert_same_bits(leaves(f"{sft}{place}"), at(sft, position))
    assert_same_bits(leaves(sft), at(sft, 3))
    best = json.loads((sft / "summary.json").read_text())["best"]
    assert best["metric"] == "loss" and best["step"] in (1, 2, 3)
    assert_same_bits(leaves(f"{sft}@best"), at(sft, best["position"]))
    assert (leaves(f"{sft}@1")["embedding"] != leaves(f"{sft}@2")["embedding"]).any()


@pytest.mark.slow
def test_a_stopped_run_gives_its_latest_checkpoint_and_says_so(runs, tmp_path, capsys):
    half = tmp_path / "half"
    with pytest.raises(Stopped):
        run("pretrain", runs, half, stop_at=lambda *now: now == (2, 0))
    capsys.readouterr()
    assert_same_bits(leaves(half), at(half, 2))
    said = f"--model='{half}': that run has not ended; its latest checkpoint is taken, after step 2 of 3\n"
    assert capsys.readouterr().err == said
    run("sft", runs, tmp_path / "sft", num_steps=1, **{"model.init_from": str(half)})
    assert jaxalign.load(half).generate("who", n=2, max_new_tokens=3) == jaxalign.load(f"{half}@2").generate(
        "who", n=2, max_new_tokens=3
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "prefix"),
    [
        ({}, "policy/params/"),
        ({"ppo.average_decay": 0.5}, "average/"),
    ],
)
def test_of_ppo_a_checkpoint_is_the_policy_and_steps_are_not_phases(changes, prefix, runs, tmp_path):
    with pytest.raises(Stopped):
        run("ppo", runs, tmp_path, **EVERY, **changes, stop_at=lambda *now: now == (2, 1))
    assert sorted(int(x.name) for x in (tmp_path / "checkpoints").iterdir()) == [2, 4, 5]
    for place, position in (("@1", 2), ("@2", 4), ("@latest", 5)):
        assert_same_bits(leaves(f"{tmp_path}{place}"), at(tmp_path, position, prefix))


@pytest.mark.slow
def test_every_place_that_takes_a_model_takes_a_checkpoint(sft, runs, tmp_path, capsys):
    at_1, judge = f"{sft}@1", tmp_path / "judge"
    with pytest.raises(Stopped):
        run("reward", runs, judge, stop_at=lambda *now: now == (2, 0))
    run(
        "ppo",
        runs,
        tmp_path / "ppo",
        num_steps=1,
        **{"model.init_from": at_1, "ppo.reward": f"{judge}@2"},
    )
    run("distill", runs, tmp_path / "distill", num_steps=1, **{"distill.teacher": f"{sft}@best"})
    prompts = f"--prompts={runs / 'prompts.jsonl'}"
    short = "--max-new-tokens=4"
    generated = tmp_path / "g.jsonl"
    assert main(["generate", f"--model={at_1}", prompts, f"--out={generated}", "--n=2", short]) == 0
    rewards = "--reward=tiny:reward_function"
    more = [f"--reference={sft}@3", "--take=8", short]
    assert main(["evaluate", f"--model={at_1}", prompts, rewards, *more]) == 0
    apart = capsys.readouterr().out
    assert (
        main(["evaluate", f"--model={at_1}", prompts, rewards, f"--reference={at_1}", "--take=8", short]) == 0
    )
    same = capsys.readouterr().out
    nats = [
        float(next(x for x in out.splitlines() if x.startswith("KL")).split()[1]) for out in (apart, same)
    ]
    assert nats[0] > 0.001 and nats[1] == 0
    assert (
        main(
            [
                "convert",
                f"--from={sft}/checkpoints/2",
                f"--out={tmp_path / 'hf'}",
                "--to=hf",
                "--dtype=float32",
            ]
        )
        == 0
    )
    assert_same_bits(leaves(tmp_path / "hf"), at(sft, 2))


def test_a_checkpoint_that_is_not_there_lists_those_that_are(sft, runs, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"--model='.*@7': no checkpoint of step 7; those of .* are of step 1, 2, 3 "
    ):
        find_model(f"{sft}@7", "--model")
    with pytest.raises(
        CheckpointError, match=r"behind @ stands a step, best or latest, not 'bset'; those of .* 1, 2, 3"
    ):
        find_model(f"{sft}@bset", "--model")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint is the best: config.best.metric says of what; those of"
    ):
        find_model(f"{runs / 'sft'}@best", "--model")
    with pytest.raises(
        CheckpointError, match=r"init_from='.*quickstart/pretrain': no .*`jaxalign quickstart`"
    ):
        run("sft", runs, tmp_path / "a", **{"model.init_from": "quickstart/pretrain"})


def test_a_run_that_goes_on_may_remove_what_is_being_read(sft, runs, tmp_path):
    """The newest is followed; a step that was named is not replaced by another one in silence."""
    folder = tmp_path / "run"
    shutil.copytree(sft, folder)
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "3")
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    latest, named = find_model(f"{folder}@latest", "--model"), find_model(f"{folder}@2", "--model")
    read = latest.leaf_reader(mesh)
    shutil.copytree(sft / "checkpoints" / "3", folder / "checkpoints" / "3")
    shutil.rmtree(folder / "checkpoints" / "2")
    with parallel.use_mesh(mesh):
        np.testing.assert_array_equal(latest.load(mesh)["embedding"], at(sft, 3)["embedding"])
        with pytest.raises(CheckpointError, match="checkpoints/2 was removed while it was read"):
            named.load(mesh)
        with pytest.raises(CheckpointError):  # never leaves of two steps
            read(("embedding",))


@pytest.mark.slow
def test_a_running_run_is_exported_without_its_lock(sft, runs, tmp_path):
    """A run that is between two steps, and holds its lock, is converted by another program; it goes on unharmed."""
    out = tmp_path / "hf"

    def convert_once(step, phase):
        if step == 2:
            assert (
                main(["convert", f"--from={tmp_path / 'run'}", f"--out={out}", "--to=hf", "--dtype=float32"])
                == 0
            )
        return False

    # Else the checkpoint of step 1 may still be on its way.
    changes = {"optimizer.learning_rate": 1e-2, "checkpoint_every": 1, "async_save": False}
    run("sft", runs, tmp_path / "run", stop_at=convert_once, **changes)
    assert_same_bits(leaves(out), at(sft, 1))
    assert_same_bits(final_state(tmp_path / "run"), final_state(sft))


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_reward_function(runs, tmp_path):
    run("ppo", runs, tmp_path, num_steps=1, **set_reward_function("reward_function"))
    before = final_state(tmp_path)
    with pytest.raises(CheckpointError, match="what gives the rewards, is not what this run began with"):
        run("ppo", runs, tmp_path, num_steps=2, **set_reward_function("prompt_length_reward"))
    assert_same_bits(final_state(tmp_path), before)
