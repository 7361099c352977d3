"""Odds-ratio preference optimisation: one stage, no reference model."""

from typing import NamedTuple

import jax

from jaxalign.losses.dpo import preference_metrics
from jaxalign.losses.metrics import Mean, Metrics, masked_mean, normalized
from jaxalign.losses.numerics import keep, log1mexp, require_float32


class SequenceNLL(NamedTuple):
    """The negative log-likelihood of ORPO's first term, for each pair: arrays of the pairs' shape.

    `nll` its sum over tokens and `length` their count, which may cover other tokens (the prompt) than the
    pair's log-probabilities; `weight` where it is not the pair's own (a demonstration has an NLL and no
    rejected response).
    """

    nll: jax.Array
    length: jax.Array
    weight: jax.Array | None = None


def orpo_loss(
    chosen_logp: jax.Array,
    rejected_logp: jax.Array,
    weight: jax.Array,
    *,
    coef: float,
    lengths: tuple[jax.Array, jax.Array],
    nll: SequenceNLL,
    normalizer: jax.Array | None = None,
    nll_normalizer: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Token mean of the NLL + coef · pair mean of -log σ(log odds(chosen) - log odds(rejected)).

    ORPO, arXiv 2403.07691 eq. 6-7. odds(y) = p / (1 - p) with log p = logp / length, the log-probability
    averaged over tokens. The two means have different denominators, so there is no `loss` metric: it could
    not be merged.

    Args: sequence sums of log-probabilities and pair weights, float32 of one shape; `lengths` the supervised
    token counts (chosen, rejected), of the same shape; `nll` a `SequenceNLL`; `normalizer` Σ weight and
    `nll_normalizer` Σ nll.weight · nll.length over the global batch. Metrics: `nll_loss`; `log_odds_ratio`,
    the mean of log σ(·), and `log_odds_chosen`, the mean of its argument; `rewards/*` of coef · logp / length,
    and `logps/*` of logp / length: all as in TRL. Raises TypeError or ValueError for wrong arrays.
    """
    chosen_length, rejected_length = lengths
    nll_weight = weight if nll.weight is None else nll.weight
    require_float32(
        nll_weight=nll_weight,
        chosen_logp=chosen_logp,
        rejected_logp=rejected_logp,
        weight=weight,
        chosen_length=chosen_length,
        rejected_length=rejected_length,
        nll=nll.nll,
        nll_length=nll.length,
    )
    chosen = keep(chosen_logp, weight) / keep(chosen_length, weight, 1.0)
    rejected = keep(rejected_logp, weight) / keep(rejected_length, weight, 1.0)
    log_odds = (chosen - log1mexp(chosen)) - (rejected - log1mexp(rejected))
    log_odds_ratio = jax.nn.log_sigmoid(log_odds)
    ratio_mean = masked_mean(log_odds_ratio, weight)
    nll_mean = Mean(masked_mean(nll.nll, nll_weight).total, masked_mean(nll.length, nll_weight).total)
    loss = normalized(nll_mean, nll_normalizer) - coef * normalized(ratio_mean, normalizer)
    metrics = {
        "nll_loss": nll_mean,
        "log_odds_ratio": ratio_mean,
        "log_odds_chosen": masked_mean(log_odds, weight),
    } | preference_metrics(coef * chosen, coef * rejected, chosen, rejected, weight)
    return loss, metrics
