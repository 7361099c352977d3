"""REINFORCE leave-one-out (arXiv 2402.14740): whole completions as single actions, without a critic.

r_i = R(x, y_i) - β log π_θ(y_i|x) / π_ref(y_i|x)
A_i = r_i - mean_{j ≠ i} r_j
θ: minimise -mean_i min(ρ_i A_i, clip(ρ_i) A_i),   ρ_i = π_θ(y_i|x) / π_old(y_i|x)
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.fields import field, like
from jaxalign.losses.metrics import Metrics
from jaxalign.rl.rollout import Rollout, rollout_metrics, shape
from jaxalign.sampling.generate import Completions
from jaxalign.stages import grpo, published


@dataclasses.dataclass(frozen=True)
class RLOOConfig(grpo.GRPOConfig, at="config.rloo"):
    """config.rloo: as config.grpo, with the choices that make RLOO of it. `config.batch_size` counts completions."""

    kl_coef: float = field(0.05, at_least=0)  # β of the KL in the reward
    loss_type: str = like(grpo.GRPOConfig, "loss_type", default="grpo")
    importance: str = like(
        grpo.GRPOConfig, "importance", default="sequence_sum"
    )  # one ratio for a completion
    baseline: str = like(grpo.GRPOConfig, "baseline", default="leave_one_out")
    scale: str = like(grpo.GRPOConfig, "scale", default="none")

    @property
    def needs_old_logp(self) -> bool:
        """Always: what the policy said is in the reward."""
        return True


def credit(
    scored: dict[str, jax.Array],
    scores: jax.Array,
    completions: Completions,
    control: dict[str, Any],
    options: RLOOConfig,
) -> tuple[Rollout, dict[str, Any], Metrics]:
    """Advantages of the shaped scores less the KL of each completion."""
    rewards = shape(scores, completions, options)
    if "kl1" in scored:
        rewards = rewards - options.kl_coef * jnp.sum(scored["kl1"] * scored["mask"], axis=1)
    metrics = rollout_metrics(scored, scores, completions, options.missing_eos_penalty)
    # The loss has no KL of its own.
    unread = {name: x for name, x in scored.items() if name != "ref_logp"}
    rollout, more = grpo.learn_from_groups(unread, rewards, completions, options)
    return rollout, {}, metrics | more


STAGE = dataclasses.replace(
    grpo.STAGE,
    name="rloo",
    recipe=published.RLOO,
    options=RLOOConfig,
    credit=credit,
    reference=lambda options: options.kl_coef > 0,
)
