"""A NaN stops the run where it happened, or is left out and counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_stage_invariance import opened
from tiny import assert_same_bits, final_state, history, run

from jaxalign import parallel
from jaxalign.errors import NonFiniteError
from jaxalign.training import state
from jaxalign.training.state import gradients


@pytest.fixture
def poison(monkeypatch):
    """Makes the gradient NaN when a batch has the same tokens as the second batch of a clean run."""

    def install(module, bad_tokens):
        def wrong(loss_fn, params, batch, parts):
            loss, metrics, grads = gradients(loss_fn, params, batch, parts)
            tokens = (batch[0] if isinstance(batch, tuple) else batch).tokens
            factor = jnp.where(tokens.sum() == bad_tokens, jnp.nan, 1.0)
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
