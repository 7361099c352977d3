"""The first half of a PPO step: sample, score, and turn scores into advantages.

Shapes: E episodes, P prompt slots, N new tokens, T = P + N.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxalign.data import PromptBatch, Tokenizer
from jaxalign.losses import running_moments
from jaxalign.losses.advantages import gae, inverse_std, kl_estimate, shape_scores, token_rewards, whiten
from jaxalign.losses.metrics import Max, Mean, Metrics, masked_mean
from jaxalign.models import ModelConfig, Params
from jaxalign.models.scoring import exact_kl, score_tokens, segment_rewards, token_values
from jaxalign.sampling.generate import Completions, close, join
from jaxalign.training.flops import count_work
from jaxalign.training.open import local_rows


@flax.struct.dataclass
class Rollout:
    """Episodes as the update needs them, aligned with tokens: [E, T]. `mask` marks the sampled tokens."""

    tokens: jax.Array  # int32
    positions: jax.Array  # int32
    segment_ids: jax.Array  # int32
    mask: jax.Array  # float32
    old_logp: jax.Array  # float32, of the policy that sampled, by the same forward pass that trains
    old_values: jax.Array  # float32, as the critic put them out
    advantages: jax.Array  # float32
    returns: jax.Array  # float32, on the scale that the critic is trained on


def completion_texts(completions: Completions, tokenizer: Tokenizer, stop_ids: tuple[int, ...]) -> list[str]:
    """The completions of this process's rows as text, without their stop tokens."""
    tokens, mask = local_rows(completions.tokens), local_rows(completions.mask)
    texts = []
    for ids, live in zip(tokens, mask, strict=True):
        ids = ids[: int(live.sum())]
        texts.append(tokenizer.decode([int(i) for i in ids if i not in stop_ids]))
    return texts


def score_episodes(
    policy: Params,
    critic: Params,
    reference: Params,
    reward_model: Params | None,
    prompts: PromptBatch,
    completions: Completions,
    *,
    model: ModelConfig,
    critic_model: ModelConfig,
    reward_config: ModelConfig | None,
    temperature: float,
    kl_estimator: str,
) -> dict[str, jax.Array]:
    """What four models say of the sampled episodes.

    Returns:
      tokens, positions, segment_ids, mask [E, T]; old_logp, entropy, old_values, kl (by the estimator), kl1
      (log π / π_ref) float32 [E, T]; scores [E] when there is a reward model, which reads an episode to the end that
      sequences had when it was trained.
    """
    *tokens, mask = join(prompts.tokens, prompts.positions, prompts.segment_ids, completions)
    mine = score_tokens(policy, model, *tokens, temperature=temperature, with_entropy=True)
    ref_logp = score_tokens(reference, model, *tokens, temperature=temperature).logp
    kl1 = kl_estimate(mine.logp, ref_logp, "k1")
    if kl_estimator == "exact":
        kl = exact_kl(policy, reference, model, *tokens, temperature=temperature)
    else:
        kl = kl_estimate(mine.logp, ref_logp, kl_estimator)
    out = {"tokens": tokens[0], "positions": tokens[1], "segment_ids": tokens[2], "mask": mask}
    out |= {"old_logp": mine.logp, "entropy": mine.entropy, "kl": kl, "kl1": kl1}
    out["old_values"] = token_values(critic, critic_model, *tokens)
    if reward_model is not None:
        if prompts.ending is not None:
            completions = close(completions, prompts.ending)
        *tokens, _ = join(prompts.tokens, prompts.positions, prompts.segment_ids, completions)
        out["scores"] = segment_rewards(reward_model, reward_config, *tokens, 1)[:, 0]
    return out


def finish_rollout(
    scored: dict[str, jax.Array],
    scores: jax.Array,
    completions: Completions,
    kl_coef: jax.Array,
    moments: running_moments.RunningMoments,
    *,
    options: Any,
) -> tuple[Rollout, running_moments.RunningMoments, Metrics]:
    """Scores [E] to rewards, rewards to advantages; `options` is the stage's PPOConfig."""
    mask = scored["mask"]
    shaped = shape_scores(
        scores,
        has_eos=completions.stopped,
        missing_eos_penalty=options.missing_eos_penalty,
        clip=options.reward_clip,
        scale=options.reward_scale,
    )
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
    rollout = Rollout(
        tokens=scored["tokens"],
        positions=scored["positions"],
        segment_ids=scored["segment_ids"],
        mask=mask,
        old_logp=scored["old_logp"],
        old_values=scored["old_values"],
        advantages=advantages,
        returns=returns,
    )
    N = completions.logp.shape[1]
    gap = jnp.abs(completions.logp - scored["old_logp"][:, -N:])
    length = completions.mask.sum(1)
    each = (length > 0).astype(jnp.float32)
    non_score = jnp.sum(-kl_coef * scored["kl"] * mask, axis=1)
    metrics: Metrics = {
        "objective/kl": masked_mean(jnp.sum(scored["kl1"] * mask, axis=1), each),
        "objective/entropy": masked_mean(jnp.sum(-scored["old_logp"] * mask, axis=1), each),
        "objective/non_score_reward": masked_mean(non_score, each),
        "objective/rlhf_reward": masked_mean(shaped + non_score, each),
        "objective/scores": masked_mean(scores, each),
        "policy/entropy_avg": masked_mean(scored["entropy"], mask),
        "val/num_eos_tokens": Mean(jnp.sum(completions.stopped * each), jnp.ones(())),
        "completions/mean_length": masked_mean(length, each),
        "completions/clipped_ratio": masked_mean(1.0 - completions.stopped.astype(jnp.float32), each),
        "rollout_logp_diff": masked_mean(gap, completions.mask),
        "rollout_logp_diff_max": Max(jnp.max(gap * completions.mask)),
        "kl_coef": Mean(kl_coef, jnp.ones(())),
    }
    return rollout, moments, metrics | count_work(rollout.segment_ids, rollout.positions)
