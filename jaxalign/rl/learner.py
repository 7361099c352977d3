"""The second half of a step that samples: minibatches of a rollout through the updates of policy and critic."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data import Batch
from jaxalign.errors import StepZeroError
from jaxalign.losses.metrics import Mean, Metrics, finalize, merge
from jaxalign.losses.nll import nll_loss
from jaxalign.models import ModelConfig, Params
from jaxalign.models.scoring import score_batch
from jaxalign.parallel import processes
from jaxalign.rl.config import OnPolicyConfig
from jaxalign.rl.layout import Packer
from jaxalign.rl.rollout import OnPolicyState, Rollout
from jaxalign.training.flops import FLOPS
from jaxalign.training.open import Run
from jaxalign.training.stage import Totals, add_router_losses, real_tokens
from jaxalign.training.state import Objective, Update, moving_average


def mix_text(objective: Objective, model: ModelConfig, coef: float) -> Objective:
    """The objective on (episodes, text): of the text, where there is some, coef times its mean NLL is added."""

    def mixed(
        params: Params, batch: tuple[Any, Batch | None], total: Totals, frozen: Any
    ) -> tuple[jax.Array, Metrics]:
        episodes, text = batch
        value, metrics = objective(params, episodes, total, frozen)
        if text is None:
            return value, metrics
        scored = score_batch(params, model, text, mask=text.loss_mask)
        ptx, found = nll_loss(scored.logp, text.loss_mask, normalizer=total["text"])
        whole = {"real_tokens": total["text_real_tokens"]}
        ptx, _ = add_router_losses(ptx, {}, scored.router, text, whole, model)
        return value + coef * ptx, metrics | {"ptx/nll": found["nll"]}

    return mixed


def mixed_totals(totals: Callable[..., Totals]) -> Callable[..., Totals]:
    """The totals of (episodes, text), for `mix_text`."""

    def mixed(params: Params, batch: tuple[Any, Batch | None], frozen: Any) -> Totals:
        episodes, text = batch
        out = totals(params, episodes, frozen)
        if text is None:
            return out
        return out | {"text": text.loss_mask.sum(), "text_real_tokens": real_tokens(text)["real_tokens"]}

    return mixed


def make_learner(
    run: Run,
    policy_update: Update,
    value_update: Update | None,
    *,
    frozen: dict[str, Params],
    text_batch: Callable[[int], Any] | None,
    critic_config: ModelConfig | None,
    others: Iterable[ModelConfig] = (),
    scored: bool,
) -> Callable[[OnPolicyState, Any], tuple[OnPolicyState, Metrics]]:
    """The update phase: every minibatch of the rollout in the state through one jitted update a model.

    Args:
      others: the architectures of frozen models that are not like the policy.
      scored: the policy has read its completions before.
    """
    options: OnPolicyConfig = run.config.options
    M, packer = options.num_minibatches, Packer(run, critic_config, *others)

    def update(state: OnPolicyState, batch: Any) -> tuple[OnPolicyState, Metrics]:
        policy, critic = state.policy, state.critic
        step = int(policy.step)  # once a rollout: the pretraining text is picked by number
        order, following = jax.random.split(state.key)
        seen: list[Metrics] = []
        updates, stopped = 0, False
        choices = minibatch_rows(order, len(state.rollout.tokens), options.passes, M)
        ids = state.rollout.segment_ids
        slots = ids.shape[1] - options.sampling.max_new_tokens
        layouts = packer.several(ids, slots, choices, parts=run.config.num_microbatches)
        for i, (rows, layout) in enumerate(zip(choices, layouts, strict=True)):
            part = dataclasses.replace(take_rows(state.rollout, rows), layout=layout)
            metrics: Metrics = {}
            if not stopped:
                text = text_batch(step + i) if text_batch else None
                failed = 0 if critic is None else critic.skipped
                policy, metrics = policy_update(policy, (part, text), frozen, failed)
                if scored:  # the rollout's, over all episodes, is the one reported
                    metrics.pop("policy/entropy_avg", None)
                updates += 1
                if step + i == 0:
                    _verify_ratio(metrics, run.model)
                    _verify_sampling(metrics, run.model)
                if options.early_stop_kl:
                    stopped = float(finalize(metrics)["policy/approxkl_avg"]) > options.early_stop_kl
            if critic is not None and value_update is not None and critic_config is not None:
                first = int(critic.step) == 0
                critic, more = value_update(critic, part, {}, policy.skipped)
                if first:
                    _verify_values(more, critic_config)
                shared = ("loss", "grad_norm", "skipped_steps", "learning_rate")
                more = {
                    f"critic/{name}" if name in shared or name.startswith("router/") else name: x
                    for name, x in more.items()
                }
                metrics = metrics | more
            seen.append(metrics)
        if stopped:
            # Updates that were left out have had their turn: the schedule ends with the run all the same.
            policy = dataclasses.replace(policy, step=policy.step + (options.passes * M - updates))
        merged = merge_ragged(seen)
        merged["policy/updates"] = Mean(jnp.float32(updates), jnp.ones(()))
        state = dataclasses.replace(state, policy=policy, critic=critic, key=following)
        if state.reference is not None:
            state = dataclasses.replace(
                state, reference=drift(state.reference, policy.params, 1 - options.reference_rate)
            )
        if state.average is not None:
            state = dataclasses.replace(
                state, average=drift(state.average, policy.params, options.average_decay)
            )
        return state, merged

    return update


@functools.partial(jax.jit, static_argnames=("count", "passes"))
def _orders(key: jax.Array, count: int, passes: int) -> jax.Array:
    keys = jax.vmap(lambda epoch: jax.random.fold_in(key, epoch))(jnp.arange(passes))
    return jax.vmap(lambda key: jax.random.permutation(key, count))(keys)


def minibatch_rows(key: jax.Array, count: int, passes: int, parts: int) -> np.ndarray:
    """The rows of every minibatch: int [passes * parts, count / parts], shuffled anew for every pass.

    Args:
      key: this rollout's, from which nothing else is drawn or derived.
      count: completions of the rollout.
      parts: minibatches of a pass.
    """
    return processes.fetch_whole(_orders(key, count, passes)).reshape(passes * parts, count // parts)


@jax.jit
def take_rows(rollout: Rollout, rows: jax.Array) -> Rollout:
    """Some of the completions of a rollout."""
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0), rollout)


drift = jax.jit(moving_average, donate_argnums=0)


def merge_ragged(seen: list[Metrics]) -> Metrics:
    """Metrics of several programs as one, each name over those that have it."""
    # On the host: a handful of scalars is not worth programs that span every device of the mesh.
    seen = jax.device_get(seen)
    names = dict.fromkeys(name for metrics in seen for name in metrics)
    merged: Metrics = {}
    for name in names:
        values = [metrics[name] for metrics in seen if name in metrics]
        merged |= merge({name: jax.tree.map(lambda *xs: np.stack(xs), *values)})
    for name in merged:
        if name.startswith(FLOPS):  # what was computed adds up, where all else is averaged
            merged[name] = Mean(merged[name][0], jnp.ones(()))
    if "val/ratio" in merged:
        mean = finalize({"r": merged["val/ratio"], "s": merged.pop("val/ratio_sq")})
        merged["policy/ratio_var"] = Mean(mean["s"] - jnp.square(mean["r"]), jnp.ones(()))
    return merged


def _verify_values(metrics: Metrics, model: ModelConfig) -> None:
    clipped = float(finalize(metrics)["val/clipfrac_avg"])
    if clipped > (0.0 if model.dtype == "float32" else 0.05):  # bfloat16 rounds large values by as much
        raise StepZeroError(
            f"before the critic's first update no value can have left its clipping range, yet val/clipfrac_avg is "
            f"{clipped:.4f}; rollout and update compute different values"
        )


def _verify_ratio(metrics: Metrics, model: ModelConfig) -> None:
    mean: Any = metrics.get("val/ratio")
    if mean is None or not float(mean.weight):
        return  # a loss without one, or a minibatch of the empty rows that fill up a last batch
    ratio = {name: float(x) for name, x in finalize(metrics).items() if name.startswith("val/ratio")}
    tolerance = 1e-4 if model.dtype == "float32" else 0.05
    if not all(abs(x - 1) <= tolerance for x in ratio.values()):
        raise StepZeroError(
            f"before the first update π_θ / π_old must be 1, but its mean is {ratio['val/ratio']:.6f} and its mean "
            f"square {ratio['val/ratio_sq']:.6f}; rollout and update compute different log-probabilities"
        )


def _verify_sampling(metrics: Metrics, model: ModelConfig) -> None:
    mean: Any = metrics.get("rollout_logp_diff")
    if mean is None or not float(mean.weight):
        return  # the rollout was scored before, or a minibatch of empty rows
    gap = float(finalize({"gap": mean})["gap"])
    # Two programs, which on an accelerator round products of float32 as well.
    if not gap <= (0.05 if model.dtype == "float32" else 0.2):
        raise StepZeroError(
            f"before the first update the policy must say of its completions what it said when it sampled them, yet "
            f"their log-probabilities differ by {gap:.4f} a token; sampling and update compute different ones"
        )
