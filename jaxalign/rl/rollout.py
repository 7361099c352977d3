"""The first half of a step that samples: completions, and what models and reward functions say of them.

Shapes: E completions, k of each prompt, P prompt slots, N new tokens, T = P + N.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxalign.data import PromptBatch
from jaxalign.losses.advantages import kl_estimate, shape_scores
from jaxalign.losses.metrics import Max, Mean, Metrics, masked_mean
from jaxalign.losses.running_moments import RunningMoments
from jaxalign.models import ModelConfig, Params
from jaxalign.models.flops import sampling_flops, step_flops
from jaxalign.models.packed import Layout
from jaxalign.models.scoring import Scores, divergence, score_scalar, score_tokens
from jaxalign.rl.config import RewardedConfig
from jaxalign.sampling.generate import Completions, close, join
from jaxalign.training.flops import as_laid_out, count_work, flops_metric, tokens_metric
from jaxalign.training.open import local_rows
from jaxalign.training.state import TrainState


@flax.struct.dataclass
class Rollout:
    """Completions as the update needs them, aligned with tokens: [E, T]. `mask` marks the sampled tokens."""

    tokens: jax.Array  # int32
    positions: jax.Array  # int32
    segment_ids: jax.Array  # int32
    mask: jax.Array  # float32
    # float32, of the policy that sampled: by the same forward pass that trains, or, of a stage that has no use for
    # that (`OnPolicyStage.scores_policy`), as the sampling had it.
    old_logp: jax.Array
    # What a stage has not is None; it knows which it has.
    advantages: jax.Array | Any = None  # float32
    old_values: jax.Array | Any = None  # float32, as the critic put them out
    returns: jax.Array | Any = None  # float32, on the scale that the critic is trained on
    ref_logp: jax.Array | None = None  # float32, of the reference
    layout: Layout | None = None  # of a minibatch: how models read it


@flax.struct.dataclass
class OnPolicyState:
    """Everything that a run which samples must find again to go on bit for bit. What a stage has not is None."""

    policy: TrainState
    critic: TrainState | None
    kl_coef: jax.Array | Any  # float32
    moments: RunningMoments | Any  # of returns
    reference: Params | None  # only a moving one; a fixed one is loaded again
    average: Params | None  # of the policy's weights
    rollout: Rollout  # what the update phase works on
    key: jax.Array


def repeat_rows(batch: Any, count: int) -> Any:
    """Every row of a batch `count` times in a row."""
    return batch if count == 1 else jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), batch)


def completion_ids(completions: Completions) -> list[list[int]]:
    """The tokens of the completions of this process's rows, the stop token among them."""
    tokens, mask = local_rows(completions.tokens), local_rows(completions.mask)
    return [ids[: int(live.sum())].tolist() for ids, live in zip(tokens, mask, strict=True)]


def score_completions(
    policy: Params | None,
    critic: Params | None,
    reference: Params | None,
    reward_model: Params | None,
    prompts: PromptBatch,
    completions: Completions,
    layouts: tuple[Layout | None, Layout | None] = (None, None),
    *,
    model: ModelConfig,
    critic_model: ModelConfig | None = None,
    reward_config: ModelConfig | None = None,
    temperature: float = 1.0,
    kl_estimator: str = "k1",
) -> dict[str, jax.Array]:
    """What models say of the sampled completions, of which each prompt may have several.

    Args:
      policy: None: what it says is taken from the sampling, which has no entropy.
      layouts: by which completions are packed into fewer rows, and by which for the reward model.

    Returns:
      tokens, positions, segment_ids, mask [E, T]; old_logp, entropy float32 [E, T]; with a critic old_values [E, T];
      with a reference ref_logp, kl (by the estimator) and kl1 (log π / π_ref) [E, T]; scores [E] with a reward model,
      which reads a completion to the end that sequences had when it was trained.
    """
    layout, closed_layout = layouts
    tokens: Any
    *tokens, mask = join_prompts(prompts, completions)
    read = functools.partial(score_tokens, temperature=temperature, mask=mask, layout=layout)
    out = {"tokens": tokens[0], "positions": tokens[1], "segment_ids": tokens[2], "mask": mask}
    if policy is None:
        mine = Scores(logp=sampled_logp(completions, mask))
        out["old_logp"] = mine.logp
    else:
        mine = read(policy, model, *tokens, with_entropy=True)
        out |= {"old_logp": mine.logp, "entropy": mine.entropy}
    if reference is not None:
        theirs = read(reference, model, *tokens)
        out |= {"ref_logp": theirs.logp, "kl1": kl_estimate(mine.logp, theirs.logp, "k1")}
        if kl_estimator == "exact":
            out["kl"] = divergence(mine, theirs, tokens[2], temperature=temperature)
        else:
            out["kl"] = kl_estimate(mine.logp, theirs.logp, kl_estimator)
    if critic is not None and critic_model is not None:
        out["old_values"] = score_scalar(critic, critic_model, *tokens, layout=layout).values
    if reward_model is not None and reward_config is not None:
        *tokens, _ = join_prompts(prompts, completions, closed=True)
        judged = score_scalar(reward_model, reward_config, *tokens, layout=closed_layout)
        out["scores"] = judged.rewards[:, 0]
    return out


def join_prompts(
    prompts: PromptBatch, completions: Completions, *, closed: bool = False
) -> tuple[jax.Array, ...]:
    """Tokens, positions, segment ids and mask [E, T] of completions behind their prompts.

    Args:
      closed: they end as in training, see `close`.
    """
    prompts = repeat_rows(prompts, len(completions.tokens) // len(prompts.tokens))
    if closed and prompts.ending is not None:
        completions = close(completions, prompts.ending)
    return join(prompts.tokens, prompts.positions, prompts.segment_ids, completions)


def rollout_work(
    prompts: PromptBatch,
    scored: dict[str, jax.Array],
    layout: Layout | None,
    *,
    model: ModelConfig,
    judges: tuple[ModelConfig, ...],
    samples: int,
    readers: int,
) -> Metrics:
    """The tokens of a rollout, and the FLOPs of sampling it and of every model that reads it.

    Args:
      layout: of the completions, for those models.
      judges: critic and reward model, where there are any.
      samples: completions of each prompt.
      readers: language models that read the completions: the policy once more, the reference.
    """
    read = count_work(model, prompts.segment_ids, prompts.positions)
    whole = count_work(model, scored["segment_ids"], scored["positions"])
    count = jnp.sum(jnp.any(prompts.segment_ids > 0, axis=1))
    flops = sampling_flops(model, read, whole, count, samples)
    scored_work = as_laid_out(whole._replace(logits=scored["mask"].sum()), layout)
    flops += step_flops(model, scored_work, passes=readers)
    for judge in judges:
        work = as_laid_out(count_work(judge, scored["segment_ids"], scored["positions"]), layout)
        flops += step_flops(judge, work, scalar=True, passes=1)
    return tokens_metric(whole) | flops_metric(flops, "/rollout")


def shape(scores: jax.Array, completions: Completions, options: RewardedConfig) -> jax.Array:
    """Scores [E] as they are learned from: scaled, clipped, less the penalty of a missing end."""
    return shape_scores(
        scores,
        has_eos=completions.stopped,
        missing_eos_penalty=options.missing_eos_penalty,
        clip=options.reward_clip,
        scale=options.reward_scale,
    )


def rollout_metrics(
    scored: dict[str, jax.Array],
    scores: jax.Array | None,
    completions: Completions,
    missing_eos_penalty: float | None = None,
    kl_estimator: str = "k1",
) -> Metrics:
    """What every stage that samples reports of a rollout, under TRL's names where TRL has the number.

    `objective/scores` are less the penalty of a missing end, but neither scaled nor clipped; those of the reward alone
    are then `objective/raw_scores`. `objective/kl` is by the estimator of the stage; where that is another, the sum of
    log-ratios is `objective/kl_k1`.
    """
    length = completions.mask.sum(1)
    each = (length > 0).astype(jnp.float32)
    metrics: Metrics = {
        "objective/entropy": masked_mean(jnp.sum(-scored["old_logp"] * scored["mask"], axis=1), each),
        "val/num_eos_tokens": Mean(jnp.sum(completions.stopped * each), jnp.ones(())),
        "completions/mean_length": masked_mean(length, each),
        "completions/clipped_ratio": masked_mean(1.0 - completions.stopped.astype(jnp.float32), each),
    }
    if "entropy" in scored:
        sampled = sampled_logp(completions, scored["mask"])
        metrics |= compare_sampling(scored["old_logp"], sampled, scored["entropy"], scored["mask"])
    if completions.places is not None:
        used, room = jnp.sum(completions.mask), completions.places.astype(jnp.float32)
        metrics["completions/slot_occupancy"] = Mean(used, room)
    if scores is not None:
        metrics["objective/scores"] = masked_mean(scores, each)
        if missing_eos_penalty is not None:
            less = shape_scores(scores, has_eos=completions.stopped, missing_eos_penalty=missing_eos_penalty)
            metrics["objective/raw_scores"] = metrics["objective/scores"]
            metrics["objective/scores"] = masked_mean(less, each)
    for name, kl in (("objective/kl", "kl"), ("objective/kl_k1", "kl1")):
        if kl in scored and (kl == "kl" or kl_estimator != "k1"):
            metrics[name] = masked_mean(jnp.sum(scored[kl] * scored["mask"], axis=1), each)
    return metrics


def sampled_logp(completions: Completions, mask: jax.Array) -> jax.Array:
    """What the policy said while it sampled, behind the prompts' slots: [E, T], as the mask of the sampled tokens."""
    return jnp.pad(completions.logp, ((0, 0), (mask.shape[1] - completions.logp.shape[1], 0))) * mask


def compare_sampling(logp: jax.Array, sampled: jax.Array, entropy: jax.Array, mask: jax.Array) -> Metrics:
    """What the policy says of its completions, and how far that is from what it said while it sampled: [E, T] each."""
    gap = jnp.abs(logp - sampled)
    return {
        "policy/entropy_avg": masked_mean(entropy, mask),
        "rollout_logp_diff": masked_mean(gap, mask),
        "rollout_logp_diff_max": Max(jnp.max(gap * mask)),
    }


def plain_rollout(scored: dict[str, jax.Array], **more: Any) -> Rollout:
    """The parts of a rollout that are as the models put them out."""
    kept = ("tokens", "positions", "segment_ids", "mask", "old_logp", "old_values", "ref_logp")
    found: dict[str, Any] = {name: scored[name] for name in kept if name in scored}
    return Rollout(**found, **more)
