"""Direct preference optimisation (arXiv 2305.18290): preferences without a reward model and without sampling.

    loss(θ) = -mean log σ( β [log π_θ(y_c|x)/π_ref(y_c|x) - log π_θ(y_r|x)/π_ref(y_r|x)] )

π_ref is the model that training starts from. Its log-probabilities are computed with each batch, or once
before training (`precompute_reference`) and kept in the run's folder under a key of the data and the weights.
"""

import dataclasses
from typing import Any

import jax

from jaxalign.data import PairBatch
from jaxalign.data.kinds import PAIRS
from jaxalign.losses.dpo import DPOObjective, dpo_loss
from jaxalign.losses.metrics import Metrics
from jaxalign.models import Params
from jaxalign.models.scoring import Scores
from jaxalign.stages import published
from jaxalign.training.open import Run
from jaxalign.training.reference import verify_reference
from jaxalign.training.stage import FrozenModel, Stage, Totals, supervised_tokens


@dataclasses.dataclass(frozen=True)
class DPOConfig(DPOObjective):
    """config.dpo: the settings of `dpo_loss`, and where the reference's log-probabilities come from."""

    precompute_reference: bool = False  # once, before training, in place of with each batch


def pair_totals(batch: PairBatch, options: Any) -> Totals:
    """What pair losses divide by: the weight of the pairs of the whole batch."""
    return {"pairs": batch.weight.sum()}


def loss(
    policy: Scores, batch: PairBatch, frozen: dict[str, Scores], options: DPOConfig, total: Totals
) -> tuple[jax.Array, Metrics]:
    """The loss over the pairs of a batch [B, T], and its metrics."""
    reference: tuple[Any, Any] = (None, None)
    if "reference" in frozen:
        reference = batch.pair_sums(frozen["reference"].logp)
    elif not options.reference_free:
        reference = batch.pick(batch.ref_logp)
    chosen, rejected = batch.pair_sums(policy.logp)
    return dpo_loss(
        chosen,
        rejected,
        *reference,
        batch.weight,
        options,
        lengths=batch.pair_lengths(),
        normalizer=total["pairs"],
    )


def reference_unless_free(options: DPOConfig) -> dict[str, FrozenModel]:
    """The reference is the model that training starts from."""
    if options.reference_free:
        return {}
    return {"reference": FrozenModel(precompute=options.precompute_reference)}


def verify(run: Run, params: Params, batch: PairBatch, frozen: dict[str, Params]) -> None:
    """Before the first update every margin is 0 and every loss ln 2."""
    if not run.config.options.reference_free:
        verify_reference(run, params, batch, frozen)


HEADLINES = (
    *("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected"),
    *("grad_norm", "learning_rate", "skipped_steps"),
)

STAGE = Stage(
    "dpo",
    data=PAIRS,
    options=DPOConfig,
    loss=loss,
    totals=pair_totals,
    reads=supervised_tokens,
    frozen=reference_unless_free,
    step_zero=verify,
    headlines=HEADLINES,
    recipe=published.DPO,
)
