"""What a step works on, for its model FLOP utilisation (MFU): see `models.flops.step_flops`."""

import jax
import jax.numpy as jnp

from jaxalign.losses.metrics import Mean, Metrics

TOKENS, PAIRS = "perf/tokens", "perf/pairs"


def count_work(segment_ids: jax.Array, positions: jax.Array) -> Metrics:
    """Of a packed batch, int32 [B, T]: its tokens, and the pairs of them that attention lets see each other.

    A pair is counted once (causal), within segments only: position p of a segment sees p + 1 tokens. Float32, as
    a large batch has more pairs than int32 can count. Belongs into a step's metrics, for the recorder.
    """
    real = (segment_ids > 0).astype(jnp.float32)
    one = jnp.ones((), jnp.float32)
    return {TOKENS: Mean(real.sum(), one), PAIRS: Mean(jnp.sum(real * (positions + 1)), one)}
