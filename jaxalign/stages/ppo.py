"""Proximal policy optimisation from a reward (RLHF): arXiv 1707.06347, as InstructGPT uses it (2203.02155).

    repeat
      y ~ π_θ(.|x)                                                          sample
      r_t = -β KL_t(π_θ ‖ π_ref) + [t is last] R(x, y)                      score
      A = GAE(r, V_φ),  G = A + V_φ                                         advantages
      θ: minimise -mean_t min(ρ_t A_t, clip(ρ_t) A_t),  ρ = π_θ / π_old     policy update, epochs × minibatches
      φ: minimise ½ mean_t (V_φ - G_t)², clipped                            value update

R is a trained reward model, or functions. Policy and critic are separate models. A rollout and an update are two
phases: a run can be stopped, checkpointed and resumed between them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.data.kinds import PROMPTS
from jaxalign.errors import ConfigError
from jaxalign.fields import field
from jaxalign.losses import running_moments
from jaxalign.losses.advantages import gae, inverse_std, token_rewards, whiten
from jaxalign.losses.metrics import Last, Metrics, masked_mean
from jaxalign.losses.ppo import PPOObjective, adaptive_kl, policy_loss, value_loss
from jaxalign.models.scoring import Scores
from jaxalign.rl.config import RewardedConfig
from jaxalign.rl.rollout import Rollout, plain_rollout, rollout_metrics, shape
from jaxalign.rl.stage import OnPolicyStage, sampled_tokens
from jaxalign.sampling.generate import Completions
from jaxalign.stages import published
from jaxalign.training.stage import Totals

HEADLINES = (
    "objective/scores",
    "objective/kl",
    "kl_coef",
    "completions/mean_length",
    "loss/policy_avg",
    "loss/value_avg",
    "policy/entropy_avg",
    "policy/clipfrac_avg",
    "grad_norm",
    "learning_rate",
    "skipped_steps",
    "critic/skipped_steps",
    "perf/rollout_time",
    "perf/update_time",
)


@dataclasses.dataclass(frozen=True)
class PPOConfig(RewardedConfig, at="config.ppo"):
    """config.ppo. `config.batch_size` counts episodes, `config.optimizer` is the policy's."""

    ppo_epochs: int = field(4, at_least=1)  # passes over the episodes of a rollout
    # --- The tie to the reference ---
    kl_coef: float = field(0.05, at_least=0)  # β
    # k1, k2, k3 of the sampled token, or exact over the vocabulary.
    kl_estimator: str = field("k1", choices=("k1", "k2", "k3", "exact"))
    # Adapt β until a sequence's KL is this many nats; 0: β is fixed.
    kl_target: float = field(0.0, at_least=0)
    kl_horizon: int = field(10_000, at_least=1)  # episodes over which β adapts
    # --- Scores to advantages ---
    whiten_rewards: bool = False  # divide rewards by their standard deviation over a rollout
    gamma: float = field(1.0, at_least=0, at_most=1)  # discount of a reward one token later
    lam: float = field(
        0.95, at_least=0, at_most=1
    )  # λ of generalised advantage estimation (arXiv 1506.02438)
    whiten_advantages: bool = True  # over all episodes on all devices
    # --- Policy loss ---
    clip: float = field(0.2, above=0)  # ratios π_θ / π_old are clipped to 1 ± this
    clip_high: float | None = field(None, above=0)  # upper clip, where it differs
    entropy_coef: float = field(0.0, at_least=0)  # weight of the entropy bonus
    # --- Critic ---
    # Start from the "policy", from the "reward" model, or "auto": from the reward model if there is one.
    critic_init: str = field("auto", choices=("policy", "reward", "auto"))
    critic_learning_rate: float = field(0.0, at_least=0)  # the peak; 0: the policy's
    value_clip: float | None = field(
        0.2, above=0
    )  # values are clipped to their old ones ± this; None: not at all
    normalize_values: bool = False  # train the critic on returns of mean 0 and variance 1
    value_decay: float = field(0.99, at_least=0, below=1)  # of their running mean and variance

    @property
    def passes(self) -> int:
        """Passes over the episodes of a rollout."""
        return self.ppo_epochs

    @property
    def critic_from_reward(self) -> bool:
        """Whether the critic starts as the reward model does."""
        return self.critic_init == "reward" or (self.critic_init == "auto" and bool(self.reward_model))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_init == "reward" and not self.reward_model:
            raise ConfigError(
                "config.ppo.critic_init='reward' needs a reward model in config.ppo.reward; or use 'policy'"
            )


def totals(episodes: Rollout, options: Any) -> Totals:
    """What the losses divide by: the sampled tokens of a minibatch."""
    return {"episodes": episodes.mask.sum()}


def loss(
    policy: Scores, episodes: Rollout, frozen: dict[str, Scores], options: PPOConfig, total: Totals
) -> tuple[jax.Array, Metrics]:
    """Clipped surrogate on episodes [E, T], less the entropy bonus."""
    return policy_loss(
        policy.logp,
        episodes.old_logp,
        episodes.advantages,
        episodes.mask,
        PPOObjective(options.clip, options.clip_high, options.entropy_coef),
        entropy=policy.entropy,
        normalizer=total["episodes"],
    )


def critic_loss(
    critic: Scores, episodes: Rollout, frozen: dict[str, Scores], options: PPOConfig, total: Totals
) -> tuple[jax.Array, Metrics]:
    """Clipped squared error of the critic on episodes [E, T]."""
    return value_loss(
        critic.values,
        episodes.old_values,
        episodes.returns,
        episodes.mask,
        clip=float("inf") if options.value_clip is None else options.value_clip,
        normalizer=total["episodes"],
    )


def assign_advantages(
    scored: dict[str, jax.Array],
    scores: jax.Array,
    completions: Completions,
    kl_coef: jax.Array,
    moments: running_moments.RunningMoments,
    *,
    options: PPOConfig,
) -> tuple[Rollout, running_moments.RunningMoments, Metrics]:
    """Scores [E] to rewards, rewards to advantages."""
    mask = scored["mask"]
    shaped = shape(scores, completions, options)
    rewards = token_rewards(shaped, scored["kl"], mask, kl_coef=kl_coef)
    # A token's own KL moves the policy as it should only when it is log π/π_ref of that very token: k2 and k3
    # have other gradients under sampling, and exact is the same whatever was sampled, so it has none.
    own_kl = kl_coef * (scored["kl"] - scored["kl1"])
    if options.whiten_rewards:
        own_kl = own_kl * inverse_std(rewards, mask)
        rewards = whiten(rewards, mask, shift_mean=False)
    values = scored["old_values"]
    if options.normalize_values:
        values = running_moments.denormalize(moments, values)
    advantages, returns = gae(rewards, values, mask, gamma=options.gamma, lam=options.lam)
    advantages = advantages + own_kl * mask
    if options.normalize_values:
        moments = running_moments.update(moments, returns, mask, options.value_decay)
        # The old values stay what the critic said: it is around its own output that its change is clipped.
        returns = running_moments.normalize(moments, returns)
    if options.whiten_advantages:
        advantages = whiten(advantages, mask)
    each = (completions.mask.sum(1) > 0).astype(jnp.float32)
    non_score = jnp.sum(-kl_coef * scored["kl"] * mask, axis=1)
    metrics: Metrics = {
        "objective/non_score_reward": masked_mean(non_score, each),
        "objective/rlhf_reward": masked_mean(shaped + non_score, each),
        "kl_coef": Last(kl_coef),
    }
    # The loss of PPO reads the reference in the rewards alone.
    rollout = plain_rollout(
        {name: x for name, x in scored.items() if name != "ref_logp"}, advantages=advantages, returns=returns
    )
    return (
        rollout,
        moments,
        metrics
        | rollout_metrics(scored, scores, completions, options.missing_eos_penalty, options.kl_estimator),
    )


def credit(
    scored: dict[str, jax.Array],
    scores: jax.Array,
    completions: Completions,
    control: dict[str, Any],
    options: PPOConfig,
) -> tuple[Rollout, dict[str, Any], Metrics]:
    """Advantages, the running moments of returns, and the coefficient β of the next rollout."""
    kl_coef = control["kl_coef"]
    rollout, moments, metrics = assign_advantages(
        scored, scores, completions, kl_coef, control["moments"], options=options
    )
    if options.kl_target:
        measured: Any = metrics["objective/kl"]
        kl_coef = adaptive_kl(
            kl_coef,
            measured.total / measured.weight,
            target=options.kl_target,
            horizon=options.kl_horizon,
            num_samples=scores.shape[0],
        )
    return rollout, {"moments": moments, "kl_coef": kl_coef}, metrics


STAGE = OnPolicyStage(
    "ppo",
    data=PROMPTS,
    options=PPOConfig,
    loss=loss,
    totals=totals,
    reads=sampled_tokens,
    reading=lambda options: {
        "temperature": options.sampling.temperature,
        "with_entropy": options.entropy_coef > 0,
    },
    credit=credit,
    control=lambda options: {"kl_coef": jnp.float32(options.kl_coef), "moments": running_moments.init()},
    reference=lambda options: True,
    critic_loss=critic_loss,
    headlines=HEADLINES,
    changeable=("reward", "ptx_data"),
    recipe=published.PPO,
)
