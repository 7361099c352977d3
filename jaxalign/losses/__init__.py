"""Formulas: arrays to (loss, metrics), each with its equation and its source."""

from jaxalign.losses.advantages import gae, kl_estimate, shape_scores, token_rewards, whiten
from jaxalign.losses.dpo import DPOObjective, dpo_loss
from jaxalign.losses.grpo import GRPOObjective, group_advantages, grpo_loss, grpo_normalizer
from jaxalign.losses.kto import KTOObjective, kl_baseline, kto_loss
from jaxalign.losses.metrics import (
    Last,
    Max,
    Mean,
    Metrics,
    Min,
    finalize,
    masked_max,
    masked_mean,
    masked_min,
    merge,
    normalized,
)
from jaxalign.losses.nll import nll_loss
from jaxalign.losses.orpo import SequenceNLL, orpo_loss
from jaxalign.losses.ppo import PPOObjective, adaptive_kl, policy_loss, value_loss
from jaxalign.losses.reward import bradley_terry_loss

__all__ = [
    "DPOObjective",
    "GRPOObjective",
    "KTOObjective",
    "Last",
    "Max",
    "Mean",
    "Metrics",
    "Min",
    "PPOObjective",
    "SequenceNLL",
    "adaptive_kl",
    "bradley_terry_loss",
    "dpo_loss",
    "finalize",
    "gae",
    "group_advantages",
    "grpo_loss",
    "grpo_normalizer",
    "kl_baseline",
    "kl_estimate",
    "kto_loss",
    "masked_max",
    "masked_mean",
    "masked_min",
    "merge",
    "nll_loss",
    "normalized",
    "orpo_loss",
    "policy_loss",
    "shape_scores",
    "token_rewards",
    "value_loss",
    "whiten",
]
