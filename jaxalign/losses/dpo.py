"""Direct preference optimisation and its relatives."""

import jax
import jax.numpy as jnp

from jaxalign.errors import ConfigError
from jaxalign.losses.metrics import Metrics, masked_mean, normalized
from jaxalign.losses.numerics import keep, require_float32

VARIANTS = ("sigmoid", "robust", "hinge", "ipo", "ipo_mean")


def dpo_loss(
    chosen_logp: jax.Array,
    rejected_logp: jax.Array,
    ref_chosen_logp: jax.Array | None,
    ref_rejected_logp: jax.Array | None,
    weight: jax.Array,
    *,
    chosen_length: jax.Array,
    rejected_length: jax.Array,
    beta: float,
    variant: str = "sigmoid",
    label_smoothing: float = 0.0,
    target_margin: float = 0.0,
    length_normalized: bool = False,
    reference_free: bool = False,
    nll_coef: float = 0.0,
    normalizer: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Weighted mean over pairs of a function of h = log π/π_ref (chosen) - log π/π_ref (rejected).

    Variants, with ε = label_smoothing:
      sigmoid   -(1 - ε) log σ(βh) - ε log σ(-βh)                      arXiv 2305.18290 eq. 7; ε: cDPO
      robust    (-(1 - ε) log σ(βh) + ε log σ(-βh)) / (1 - 2ε)         arXiv 2403.00409, unbiased at flips ε
      hinge     max(0, 1 - βh)                                         arXiv 2309.06657 (RSO), after SLiC
      ipo       (h - 1 / (2β))²                                        arXiv 2310.12036 eq. 17
      ipo_mean  as ipo, on log-probabilities averaged over tokens      as TRL computes it
    `length_normalized` divides each log-ratio by its length (Tülu 3, arXiv 2411.15124). `target_margin` γ puts βh - γ
    in the place of βh: with length_normalized and reference_free that is SimPO (arXiv 2405.14734, equation 6).
    `nll_coef` adds that multiple of -chosen_logp / chosen_length (arXiv 2404.19733).

    Args: sequence sums of log-probabilities, supervised token counts and pair weights, float32 of one shape;
    the reference arrays are constants, and None if `reference_free`; `normalizer` Σ weight over the global
    batch. Metrics: `loss`; `rewards/chosen`, `rewards/rejected` (β · log-ratio, per token where the loss is),
    `rewards/margins`, `rewards/accuracies` (strictly greater, as in TRL: a tie counts 0); `logps/chosen`,
    `logps/rejected` (sequence sums); `nll_loss` when nll_coef is not 0.
    Raises ConfigError for settings that mean nothing together, TypeError or ValueError for wrong arrays.
    """
    references = (ref_chosen_logp, ref_rejected_logp)
    _check_settings(beta, variant, label_smoothing, target_margin, length_normalized)
    _check_references(reference_free, *references)
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
    chosen_length, rejected_length = keep(chosen_length, weight, 1.0), keep(rejected_length, weight, 1.0)
    chosen_ratio, rejected_ratio = chosen_logp, rejected_logp
    if not reference_free:
        ref_chosen_logp, ref_rejected_logp = (jax.lax.stop_gradient(keep(x, weight)) for x in references)
        chosen_ratio, rejected_ratio = chosen_logp - ref_chosen_logp, rejected_logp - ref_rejected_logp
    if length_normalized or variant == "ipo_mean":
        chosen_ratio, rejected_ratio = chosen_ratio / chosen_length, rejected_ratio / rejected_length

    pair_loss = _pair_loss(chosen_ratio - rejected_ratio, beta, variant, label_smoothing, target_margin)
    nll = -chosen_logp / chosen_length
    if nll_coef:
        pair_loss = pair_loss + nll_coef * nll
    loss = masked_mean(pair_loss, weight)
    metrics = {"loss": loss} | preference_metrics(
        beta * chosen_ratio, beta * rejected_ratio, chosen_logp, rejected_logp, weight
    )
    if nll_coef:
        metrics["nll_loss"] = masked_mean(nll, weight)
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


def _pair_loss(
    h: jax.Array, beta: float, variant: str, label_smoothing: float, target_margin: float
) -> jax.Array:
    if variant in ("ipo", "ipo_mean"):
        return jnp.square(h - 1.0 / (2.0 * beta))
    logits = beta * h - target_margin
    if variant == "hinge":
        return jax.nn.relu(1.0 - logits)
    agree = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(logits)
    flip = -label_smoothing * jax.nn.log_sigmoid(-logits)
    if variant == "robust":
        return (agree - flip) / (1.0 - 2.0 * label_smoothing)
    return agree + flip


def _check_settings(
    beta: float, variant: str, label_smoothing: float, target_margin: float, length_normalized: bool
) -> None:
    if variant not in VARIANTS:
        raise ConfigError(f"variant is {variant!r}; choose one of {', '.join(VARIANTS)}")
    if beta <= 0:
        raise ConfigError(f"beta is {beta}; give a number above 0")
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError(f"label_smoothing is {label_smoothing}; give a flip rate in [0, 0.5)")
    if label_smoothing and variant not in ("sigmoid", "robust"):
        raise ConfigError(
            f"label_smoothing={label_smoothing} means nothing to variant={variant!r}; "
            "set it to 0 or choose sigmoid or robust"
        )
    if not 0 <= target_margin < float("inf"):
        raise ConfigError(f"target_margin is {target_margin}; give a finite margin of 0 or more")
    if target_margin and variant in ("ipo", "ipo_mean"):
        raise ConfigError(
            f"target_margin={target_margin} with variant={variant!r}, whose target is 1 / (2 beta); set it to 0"
        )
    if length_normalized and variant in ("ipo", "ipo_mean"):
        raise ConfigError(
            f"length_normalized with variant={variant!r}; choose ipo (sums) or ipo_mean (averages) without it"
        )


def _check_references(
    reference_free: bool, ref_chosen_logp: jax.Array | None, ref_rejected_logp: jax.Array | None
) -> None:
    missing = [ref_chosen_logp is None, ref_rejected_logp is None]
    if reference_free and not all(missing):
        raise ConfigError("reference_free is on but reference log-probabilities are given; pass None")
    if not reference_free and any(missing):
        raise ConfigError("reference log-probabilities are None; give both or set reference_free")
