"""The FLOP count of a model against what XLA compiles for it, which multiplies all pairs of a row, seen or not.

Without experts: the CPU has no grouped product, and multiplies each token by all of them.
"""

import jax
import jax.numpy as jnp
import pytest

from jaxalign.models import ModelConfig, init_params
from jaxalign.models.flops import Work, step_flops
from jaxalign.models.forward import logits
from jaxalign.plan import hlo
from jaxalign.plan.costs import count_flops

B, T = 2, 64
SHAPE = {"vocab_size": 160, "num_layers": 3, "embed_dim": 64, "num_heads": 4, "head_dim": 16, "mlp_dim": 96}
KINDS = {
    "grouped heads": {"num_kv_heads": 2},
    "tied, with windows": {"num_kv_heads": 4, "tie_embeddings": True, "window": 16, "layer_pattern": "LLG"},
    "plain mlp": {"num_kv_heads": 4, "gated_mlp": False, "activation": "gelu"},
}


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_analytic_flops_are_those_of_the_compiled_program(kind, passes):
    config = ModelConfig(**SHAPE, **KINDS[kind], attention="xla", max_length=T)
    params = jax.eval_shape(lambda: init_params(jax.random.key(0), config))

    def loss(params, tokens):
        return jnp.square(logits(params, config, tokens)).sum()

    function = loss if passes == 1 else jax.grad(loss)
    compiled = jax.jit(function).lower(params, jax.ShapeDtypeStruct((B, T), jnp.int32)).compile()
    counted = count_flops(hlo.parse(compiled.as_text()))["matmul"]
    pairs = B * T * T
    assert counted == pytest.approx(
        step_flops(config, Work(B * T, pairs, pairs, B * T), passes=passes), rel=1e-3
    )
