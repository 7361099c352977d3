"""A NaN stops the run where it happened, or is left out and counted."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_stage_invariance import opened
from tiny import assert_same_bits, final_state, history, run

from jaxalign import parallel
from jaxalign.errors import AlarmError, ConfigError, NonFiniteError
from jaxalign.training import state
from jaxalign.training.loop import Stopped
from jaxalign.training.open import Run
from jaxalign.training.state import gradients


@pytest.fixture
def poison(monkeypatch):
    """Makes the gradient NaN, or so many times larger, when a batch has the same tokens as one of a clean run."""

    def install(module, bad_tokens, times=jnp.nan):
        def wrong(loss_fn, params, batch, parts):
            loss, metrics, grads = gradients(loss_fn, params, batch, parts)
            tokens = (batch[0] if isinstance(batch, tuple) else batch).tokens
            factor = jnp.where(tokens.sum() == bad_tokens, times, 1.0)
            return loss, metrics, jax.tree.map(lambda g: g * factor, grads)

        monkeypatch.setattr(module, "gradients", wrong)

    return install


def second_batch(runs):
    """The records and the sum of the tokens of batch 2."""
    with parallel.use_mesh(parallel.make_mesh(devices=jax.devices()[:1])):
        loader = opened("sft", runs, runs).loader()
    next(loader)
    batch = next(loader)
    return sorted({int(r) for r in batch.rows.ravel() if r >= 0}), int(batch.tokens.sum())


@pytest.mark.slow
def test_stop_names_step_and_rows_and_saves_the_state_before_the_update(runs, tmp_path, poison):
    rows, tokens = second_batch(runs)
    poison(state, -1)  # no batch: another program would round in another way
    run("sft", runs, tmp_path / "clean", num_steps=1)
    poison(state, tokens)
    places = rf"step 2: .* gradient norm nan; the batch held rows \[{rows[0]}, .*sft.jsonl:{rows[0] + 1}"
    with pytest.raises(NonFiniteError, match=places):
        run("sft", runs, tmp_path / "bad", num_steps=4)
    before = final_state(tmp_path / "clean")
    saved = final_state(tmp_path / "bad", "nonfinite")
    assert_same_bits(
        {name: x for name, x in saved.items() if name.startswith(("params", "opt_state"))},
        {name: x for name, x in before.items() if name.startswith(("params", "opt_state"))},
    )
    assert [step for step, _ in history(tmp_path / "bad")] == [1]


@pytest.mark.slow
def test_skip_leaves_the_update_out_counts_it_and_goes_on(runs, tmp_path, poison):
    _, tokens = second_batch(runs)
    poison(state, tokens)
    run("sft", runs, tmp_path, num_steps=3, on_nonfinite="skip", checkpoint_every=1, keep_checkpoints=5)
    assert [values["skipped_steps"] for _, values in history(tmp_path)] == [0, 1, 1]
    states = [final_state_at(tmp_path, step) for step in (1, 2, 3)]
    name = "params/embedding"
    np.testing.assert_array_equal(states[1][name], states[0][name])
    assert (states[2][name] != states[1][name]).any()
    assert all(np.isfinite(x).all() for x in states[2].values() if x.dtype.kind == "f")


def final_state_at(workdir, step):
    keep = workdir / f"only-{step}"
    keep.mkdir()
    (keep / str(step)).symlink_to(workdir / "checkpoints" / str(step))
    return final_state(workdir, keep.name)


@pytest.mark.slow
def test_ppo_stops_policy_and_critic_at_the_first_nan(runs, tmp_path, monkeypatch):
    run("ppo", runs, tmp_path / "clean", num_steps=1)

    def wrong(loss_fn, params, batch, parts):
        loss, metrics, grads = gradients(loss_fn, params, batch, parts)
        if "head" in params:  # the critic's, once it has learned something
            return (
                loss,
                metrics,
                jax.tree.map(lambda g: jnp.where(params["head"]["bias"] == 0, g, jnp.nan), grads),
            )
        return loss, metrics, grads

    monkeypatch.setattr(state, "gradients", wrong)
    with pytest.raises(NonFiniteError, match="step 1: "):
        run("ppo", runs, tmp_path / "bad", num_steps=3)
    saved = final_state(tmp_path / "bad", "nonfinite")
    assert saved["critic/skipped"] >= 1 and saved["policy/skipped"] == 0
    # Both updates of the clean rollout moved the policy; the critic only kept its first.
    clean = final_state(tmp_path / "clean")
    np.testing.assert_array_equal(saved["policy/params/embedding"], clean["policy/params/embedding"])
    assert saved["critic/opt_state/1/count"] == 1 and saved["policy/opt_state/1/count"] == 2


@pytest.mark.slow
def test_going_back_from_a_nan_leaves_its_batch_out(runs, tmp_path, poison, capsys):
    """With a checkpoint at every step it is the same as leaving that one update out; with fewer, the updates since."""
    _, tokens = second_batch(runs)
    poison(state, tokens)
    run("sft", runs, tmp_path / "skip", num_steps=4, on_nonfinite="skip")
    run("sft", runs, tmp_path / "back", num_steps=4, on_nonfinite="rollback", checkpoint_every=1)
    told = capsys.readouterr().err
    assert "step 2: the loss is " in told and "sft.jsonl:" in told
    assert "back to step 1; the updates of steps 2 to 2 are left out" in told
    skipped, back = final_state(tmp_path / "skip"), final_state(tmp_path / "back")
    assert back.pop("skipped") == 0 and skipped.pop("skipped") == 1
    assert_same_bits(back, skipped)
    assert [step for step, _ in history(tmp_path / "back")] == [1, 2, 3, 4]
    with pytest.raises(
        ConfigError, match=r"config\.on_nonfinite='rollback' goes back to checkpoints: set config"
    ):
        run("sft", runs, tmp_path / "none", on_nonfinite="rollback")


@pytest.mark.slow
def test_an_alarm_says_stops_or_goes_back_also_after_a_stop(runs, tmp_path, poison, capsys):
    """A batch whose gradient is far too large: going back to the step before is leaving its update out."""
    _, tokens = second_batch(runs)
    poison(state, tokens)
    run("sft", runs, tmp_path / "skip", num_steps=5, on_nonfinite="skip")
    poison(state, tokens, times=1e4)
    bound = {"num_steps": 5, "alarms": "grad_norm>1000", "checkpoint_every": 1}
    run("sft", runs, tmp_path / "warn", **bound)
    said = capsys.readouterr().err
    assert "step 2: grad_norm is " in said and ", above 1000 (config.alarms: grad_norm>1000): alarm\n" in said
    assert [values["alarms"] for _, values in history(tmp_path / "warn")] == [0, 1, 1, 1, 1]
    for _ in range(2):
        with pytest.raises(AlarmError, match=r"^step 2: grad_norm is .* the same command stops here again"):
            run("sft", runs, tmp_path / "stop", on_alarm="stop", **bound)
    run("sft", runs, tmp_path / "back", on_alarm="rollback", **bound)
    skipped, back = final_state(tmp_path / "skip"), final_state(tmp_path / "back")
    assert back.pop("skipped") == 0 and skipped.pop("skipped") == 1
    assert_same_bits(back, skipped)
    for step in range(1, 5):
        changes = bound | {"on_alarm": "rollback"}
        with pytest.raises(Stopped):
            run("sft", runs, tmp_path / str(step), stop_at=lambda n, _, at=step: n == at, **changes)
        run("sft", runs, tmp_path / str(step), **changes)
        assert_same_bits(final_state(tmp_path / str(step)), final_state(tmp_path / "back"))
        assert history(tmp_path / str(step)) == history(tmp_path / "back")


@pytest.mark.slow
def test_going_back_leaves_out_what_was_found_and_no_update_after_it(runs, tmp_path, poison, capsys):
    """Whatever lies between two checkpoints: one batch is found once, and the update after it counts."""
    _, tokens = second_batch(runs)
    poison(state, tokens)
    bound = {"num_steps": 4, "on_nonfinite": "rollback", "checkpoint_every": 100}
    run("sft", runs, tmp_path / "back", **bound)
    told = capsys.readouterr().err
    assert told.count("back to step") == 1
    assert "back to step 0; the updates of steps 1 to 2 are left out" in told
    assert final_state(tmp_path / "back")["skipped"] == 0
    for step in (1, 2, 3):
        with pytest.raises(Stopped):
            run("sft", runs, tmp_path / str(step), stop_at=lambda n, _, at=step: n == at, **bound)
        run("sft", runs, tmp_path / str(step), **bound)
        assert_same_bits(final_state(tmp_path / str(step)), final_state(tmp_path / "back"))


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 2])
def test_a_run_that_always_fails_goes_back_three_times_and_ends(runs, tmp_path, monkeypatch, capsys, keep):
    """The checkpoint that it goes back to stays, however many come after it."""

    def wrong(loss_fn, params, batch, parts):
        loss, metrics, grads = gradients(loss_fn, params, batch, parts)
        return loss, metrics, jax.tree.map(lambda g: g * jnp.nan, grads)

    monkeypatch.setattr(state, "gradients", wrong)
    bound = {"num_steps": 9, "on_nonfinite": "rollback", "checkpoint_every": 100, "keep_checkpoints": keep}
    with pytest.raises(Stopped):
        run("sft", runs, tmp_path, stop_at=lambda n, _: n == 2, **bound)
    with pytest.raises(AlarmError, match=r"^step 4: .* gone back to the checkpoint of step 0 3 times"):
        run("sft", runs, tmp_path, **bound)
    assert capsys.readouterr().err.count("back to step 0; ") == 3


@pytest.mark.slow
def test_weights_that_are_left_out_are_never_the_best(runs, tmp_path):
    """An evaluation raises an alarm and is the best so far: its weights are gone, and RUN@best is of another step."""
    changes = {"num_steps": 4, "eval_every": 2, "data.eval": str(runs / "sft.jsonl"), "checkpoint_every": 1}
    changes |= {"best.metric": "eval/loss", "best.mode": "max", "best.export": True, "keep_checkpoints": 9}
    found = run("sft", runs, tmp_path / "warn", alarms="eval/loss<99", **changes)
    assert found["best"]["step"] == 2  # the loss falls
    found = run("sft", runs, tmp_path / "back", alarms="eval/loss<99", on_alarm="rollback", **changes)
    assert found["best"]["step"] == 4
    measured = [values["loss"] for _, values in history(tmp_path / "back", "eval")]
    assert found["eval"]["loss"] == measured[1] < measured[0]


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 2])
def test_a_stop_in_the_evaluation_that_rings_goes_back_as_far(runs, tmp_path, monkeypatch, capsys, keep):
    """What the stop has saved of that step is left out, and is nowhere to go back to."""
    changes = {"num_steps": 6, "eval_every": 2, "data.eval": str(runs / "sft.jsonl"), "eval_batch_size": 2}
    changes |= {
        "alarms": "eval/loss<99",
        "on_alarm": "rollback",
        "checkpoint_every": 2,
        "keep_checkpoints": keep,
    }
    run("sft", runs, tmp_path / "whole", **changes)
    told = capsys.readouterr().err
    assert told.count("back to step") == 1 and "back to step 0; the updates of steps 1 to 2" in told
    batches = Run.eval_batches

    def asked(self, *names):
        for batch in batches(self, *names):
            os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Run, "eval_batches", asked)
        with pytest.raises(Stopped, match="stopped in the evaluation after step 2"):
            run("sft", runs, tmp_path / "stopped", **changes)
    capsys.readouterr()
    run("sft", runs, tmp_path / "stopped", **changes)
    assert "back to step 0; the updates of steps 1 to 2 are left out" in capsys.readouterr().err
    assert_same_bits(final_state(tmp_path / "stopped"), final_state(tmp_path / "whole"))
    assert history(tmp_path / "stopped", "eval") == history(tmp_path / "whole", "eval")
