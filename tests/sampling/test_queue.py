"""Which sequence gets which slot, by hand."""

import jax.numpy as jnp
import numpy as np

from jaxalign.sampling.slots import Slots, first_slots, put_tokens, take_rows


def test_a_queue_by_hand():
    """Two parts of a batch of eight, of two slots each: 0 to 3 wait for the first ones, 4 to 7 for the others."""
    slots = first_slots(8, 4, 2)

    def look(slots):
        return [x.tolist() for x in (slots.sequence, slots.count, slots.waiting)]

    assert look(slots) == [[0, 1, 4, 5], [0, 0, 0, 0], [2, 6]] and not slots.want_more(8)
    slots = slots.next_token(jnp.array([True, False, False, True]), 8)
    assert look(slots) == [[8, 1, 4, 8], [1, 1, 1, 1], [2, 6]] and slots.want_more(8)
    slots, filled = slots.fill(8)
    assert look(slots) == [[2, 1, 4, 6], [0, 1, 1, 0], [3, 7]] and filled.tolist() == [
        True,
        False,
        False,
        True,
    ]
    slots, filled = slots.next_token(jnp.ones(4, bool), 8).fill(8)
    assert look(slots) == [[3, 8, 7, 8], [0, 2, 0, 1], [4, 8]] and filled.tolist() == [
        True,
        False,
        True,
        False,
    ]
    # Two are empty, and none waits.
    assert not slots.want_more(8) and look(slots.fill(8)[0]) == look(slots)


def test_slots_are_filled_once_a_sixteenth_of_a_part_is_empty():
    slots = first_slots(128, 64, 2)
    for ended, wanted in ([0], False), ([0, 40], False), ([0, 31], True), ([32, 63], True):
        assert (
            slots.next_token(jnp.zeros(64, bool).at[jnp.array(ended)].set(True), 128).want_more(128) == wanted
        )
    assert not first_slots(64, 64, 2).next_token(jnp.ones(64, bool), 64).want_more(64)


def test_rows_are_taken_and_tokens_put_where_their_sequences_are():
    slots = Slots(jnp.array([2, 8, 4, 6]), jnp.array([0, 1, 2, 1]), jnp.array([4, 8]))
    put = put_tokens(jnp.zeros((8, 3), jnp.int32), slots, jnp.array([1, 2, 3, 4]))
    wanted = np.zeros((8, 3), int)
    wanted[2, 0], wanted[4, 2], wanted[6, 1] = 1, 3, 4
    np.testing.assert_array_equal(put, wanted)
    x, rows = np.arange(16).reshape(8, 2), np.array([3, 0, 4, 6])
    np.testing.assert_array_equal(take_rows(jnp.asarray(x), jnp.asarray(rows), 2), x[rows])
    np.testing.assert_array_equal(take_rows(jnp.asarray(x.T), jnp.asarray(rows), 2, axis=1), x.T[:, rows])
