"""Batches depend on (seed, step) alone: not on history, restarts or the number of processes."""

import json
from itertools import chain, islice

import jax
import numpy as np
import pytest

from jaxalign.data.items import Item
from jaxalign.data.loader import eval_batches, make_loader, train_batches
from jaxalign.data.packing import build_rows
from jaxalign.errors import ConfigError


def rows_of(*counts: int, weights=()):
    numbers = iter(range(sum(counts)))
    sources = [
        [
            Item(np.int32([1, n + 2]), np.float32([0, 1]), n)
            for _, n in zip(range(count), numbers, strict=False)
        ]
        for count in counts
    ]
    return build_rows(sources, "text", row_length=2, max_segments=1, weights=weights)


def taken(batches, count=None):
    """Record numbers by batch."""
    return [batch.rows[:, 0].tolist() for batch in islice(batches, count)]


def order_of(batches, count=None):
    return list(chain.from_iterable(taken(batches, count)))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("shuffle", [False, True])
def test_epochs_wrap_and_drop_nothing(shuffle):
    order = order_of(make_loader(rows_of(10), 4, seed=3, shuffle=shuffle), 15)
    epochs = [order[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert (len(set(map(tuple, epochs))) == 1) != shuffle
    if not shuffle:
        assert order[:12] == [*range(10), 0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
@pytest.mark.parametrize(("count", "epochs"), [(47, 1), (40, 1), (5, 1), (5, 3), (10, 2.5), (7, 0.5)])
def test_epochs_have_every_row_as_often_as_they_say(count, epochs, batch_size):
    rows = rows_of(count)
    batches = taken(make_loader(rows, batch_size, seed=3, num_epochs=epochs))
    order = [row for batch in batches for row in batch]
    total = int(np.ceil(count * epochs))
    assert len(batches) == -(-total // batch_size) and all(len(batch) == batch_size for batch in batches)
    assert order[total:] == [-1] * (len(order) - total) and -1 not in order[:total]
    counts = np.bincount(order[:total], minlength=count)
    assert counts.max() - counts.min() <= 1 and counts.sum() == total
    assert order[:total] == order_of(make_loader(rows, batch_size, seed=3), len(batches))[:total]


def test_a_batch_of_one_row_never_ends():
    assert order_of(make_loader(rows_of(3), 1, seed=0, shuffle=False), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_order_depends_on_the_seed_only():
    rows = rows_of(40)
    assert taken(make_loader(rows, 4, seed=0), 30) == taken(make_loader(rows, 4, seed=0), 30)
    assert taken(make_loader(rows, 4, seed=0), 30) != taken(make_loader(rows, 4, seed=1), 30)


def test_batch_size_only_regroups():
    rows = rows_of(13)
    assert order_of(make_loader(rows, 4, seed=0), 6) == order_of(make_loader(rows, 8, seed=0), 3)


def test_batches_by_number_are_the_iterator_s():
    rows = rows_of(13)
    by_number = train_batches(rows, 4, seed=2)
    for step, batch in enumerate(islice(make_loader(rows, 4, seed=2), 8)):
        same(by_number[step], batch)


def test_number_of_epochs():
    order = order_of(make_loader(rows_of(10), 4, seed=0, num_epochs=3))
    assert len(order) == 32  # 8 batches, the last filled from the epoch after
    assert all(order[:30].count(n) == 3 for n in range(10))


def test_resume_from_state_equals_uninterrupted():
    rows = rows_of(23)
    whole = list(islice(make_loader(rows, 4, seed=5), 20))
    for stop in (0, 1, 5, 6, 19):
        first = make_loader(rows, 4, seed=5)
        for _ in range(stop):
            next(first)
        state = json.loads(json.dumps(first.get_state()))
        second = make_loader(rows, 4, seed=5)
        next(second)  # a position of its own, to be left
        second.set_state(state)
        same(list(islice(second, 20 - stop)), whole[stop:])


@pytest.mark.parametrize("process_count", [1, 2, 4])
@pytest.mark.parametrize("rows", [rows_of(23), rows_of(9, 14, weights=(0.3, 0.7))])
def test_processes_share_one_global_batch(process_count, rows):
    whole = list(islice(make_loader(rows, 8, seed=5), 10))
    parts = [
        islice(make_loader(rows, 8, seed=5, parts=(p,), num_parts=process_count), 10)
        for p in range(process_count)
    ]
    same([jax.tree.map(lambda *a: np.concatenate(a), *step) for step in zip(*parts, strict=True)], whole)


def test_parts_need_not_be_neighbours():
    whole = taken(make_loader(rows_of(23), 8, seed=5), 3)
    some = taken(make_loader(rows_of(23), 8, seed=5, parts=(0, 3), num_parts=4), 3)
    assert some == [[*batch[:2], *batch[6:]] for batch in whole]


def test_resume_with_another_process_count():
    rows = rows_of(23)
    whole = taken(make_loader(rows, 8, seed=5), 10)
    first = make_loader(rows, 8, seed=5)
    taken(first, 4)
    halves = [make_loader(rows, 8, seed=5, parts=(p,), num_parts=2) for p in range(2)]
    for half in halves:
        half.set_state(first.get_state())
    assert [a + b for a, b in zip(*(taken(half, 6) for half in halves), strict=True)] == whole[4:]


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, 0.1), (3, 1, 2)])
def test_mixture_shares_hold_over_any_window(weights):
    counts = (40, 200, 100)[: len(weights)]
    order = np.array(order_of(make_loader(rows_of(*counts, weights=weights), 4, seed=0), 150))
    source = np.searchsorted(np.cumsum(counts), order, side="right")
    for window in (10, 60, 400, 600):
        for start in range(0, len(order) - window + 1, 37):
            share = np.bincount(source[start : start + window], minlength=len(weights)) / window
            np.testing.assert_allclose(
                share, np.array(weights) / sum(weights), atol=len(weights) / window, rtol=0
            )
    for index, count in enumerate(counts):  # each source goes through its own epochs
        own = order[source == index][: 3 * count]
        assert len(own) < 3 * count or (np.bincount(own - own.min(), minlength=count) == 3).all()


def test_eval_takes_every_row_once():
    rows = rows_of(10)
    batches = list(eval_batches(rows, 4))
    assert taken(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]
    assert batches[-1].loss_mask.sum() == 2 and batches[-1].segment_ids[2:].sum() == 0
    parts = [taken(eval_batches(rows, 4, parts=(p,), num_parts=2)) for p in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == taken(batches)


def test_refusals():
    with pytest.raises(ConfigError, match=r"config.batch_size=6: must be a positive multiple of the 4 parts"):
        make_loader(rows_of(10), 6, seed=0, num_parts=4)
    with pytest.raises(ConfigError, match=r"config.batch_size=0"):
        next(eval_batches(rows_of(10), 0))
    with pytest.raises(ConfigError, match=r"a mixture with weights has no epochs"):
        make_loader(rows_of(5, 5, weights=(1, 1)), 2, seed=0, num_epochs=1)
