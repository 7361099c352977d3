"""Direct preference optimisation (arXiv 2305.18290): preferences without a reward model and without sampling.

    loss(θ) = -mean log σ( β [log π_θ(y_c|x)/π_ref(y_c|x) - log π_θ(y_r|x)/π_ref(y_r|x)] )

π_ref is the model that training starts from. Its log-probabilities are computed with each batch, or once
before training (`precompute_reference`) and kept in the run's folder under a key of the data and the weights.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxalign.data import PairBatch
from jaxalign.errors import StepZeroError
from jaxalign.fields import Checked, field
from jaxalign.losses.dpo import dpo_loss
from jaxalign.losses.metrics import Metrics
from jaxalign.models import ModelConfig, Params
from jaxalign.models.scoring import score_tokens
from jaxalign.stages.pairs import pair_sums, pick, totals
from jaxalign.stages.reference import reference_rows, sequence_logprobs
from jaxalign.stages.router import with_router_losses
from jaxalign.stages.supervised import supervised_stage
from jaxalign.training.open import Run
from jaxalign.training.saved_model import fingerprint
from jaxalign.training.stage import Stage


@dataclasses.dataclass(frozen=True)
class DPOConfig(Checked, at="config.dpo"):
    """config.dpo"""

    beta: float = field(0.1, above=0, says=" must be positive")  # strength of the tie to the reference
    variant: str = "sigmoid"  # sigmoid, robust, hinge, ipo (sequence sums) or ipo_mean (per token, as TRL)
    label_smoothing: float = 0.0  # probability that a label is flipped: cDPO (sigmoid) or robust DPO
    length_normalized: bool = False  # log-ratios per token, as in Tülu 3
    reference_free: bool = False  # a uniform reference
    # γ: by how much β times the difference should be positive; see `dpo_loss` on SimPO.
    target_margin: float = 0.0
    nll_coef: float = 0.0  # adds the chosen response's mean NLL
    precompute_reference: bool = False


def loss(
    params: Params,
    batch: PairBatch,
    total: dict[str, jax.Array],
    frozen: dict[str, Params],
    *,
    model: ModelConfig,
    options: DPOConfig,
) -> tuple[jax.Array, Metrics]:
    """The loss over the pairs of a batch [B, T], and its metrics."""
    tokens = (batch.tokens, batch.positions, batch.segment_ids)
    scored = score_tokens(params, model, *tokens)
    chosen, rejected = pair_sums(scored.logp * batch.loss_mask, batch)
    ref_chosen = ref_rejected = None
    if "reference" in frozen:
        ref_logp = score_tokens(frozen["reference"], model, *tokens).logp
        ref_chosen, ref_rejected = pair_sums(jax.lax.stop_gradient(ref_logp) * batch.loss_mask, batch)
    elif not options.reference_free:
        ref_chosen, ref_rejected = pick(batch.ref_logp, batch)
    chosen_length, rejected_length = pair_sums(batch.loss_mask, batch)
    result = dpo_loss(
        chosen,
        rejected,
        ref_chosen,
        ref_rejected,
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
    return with_router_losses(result, scored.router, batch, total, model)


def verify_reference(
    params: Params, batch: PairBatch, frozen: dict[str, Params], model: ModelConfig, *, tolerance: float
) -> None:
    """Checks that every sequence of a batch is as likely under the reference as under the policy.

    Raises:
      StepZeroError: one is not, and so its pair's margin is not 0 and its loss not ln 2.
    """

    @jax.jit
    def compare(params: Params, batch: PairBatch, frozen: dict[str, Params]) -> tuple[jax.Array, jax.Array]:
        mine = sequence_logprobs(params, batch, model)
        theirs = sequence_logprobs(frozen["reference"], batch, model) if frozen else batch.ref_logp
        return jnp.max(jnp.abs(mine - theirs)), jnp.max(jnp.abs(mine))

    gap, size = map(float, compare(params, batch, frozen))
    if not gap <= tolerance * max(1.0, size):
        raise StepZeroError(
            f"before the first update the policy is the reference, every margin 0 and every loss ln 2, yet the "
            f"log-probabilities of a sequence differ by {gap:.3e}; those of the reference belong to other weights "
            f"or other data, or config.frozen.dtype rounds them by too much"
        )


def build(run: Run) -> Stage:
    """The stage for the loop."""
    options: DPOConfig = run.config.options
    frozen = {}
    if not options.reference_free:
        reference = run.load_init(required=True)
        if options.precompute_reference:
            run = reference_rows(run, reference)
        else:
            frozen["reference"] = reference
    tolerance = 1e-4 if run.model.dtype == run.config.frozen.dtype == "float32" else 0.1

    def verify(params: Params, batch: PairBatch, frozen: dict[str, Params]) -> None:
        if not options.reference_free:
            verify_reference(params, batch, frozen, run.model, tolerance=tolerance)

    stage = supervised_stage(run, loss, totals, frozen=frozen, verify=verify)
    if options.precompute_reference and not options.reference_free:
        stage = dataclasses.replace(stage, fingerprint=f"reference:{fingerprint(reference)}")
    return stage
