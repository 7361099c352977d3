"""ORPO (arXiv 2403.07691): fine-tuning and preference in one stage, from a pretrained model, without a reference.

loss(θ) = NLL(y_c)  -  λ · mean log σ( log odds_θ(y_c|x) - log odds_θ(y_r|x) )
odds(y|x) = p / (1 - p),  p = exp( mean_t log π_θ(y_t | x, y_<t) )

Demonstrations and text may be mixed with the pairs: they count in the NLL alone.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxalign.data import PairBatch
from jaxalign.data.kinds import PAIRS_OR_DEMONSTRATIONS
from jaxalign.fields import Checked, field
from jaxalign.losses.metrics import Metrics
from jaxalign.losses.orpo import SequenceNLL, orpo_loss
from jaxalign.models.scoring import Scores, predicted
from jaxalign.stages import published
from jaxalign.training.stage import Stage, Totals


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


def tokens_read(batch: PairBatch, options: ORPOConfig) -> jax.Array:
    """[B, T]: nonzero at the tokens that either term reads."""
    return jnp.maximum(batch.loss_mask, nll_mask(batch, options))


def compared(batch: PairBatch) -> jax.Array:
    """[B, P] float32: the weight of each pair, 0 for a demonstration."""
    return batch.weight * (batch.rejected > 0)


def totals(batch: PairBatch, options: ORPOConfig) -> Totals:
    """What the two terms divide by: the pairs, and the chosen and demonstrated tokens, of the whole batch."""
    tokens, _ = batch.pair_lengths(nll_mask(batch, options))
    return {"pairs": compared(batch).sum(), "tokens": jnp.sum(tokens * batch.weight)}


def loss(
    policy: Scores, batch: PairBatch, frozen: dict[str, Scores], options: ORPOConfig, total: Totals
) -> tuple[jax.Array, Metrics]:
    """The loss over the pairs of a batch [B, T], and its metrics."""
    mask = nll_mask(batch, options)
    return orpo_loss(
        *batch.pair_sums(policy.logp),
        compared(batch),
        coef=options.coef,
        lengths=batch.pair_lengths(),
        nll=SequenceNLL(batch.pair_sums(-policy.logp, mask)[0], batch.pair_lengths(mask)[0], batch.weight),
        normalizer=total["pairs"],
        nll_normalizer=total["tokens"],
    )


STAGE = Stage(
    "orpo",
    data=PAIRS_OR_DEMONSTRATIONS,
    options=ORPOConfig,
    loss=loss,
    totals=totals,
    reads=tokens_read,
    headlines=(
        *("loss", "nll_loss", "log_odds_ratio", "rewards/accuracies", "rewards/margins"),
        *("grad_norm", "learning_rate", "skipped_steps"),
    ),
    recipe=published.ORPO,
)
