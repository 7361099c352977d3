"""Reward modelling from comparisons."""

import jax
import jax.numpy as jnp

from jaxalign.losses.metrics import Metrics, masked_max, masked_mean, masked_min, normalized
from jaxalign.losses.numerics import keep, require_float32


def bradley_terry_loss(
    chosen: jax.Array,
    rejected: jax.Array,
    weight: jax.Array,
    *,
    margin: jax.Array | None = None,
    centering: float = 0.0,
    normalizer: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Weighted mean over pairs of -log σ(chosen - rejected - margin) + centering · (chosen + rejected)².

    Bradley–Terry likelihood (InstructGPT, arXiv 2203.02155 eq. 1), margin of Llama 2 (arXiv 2307.09288 eq.
    2), centering of arXiv 2312.09244. A ranking of K responses is its pairs without those that are tied, each of weight
    1 / their number, so that prompts count alike whatever their K and their ties.

    Args: pair scores `chosen`, `rejected`, their `weight` and `margin`, float32 of one shape; `normalizer` Σ
    weight over the global batch. Metrics: `loss`, `accuracy` (a tie counts half), `margin` (chosen -
    rejected), `mean_reward`, `min_reward`, `max_reward` over both sides. Raises TypeError or ValueError for
    wrong arrays.
    """
    require_float32(chosen=chosen, rejected=rejected, weight=weight, margin=margin)
    chosen, rejected = keep(chosen, weight), keep(rejected, weight)
    difference = chosen - rejected
    advantage = difference if margin is None else difference - keep(margin, weight)
    pair_loss = -jax.nn.log_sigmoid(advantage) + centering * jnp.square(chosen + rejected)
    loss = masked_mean(pair_loss, weight)
    correct = jnp.where(difference > 0, 1.0, jnp.where(difference == 0, 0.5, 0.0))
    rewards, counted = jnp.stack([chosen, rejected]), jnp.stack([weight, weight])
    metrics: Metrics = {
        "loss": loss,
        "accuracy": masked_mean(correct, weight),
        "margin": masked_mean(difference, weight),
        "mean_reward": masked_mean(rewards, counted),
        "min_reward": masked_min(rewards, counted),
        "max_reward": masked_max(rewards, counted),
    }
    return normalized(loss, normalizer), metrics
