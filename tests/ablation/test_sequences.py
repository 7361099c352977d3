"""Models of short sequences: what is said of all sequences is what sampling finds, and judges say what they should."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.ablation import sequence_training as training
from jaxalign.ablation import sequences

PROMPTS, LENGTH, VOCABULARY = sequences.PROMPTS, sequences.LENGTH, sequences.VOCABULARY


@pytest.fixture(scope="module")
def habitual():
    return np.random.default_rng(0).integers(0, VOCABULARY, (PROMPTS, LENGTH))


@pytest.fixture(scope="module")
def start(habitual):
    return sequences.learn_start(jax.random.key(0), sequences.habits(jnp.asarray(habitual), 0.6))


def test_expected_reward_and_kl_are_those_of_samples(start):
    best = jnp.asarray(np.random.default_rng(1).integers(0, VOCABULARY, (PROMPTS, LENGTH)))
    moved = jax.tree.map(lambda x: 1.1 * x, start)
    reward, kl = sequences.measure(moved, start, best)
    prompts = jnp.tile(jnp.arange(PROMPTS), 1_000)
    tokens = sequences.sample(moved, prompts, jax.random.key(1))
    logps = [training.sequence_logps(x, prompts, tokens) for x in (moved, start)]
    for wanted, found in ((reward, sequences.reward(best, prompts, tokens)), (kl, logps[0] - logps[1])):
        assert float(wanted) == pytest.approx(float(found.mean()), abs=4 * float(found.std()) / 16_000**0.5)
    assert float(kl) > 0.05


def test_the_start_has_the_habits_it_learned(start, habitual):
    logps = sequences.token_logps(start, jnp.arange(PROMPTS), jnp.asarray(habitual))
    assert np.exp(np.asarray(logps)).mean() == pytest.approx(0.6, abs=0.05)


def test_pairs_are_labelled_right_as_often_as_the_judge_says(habitual):
    best, prompts = jnp.asarray(habitual), jnp.repeat(jnp.arange(PROMPTS), 500)
    right = best[prompts]
    one = right.at[:, 0].set((right[:, 0] + 1) % VOCABULARY)  # one token wrong: .375 of 1
    _, chosen, _ = training.label(jax.random.key(0), best, prompts, right, one)
    wanted = 1 / (1 + np.exp(-training.SCALE * (1 - 0.375)))
    assert float(jnp.all(chosen == right, axis=1).mean()) == pytest.approx(wanted, abs=0.005)


def test_rl_on_the_true_reward_nears_the_optimum(start, habitual):
    """E[r] - β KL of the best policy is β log E_ref[exp(r / β)]."""
    best = (jnp.asarray(habitual) + 1) % VOCABULARY
    judged = training.tabulate(functools.partial(sequences.reward, best))
    prompts = jnp.repeat(jnp.arange(PROMPTS), len(sequences.SEQUENCES))
    answers = jnp.tile(jnp.asarray(sequences.SEQUENCES), (PROMPTS, 1))
    reference = training.sequence_logps(start, prompts, answers).reshape(judged.shape)
    beta = 0.1
    optimum = float((beta * jax.nn.logsumexp(judged / beta + reference, axis=1)).mean())
    stacked = training.reinforce(start, judged, jax.random.key(2), jnp.float32(1e-2), jnp.float32(beta))
    reward, kl = sequences.measure(sequences.last(stacked), start, best)
    begins = float(sequences.measure(start, start, best)[0])
    reached = float(reward - beta * kl)
    assert begins + 0.5 * (optimum - begins) < reached < optimum
