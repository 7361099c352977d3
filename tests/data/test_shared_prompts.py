"""Pairs and rankings whose prompt stands once: the same losses, gradients and metrics as of whole sequences."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxalign.data.items import Item, join
from jaxalign.data.mismatched import add_mismatched
from jaxalign.data.packing import build_rows, collate, saves_enough
from jaxalign.data.parts import as_items
from jaxalign.models import ModelConfig, init_head, init_params
from jaxalign.models.scoring import score_batch
from jaxalign.training.state import slices

CONFIG = ModelConfig(
    vocab_size=50,
    num_layers=2,
    embed_dim=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=24,
    max_length=64,
)


def sequence(prompt, answer):
    ids = np.concatenate([prompt, answer]).astype(np.int32)
    return Item(ids, (np.arange(len(ids)) >= len(prompt)).astype(np.float32))


def record(rng, row, answers=2, prompt=None):
    prompt = rng.integers(1, 50, rng.integers(1, 12) if prompt is None else prompt)
    parts = [sequence(prompt, rng.integers(1, 50, rng.integers(1, 7))) for _ in range(answers)]
    pairs = tuple((i, j) for i in range(answers) for j in range(i + 1, answers)) or ((0, None),)
    return join(parts, row=row, pairs=pairs, weight=1 / len(pairs))


def both(items, kind="preference", **how):
    shared, apart = (
        build_rows([items], kind, row_length=72, max_segments=12, sharing=x, **how) for x in (True, False)
    )
    return shared, apart


def test_of_a_prompt_all_but_its_last_token_is_shared():
    whole = [[7, 8, 9], [1, 2]], [[7, 8, 9], [1, 3]], [[7, 5, 9], [1]], [[6], [1]]
    item = join([sequence(prompt, answer) for prompt, answer in whole])
    # The answers begin alike, too, but what is learned is nobody else's.
    assert item.shared == (0, 2, 0, 0)
    assert sequence([7, 8], [1]).shared == (0,)


def test_rows_hold_what_is_computed_and_batches_whole_sequences():
    rng = np.random.default_rng(0)
    items = [record(rng, row) for row in range(60)]
    shared, apart = both(items)
    saved = sum(sum(item.shared) for item in items)
    assert shared.shared == saved > 0 and apart.shared == 0
    assert len(shared) < len(apart) and shared.row_length == 72 <= shared.slots
    assert shared.efficiency == pytest.approx((shared.tokens - saved) / (len(shared) * 72))
    batch = collate(shared, range(-1, len(shared)))
    layout = jax.tree.map(np.asarray, batch.layout)
    # Every token of a record stands in the batch, with its own place in its sequence.
    found = {}
    for b, s in zip(*np.nonzero(batch.rows >= 0), strict=True):
        inside = batch.segment_ids[b] == s + 1
        assert (batch.positions[b, inside] == np.arange(inside.sum())).all()
        found.setdefault(int(batch.rows[b, s]), []).append(batch.tokens[b, inside])
    for item in items:
        for got, example in zip(found[item.row], item.examples, strict=True):
            np.testing.assert_array_equal(got, example.ids)
    assert (layout.source >= 0).sum() == shared.tokens - saved and (layout.place >= 0).sum() == shared.tokens
    # There and back, every slot has its own token again.
    np.testing.assert_array_equal(batch.layout.unpack(batch.layout.pack(batch.tokens)), batch.tokens)
    real = batch.segment_ids > 0
    assert int(batch.layout.sum(real.astype(np.int32)).sum()) == real.sum()


def test_a_layout_by_hand():
    """A ranking of three after [7, 8, 9], of which two tokens are shared, and a pair after [5], of which none is."""
    three = join(
        [sequence([7, 8, 9], answer) for answer in ([1], [2, 3], [4])], pairs=((0, 1), (0, 2), (1, 2))
    )
    pair = join([sequence([5], answer) for answer in ([4], [6])], pairs=((0, 1),))
    rows = build_rows([[three, pair]], "preference", row_length=20, max_segments=6, sharing=True)
    assert (rows.shared, rows.most_shared, rows.most_copies, rows.slots) == (4, 4, 2, 32)
    batch = collate(rows, [0, -1])
    layout = jax.tree.map(np.asarray, batch.layout)
    tokens = [*(7, 8, 9, 1), *(7, 8, 9, 2, 3), *(7, 8, 9, 4), *(5, 4), *(5, 6)]
    np.testing.assert_array_equal(batch.tokens, [tokens + [0] * 15, [0] * 32])
    source = [*(0, 1, 2, 3), *(6, 7, 8), *(11, 12), *(13, 14), *(15, 16)]
    np.testing.assert_array_equal(layout.source, [source + [-1] * 7, [-1] * 20])
    place = [*(0, 1, 2, 3), *(0, 1, 4, 5, 6), *(0, 1, 7, 8), *(9, 10), *(11, 12)]
    np.testing.assert_array_equal(layout.place, [place + [-1] * 15, [-1] * 32])
    segments = [1] * 4 + [2] * 3 + [3] * 2 + [4] * 2 + [5] * 2
    np.testing.assert_array_equal(layout.segment_ids, [segments + [0] * 7, [0] * 20])
    copies = np.full((2, 16, 2), -1)
    copies[0, :2] = [[4, 9], [5, 10]]
    np.testing.assert_array_equal(layout.copies, copies)
    np.testing.assert_array_equal(layout.shared, [[0, 1] + [-1] * 18, [-1] * 20])


def items_of(kind, rng):
    if kind == "unpaired":
        own = [dataclasses.replace(record(rng, row, 1), desirable=float(row % 2)) for row in range(24)]
        return add_mismatched(own, 16)
    answers = {"preference": (2,), "preference or sft": (1, 2)}.get(kind, (2, 3, 4))
    return [record(rng, row, answers[row % len(answers)]) for row in range(24)]


@pytest.mark.parametrize("kind", ["preference", "preference or sft", "ranking", "unpaired"])
@pytest.mark.parametrize("attention", [pytest.param("xla", marks=pytest.mark.slow), "block_sparse"])
def test_models_say_and_learn_the_same(kind, attention):
    rng = np.random.default_rng(1)
    config = dataclasses.replace(CONFIG, attention=attention)
    items, name = items_of(kind, rng), "preference" if kind == "ranking" else kind
    shared, apart = both(items, name)
    assert shared.whole_length
    params = init_params(jax.random.key(0), config)
    scalar = {"transformer": params, "head": init_head(jax.random.key(1), config)}
    weights = {}  # of every token and sequence of a record, wherever it stands

    def said(params, scalar, batch, weight):
        read = score_batch(params, config, batch, mask=batch.loss_mask)
        prompts = score_batch(params, config, batch)  # what is said of prompts as well
        judged = score_batch(scalar, config, batch, scalar=True)
        each = (read.logp, prompts.logp, judged.values)
        return (
            sum((w * x).sum() for w, x in zip(weight[:3], each, strict=True))
            + (judged.rewards * weight[3]).sum()
        )

    def weigh(batch):
        out = [np.zeros(batch.tokens.shape, np.float32) for _ in range(3)] + [
            np.zeros(batch.rows.shape, np.float32)
        ]
        seen = {}
        for b, s in zip(*np.nonzero(batch.rows >= 0), strict=True):
            inside = batch.segment_ids[b] == s + 1
            row = int(batch.rows[b, s])
            seen[row] = seen.get(row, -1) + 1
            key = (row, seen[row])
            own = weights.setdefault(key, rng.normal(size=(4, int(inside.sum()))).astype(np.float32))
            for x, w in zip(out[:3], own, strict=False):
                x[b, inside] = w
            out[3][b, s] = own[3, 0]
        return out

    results = []
    for rows in (shared, apart):
        batch = collate(rows, [*range(len(rows)), *[-1] * (-len(rows) % 4)])
        weight = weigh(batch)
        loss = jax.jit(jax.value_and_grad(said, argnums=(0, 1)))
        results.append(loss(params, scalar, batch, weight))
        parts, cut = slices(batch, 4), slices(weight, 4)
        some = [jax.tree.map(lambda x, i=i: x[i], (parts, cut)) for i in range(4)]
        results.append(jax.tree.map(lambda *x: sum(x), *(loss(params, scalar, *each) for each in some)))
    for got in results[1:]:
        # A sum over a thousand tokens of some nats each, of either sign.
        np.testing.assert_allclose(got[0], results[0][0], atol=1e-4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=3e-5), got[1], results[0][1]
        )


def test_little_is_left_as_it_is():
    rng = np.random.default_rng(2)
    short, long = ([record(rng, row, prompt=size) for row in range(40)] for size in (2, 20))
    assert not saves_enough([build_rows([short], "preference", row_length=48, max_segments=12).items])
    assert saves_enough([build_rows([long], "preference", row_length=64, max_segments=12).items])
    # Of eight tokens two are shared, which is a quarter; of nine it would be less.
    quarter, less = (
        join([sequence([7, 8, 9], x) for x in answers]) for answers in ([[1], [2]], [[1], [2, 3]])
    )
    assert sum(quarter.shared) == sum(less.shared) == 2
    assert saves_enough([as_items([quarter])]) and not saves_enough([as_items([quarter]), as_items([less])])
