"""KTO (arXiv 2402.01306): learning from completions that are each desirable or not, without pairs.

    loss(θ) = mean_i λ_i [1 - σ(± β (r_θ(x_i, y_i) - z))],   r_θ = log π_θ(y|x) / π_ref(y|x)
    z       = max(0, mean_i r_θ(x_i, y_i'))

+ and λ_D for a desirable completion, - and λ_U for another. y' is a completion of another prompt: z estimates the KL
of the policy from the reference, over the whole batch, and has no gradient.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.data import UnpairedBatch
from jaxalign.data.kinds import UNPAIRED
from jaxalign.losses.kto import KTOObjective, kto_loss
from jaxalign.losses.metrics import Metrics, masked_mean
from jaxalign.models.scoring import Scores
from jaxalign.stages import published
from jaxalign.training.reference import verify_reference
from jaxalign.training.stage import FrozenModel, Stage, Totals, supervised_tokens


@dataclasses.dataclass(frozen=True)
class KTOConfig(KTOObjective):
    """config.kto: the settings of `kto_loss`, and where the reference's log-probabilities come from."""

    precompute_reference: bool = False  # once, before training, in place of with each batch


def totals(batch: UnpairedBatch, options: Any) -> Totals:
    """What the loss divides by: the completions of the whole batch."""
    return {"completions": batch.weight.sum()}


def reference_sums(batch: UnpairedBatch, frozen: dict[str, Scores]) -> tuple[jax.Array, jax.Array]:
    """The reference's log-probability of each completion, and of the mismatched one: [B, P] twice."""
    if "reference" in frozen:
        return batch.sums(frozen["reference"].logp)
    return batch.pick(batch.ref_logp)


def log_ratio_of_mismatched(
    policy: Scores, batch: UnpairedBatch, frozen: dict[str, Scores], options: KTOConfig
) -> Metrics:
    """The mean log-ratio of the mismatched completions, from which z follows, where the loss has one."""
    if not options.has_baseline:
        return {}
    _, mismatched = batch.sums(policy.logp)
    _, reference = reference_sums(batch, frozen)
    return {"log_ratio": masked_mean(mismatched - reference, batch.weight * (batch.mismatched > 0))}


def loss(
    policy: Scores, batch: UnpairedBatch, frozen: dict[str, Scores], options: KTOConfig, total: Totals
) -> tuple[jax.Array, Metrics]:
    """The loss over the completions of a batch [B, T], and its metrics."""
    completions, _ = batch.sums(policy.logp)
    reference, _ = reference_sums(batch, frozen)
    baseline = jnp.maximum(total["log_ratio"], 0.0) if options.has_baseline else None
    return kto_loss(
        completions,
        reference,
        batch.desirable,
        batch.weight,
        options,
        kl=baseline,
        normalizer=total["completions"],
    )


STAGE = Stage(
    "kto",
    data=UNPAIRED,
    options=KTOConfig,
    loss=loss,
    totals=totals,
    reads=supervised_tokens,
    frozen=lambda options: {"reference": FrozenModel(precompute=options.precompute_reference)},
    statistics=log_ratio_of_mismatched,
    step_zero=verify_reference,
    headlines=(
        *("loss", "rewards/margins", "rewards/chosen", "rewards/rejected", "kl"),
        *("grad_norm", "learning_rate", "skipped_steps"),
    ),
    recipe=published.KTO,
)
