"""Reward modelling: a scalar head on the language model, trained on preferences.

    loss(θ) = -Σ_pairs w · log σ(r_θ(x, y_c) - r_θ(x, y_r) - margin) / Σ_pairs w

The score is read at the last token of a sequence. K ranked responses of one prompt are all their pairs with
w = 1/(K choose 2) (InstructGPT, arXiv 2203.02155, eq. 1), or, where some are tied, 1 over the number of pairs that are
not: every prompt weighs 1.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxalign.data import PairBatch
from jaxalign.data.kinds import PAIRS
from jaxalign.errors import StepZeroError
from jaxalign.fields import Checked, field
from jaxalign.losses.metrics import Metrics
from jaxalign.losses.reward import bradley_terry_loss
from jaxalign.models import Params
from jaxalign.models.scoring import Scores, segment_rewards
from jaxalign.stages import published
from jaxalign.stages.dpo import pair_totals
from jaxalign.training.open import Run
from jaxalign.training.stage import Stage, Totals


@dataclasses.dataclass(frozen=True)
class RewardConfig(Checked, at="config.reward"):
    """config.reward"""

    use_margin: bool = True  # subtract the data's margins, where it has them
    # Weight of (r_c + r_r)², which keeps scores near 0 (arXiv 2312.09244 uses 0.01).
    centering: float = field(0.0, at_least=0)


def loss(
    policy: Scores, batch: PairBatch, frozen: dict[str, Scores], options: RewardConfig, total: Totals
) -> tuple[jax.Array, Metrics]:
    """Bradley–Terry loss over the pairs of a batch [B, T], and its metrics."""
    return bradley_terry_loss(
        *batch.pick(policy.rewards),
        batch.weight,
        margin=batch.margin if options.use_margin else None,
        centering=options.centering,
        normalizer=total["pairs"],
    )


def verify_scores(run: Run, params: Params, batch: PairBatch, frozen: dict[str, Params]) -> None:
    """Checks, for one sequence of each row, that its score does not depend on what else the row holds.

    Raises:
      StepZeroError: a sequence among others scores differently from the same one among padding.
    """
    model = dataclasses.replace(
        run.model, scan_layers=True
    )  # it runs once: what counts is how long it compiles

    @jax.jit
    def compare(params: Params, batch: PairBatch) -> tuple[jax.Array, jax.Array]:
        count = jnp.maximum(batch.segment_ids.max(axis=1), 1)
        # From the last one backwards: a row's first sequence has nobody before it that it could see.
        kept = count - jnp.arange(len(count), dtype=jnp.int32) % count
        own = batch.segment_ids == kept[:, None]
        packed = segment_rewards(
            params, model, batch.tokens, batch.positions, batch.segment_ids, batch.rows.shape[1]
        )
        packed = jnp.take_along_axis(packed, kept[:, None] - 1, axis=1)
        tokens, positions = (jnp.where(own, x, 0) for x in (batch.tokens, batch.positions))
        alone = segment_rewards(params, model, tokens, positions, own.astype(jnp.int32), 1)
        return jnp.max(jnp.abs(packed - alone)), jnp.max(jnp.abs(packed))

    gap, size = map(float, compare(params, batch))
    tolerance = 1e-3 if run.model.dtype == "float32" else 0.1
    if not gap <= tolerance * max(1.0, size):
        raise StepZeroError(
            f"the reward model scores packed sequences up to {gap:.2e} differently from the same sequences alone; "
            f"the attention {run.model.attention!r} lets segments see each other"
        )


STAGE = Stage(
    "reward",
    data=PAIRS,
    options=RewardConfig,
    loss=loss,
    totals=pair_totals,
    scalar=True,
    headlines=("loss", "accuracy", "margin", "mean_reward", "grad_norm", "learning_rate", "skipped_steps"),
    afterwards=(
        "jaxalign label --reward-model={run} --completions=COMPLETIONS.jsonl --out={beside}/pairs.jsonl",
        "jaxalign train --config=ppo --workdir={beside}/ppo --config.model.init_from=SFT_MODEL "
        "--config.ppo.reward={run} --config.data.train=PROMPTS.jsonl",
    ),
    step_zero=verify_scores,
    recipe=published.REWARD,
)
