"""ORPO (arXiv 2403.07691): fine-tuning and preference in one stage, from a pretrained model, without a reference.

loss(θ) = NLL(y_c)  -  λ · mean log σ( log odds_θ(y_c|x) - log odds_θ(y_r|x) )
odds(y|x) = p / (1 - p),  p = exp( mean_t log π_θ(y_t | x, y_<t) )

Demonstrations and text may be mixed with the pairs: they count in the NLL alone.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.data import PairBatch
from jaxalign.fields import Checked, field
from jaxalign.losses.metrics import Metrics
from jaxalign.losses.orpo import orpo_loss
from jaxalign.models import ModelConfig, Params
from jaxalign.models.scoring import predicted, score_tokens
from jaxalign.stages.pairs import pair_sums
from jaxalign.stages.router import real_tokens, with_router_losses
from jaxalign.stages.supervised import supervised_stage
from jaxalign.training.open import Run
from jaxalign.training.stage import Stage


@dataclasses.dataclass(frozen=True)
class ORPOConfig(Checked, at="config.orpo"):
    """config.orpo"""

    coef: float = field(0.1, at_least=0)  # λ, weight of the odds ratio; the paper uses 0.1 to 1
    nll_on_prompt: bool = False  # True: the NLL covers prompt and chosen response, as the authors' code does


def nll_mask(batch: PairBatch, options: ORPOConfig) -> jax.Array:
    """[B, T] float32: the tokens whose likelihood counts, in chosen and rejected sequences alike."""
    if options.nll_on_prompt:
        return predicted(batch.segment_ids).astype(jnp.float32)
    return batch.loss_mask


def compared(batch: PairBatch) -> jax.Array:
    """[B, P] float32: the weight of each pair, 0 for a demonstration."""
    return batch.weight * (batch.rejected > 0)


def totals(batch: PairBatch, options: ORPOConfig) -> dict[str, jax.Array]:
    """What the two terms divide by: the pairs, and the chosen and demonstrated tokens, of the whole batch."""
    tokens, _ = pair_sums(nll_mask(batch, options), batch)
    return {"pairs": compared(batch).sum(), "tokens": jnp.sum(tokens * batch.weight)} | real_tokens(batch)


def loss(
    params: Params,
    batch: PairBatch,
    total: dict[str, jax.Array],
    frozen: Any,
    *,
    model: ModelConfig,
    options: ORPOConfig,
) -> tuple[jax.Array, Metrics]:
    """The loss over the pairs of a batch [B, T], and its metrics."""
    scored = score_tokens(params, model, batch.tokens, batch.positions, batch.segment_ids)
    logp = scored.logp
    mask = nll_mask(batch, options)
    chosen, rejected = pair_sums(logp * batch.loss_mask, batch)
    chosen_length, rejected_length = pair_sums(batch.loss_mask, batch)
    nll, _ = pair_sums(-logp * mask, batch)
    nll_length, _ = pair_sums(mask, batch)
    result = orpo_loss(
        chosen,
        rejected,
        compared(batch),
        chosen_length=chosen_length,
        rejected_length=rejected_length,
        nll=nll,
        nll_length=nll_length,
        coef=options.coef,
        nll_weight=batch.weight,
        normalizer=total["pairs"],
        nll_normalizer=total["tokens"],
    )
    return with_router_losses(result, scored.router, batch, total, model)


def build(run: Run) -> Stage:
    """The stage for the loop."""
    options: ORPOConfig = run.config.options
    stage = supervised_stage(run, loss, lambda batch: totals(batch, options))

    def evaluate(state: Any) -> dict[str, float]:
        values = stage.evaluate(state)
        if values:  # the two terms are means over different things: only they can be merged over batches
            values["eval/loss"] = values["eval/nll_loss"] - options.coef * values["eval/log_odds_ratio"]
        return values

    return dataclasses.replace(stage, evaluate=evaluate)
