"""The transformer against the NumPy decoder, for every switch, alone, packed and padded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models import ModelConfig, count_params, hidden_states, init_params, scalar_head, unembedding
from jaxalign.models.init import init_head

from .oracle import decode, logits_of, random_params

SIZES = {
    "vocab_size": 31,
    "num_layers": 2,
    "embed_dim": 16,
    "num_heads": 4,
    "head_dim": 6,
    "mlp_dim": 24,
    "max_length": 16,
}
BIASES = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
MHA, GQA, MQA = ({"num_kv_heads": n} for n in (4, 2, 1))
# Every value of every switch at least twice, in different company.
SWITCHES = [
    {**MHA},
    {**GQA, **BIASES, "tie_embeddings": False, "activation": "gelu"},
    {**MQA, "norm": "layer", "activation": "gelu_tanh", "gated_mlp": False},
    {
        **MHA,
        "norm": "layer",
        "positions": "learned",
        **BIASES,
        "activation": "gelu",
        "gated_mlp": False,
    },
    {**GQA, "positions": "learned", "activation": "relu", "gated_mlp": False, "tie_embeddings": False},
    {**MQA, "positions": "learned", "activation": "relu", **BIASES},
    {**GQA, "norm": "layer", "activation": "gelu_tanh", "rope_theta": 100.0, "norm_eps": 1e-2},
    {**GQA, "norm_offset": True, "scale_embedding": True, "norm_placement": "both", "attention_softcap": 2.0},
    {**GQA, "norm_offset": True, "qk_norm": "head", "query_scale": 0.3, "window": 3, "layer_pattern": "LG"},
    {
        **MQA,
        "num_layers": 4,
        "window": 2,
        "layer_pattern": "LLG",
        "rope_local_theta": 50.0,
        "rope_scaling": "linear",
        "rope_factor": 4.0,
        "norm_placement": "both",
    },
    {**MHA, "norm_placement": "after", "qk_norm": "all", "window": 2, "qkv_bias": True},
    {**GQA, "qk_norm": "all", "out_bias": True, "norm": "layer", "norm_placement": "after"},
    {**MHA, "norm": "layer", "parallel_blocks": True, "rope_fraction": 0.34, "gated_mlp": False, **BIASES},
    {**GQA, "positions": "learned", "position_offset": 2, "parallel_blocks": True, "mlp_bias": True},
    {**GQA, "num_experts": 4, "experts_per_token": 2},
    {**MHA, "num_experts": 5, "experts_per_token": 3, "normalize_experts": False, "activation": "gelu_tanh"},
    {**GQA, "num_experts": 2, "experts_per_token": 1, "norm_placement": "both"},
    {**MQA, "num_layers": 3, "activation": "silu", "gated_mlp": False, "tie_embeddings": False},
]
LENGTHS = (5, 1, 4)


def model(**switches):
    config = ModelConfig(**{**SIZES, **GQA, **switches})
    return config, random_params(config)


def sequences(lengths=LENGTHS, seed=3):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, SIZES["vocab_size"], n).astype(np.int32) for n in lengths]


def pack(parts, length, lead=0):
    """One row: `lead` padding tokens, the sequences as segments 1, 2, ..., padding with arbitrary tokens."""
    tokens = np.full((1, length), 7, np.int32)
    positions, segments = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
    start = lead
    for number, part in enumerate(parts, 1):
        at = slice(start, start := start + len(part))
        tokens[0, at], positions[0, at], segments[0, at] = part, np.arange(len(part)), number
    return tokens, positions, segments


def stack(*rows):
    return tuple(np.concatenate(x) for x in zip(*rows, strict=True))


apply = jax.jit(hidden_states, static_argnames="config")


def forward(params, config, batch):
    return np.asarray(apply(params, config, *batch)[0])


@pytest.mark.slow
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(map(str, s.values())))
def test_matches_float64_decoder_packed_and_padded(switches):
    config, params = model(**switches)
    parts = sequences()
    layouts = [
        ("packed, padded right", parts, 0),
        ("packed, padded left", parts, 3),
        ("padded right", parts[:1], 0),
        ("padded left", parts[:1], 8),
        ("padded on both sides", parts[2:], 4),
    ]
    batch = stack(*(pack(held, 13, lead) for _, held, lead in layouts))
    hidden = forward(params, config, batch)
    assert np.isfinite(hidden).all()
    for row, (name, held, _) in enumerate(layouts):
        for number, part in enumerate(held, 1):
            want_hidden, want_logits = decode(params, config, part)
            got = hidden[row][batch[2][row] == number]
            np.testing.assert_allclose(got, want_hidden, rtol=1e-5, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(
                logits_of(got, params, config), want_logits, rtol=1e-5, atol=1e-5, err_msg=name
            )


def test_no_padding_at_all_matches_float64_decoder():
    config, params = model()
    part = sequences((6,))[0]
    got = forward(params, config, pack([part], 6))[0]
    np.testing.assert_allclose(got, decode(params, config, part)[0], rtol=1e-5, atol=1e-5)


def test_later_tokens_and_other_segments_have_no_influence():
    config, params = model()
    length = 11
    batch = pack(sequences((5, 4)), length)
    positions, segments = batch[1][0], batch[2][0]
    tokens, *rest = (np.repeat(x, length + 1, 0) for x in batch)
    changed = np.arange(length)
    tokens[changed, changed] = (tokens[changed, changed] + 1) % config.vocab_size
    hidden = forward(params, config, (tokens, *rest))
    moved = np.abs(hidden[:length] - hidden[length]).max(-1)  # row: the changed token; column: the moved one
    allowed = (segments[:, None] == segments) & (positions[:, None] <= positions)
    np.testing.assert_array_equal(moved[~allowed], 0)
    assert moved[allowed].min() > 1e-4


def test_rotary_attention_sees_relative_positions_only():
    config, params = model()
    tokens, positions, segments = pack(sequences((6,)), 6)
    here = forward(params, config, (tokens, positions, segments))
    there = forward(params, config, (tokens, positions + 37, segments))
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-4)


def test_token_outside_the_vocabulary_gives_nan_not_another_token():
    config, params = model()
    tokens, positions, segments = stack(pack(sequences((6,)), 6), pack(sequences((6,)), 6))
    tokens[0, 2] = config.vocab_size
    hidden = forward(params, config, (tokens, positions, segments))
    assert np.isnan(hidden[0, 2:]).all() and np.isfinite(hidden[1]).all()


def test_position_beyond_the_table_gives_nan():
    config, params = model(positions="learned", max_length=5)
    hidden = forward(params, config, stack(pack(sequences((6,)), 6), pack(sequences((5,)), 6)))
    assert np.isnan(hidden[0, 5]).all() and np.isfinite(hidden[1]).all()


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 0.02), ("float16", 0.0025)])
def test_half_precision_is_finite_and_close(dtype, error):
    config, params = model()
    low = ModelConfig(**{**SIZES, **GQA, "dtype": dtype})
    batch = pack(sequences(), 12)
    want, (got, _) = forward(params, config, batch), apply(params, low, *batch)
    assert got.dtype == unembedding(params, low).dtype == jnp.dtype(dtype)
    got, want = np.asarray(got, np.float32)[batch[2] > 0], want[batch[2] > 0]
    assert np.sqrt(np.square(got - want).mean() / np.square(want).mean()) < error


@pytest.mark.slow
def test_half_precision_gradients_are_float32_and_close():
    config, params = model()
    low = ModelConfig(**{**SIZES, **GQA, "dtype": "bfloat16"})
    batch = pack(sequences(), 12)
    weights = np.random.default_rng(4).normal(size=(1, 12, 16)) * (batch[2] > 0)[..., None]
    weights = weights.astype(np.float32)

    @functools.partial(jax.jit, static_argnames="config")
    def gradient(params, config):
        return jax.grad(lambda p: jnp.vdot(weights, apply(p, config, *batch)[0].astype(jnp.float32)))(params)

    for want, got in zip(*(jax.tree.leaves(gradient(params, c)) for c in (config, low)), strict=True):
        assert got.dtype == jnp.float32
        assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)


def test_shapes_that_would_broadcast_are_refused():
    config, params = model()
    tokens, positions, segments = (np.repeat(x, 2, 0) for x in pack(sequences((4,)), 4))
    with pytest.raises(ValueError, match=r"tokens \(2, 4\), positions \(1, 4\) and segment_ids \(2, 4\)"):
        hidden_states(params, config, tokens, positions[:1], segments)
    with pytest.raises(ValueError, match=r"same shape \[B, T\]"):
        hidden_states(params, config, tokens, positions, segments[:, :2])


@pytest.mark.parametrize("switches", SWITCHES[:5], ids=lambda s: "-".join(map(str, s.values())))
def test_parameter_count_is_the_sum_of_the_matrices(switches):
    c, params = model(**switches)
    bias = c.qkv_bias
    heads = c.num_heads + 2 * c.num_kv_heads
    attention = (c.embed_dim + bias) * heads * c.head_dim + (c.num_heads * c.head_dim + bias) * c.embed_dim
    mlp = (1 + c.gated_mlp) * (c.embed_dim + bias) * c.mlp_dim + (c.mlp_dim + bias) * c.embed_dim
    norm = c.embed_dim * (2 if c.norm == "layer" else 1)
    tables = c.vocab_size * (1 if c.tie_embeddings else 2) + (c.positions == "learned") * c.max_length
    want = c.num_layers * (attention + mlp + 2 * norm) + norm + tables * c.embed_dim
    assert count_params(params) == want


@pytest.mark.slow
def test_initial_weights_have_the_documented_spread():
    config = ModelConfig(embed_dim=64, mlp_dim=256, num_layers=3, init_std=0.05)
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), config)
    layers = params["layers"]
    residual = 0.05 / np.sqrt(2 * 3)
    for kernel, std in [
        (params["embedding"], 0.05),
        (layers["attention"]["query"]["kernel"], 0.05),
        (layers["mlp"]["gate"]["kernel"], 0.05),
        (layers["attention"]["out"]["kernel"], residual),
        (layers["mlp"]["down"]["kernel"], residual),
    ]:
        assert abs(np.std(kernel) / std - 1) < 0.03
        assert abs(np.mean(kernel)) < 4 * std / np.sqrt(kernel.size)
    first, second = layers["mlp"]["up"]["kernel"][:2]
    assert abs(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]) < 0.05


@pytest.mark.slow
def test_scalar_head_is_an_affine_map_and_starts_as_documented():
    config = ModelConfig(**{**SIZES, "embed_dim": 4096})
    head = init_head(jax.random.key(1), config)
    assert abs(np.std(head["kernel"]) * np.sqrt(4097) - 1) < 0.05 and head["bias"] == 0
    hidden = np.random.default_rng(0).normal(size=(2, 3, 4096)).astype(np.float32)
    head["bias"] = jnp.float32(0.25)
    want = hidden.astype(np.float64) @ np.asarray(head["kernel"], np.float64) + 0.25
    np.testing.assert_allclose(scalar_head(head, hidden), want, rtol=1e-5, atol=1e-5)
    make = jax.jit(functools.partial(init_params, config=ModelConfig(**SIZES), scalar=True, zero_head=True))
    zero = make(jax.random.key(0))
    assert set(zero) == {"transformer", "head"} and not np.any(zero["head"]["kernel"])
