"""Decoding through the cache gives what one pass over the whole sequence gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models import ModelConfig, hidden_states, init_cache

from .oracle import decode, random_params

apply = jax.jit(hidden_states, static_argnames="config")
SIZES = {"vocab_size": 31, "embed_dim": 16, "num_heads": 4, "head_dim": 6, "mlp_dim": 24, "max_length": 16}


def left_padded(lengths, width, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, SIZES["vocab_size"], (len(lengths), width)).astype(np.int32)
    order = np.arange(width)[None] - (width - np.array(lengths))[:, None]
    return tokens, np.maximum(order, 0).astype(np.int32), (order >= 0).astype(np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("switches", [{"num_kv_heads": 2}, {"num_kv_heads": 1, "positions": "learned"}])
@pytest.mark.parametrize("pieces", [(4, 1, 1, 1, 1, 1, 1), (3, 3, 1, 3), (10,)], ids=str)
def test_pieces_through_the_cache_match_float64_decoder(switches, pieces):
    config = ModelConfig(**SIZES, **switches)
    params = random_params(config)
    lengths = (10, 8, 7)
    batch = left_padded(lengths, 10)
    cache = init_cache(config, len(lengths), 12)  # two slots more than needed must not matter
    hidden, start = [], 0
    for piece in pieces:
        at = slice(start, start := start + piece)
        out, cache = apply(params, config, *(x[:, at] for x in batch), cache)
        hidden.append(out)
        assert cache.index == start
    hidden = np.concatenate(hidden, axis=1)
    assert np.isfinite(hidden).all()
    for row, length in enumerate(lengths):
        want, _ = decode(params, config, batch[0][row, -length:])
        np.testing.assert_allclose(hidden[row, -length:], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(cache.segment_ids, np.pad(batch[2], ((0, 0), (0, 2))))
    np.testing.assert_array_equal(cache.positions, np.pad(batch[1], ((0, 0), (0, 2))))


def test_a_dead_row_leaves_the_others_and_its_own_past_unchanged():
    config = ModelConfig(**SIZES, num_kv_heads=2)
    params = random_params(config)
    tokens, positions, segments = left_padded((6, 6), 6)
    segments[1, 4] = 0  # row 1 pauses for one step: that slot is padding
    positions[1, 5] = 4
    cache, outs = init_cache(config, 2, 6), []
    for t in range(6):
        out, cache = apply(params, config, *(x[:, t : t + 1] for x in (tokens, positions, segments)), cache)
        outs.append(out[:, 0])
    np.testing.assert_allclose(outs[5][0], decode(params, config, tokens[0])[0][5], rtol=1e-5, atol=1e-5)
    without = np.delete(tokens[1], 4)
    np.testing.assert_allclose(outs[5][1], decode(params, config, without)[0][4], rtol=1e-5, atol=1e-5)


def test_cache_has_the_compute_dtype_and_the_documented_shapes():
    config = ModelConfig(**SIZES, num_layers=3, num_kv_heads=2, dtype="bfloat16")
    cache = init_cache(config, 5, 7)
    assert cache.k.shape == cache.v.shape == (3, 5, 2, 7, 6)
    assert cache.k.dtype == cache.v.dtype == jnp.bfloat16
    assert cache.positions.shape == cache.segment_ids.shape == (5, 7)
    assert cache.index == 0 and not cache.segment_ids.any()
