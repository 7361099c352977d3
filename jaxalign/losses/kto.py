"""Kahneman-Tversky optimisation: preferences from single completions, each desirable or not."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxalign.errors import ConfigError
from jaxalign.fields import Checked, field
from jaxalign.losses.metrics import Difference, Metrics, masked_mean, normalized
from jaxalign.losses.numerics import keep, require_float32

VARIANTS = ("kto", "apo_zero_unpaired")


@dataclasses.dataclass(frozen=True)
class KTOObjective(Checked, at="config.kto"):
    """The settings of `kto_loss`, which says what they do. β may be traced.

    Raises ConfigError for a value that cannot work.
    """

    # β, the strength of the tie to the reference.
    beta: float = field(0.1, above=0)
    # kto, or apo_zero_unpaired, which has no baseline.
    variant: str = field("kto", choices=VARIANTS)
    # λ_D; with λ_U, the two sides can weigh alike though the data has more of one.
    desirable_weight: float = field(1.0, above=0)
    # λ_U, as desirable_weight.
    undesirable_weight: float = field(1.0, above=0)

    @property
    def has_baseline(self) -> bool:
        """Whether rewards are compared with `kl_baseline`."""
        return self.variant == "kto"


def kl_baseline(kl_logp: jax.Array, ref_kl_logp: jax.Array, weight: jax.Array) -> jax.Array:
    """z = max(0, mean of log π(y'|x) - log π_ref(y'|x)), a float32 scalar without gradient.

    KTO, arXiv 2402.01306: y' is the completion of another prompt, so that z estimates KL(π ‖ π_ref). The
    maximum is not linear: the baselines of a batch's slices do not add up to that of the batch. Call this
    once on the [B, P] sums of the whole global batch, before the losses of its slices. TRL takes the mean over
    one microbatch of all processes instead, so that its loss changes with the number of microbatches.

    Args: sequence sums of log-probabilities of the mismatched completions, and `weight` 0 where there is
    none, float32 of one shape. Raises TypeError or ValueError for wrong arrays.
    """
    require_float32(kl_logp=kl_logp, ref_kl_logp=ref_kl_logp, weight=weight)
    return jax.lax.stop_gradient(jnp.maximum(normalized(masked_mean(kl_logp - ref_kl_logp, weight)), 0.0))


def kto_loss(
    logp: jax.Array,
    ref_logp: jax.Array,
    desirable: jax.Array,
    weight: jax.Array,
    objective: KTOObjective = KTOObjective(),
    *,
    kl: jax.Array | None = None,
    normalizer: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Weighted mean over completions of λ_D (1 - σ(β (r - z))), or λ_U (1 - σ(β (z - r))) if undesirable.

    KTO, arXiv 2402.01306, with r = log π/π_ref of the completion and z the KL baseline `kl`. The variant
    apo_zero_unpaired puts 0 in the place of z: APO-zero (arXiv 2408.06266) for single completions, as in TRL.
    The weights of the mean do not include λ, as in TRL.

    Args: sequence sums of log-probabilities and the completions' `weight` (0 for no entry), float32 of one
    shape, [B, P]; `ref_logp` is constant; `desirable` of that shape too, bool, or float32 with 0 for
    undesirable; `kl` the `kl_baseline` of the global batch, a float32 scalar, None for apo_zero_unpaired;
    `normalizer` Σ weight over the global batch. Metrics, as in TRL: `loss`; `rewards/chosen` and
    `rewards/rejected` (β r of the desirable and of the undesirable), `rewards/margins` (the difference of
    these means, 0 without entries on both sides), `logps/chosen`, `logps/rejected`, `kl` for kto.
    Raises ConfigError for a `kl` that is missing or has no use, TypeError or ValueError for wrong arrays.
    """
    if (kl is not None) != objective.has_baseline:
        state = (
            "needs kl; pass kl_baseline(...)" if objective.has_baseline else "has no baseline; pass kl=None"
        )
        raise ConfigError(f"variant={objective.variant!r} {state}")
    if desirable.dtype == jnp.bool_:
        desirable = desirable.astype(jnp.float32)
    require_float32(logp=logp, ref_logp=ref_logp, desirable=desirable, weight=weight)
    if kl is not None:
        require_float32(kl=kl)
    logp, ref_logp = keep(logp, weight), jax.lax.stop_gradient(keep(ref_logp, weight))
    is_desirable = keep(desirable, weight) != 0
    ratio = logp - ref_logp
    surprise = ratio if kl is None else ratio - jax.lax.stop_gradient(kl)
    # 1 - σ(x) = σ(-x), which does not round to 0 for large x.
    side = jnp.where(is_desirable, -1.0, 1.0)
    scale = jnp.where(is_desirable, objective.desirable_weight, objective.undesirable_weight)
    loss = masked_mean(scale * jax.nn.sigmoid(side * objective.beta * surprise), weight)
    chosen_weight = jnp.where(is_desirable, weight, 0.0)
    rejected_weight = weight - chosen_weight
    reward = objective.beta * ratio
    chosen, rejected = masked_mean(reward, chosen_weight), masked_mean(reward, rejected_weight)
    metrics: Metrics = {
        "loss": loss,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": Difference(*chosen, *rejected),
        "logps/chosen": masked_mean(logp, chosen_weight),
        "logps/rejected": masked_mean(logp, rejected_weight),
    }
    if kl is not None:
        metrics["kl"] = masked_mean(jnp.broadcast_to(kl, weight.shape), weight)
    return normalized(loss, normalizer), metrics
