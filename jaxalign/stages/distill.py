"""On-policy distillation (arXiv 2306.13649): a teacher's distribution at every token that the student writes.

    y ~ π_θ(.|x);   loss(θ) = mean_t D(π_θ(.|x, y_<t), π_teacher(.|x, y_<t))

D is the reverse KL, the forward KL, or a generalised Jensen–Shannon divergence between them, exact over the vocabulary.
"""

import dataclasses
from typing import Any

import jax

from jaxalign.data.kinds import PROMPTS
from jaxalign.errors import ConfigError
from jaxalign.fields import field
from jaxalign.losses.metrics import Metrics, masked_mean, normalized
from jaxalign.models.scoring import Scores, divergence
from jaxalign.rl.config import OnPolicyConfig
from jaxalign.rl.rollout import Rollout
from jaxalign.rl.stage import OnPolicyStage
from jaxalign.stages import published
from jaxalign.training.stage import FrozenModel, Totals


@dataclasses.dataclass(frozen=True)
class DistillConfig(OnPolicyConfig, at="config.distill"):
    """config.distill. `config.batch_size` counts completions, `config.frozen` is of the teacher."""

    teacher: str = ""  # a run, a Hugging Face folder or a hub name, with the student's tokenizer
    # reverse_kl: KL(student ‖ teacher), which leaves out what the teacher would not say; forward_kl: its mirror.
    divergence: str = field("reverse_kl", choices=("reverse_kl", "forward_kl", "jsd"))
    # Of jsd: near 0 it is like the forward KL, near 1 like the reverse KL.
    jsd_beta: float = field(0.5, above=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early_stop_kl:
            raise ConfigError(
                f"config.distill.early_stop_kl={self.early_stop_kl} has no use: the loss has no ratio π_θ / π_old; "
                "leave it at 0"
            )

    def check_named(self) -> None:
        """Raises ConfigError where there is no teacher; a plan needs none."""
        if not self.teacher:
            raise ConfigError(
                "config.distill.teacher is empty: name the model to learn from, a run or a folder"
            )


def totals(rollout: Rollout, options: Any) -> Totals:
    """What the loss divides by: the sampled tokens."""
    return {"tokens": rollout.mask.sum()}


def loss(
    policy: Scores, rollout: Rollout, frozen: dict[str, Scores], options: DistillConfig, total: Totals
) -> tuple[jax.Array, Metrics]:
    """The mean divergence from the teacher over the sampled tokens of completions [E, T].

    Raises:
      ConfigError: student and teacher have tables of unequal size.
    """
    student, teacher = policy.readout, frozen["teacher"].readout
    assert student is not None and teacher is not None, "language models both"
    mine, theirs = student.head.shape[0], teacher.head.shape[0]
    if mine != theirs:
        raise ConfigError(
            f"config.distill.teacher={options.teacher!r} has vocab_size={theirs}, but the student {mine}: their "
            "distributions cannot be compared; name a teacher with a table of the same size"
        )
    each = divergence(
        policy,
        frozen["teacher"],
        rollout.segment_ids,
        kind=options.divergence,
        beta=options.jsd_beta,
        temperature=options.sampling.temperature,
    )
    mean = masked_mean(each, rollout.mask)
    return normalized(mean, total["tokens"]), {"distill/divergence": mean}


STAGE = OnPolicyStage(
    "distill",
    data=PROMPTS,
    options=DistillConfig,
    loss=loss,
    totals=totals,
    frozen=lambda options: {"teacher": FrozenModel(options.teacher, "config.distill.teacher")},
    reading=lambda options: {"temperature": options.sampling.temperature},
    headlines=(
        *(
            "distill/divergence",
            "completions/mean_length",
            "policy/entropy_avg",
            "grad_norm",
            "learning_rate",
        ),
        *("skipped_steps", "perf/rollout_time", "perf/update_time"),
    ),
    changeable=("teacher", "ptx_data"),
    recipe=published.DISTILL,
)
