"""What is kept for the backward pass, by count and as JAX keeps it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from jaxalign.models import ModelConfig, init_params
from jaxalign.models.activations import count_activations
from jaxalign.models.forward import hidden_states
from jaxalign.models.presets import PRESETS

LAYERS, ROWS, TOKENS = 4, 2, 13 * 32  # no size of a model has the factor 13


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "name",
    ["llama3_1_8b", "qwen3_8b", "gemma_2b", "gemma2_9b", "olmo2_1b", "gpt2", "pythia_6_9b", "opt_125m"],
)
def test_the_count_of_what_is_kept_is_what_jax_keeps(name, dtype):
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    fields = {key: value for key, value in PRESETS[name].items() if key in known}
    # Kernels of attention keep no matrix of scores; the one for CPUs can be traced anywhere.
    fields |= {"num_layers": LAYERS, "vocab_size": 512, "attention": "block_sparse", "dtype": dtype}
    config = ModelConfig(**fields | {"remat": "none", "layer_pattern": "", "window": 0})
    params = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    ints = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32)

    def keep(params, tokens, positions, segments):
        return jax.vjp(lambda p: hidden_states(p, config, tokens, positions, segments, None)[0], params)[1]

    kept = jax.tree.leaves(jax.eval_shape(keep, params, ints, ints, ints))
    of_tokens = [x for x in kept if x.shape[:1] == (LAYERS,) and math.prod(x.shape) % 13 == 0]
    found = sum(math.prod(x.shape) * x.dtype.itemsize for x in of_tokens)
    numbers = found / (LAYERS * ROWS * TOKENS * jnp.dtype(dtype).itemsize)
    assert count_activations(config)[1] == pytest.approx(numbers, rel=0.01)
