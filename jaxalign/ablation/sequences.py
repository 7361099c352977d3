"""Language models of sequences so short that all of them can be summed over: expected rewards and KL are exact.

Shapes: B sequences of L = `LENGTH` tokens of V = `VOCABULARY`, each the answer to one of `PROMPTS` prompts.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

PROMPTS, VOCABULARY, LENGTH, WIDTH = 16, 8, 4, 64
FIRST_STEPS, FIRST_RATE = 400, 0.01  # of `learn_start`

# All there are: int [V ** L, L].
SEQUENCES = np.array(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))

Params = Any


def first_params(key: jax.Array, outputs: int) -> Params:
    """A network from a prompt and the tokens so far to `outputs` numbers, 0 at first."""
    keys = jax.random.split(key, 3)
    return {
        "prompt": jax.random.normal(keys[0], (PROMPTS, LENGTH, WIDTH)) / 2,
        "token": jax.random.normal(keys[1], (LENGTH, VOCABULARY, WIDTH)) / 2,
        "hidden": jax.random.normal(keys[2], (WIDTH, WIDTH)) / np.sqrt(WIDTH),
        "out": jnp.zeros((WIDTH, outputs)),
    }


def read(params: Params, prompts: jax.Array, tokens: jax.Array) -> jax.Array:
    """[B, L, outputs] before each token of sequences [B, L]."""
    each = params["token"][jnp.arange(LENGTH), tokens]
    before = jnp.cumsum(each, axis=1) - each
    x = jax.nn.relu(params["prompt"][prompts] + before)
    return jax.nn.relu(x @ params["hidden"]) @ params["out"]


def token_logps(params: Params, prompts: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probabilities of tokens [B, L]."""
    logps = jax.nn.log_softmax(read(params, prompts, tokens))
    return jnp.take_along_axis(logps, tokens[..., None], axis=2)[..., 0]


def sample(params: Params, prompts: jax.Array, key: jax.Array) -> jax.Array:
    """A sequence for each prompt: int [B, L]."""
    tokens = jnp.zeros((len(prompts), LENGTH), jnp.int32)
    for place, own in enumerate(jax.random.split(key, LENGTH)):
        drawn = jax.random.categorical(own, read(params, prompts, tokens)[:, place])
        tokens = tokens.at[:, place].set(drawn)
    return tokens


def reward(best: jax.Array, prompts: jax.Array, tokens: jax.Array) -> jax.Array:
    """Float32 [B], 0 to 1: half of it for each right token, half for all of them together."""
    right = (tokens == best[prompts]).astype(jnp.float32)
    return 0.5 * right.mean(1) + 0.5 * right.min(1)


@jax.jit
def measure(params: Params, start: Params, best: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The expected reward and the KL to the start in nats, in the mean over prompts, by all sequences."""
    sequences = jnp.asarray(SEQUENCES)

    def of_prompt(prompt: jax.Array) -> tuple[jax.Array, jax.Array]:
        prompts = jnp.full(len(sequences), prompt)
        mine, theirs = (token_logps(x, prompts, sequences).sum(1) for x in (params, start))
        p = jnp.exp(mine)
        return jnp.sum(p * reward(best, prompts, sequences)), jnp.sum(p * (mine - theirs))

    rewards, kl = jax.lax.map(of_prompt, jnp.arange(PROMPTS))
    return rewards.mean(), kl.mean()


def habits(tokens: jax.Array, likely: float) -> jax.Array:
    """How somebody answers: probabilities [..., V] of independent places, `likely` of these tokens [...]."""
    mine = jax.nn.one_hot(tokens, VOCABULARY)
    return likely * mine + (1 - likely) / (VOCABULARY - 1) * (1 - mine)


@jax.jit
def learn_start(key: jax.Array, wanted: jax.Array) -> Params:
    """A policy that has learned to answer by habits [prompts, L, V], nearly so."""
    prompts = jnp.repeat(jnp.arange(PROMPTS), 16)

    def gradient(params: Params, key: jax.Array) -> Params:
        tokens = jax.random.categorical(key, jnp.log(wanted[prompts]))

        def loss(params: Params) -> jax.Array:
            return -jnp.mean(jnp.sum(wanted[prompts] * jax.nn.log_softmax(read(params, prompts, tokens)), -1))

        return jax.grad(loss)(params)

    start = first_params(key, VOCABULARY)
    return last(walk(gradient, start, jax.random.fold_in(key, 1), FIRST_RATE, FIRST_STEPS))


def walk(
    gradient: Callable, params: Params, key: jax.Array, rate: Any, steps: int, points: int = 1
) -> Params:
    """`steps` of Adam along gradient(params, key); stacked parameters, after each of `points` parts."""
    optimizer = optax.adam(rate)

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        params, state = carry
        updates, state = optimizer.update(gradient(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    def part(carry: tuple, keys: jax.Array) -> tuple[tuple, Params]:
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, carry[0]

    keys = jax.random.split(key, steps).reshape(points, -1)
    return jax.lax.scan(part, (params, optimizer.init(params)), keys)[1]


def last(stacked: Params) -> Params:
    """The trained ones of stacked parameters."""
    return jax.tree.map(lambda x: x[-1], stacked)


def half_of_places(rng: np.random.Generator) -> np.ndarray:
    """Bool [prompts, L]: of each prompt half of the places, by chance."""
    return rng.permuted(np.tile(np.arange(LENGTH) < LENGTH // 2, (PROMPTS, 1)), axis=1)


def demonstrate(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that demonstrators are in the habit of, and the best ones, others at half of the places.

    Int [prompts, L] each.
    """
    habitual = rng.integers(0, VOCABULARY, (PROMPTS, LENGTH))
    other = (habitual + rng.integers(1, VOCABULARY, habitual.shape)) % VOCABULARY
    return habitual, np.where(half_of_places(rng), other, habitual)
