"""Supervised fine-tuning: the loss of pretraining over the completion, or the assistant's turns, only.

    loss(θ) = -Σ_t m_t log p_θ(y_t | x, y_<t) / Σ_t m_t

The mask m comes with the batch: it is set where text is rendered, turn by turn, and covers each turn's end.
"""

import dataclasses

from jaxalign.stages.pretrain import loss, totals
from jaxalign.stages.supervised import supervised_stage
from jaxalign.training.open import Run
from jaxalign.training.stage import Stage


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """config.sft"""

    z_loss: float = 0.0


def build(run: Run) -> Stage:
    """The stage for the loop."""
    return supervised_stage(run, loss, totals)
