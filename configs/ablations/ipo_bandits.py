"""What DPO and IPO make of preferences that never disagree: bandits whose answers are known in closed form.

Section 5.4 of arXiv 2310.12036: a policy over two or three actions, the uniform one as its reference, and a data set in
which the better action always wins. IPO's minimum is exact, so that every number here has a right value. The study is
of the paper's own size.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.ablation import Chart, Claim, Outcome, Study, Trial, cross, value
from jaxalign.losses.dpo import DPOObjective, dpo_loss

STEPS, BATCH, RATE = 18_000, 9, 0.01  # the paper's: Adam, pairs of a step, learning rate
# Each pair is (winner, loser): of two actions the only one, of three a total order.
PAIRS = {2: ((0, 1),), 3: ((0, 1), (1, 2), (0, 2))}
VARIANTS = {"dpo": "sigmoid", "ipo": "ipo"}
TAUS = (0.1, 0.5, 1.0)


def closed_form(actions: int, tau: float) -> np.ndarray:
    """IPO's minimum: log-ratios h that solve h(winner) - h(loser) = 1 / (2τ) for all pairs by least squares."""
    pairs = PAIRS[actions]
    equations = np.zeros((len(pairs), actions))
    for row, (winner, loser) in enumerate(pairs):
        equations[row, winner], equations[row, loser] = 1.0, -1.0
    logits = np.linalg.lstsq(equations, np.full(len(pairs), 1 / (2 * tau)), rcond=None)[0]
    return np.exp(logits) / np.exp(logits).sum()


@functools.partial(jax.jit, static_argnames=("loss", "actions", "tau"))
def train(key: jax.Array, loss: str, actions: int, tau: float) -> jax.Array:
    """The policy's probabilities after `STEPS` of Adam, from random logits."""
    objective = DPOObjective(beta=tau, variant=VARIANTS[loss])
    pairs = jnp.array(PAIRS[actions])
    optimizer = optax.adam(RATE)
    start_key, key = jax.random.split(key)
    logits = 0.1 * jax.random.normal(start_key, (actions,))
    reference = -jnp.log(jnp.full(BATCH, float(actions)))
    weight = jnp.ones(BATCH)

    def value_of(logits: jax.Array, drawn: jax.Array) -> jax.Array:
        logp = jax.nn.log_softmax(logits)
        return dpo_loss(logp[drawn[:, 0]], logp[drawn[:, 1]], reference, reference, weight, objective)[0]

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        logits, state = carry
        drawn = pairs[jax.random.randint(key, (BATCH,), 0, len(pairs))]
        updates, state = optimizer.update(jax.grad(value_of)(logits, drawn), state)
        return (optax.apply_updates(logits, updates), state), None

    (logits, _), _ = jax.lax.scan(step, (logits, optimizer.init(logits)), jax.random.split(key, STEPS))
    return jax.nn.softmax(logits)


def run(trial: Trial) -> Outcome:
    """Trains a policy, and measures its probabilities."""
    arm: Mapping[str, Any] = trial.arm
    p = np.asarray(train(jax.random.key(trial.seed), arm["loss"], arm["actions"], arm["tau"]), np.float64)
    exact = closed_form(arm["actions"], arm["tau"])
    return Outcome({"first": p[0], "last": p[-1], "error": float(np.abs(p - exact).max())})


def get_study(size: str) -> Study:
    """`small` and `paper` are the same."""
    del size

    def ipo(actions: int, tau: float, measure: str, place: int) -> Claim:
        exact = closed_form(actions, tau)[place]
        what = "best" if place == 0 else "worst"
        return Claim(
            f"IPO, {actions} actions, τ={tau:g}, {what}",
            f"IPO gives the {what} action the probability that its minimum has",
            value(measure, loss="ipo", actions=actions, tau=tau),
            smallest=0.01,
            near=float(round(exact, 6)),
            paper=f"{exact:.4f} (its eq. 17 in closed form)",
            seeds=10,
        )

    def collapse(actions: int, tau: float) -> Claim:
        return Claim(
            f"DPO, {actions} actions, τ={tau:g}",
            "DPO puts everything on the action that always wins, whatever τ says",
            value("first", loss="dpo", actions=actions, tau=tau),
            smallest=0.02,
            near=1.0,
            paper="1 (Figs. 1 and 2)",
            seeds=10,
        )

    return Study(
        name="ipo_bandits",
        title="DPO and IPO where the better action always wins",
        papers=("arXiv 2310.12036, section 5.4",),
        question=(
            "If the data never contradict themselves, is a policy that was tuned with DPO still held near its "
            "reference by β? The paper says no: the log-odds that would explain a preference without exception are "
            "infinite, and so they are for any β. IPO asks for a finite difference instead."
        ),
        setting=(
            "A policy over two or three actions with the uniform one as its reference; the pairs are one (the first "
            "action wins) or the three of a total order. Adam with learning rate 0.01, 18,000 steps of 9 pairs drawn "
            "at random, as in the paper; `losses.dpo_loss` of this library, in float32. A seed is the first logits "
            "and the pairs drawn. τ is β of the DPO loss."
        ),
        arms=cross(loss=("dpo", "ipo"), actions=(2, 3), tau=TAUS),
        seeds=tuple(range(10)),
        measures={
            "first": "probability of the action that always wins",
            "last": "probability of the action that always loses",
            "error": "largest distance of a probability from IPO's closed form",
        },
        run=run,
        sizes=("small", "paper"),
        claims=(
            *(ipo(2, tau, "first", 0) for tau in TAUS),
            *(ipo(3, tau, "first", 0) for tau in TAUS),
            ipo(3, 1.0, "last", 2),
            *(collapse(2, tau) for tau in TAUS),
            collapse(3, 1.0),
        ),
        charts=(Chart("Probability of the action that always wins", "first"),),
    )
