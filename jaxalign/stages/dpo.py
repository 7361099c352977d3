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
from jaxalign.errors import ConfigError
from jaxalign.losses.dpo import dpo_loss
from jaxalign.losses.metrics import Metrics
from jaxalign.models import Params
from jaxalign.models.scoring import Scores
from jaxalign.training.open import Run
from jaxalign.training.reference import verify_reference
from jaxalign.training.stage import FrozenModel, Stage, Totals


@dataclasses.dataclass(frozen=True)
class DPOConfig:
    """config.dpo"""

    beta: float = 0.1  # strength of the tie to the reference
    variant: str = "sigmoid"  # sigmoid, robust, hinge, ipo (sequence sums) or ipo_mean (per token, as TRL)
    label_smoothing: float = 0.0  # probability that a label is flipped: cDPO (sigmoid) or robust DPO
    length_normalized: bool = False  # log-ratios per token, as in Tülu 3
    reference_free: bool = False  # a uniform reference
    # γ: by how much β times the difference should be positive; see `dpo_loss` on SimPO.
    target_margin: float = 0.0
    nll_coef: float = 0.0  # adds the chosen response's mean NLL
    precompute_reference: bool = False

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError(f"config.dpo.beta={self.beta} must be positive")


def pair_totals(batch: PairBatch, options: Any) -> Totals:
    """What pair losses divide by: the weight of the pairs of the whole batch."""
    return {"pairs": batch.weight.sum()}


def loss(
    policy: Scores, batch: PairBatch, frozen: dict[str, Scores], options: DPOConfig, total: Totals
) -> tuple[jax.Array, Metrics]:
    """The loss over the pairs of a batch [B, T], and its metrics."""
    reference: tuple = (None, None)
    if "reference" in frozen:
        reference = batch.pair_sums(frozen["reference"].logp)
    elif not options.reference_free:
        reference = batch.pick(batch.ref_logp)
    chosen_length, rejected_length = batch.pair_lengths()
    return dpo_loss(
        *batch.pair_sums(policy.logp),
        *reference,
        batch.weight,
        chosen_length=chosen_length,
        rejected_length=rejected_length,
        beta=options.beta,
        variant=options.variant,
        label_smoothing=options.label_smoothing,
        target_margin=options.target_margin,
        length_normalized=options.length_normalized,
        reference_free=options.reference_free,
        nll_coef=options.nll_coef,
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


STAGE = Stage(
    "dpo",
    data=PAIRS,
    options=DPOConfig,
    loss=loss,
    totals=pair_totals,
    frozen=reference_unless_free,
    step_zero=verify,
)
