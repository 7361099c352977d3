"""Pretraining, from scratch or continued: next-token prediction on packed text.

    loss(θ) = -Σ_t log p_θ(x_t | x_<t) / Σ_t 1  +  z_loss · mean_t (log Z_t)²

Documents share rows but never see each other; with several sources the data mixture sets their shares.
"""

import dataclasses
from typing import Any

import jax

from jaxalign.data import Batch
from jaxalign.losses.metrics import Metrics
from jaxalign.losses.nll import nll_loss
from jaxalign.models import ModelConfig, Params
from jaxalign.models.scoring import score_tokens
from jaxalign.stages.router import real_tokens, with_router_losses
from jaxalign.stages.supervised import supervised_stage
from jaxalign.training.open import Run
from jaxalign.training.stage import Stage


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """config.pretrain"""

    z_loss: float = 0.0  # pulls log Z towards 0; PaLM used 1e-4


def totals(batch: Batch) -> dict[str, jax.Array]:
    """What the loss divides by: the supervised tokens of the whole batch."""
    return {"tokens": batch.loss_mask.sum()} | real_tokens(batch)


def loss(
    params: Params,
    batch: Batch,
    total: dict[str, jax.Array],
    frozen: Any,
    *,
    model: ModelConfig,
    options: PretrainConfig,
) -> tuple[jax.Array, Metrics]:
    """Mean negative log-likelihood of the supervised tokens (batch [B, T]), and its metrics."""
    scored = score_tokens(params, model, batch.tokens, batch.positions, batch.segment_ids)
    result = nll_loss(
        scored.logp,
        batch.loss_mask,
        logsumexp=scored.logsumexp,
        z_loss=options.z_loss,
        normalizer=total["tokens"],
    )
    return with_router_losses(result, scored.router, batch, total, model)


def build(run: Run) -> Stage:
    """The stage for the loop."""
    return supervised_stage(run, loss, totals)
