"""Odds-ratio preference optimisation: one stage, no reference model."""

import jax

from jaxalign.losses.dpo import preference_metrics
from jaxalign.losses.metrics import Mean, Metrics, masked_mean, normalized
from jaxalign.losses.numerics import keep, log1mexp, require_float32


def orpo_loss(
    chosen_logp: jax.Array,
    rejected_logp: jax.Array,
    weight: jax.Array,
    *,
    chosen_length: jax.Array,
    rejected_length: jax.Array,
    nll: jax.Array,
    nll_length: jax.Array,
    coef: float,
    nll_weight: jax.Array | None = None,
    normalizer: jax.Array | None = None,
    nll_normalizer: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Token mean of the NLL + coef · pair mean of -log σ(log odds(chosen) - log odds(rejected)).

    ORPO, arXiv 2403.07691 eq. 6-7. odds(y) = p / (1 - p) with log p = logp / length, the log-probability
    averaged over tokens. The two means have different denominators, so there is no `loss` metric: it could
    not be merged.

    Args: sequence sums of log-probabilities, supervised token counts and pair weights, float32 of one shape;
    `nll` and `nll_length` each pair's summed NLL and its token count, which may cover other tokens (the
    prompt) than chosen_logp; `nll_weight` the weights of the NLLs where they are not `weight` (a
    demonstration has an NLL and no rejected response); `normalizer` Σ weight and `nll_normalizer`
    Σ nll_weight · nll_length over the global batch. Metrics: `nll_loss`; `log_odds_ratio`, the mean of
    log σ(·), and `log_odds_chosen`, the mean of its argument; `rewards/*` of coef · logp / length, and
    `logps/*` of logp / length: all as in TRL. Raises TypeError or ValueError for wrong arrays.
    """
    nll_weight = weight if nll_weight is None else nll_weight
    require_float32(
        nll_weight=nll_weight,
        chosen_logp=chosen_logp,
        rejected_logp=rejected_logp,
        weight=weight,
        chosen_length=chosen_length,
        rejected_length=rejected_length,
        nll=nll,
        nll_length=nll_length,
    )
    chosen = keep(chosen_logp, weight) / keep(chosen_length, weight, 1.0)
    rejected = keep(rejected_logp, weight) / keep(rejected_length, weight, 1.0)
    log_odds = (chosen - log1mexp(chosen)) - (rejected - log1mexp(rejected))
    log_odds_ratio = jax.nn.log_sigmoid(log_odds)
    ratio_mean = masked_mean(log_odds_ratio, weight)
    nll_mean = Mean(masked_mean(nll, nll_weight).total, masked_mean(nll_length, nll_weight).total)
    loss = normalized(nll_mean, nll_normalizer) - coef * normalized(ratio_mean, normalizer)
    metrics = {
        "nll_loss": nll_mean,
        "log_odds_ratio": ratio_mean,
        "log_odds_chosen": masked_mean(log_odds, weight),
    } | preference_metrics(coef * chosen, coef * rejected, chosen, rejected, weight)
    return loss, metrics
