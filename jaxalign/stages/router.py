"""What every stage adds to its loss when the model is a mixture of experts."""

from typing import Any

import jax

from jaxalign.losses.metrics import Mean, Metrics, normalized
from jaxalign.models import ModelConfig


def real_tokens(batch: Any) -> dict[str, jax.Array]:
    """What router losses divide by: the tokens of the whole batch that are not padding."""
    return {"real_tokens": (batch.segment_ids > 0).sum().astype("float32")}


def with_router_losses(
    loss: tuple[jax.Array, Metrics],
    router: jax.Array | None,
    batch: Any,
    total: dict[str, jax.Array],
    model: ModelConfig,
) -> tuple[jax.Array, Metrics]:
    """Adds the weighted load-balancing loss and router z-loss to (loss, metrics); a dense model has none.

    Args:
      router: [2] sums over the real tokens of `batch`; see `models.experts.router_losses`.
      total: has `real_tokens` of the global batch.
    """
    if router is None:
        return loss
    value, metrics = loss
    here = real_tokens(batch)["real_tokens"]
    balance, z = (Mean(x, here) for x in router)
    value = value + model.router_balance_coef * normalized(balance, total["real_tokens"])
    value = value + model.router_z_coef * normalized(z, total["real_tokens"])
    return value, metrics | {"router/balance_loss": balance, "router/z_loss": z}
