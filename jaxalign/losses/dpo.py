"""Direct preference optimisation and its relatives."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.errors import ConfigError
from jaxalign.fields import Checked, field
from jaxalign.losses.metrics import Metrics, masked_mean, normalized
from jaxalign.losses.numerics import is_traced, keep, require_float32

VARIANTS = ("sigmoid", "robust", "hinge", "ipo", "ipo_mean")


@dataclasses.dataclass(frozen=True)
class DPOObjective(Checked, at="config.dpo"):
    """The settings of `dpo_loss`, which says what they do; `config.dpo` begins with them.

    beta, label_smoothing and target_margin may be traced, and are then not checked.
    Raises ConfigError for settings that mean nothing together.
    """

    # β, the strength of the tie to the reference.
    beta: float = field(0.1, above=0)
    # sigmoid, robust, hinge, ipo (sequence sums) or ipo_mean (averages over tokens, as in TRL).
    variant: str = field("sigmoid", choices=VARIANTS)
    # ε, the probability that a label is flipped: cDPO with sigmoid, or robust DPO.
    label_smoothing: float = field(0.0, at_least=0, below=0.5)
    # γ, by how much β times the difference should be positive.
    target_margin: float = field(0.0, at_least=0)
    # Log-ratios are divided by the lengths of their responses.
    length_normalized: bool = False
    # A uniform reference, whose log-probabilities cancel.
    reference_free: bool = False
    # Weight of the chosen response's mean negative log-likelihood.
    nll_coef: float = field(0.0, at_least=0)

    @property
    def per_token(self) -> bool:
        """Whether log-ratios are averages over tokens instead of sums."""
        return self.length_normalized or self.variant == "ipo_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        variant, smoothing, margin = self.variant, self.label_smoothing, self.target_margin
        if variant not in ("sigmoid", "robust") and (is_traced(smoothing) or smoothing):
            raise ConfigError(
                f"config.dpo.label_smoothing={smoothing} means nothing to variant={variant!r}; "
                "set it to 0 or choose sigmoid or robust"
            )
        if variant in ("ipo", "ipo_mean") and (is_traced(margin) or margin):
            raise ConfigError(
                f"config.dpo.target_margin={margin} with variant={variant!r}, whose target is 1 / (2 beta); "
                "set it to 0"
            )
        if self.length_normalized and variant in ("ipo", "ipo_mean"):
            raise ConfigError(
                f"config.dpo.length_normalized with variant={variant!r}; choose ipo (sums) or ipo_mean "
                "(averages) without it"
            )


def dpo_loss(
    chosen_logp: jax.Array,
    rejected_logp: jax.Array,
    ref_chosen_logp: jax.Array | None,
    ref_rejected_logp: jax.Array | None,
    weight: jax.Array,
    objective: DPOObjective = DPOObjective(),
    *,
    lengths: tuple[jax.Array, jax.Array] | None = None,
    normalizer: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Weighted mean over pairs of a function of h = log π/π_ref (chosen) - log π/π_ref (rejected).

    Variants, with β, ε = label_smoothing and γ = target_margin of the `objective`:
      sigmoid   -(1 - ε) log σ(βh) - ε log σ(-βh)                      arXiv 2305.18290 eq. 7; ε: cDPO
      robust    (-(1 - ε) log σ(βh) + ε log σ(-βh)) / (1 - 2ε)         arXiv 2403.00409, unbiased at flips ε
      hinge     max(0, 1 - βh)                                         arXiv 2309.06657 (RSO), after SLiC
      ipo       (h - 1 / (2β))²                                        arXiv 2310.12036 eq. 17
      ipo_mean  as ipo, on log-probabilities averaged over tokens      as TRL computes it
    `length_normalized` divides each log-ratio by its length (Tülu 3, arXiv 2411.15124). `target_margin` puts
    βh - γ in the place of βh: with length_normalized and reference_free that is SimPO (arXiv 2405.14734,
    equation 6). `nll_coef` adds that multiple of -chosen_logp / chosen length (arXiv 2404.19733).

    Args: sequence sums of log-probabilities and pair weights, float32 of one shape; the reference arrays are
    constants, and None if `reference_free`; `lengths` the supervised token counts (chosen, rejected) of the
    same shape, needed by ipo_mean, length_normalized and nll_coef; `normalizer` Σ weight over the global
    batch. Metrics: `loss`; `rewards/chosen`, `rewards/rejected` (β · log-ratio, summed over the response, as in TRL),
    `rewards/margins`, `rewards/accuracies` (strictly greater, as in TRL: a tie counts 0); `logps/chosen`,
    `logps/rejected` (sequence sums); `nll_loss` when nll_coef is not 0.
    Raises ConfigError for references or lengths that are missing or too many, TypeError or ValueError for
    wrong arrays.
    """
    # Which of these may be None has been checked by the settings.
    references: Any = (ref_chosen_logp, ref_rejected_logp)
    _check_references(objective.reference_free, *references)
    if lengths is None and (objective.per_token or objective.nll_coef):
        raise ConfigError(
            "ipo_mean, length_normalized and nll_coef average over tokens; "
            "pass lengths=(chosen_length, rejected_length)"
        )
    both: Any = lengths or (None, None)
    chosen_length, rejected_length = both
    require_float32(
        chosen_logp=chosen_logp,
        rejected_logp=rejected_logp,
        ref_chosen_logp=ref_chosen_logp,
        ref_rejected_logp=ref_rejected_logp,
        weight=weight,
        chosen_length=chosen_length,
        rejected_length=rejected_length,
    )
    chosen_logp, rejected_logp = keep(chosen_logp, weight), keep(rejected_logp, weight)
    chosen_ratio, rejected_ratio = chosen_logp, rejected_logp
    if not objective.reference_free:
        ref_chosen_logp, ref_rejected_logp = (jax.lax.stop_gradient(keep(x, weight)) for x in references)
        chosen_ratio, rejected_ratio = chosen_logp - ref_chosen_logp, rejected_logp - ref_rejected_logp
    # A log shows sums over the response, whatever the loss averages: so does TRL.
    chosen_reward, rejected_reward = objective.beta * chosen_ratio, objective.beta * rejected_ratio
    if objective.per_token:
        chosen_ratio = chosen_ratio / keep(chosen_length, weight, 1.0)
        rejected_ratio = rejected_ratio / keep(rejected_length, weight, 1.0)

    pair_loss = _pair_loss(chosen_ratio - rejected_ratio, objective)
    metrics: Metrics = {}
    if objective.nll_coef:
        nll = -chosen_logp / keep(chosen_length, weight, 1.0)
        pair_loss = pair_loss + objective.nll_coef * nll
        metrics["nll_loss"] = masked_mean(nll, weight)
    loss = metrics["loss"] = masked_mean(pair_loss, weight)
    metrics |= preference_metrics(chosen_reward, rejected_reward, chosen_logp, rejected_logp, weight)
    return normalized(loss, normalizer), metrics


def preference_metrics(
    chosen_reward: jax.Array,
    rejected_reward: jax.Array,
    chosen_logp: jax.Array,
    rejected_logp: jax.Array,
    weight: jax.Array,
) -> Metrics:
    """The `rewards/*` and `logps/*` metrics every preference loss reports, under TRL's names."""
    margin = chosen_reward - rejected_reward
    return {
        "rewards/chosen": masked_mean(chosen_reward, weight),
        "rewards/rejected": masked_mean(rejected_reward, weight),
        "rewards/margins": masked_mean(margin, weight),
        "rewards/accuracies": masked_mean((margin > 0).astype(jnp.float32), weight),
        "logps/chosen": masked_mean(chosen_logp, weight),
        "logps/rejected": masked_mean(rejected_logp, weight),
    }


def _pair_loss(h: jax.Array, objective: DPOObjective) -> jax.Array:
    beta, smoothing = objective.beta, objective.label_smoothing
    if objective.variant in ("ipo", "ipo_mean"):
        return jnp.square(h - 1.0 / (2.0 * beta))
    logits = beta * h - objective.target_margin
    if objective.variant == "hinge":
        return jax.nn.relu(1.0 - logits)
    agree = -(1.0 - smoothing) * jax.nn.log_sigmoid(logits)
    flip = -smoothing * jax.nn.log_sigmoid(-logits)
    if objective.variant == "robust":
        return (agree - flip) / (1.0 - 2.0 * smoothing)
    return agree + flip


def _check_references(
    reference_free: bool, ref_chosen_logp: jax.Array | None, ref_rejected_logp: jax.Array | None
) -> None:
    missing = [ref_chosen_logp is None, ref_rejected_logp is None]
    if reference_free and not all(missing):
        raise ConfigError(
            "config.dpo.reference_free is on but reference log-probabilities are given; pass None"
        )
    if not reference_free and any(missing):
        raise ConfigError("reference log-probabilities are None; give both or set config.dpo.reference_free")
