"""Completions that models read packed into fewer rows teach what they teach each in a row of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import assert_tree_close, final_state, history, run

from jaxalign.models import ModelConfig, init_params
from jaxalign.models.packed import Layout
from jaxalign.models.scoring import divergence, score_scalar, score_tokens
from jaxalign.rl import layout as module
from jaxalign.rl.layout import lay_out

MESH = {"mesh.data": 1, "mesh.fsdp": 2, "mesh.context": 2, "mesh.tensor": 2}


def spans(rng, count, width, most):
    """Lengths, some of them 0, and where the sequences begin."""
    lengths = rng.integers(0, most + 1, count)
    return np.array([rng.integers(0, width - n + 1) for n in lengths]), lengths


@pytest.mark.parametrize(("count", "parts", "multiple"), [(16, 1, 1), (16, 2, 1), (32, 2, 2), (24, 3, 4)])
def test_a_layout_has_every_slot_once_and_moves_values_there_and_back(count, parts, multiple):
    rng = np.random.default_rng(count)
    starts, lengths = spans(rng, count, 20, 9)
    found = lay_out(starts, lengths, 20, parts=parts, multiple=multiple)
    assert len(found.source) < count and len(found.source) % (parts * multiple) == 0
    real = (np.arange(20) >= starts[:, None]) & (np.arange(20) < (starts + lengths)[:, None])
    x = rng.normal(size=(count, 20)).astype(np.float32)
    for part in range(parts):  # as `slices` cuts them
        own = jax.tree.map(lambda a, part=part: jnp.asarray(a[part::parts]), found)
        packed = own.pack(x[part::parts])
        assert float(packed.sum()) == pytest.approx(float((x * real)[part::parts].sum()), abs=1e-4)
        np.testing.assert_array_equal(own.unpack(packed), (x * real)[part::parts])
        # The gradient goes the same way back.
        g = rng.normal(size=x[part::parts].shape).astype(np.float32)
        through = jax.grad(lambda y, g=g, own=own: jnp.sum(own.unpack(own.pack(y)) * g))(x[part::parts])
        np.testing.assert_array_equal(through, g * real[part::parts])
        ids = np.asarray(own.segment_ids)
        assert all(set(row) - {0} == set(range(1, row.max() + 1)) for row in ids)
        assert ((ids > 0) == (np.asarray(own.source) >= 0)).all()


def test_full_rows_are_left_as_they_are():
    assert lay_out(np.zeros(8, int), np.full(8, 12), 16, parts=1, multiple=1) is None


def test_models_say_the_same_of_sequences_that_are_packed():
    rng = np.random.default_rng(0)
    config = ModelConfig(
        vocab_size=50, num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24
    )
    starts, lengths = spans(rng, 12, 20, 10)
    place = np.arange(20)
    real = (place >= starts[:, None]) & (place < (starts + lengths)[:, None])
    arrays = (
        rng.integers(0, 50, (12, 20)).astype(np.int32) * real,
        (np.where(real, place - starts[:, None], 0)).astype(np.int32),
        real.astype(np.int32),
    )
    mask = (real & (rng.random((12, 20)) < 0.5)).astype(np.float32)
    layout = jax.tree.map(jnp.asarray, lay_out(starts, lengths, 20, parts=1, multiple=1))
    one, other = (init_params(jax.random.key(n), config) for n in (0, 1))
    scalar = {"transformer": other, "head": {"kernel": jnp.ones(16) / 4, "bias": jnp.zeros(())}}
    weight = rng.normal(size=(3, 12, 20)).astype(np.float32)

    def said(params, layout):
        mine, theirs = (
            score_tokens(x, config, *arrays, with_entropy=True, layout=layout) for x in (params[0], other)
        )
        judged = score_scalar(params[1], config, *arrays, layout=layout)
        some = score_tokens(params[0], config, *arrays, mask=mask, layout=layout)
        out = (
            mine.logp,
            mine.entropy,
            judged.values,
            divergence(mine, theirs, arrays[2]),
            some.logp,
            judged.rewards,
        )
        return sum((w * x).sum() for w, x in zip(weight, out[:3], strict=True)) + out[3].sum() + out[
            5
        ].sum(), out

    both = jax.jit(jax.value_and_grad(said, has_aux=True))
    wanted, got = both((one, scalar), None), both((one, scalar), layout)
    assert_tree_close(got, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "devices", "changes"),
    [
        ("ppo", 1, {"ppo.num_minibatches": 2, "num_microbatches": 2, "batch_size": 16}),
        ("grpo", 8, {"grpo.num_iterations": 2, "grpo.beta": 0.1} | MESH),
        ("distill", 1, {}),
    ],
)
def test_a_run_learns_the_same(stage, devices, changes, runs, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(
        module, "lay_out", lambda *args, **how: (used.append(found := lay_out(*args, **how)), found)[1]
    )
    for name, packs in (("packed", True), ("apart", False)):
        how = {"data.max_length": 40, f"{stage}.pack_completions": packs}
        run(stage, runs, tmp_path / name, devices=devices, **changes, **how)
    assert sum(isinstance(each, Layout) for each in used) >= len(used) / 2 > 0
    packed, apart = (final_state(tmp_path / name) for name in ("packed", "apart"))
    assert_tree_close(packed, apart)
    for (_, a), (_, b) in zip(history(tmp_path / "packed"), history(tmp_path / "apart"), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
