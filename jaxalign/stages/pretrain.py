"""Pretraining, from scratch or continued: next-token prediction on packed text.

    loss(θ) = -Σ_t log p_θ(x_t | x_<t) / Σ_t 1  +  z_loss · mean_t (log Z_t)²

Documents share rows but never see each other; with several sources the data mixture sets their shares.
"""

import dataclasses
from typing import Any

import jax

from jaxalign.data import Batch
from jaxalign.data.kinds import TEXT
from jaxalign.fields import Checked, field
from jaxalign.losses.metrics import Metrics
from jaxalign.losses.nll import nll_loss
from jaxalign.models.scoring import Scores
from jaxalign.stages import published
from jaxalign.training.stage import Stage, Totals


@dataclasses.dataclass(frozen=True)
class PretrainConfig(Checked, at="config.pretrain"):
    """config.pretrain"""

    z_loss: float = field(0.0, at_least=0)  # pulls log Z towards 0; PaLM used 1e-4


def token_totals(batch: Batch, options: Any) -> Totals:
    """What the loss divides by: the supervised tokens of the whole batch."""
    return {"tokens": batch.loss_mask.sum()}


def loss(
    policy: Scores, batch: Batch, frozen: dict[str, Scores], options: PretrainConfig, total: Totals
) -> tuple[jax.Array, Metrics]:
    """Mean negative log-likelihood of the supervised tokens (batch [B, T]), and its metrics."""
    return nll_loss(
        policy.logp,
        batch.loss_mask,
        logsumexp=policy.logsumexp,
        z_loss=options.z_loss,
        normalizer=total["tokens"],
    )


HEADLINES = ("loss", "mean_token_accuracy", "grad_norm", "learning_rate", "skipped_steps")

STAGE = Stage(
    "pretrain",
    data=TEXT,
    options=PretrainConfig,
    loss=loss,
    totals=token_totals,
    headlines=HEADLINES,
    afterwards=(
        "jaxalign train --config=sft --workdir={beside}/sft --config.model.init_from={run} "
        "--config.data.train=CONVERSATIONS.jsonl",
    ),
    recipe=published.PRETRAIN,
)
