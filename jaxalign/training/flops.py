"""What a step computes, for its model FLOP utilisation (MFU): see `models.flops.step_flops`."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.losses.metrics import Mean, Metrics
from jaxalign.models import ModelConfig
from jaxalign.models.flops import Work, step_flops
from jaxalign.models.packed import Layout

# Metrics for the recorder, of which those that begin with FLOPS add up to the step's.
TOKENS, FLOPS = "perf/tokens", "perf/flops"


def count_work(
    config: ModelConfig, segment_ids: jax.Array, positions: jax.Array, mask: jax.Array | None = None
) -> Work:
    """The work of a pass of a model over a packed batch, int32 [B, T]: its real tokens, seen within segments only.

    Position p of a segment sees p + 1 tokens. Float32, as a large batch has more pairs than int32 can count.

    Args:
      mask: [B, T], nonzero at the tokens whose scores are read; None: all are.
    """
    real = (segment_ids > 0).astype(jnp.float32)
    seen = real * (positions + 1)
    near = jnp.minimum(seen, config.window) if config.window else seen
    read = real if mask is None else (mask != 0).astype(jnp.float32)
    return Work(real.sum(), seen.sum(), near.sum(), read.sum())


def update_flops(
    config: ModelConfig,
    batch: Any,
    frozen: tuple[ModelConfig, ...] = (),
    *,
    scalar: bool = False,
    mask: jax.Array | None = None,
) -> jax.Array:
    """FLOPs of an update on a batch: forward and backward of the trained model, forward of those that are frozen.

    Args:
      mask: see `count_work`.
    """
    arrays, layout = (batch.segment_ids, batch.positions, mask), getattr(batch, "layout", None)
    total = step_flops(config, as_laid_out(count_work(config, *arrays), layout), scalar=scalar)
    for other in frozen:
        work = as_laid_out(count_work(other, *arrays), layout)
        total += step_flops(other, work, scalar=scalar, passes=1)
    return total


def as_laid_out(work: Work, layout: Layout | None) -> Work:
    """The work on sequences whose common beginnings stand once: fewer tokens, which see as many."""
    return (
        work if layout is None else work._replace(tokens=jnp.sum(layout.segment_ids > 0, dtype=jnp.float32))
    )


def flops_metric(flops: jax.Array, part: str = "") -> Metrics:
    """What a program computed, as a metric of its own: a step has several programs."""
    return {f"{FLOPS}{part}": Mean(jnp.asarray(flops, jnp.float32), jnp.ones((), jnp.float32))}


def tokens_metric(work: Work) -> Metrics:
    """The real tokens of a step, as a metric."""
    return {TOKENS: Mean(work.tokens, jnp.ones((), jnp.float32))}
