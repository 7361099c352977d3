"""No item is lost, repeated, split or separated from its pair, and rows are well filled."""

from dataclasses import replace

import numpy as np
import pytest

from jaxalign.data.bins import pack as pack_bins
from jaxalign.data.items import Item, join
from jaxalign.data.packing import build_rows, collate


def pack(*args, **options):
    return [bin.tolist() for bin in pack_bins(*args, **options)]


def example(length: int, prompt: int, row: int) -> Item:
    ids = 100 * (row + 1) + np.arange(length, dtype=np.int32)
    return Item(ids, (np.arange(length) >= prompt).astype(np.float32), row)


def group(lengths: list[int], pairs, row: int, margin: float = 0.0) -> Item:
    weight = 2 / (len(lengths) * (len(lengths) - 1))
    parts = [example(n, 1, row) for n in lengths]
    return join(parts, pairs=tuple(pairs), margin=margin, weight=weight, row=row)


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("max_segments", [1, 3, 64])
def test_every_item_once_and_no_row_overfull(seed, max_segments):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 101, 500)
    bins = pack(lengths, 100, max_segments, seed)
    assert sorted(i for bin in bins for i in bin) == list(range(500))
    assert max(sum(lengths[i] for i in bin) for bin in bins) <= 100
    assert max(map(len, bins)) <= max_segments
    assert bins == pack(lengths, 100, max_segments, seed)


def test_groups_respect_segments():
    rng = np.random.default_rng(1)
    lengths, segments = rng.integers(5, 60, 300), rng.integers(2, 9, 300)
    bins = pack(lengths, 200, 12, segments=segments)
    assert sorted(i for bin in bins for i in bin) == list(range(300))
    assert max(sum(segments[i] for i in bin) for bin in bins) <= 12
    assert max(sum(lengths[i] for i in bin) for bin in bins) <= 200


def test_seed_changes_neighbours_only():
    lengths = [10] * 40
    assert pack(lengths, 40, 8, 0) != pack(lengths, 40, 8, 1)
    assert len(pack(lengths, 40, 8, 0)) == 10


def test_efficiency_on_lengths_like_text():
    rng = np.random.default_rng(2)
    lengths = np.clip(rng.lognormal(4.5, 0.8, 2000).astype(int), 8, 1024)
    bins = pack(lengths, 1024, 64)
    assert lengths.sum() / (1024 * len(bins)) > 0.97
    assert pack([50, 50, 30, 70], 100, 8) == [[3, 2], [0, 1]]


def test_item_that_cannot_fit():
    with pytest.raises(ValueError, match="item 1 has 11 tokens in 1 segments, a row 10 in 4"):
        pack([10, 11], 10, 4)
    with pytest.raises(ValueError, match="item 0 has 5 tokens in 5 segments"):
        pack([5], 10, 4, segments=[5])


def test_collate_by_hand():
    rows = build_rows([[example(3, 1, 7), example(4, 2, 8)]], "sft", row_length=9, max_segments=3, pad_id=5)
    batch = collate(rows, [0, -1])
    np.testing.assert_array_equal(batch.tokens[0], [900, 901, 902, 903, 800, 801, 802, 5, 5])
    np.testing.assert_array_equal(batch.positions[0], [0, 1, 2, 3, 0, 1, 2, 0, 0])
    np.testing.assert_array_equal(batch.segment_ids[0], [1, 1, 1, 1, 2, 2, 2, 0, 0])
    np.testing.assert_array_equal(batch.loss_mask[0], [0, 0, 1, 1, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(batch.rows, [[8, 7, -1], [-1, -1, -1]])
    assert (batch.tokens[1] == 5).all() and not batch.segment_ids[1].any() and not batch.loss_mask[1].any()
    dtypes = {name: array.dtype for name, array in vars(batch).items()}
    assert dtypes.pop("loss_mask") == np.float32 and set(dtypes.values()) == {np.dtype(np.int32)}
    assert rows.efficiency == pytest.approx(7 / 9)


def test_pairs_by_hand():
    pairs = [group([3, 2], [(0, 1)], 4, margin=1.5), group([2, 2], [(0, 1)], 5)]
    ranking = group([2, 3, 2], [(1, 0), (2, 0), (1, 2)], 6)
    rows = build_rows([[*pairs, ranking]], "preference", row_length=16, max_segments=8)
    assert len(rows) == 1 and rows.max_pairs == 5
    batch = collate(rows, [0, -1])
    order = list(rows.bins[0])  # longest first: the ranking, then the pairs
    assert order == [2, 0, 1]
    np.testing.assert_array_equal(batch.segment_ids[0], [1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6, 7, 7])
    np.testing.assert_array_equal(batch.chosen[0], [2, 3, 2, 4, 6])
    np.testing.assert_array_equal(batch.rejected[0], [1, 1, 3, 5, 7])
    np.testing.assert_allclose(batch.weight[0], np.float32([1 / 3, 1 / 3, 1 / 3, 1, 1]))
    np.testing.assert_array_equal(batch.margin[0], np.float32([0, 0, 0, 1.5, 0]))
    np.testing.assert_array_equal(batch.rows[0], [6, 6, 6, 4, 4, 5, 5, -1])
    assert not batch.chosen[1].any() and not batch.weight[1].any() and not batch.ref_logp.any()
    assert not batch.tokens[1].any()
    assert {a.dtype for a in (batch.weight, batch.margin, batch.ref_logp)} == {np.dtype(np.float32)}


def test_rows_that_take_no_more_sequences_are_crowded():
    few = build_rows([[example(2, 1, row) for row in range(5)]], "sft", row_length=20, max_segments=2)
    assert sorted(map(len, few.bins)) == [1, 2, 2] and few.crowded == pytest.approx(2 / 3)
    # Of five segments one stays empty, in which no pair has room.
    pairs = [group([2, 2], [(0, 1)], row) for row in range(3)]
    rows = build_rows([pairs], "preference", row_length=64, max_segments=5)
    assert sorted(map(len, rows.bins)) == [1, 2] and rows.crowded == 0.5
    assert build_rows([pairs], "preference", row_length=64, max_segments=8).crowded == 0.0
    assert build_rows([pairs], "preference", row_length=12, max_segments=6).crowded == 1.0
    assert rows.tokens == 12 and rows.shared == 0 and rows.efficiency == 12 / 128
    assert len({few, rows}) == 2  # told apart without a look at their arrays


def test_demonstrations_among_pairs():
    items = [group([3, 2], [(0, 1)], 4), example(4, 2, 5), group([2, 1], [(0, 1)], 6)]
    rows = build_rows([items], "preference or sft", row_length=16, max_segments=8)
    batch = collate(rows, [0])
    assert list(rows.bins[0]) == [0, 1, 2]
    np.testing.assert_array_equal(batch.chosen, [[1, 3, 4, 0]])
    np.testing.assert_array_equal(batch.rejected, [[2, 0, 5, 0]])
    np.testing.assert_array_equal(batch.weight, [[1, 1, 1, 0]])
    np.testing.assert_array_equal(batch.rows, [[4, 4, 5, 6, 6, -1, -1, -1]])


@pytest.mark.parametrize("packing", [True, False])
def test_ordinary_pairs_are_odd_and_even_segments(packing):
    rng = np.random.default_rng(3)
    pairs = [group(rng.integers(2, 20, 2), [(0, 1)], row) for row in range(50)]
    rows = build_rows([pairs], "preference", row_length=64, max_segments=16, packing=packing, seed=0)
    batch = collate(rows, range(len(rows)))
    seen = []
    for b in range(len(rows)):
        for k in np.flatnonzero(batch.weight[b]):
            assert (batch.chosen[b, k], batch.rejected[b, k]) == (2 * k + 1, 2 * k + 2)
            assert batch.rows[b, 2 * k] == batch.rows[b, 2 * k + 1]
            seen.append(int(batch.rows[b, 2 * k]))
            for side, segment in enumerate((batch.chosen[b, k], batch.rejected[b, k])):
                want = pairs[seen[-1]].examples[side].ids
                np.testing.assert_array_equal(batch.tokens[b][batch.segment_ids[b] == segment], want)
    assert sorted(seen) == list(range(50))
    assert len(rows) < 50 if packing else (len(rows), rows.max_segments, rows.max_pairs) == (50, 2, 1)


def test_reference_values_follow_their_row():
    pairs = [group([20, 20], [(0, 1)], row) for row in range(6)]
    rows = build_rows([pairs], "preference", row_length=64, max_segments=4)
    values = np.arange(len(rows) * 4, dtype=np.float32).reshape(-1, 4)
    batch = collate(replace(rows, ref_logp=values), [2, 0, -1])
    np.testing.assert_array_equal(batch.ref_logp, np.stack([values[2], values[0], np.zeros(4)]))


def test_prompts_are_left_padded():
    prompts = [replace(example(2, 2, 0), ending=(7, 8, 6)), replace(example(4, 4, 3), ending=(5,))]
    rows = build_rows([prompts], "prompt", row_length=4, max_segments=8, pad_id=9)
    batch = collate(rows, [1, 0, -1])
    np.testing.assert_array_equal(batch.tokens, [[400, 401, 402, 403], [9, 9, 100, 101], [9] * 4])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 3], [0, 0, 0, 1], [0] * 4])
    np.testing.assert_array_equal(batch.segment_ids, [[1] * 4, [0, 0, 1, 1], [0] * 4])
    np.testing.assert_array_equal(batch.rows, [3, 0, -1])
    np.testing.assert_array_equal(batch.ending, [[5, -1, -1], [7, 8, 6], [-1] * 3])


def test_sources_keep_rows_of_their_own():
    sources = [[example(4, 1, row) for row in range(6)], [example(5, 1, row) for row in range(6, 9)]]
    rows = build_rows(sources, "text", row_length=10, max_segments=8)
    assert rows.bounds == (0, 3, 5)
    batch = collate(rows, range(5))
    assert batch.rows[:3].max() < 6
    assert set(batch.rows[3:].ravel()) == {-1, 6, 7, 8}


@pytest.mark.parametrize("packing", [True, False])
def test_rows_that_are_kept_are_not_looked_for_again(packing):
    sources = [[example(4, 1, row) for row in range(3)], [example(5, 1, row) for row in range(3, 5)]]
    kept = pack_bins(np.array([5, 5]), 20, 8)
    keepers = (lambda find: find(), lambda find: kept)
    rows = build_rows(sources, "text", row_length=10, max_segments=8, packing=packing, keepers=keepers)
    # Two of four tokens in a row of ten, and the third alone; of the other source what was kept, as if rows had twenty.
    assert [row.tolist() for row in rows.bins] == (
        [[0, 1], [2], [3, 4]] if packing else [[n] for n in range(5)]
    )
    with pytest.raises(ValueError, match="zip"):
        build_rows(sources, "text", row_length=10, max_segments=8, keepers=keepers[:1])
