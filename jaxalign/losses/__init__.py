"""Formulas: arrays to (loss, metrics), each with its equation and its source."""

from jaxalign.losses.advantages import gae
from jaxalign.losses.dpo import dpo_loss
from jaxalign.losses.nll import nll_loss
from jaxalign.losses.orpo import orpo_loss
from jaxalign.losses.ppo import policy_loss, value_loss
from jaxalign.losses.reward import bradley_terry_loss

__all__ = [
    "bradley_terry_loss",
    "dpo_loss",
    "gae",
    "nll_loss",
    "orpo_loss",
    "policy_loss",
    "value_loss",
]
