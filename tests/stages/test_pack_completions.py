"""Completions that models read packed into fewer rows teach what they teach each in a row of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import assert_tree_close, final_state, history, run

from jaxalign import parallel
from jaxalign.models import ModelConfig, init_params
from jaxalign.models.packed import Layout
from jaxalign.models.scoring import divergence, score_scalar, score_tokens
from jaxalign.rl import layout as module
from jaxalign.rl.layout import Spans, lay_out

MESH = {"mesh.data": 1, "mesh.fsdp": 2, "mesh.context": 2, "mesh.tensor": 2}


def spans(rng, count, width, most):
    """Sequences, some of them empty, that have no prompt in common."""
    lengths = rng.integers(0, most + 1, count)
    starts = np.array([rng.integers(0, width - n + 1) for n in lengths])
    return Spans(starts, lengths, np.arange(count), lengths // 2)


def groups(rng, count, size, slots, most):
    """Groups of `size` completions of at most `most` tokens behind one prompt in the first `slots`."""
    prompts = np.repeat(rng.integers(1, slots + 1, count // size), size)
    new = rng.integers(0, most + 1, count)
    lengths = np.where(rng.random(count) < 0.1, 0, prompts + new)
    return Spans(slots - prompts, lengths, np.arange(count) // size, prompts)


def real_slots(spans, width):
    place, starts = np.arange(width), spans.starts[:, None]
    return (place >= starts) & (place < starts + spans.lengths[:, None])


@pytest.mark.parametrize(("count", "parts", "multiple"), [(16, 1, 1), (16, 2, 1), (32, 2, 2), (24, 3, 4)])
def test_a_layout_has_every_slot_once_and_moves_values_there_and_back(count, parts, multiple):
    rng = np.random.default_rng(count)
    them = spans(rng, count, 20, 9)
    found = lay_out(them, 20, parts=parts, multiple=multiple)
    assert len(found.source) < count and len(found.source) % (parts * multiple) == 0
    real = real_slots(them, 20)
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


@pytest.mark.parametrize(("parts", "multiple"), [(1, 1), (2, 1), (2, 2), (1, 4)])
def test_tokens_that_are_shared_stand_once_and_have_the_gradients_of_all(parts, multiple):
    rng = np.random.default_rng(parts + multiple)
    count, width, slots = 32, 24, 16
    them = groups(rng, count, 4, slots, 8)
    found = lay_out(them, width, parts=parts, multiple=multiple, sharing=4)
    assert found.copies is not None and len(found.source) <= count * 3 / 4
    # Who has the same token as whom, said anew: the first of a shard and microbatch with the prompt, up to all but
    # its last token.
    size = count // (parts * multiple)
    first, leader = {}, np.arange(count)
    for e in range(count):
        key = (e % parts, e // parts // size, them.prompts[e])
        if them.lengths[e]:
            leader[e] = first.setdefault(key, e)
    real, column = real_slots(them, width), np.arange(width)
    common = (column < (them.starts + np.minimum(them.prompt_lengths, them.lengths) - 1)[:, None]) & real
    source_row = np.where(common, leader[:, None], np.arange(count)[:, None])
    stand = real & (source_row == np.arange(count)[:, None])
    x = rng.normal(size=(count, width, 3)).astype(np.float32)
    g = rng.normal(size=x.shape).astype(np.float32)
    same = np.where(real[..., None], x[source_row, column], 0)
    summed = np.zeros(x.shape)
    np.add.at(
        summed, (source_row, np.broadcast_to(column, source_row.shape)), np.where(real[..., None], g, 0)
    )
    for part in range(parts):
        own = jax.tree.map(lambda a, part=part: jnp.asarray(a[part::parts]), found)
        packed = own.pack(x[part::parts])
        assert int((np.asarray(own.source) >= 0).sum()) == stand[part::parts].sum()
        np.testing.assert_array_equal(own.unpack(packed), same[part::parts])
        back = jax.grad(lambda y, own=own, part=part: jnp.sum(own.unpack(own.pack(y)) * g[part::parts]))
        np.testing.assert_allclose(back(x[part::parts]), (summed * stand[..., None])[part::parts], atol=1e-5)


def test_shards_move_their_own_slots_alone():
    mesh = parallel.make_mesh(parallel.MeshConfig(data=2, fsdp=2, tensor=2), jax.devices())
    rng = np.random.default_rng(3)
    them = groups(rng, 32, 4, 16, 8)
    found = lay_out(them, 24, parts=1, multiple=4, sharing=4)
    x = rng.normal(size=(32, 24, 4)).astype(np.float32)

    def moved(x, layout):
        return jax.value_and_grad(lambda x: jnp.sum(layout.unpack(layout.pack(x)) ** 2), has_aux=False)(x)

    wanted = moved(x, jax.tree.map(jnp.asarray, found))
    with parallel.use_mesh(mesh):
        rows = parallel.batch_sharding(mesh)
        args = jax.device_put(x, rows), jax.device_put(found, rows)
        assert "all-gather" not in jax.jit(lambda *args: moved(*args)[1]).lower(*args).compile().as_text()
        assert_tree_close(jax.jit(moved)(*args), wanted)


def test_full_rows_are_left_as_they_are():
    them = Spans(np.zeros(8, int), np.full(8, 12), np.arange(8), np.full(8, 4))
    assert lay_out(them, 16, parts=1, multiple=1, sharing=4) is None


@pytest.mark.parametrize(
    ("sharing", "changes"),
    [
        (1, {}),
        (3, {}),
        (3, {"attention": "block_sparse", "window": 6}),
        (3, {"attention": "blockwise", "qk_norm": "head", "attention_softcap": 20.0}),
        (3, {"positions": "learned", "norm": "layer", "init_std": 0.2}),
    ],
)
def test_models_say_the_same_of_sequences_that_are_packed(sharing, changes):
    rng = np.random.default_rng(0)
    config = ModelConfig(
        vocab_size=50,
        num_layers=2,
        embed_dim=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_dim=24,
        max_length=64,
        **changes,
    )
    them = spans(rng, 12, 20, 10) if sharing == 1 else groups(rng, 12, 3, 12, 8)
    real = real_slots(them, 20)
    tokens = rng.integers(0, 50, (12, 20)).astype(np.int32)
    if sharing > 1:  # prompts are the same, and stand in the same slots
        tokens[:, :12] = np.repeat(tokens[::3, :12], 3, axis=0)
    arrays = (
        tokens * real,
        (np.where(real, np.arange(20) - them.starts[:, None], 0)).astype(np.int32),
        real.astype(np.int32),
    )
    mask = (real & (rng.random((12, 20)) < 0.5)).astype(np.float32)
    if sharing > 1:  # what is read are completions
        mask *= np.arange(20) >= 12
    layout = jax.tree.map(jnp.asarray, lay_out(them, 20, parts=1, multiple=1, sharing=sharing))
    assert (layout.copies is not None) == (sharing > 1)
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
        (
            "grpo",
            8,
            {"grpo.beta": 0.1, "num_microbatches": 2, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
        ),
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
