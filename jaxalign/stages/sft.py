"""Supervised fine-tuning: the loss of pretraining over the completion, or the assistant's turns, only.

    loss(θ) = -Σ_t m_t log p_θ(y_t | x, y_<t) / Σ_t m_t

The mask m comes with the batch: it is set where text is rendered, turn by turn, and covers each turn's end.
"""

import dataclasses

from jaxalign.data.kinds import DEMONSTRATIONS
from jaxalign.fields import Checked, field
from jaxalign.stages import published
from jaxalign.stages.pretrain import HEADLINES, loss, token_totals
from jaxalign.training.stage import Stage, supervised_tokens


@dataclasses.dataclass(frozen=True)
class SFTConfig(Checked, at="config.sft"):
    """config.sft"""

    z_loss: float = field(0.0, at_least=0)  # as config.pretrain.z_loss


STAGE = Stage(
    "sft",
    data=DEMONSTRATIONS,
    options=SFTConfig,
    loss=loss,
    totals=token_totals,
    reads=supervised_tokens,
    headlines=HEADLINES,
    afterwards=(
        "jaxalign train --config=dpo --workdir={beside}/dpo --config.model.init_from={run} "
        "--config.data.train=PAIRS.jsonl",
    ),
    recipe=published.SFT,
)
