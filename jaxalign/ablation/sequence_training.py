"""How models of short sequences learn: from pairs of answers, from a judge's scores; see `sequences` for the shapes.

Where it says nothing else, each gives what the parameters are after every one of `points` equal parts of its steps,
stacked, the last of which are the trained ones.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.ablation.sequences import (
    LENGTH,
    PROMPTS,
    SEQUENCES,
    VOCABULARY,
    Params,
    first_params,
    last,
    reward,
    sample,
    token_logps,
    walk,
)
from jaxalign.losses.dpo import DPOObjective, dpo_loss
from jaxalign.losses.grpo import GRPOObjective, group_advantages
from jaxalign.losses.orpo import SequenceNLL, orpo_loss
from jaxalign.losses.ppo import policy_loss
from jaxalign.losses.reward import bradley_terry_loss

SCALE = 8.0  # a pair of answers is labelled right with probability σ(SCALE x the difference of their rewards)
STEPS, BATCH = 300, 64  # of SFT, of DPO and of a reward model; ORPO takes twice as many
FIRST_RATE = 1e-3  # of SFT
ROLLOUTS, SAMPLES = 80, 4  # of RL: all prompts, with so many samples each
LEAVE_ONE_OUT = GRPOObjective(baseline="leave_one_out", scale="none")

Pairs = tuple[jax.Array, jax.Array, jax.Array]  # prompts [N], chosen and rejected [N, L]


@jax.jit
def label(key: jax.Array, best: jax.Array, prompts: jax.Array, one: jax.Array, two: jax.Array) -> Pairs:
    """Pairs of answers [N, L], of which a noisy judge prefers one."""
    margin = SCALE * (reward(best, prompts, one) - reward(best, prompts, two))
    first = (jax.random.uniform(key, margin.shape) < jax.nn.sigmoid(margin))[:, None]
    return prompts, jnp.where(first, one, two), jnp.where(first, two, one)


def sequence_logps(params: Params, prompts: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probabilities of sequences, [B]."""
    return token_logps(params, prompts, tokens).sum(1)


def score(params: Params, prompts: jax.Array, tokens: jax.Array) -> jax.Array:
    """A reward model's score of whole sequences, [B]."""
    x = params["prompt"][prompts].mean(1) + params["token"][jnp.arange(LENGTH), tokens].sum(1)
    return (jax.nn.relu(jax.nn.relu(x) @ params["hidden"]) @ params["out"])[:, 0]


def tabulate(judge: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """What a judge (prompts, tokens) -> [B] says of all answers to all prompts: [prompts, V ** L]."""
    count = len(SEQUENCES)
    prompts = jnp.repeat(jnp.arange(PROMPTS), count)
    return judge(prompts, jnp.tile(jnp.asarray(SEQUENCES), (PROMPTS, 1))).reshape(PROMPTS, count)


@jax.jit
def fine_tune(start: Params, pairs: Pairs, key: jax.Array) -> Params:
    """SFT on the chosen answers; the trained parameters alone."""

    def loss(params: Params, prompts: jax.Array, chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        return -token_logps(params, prompts, chosen).mean()

    return last(_descend(loss, start, pairs, key, FIRST_RATE, STEPS))


@jax.jit
def learn_rewards(pairs: Pairs, key: jax.Array, rate: jax.Array) -> Params:
    """A reward model of pairs; the trained parameters alone."""

    def loss(params: Params, prompts: jax.Array, chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        better, worse = (score(params, prompts, answers) for answers in (chosen, rejected))
        return bradley_terry_loss(better, worse, jnp.ones(BATCH))[0]

    return last(_descend(loss, first_params(key, 1), pairs, key, rate, STEPS))


@functools.partial(jax.jit, static_argnames="coef")
def train_orpo(start: Params, pairs: Pairs, key: jax.Array, rate: jax.Array, coef: float) -> Params:
    """ORPO, one stage of as many steps as the two of SFT and DPO; the trained parameters alone."""
    ones, lengths = jnp.ones(BATCH), jnp.full(BATCH, float(LENGTH))

    def loss(params: Params, prompts: jax.Array, chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        better, worse = (sequence_logps(params, prompts, answers) for answers in (chosen, rejected))
        nll = SequenceNLL(-better, lengths)
        return orpo_loss(better, worse, ones, coef=coef, lengths=(lengths, lengths), nll=nll)[0]

    return last(_descend(loss, start, pairs, key, rate, 2 * STEPS))


@functools.partial(jax.jit, static_argnames=("beta", "points", "steps"))
def train_dpo(
    start: Params,
    pairs: Pairs,
    key: jax.Array,
    rate: jax.Array,
    beta: float,
    points: int = 1,
    steps: int = STEPS,
) -> Params:
    """DPO from an SFT model, its reference."""

    def loss(params: Params, prompts: jax.Array, chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        better, worse, ref_better, ref_worse = (
            sequence_logps(model, prompts, answers)
            for model in (params, start)
            for answers in (chosen, rejected)
        )
        objective = DPOObjective(beta=beta)
        return dpo_loss(better, worse, ref_better, ref_worse, jnp.ones(BATCH), objective)[0]

    return _descend(loss, start, pairs, key, rate, steps, points)


@functools.partial(jax.jit, static_argnames="points")
def reinforce(
    start: Params, judged: jax.Array, key: jax.Array, rate: jax.Array, beta: jax.Array, points: int = 1
) -> Params:
    """RLOO from an SFT model, its reference.

    Args:
      judged: scores of all answers, see `tabulate`.
    """
    prompts = jnp.repeat(jnp.arange(PROMPTS), SAMPLES)
    digits = VOCABULARY ** jnp.arange(LENGTH)[::-1]

    def gradient(params: Params, key: jax.Array) -> Params:
        tokens = sample(params, prompts, key)
        old, reference = (sequence_logps(model, prompts, tokens) for model in (params, start))
        shaped = judged[prompts, tokens @ digits] - beta * (old - reference)
        gain = group_advantages(shaped.reshape(-1, SAMPLES), LEAVE_ONE_OUT)[0].reshape(-1, 1)

        def loss(params: Params) -> jax.Array:
            logps = sequence_logps(params, prompts, tokens)[:, None]
            return policy_loss(logps, old[:, None], gain, jnp.ones_like(gain))[0]

        return jax.grad(loss)(params)

    return walk(gradient, start, key, rate, ROLLOUTS, points)


def _descend(
    loss: Callable, params: Params, pairs: Pairs, key: jax.Array, rate: Any, steps: int, points: int = 1
) -> Params:
    """`steps` of Adam on loss(params, some pairs)."""

    def gradient(params: Params, key: jax.Array) -> Params:
        rows = jax.random.randint(key, (BATCH,), 0, len(pairs[0]))
        return jax.grad(loss)(params, *(x[rows] for x in pairs))

    return walk(gradient, params, key, rate, steps, points)
