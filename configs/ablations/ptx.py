"""Pretraining gradients in RL against a stronger KL penalty (InstructGPT, arXiv 2203.02155, Figs. 29, 33, 34)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.ablation import Chart, Claim, Effect, Outcome, Study, Trial, Tuning, value
from jaxalign.ablation.costs import cost_of
from jaxalign.ablation.effects import Arm, arm_name
from jaxalign.ablation.sequence_training import (
    LEAVE_ONE_OUT,
    SCALE,
    label,
    learn_rewards,
    score,
    sequence_logps,
    tabulate,
)
from jaxalign.ablation.sequences import (
    LENGTH,
    PROMPTS,
    SEQUENCES,
    VOCABULARY,
    Params,
    demonstrate,
    habits,
    learn_start,
    reward,
    sample,
    token_logps,
    walk,
)
from jaxalign.losses.grpo import group_advantages
from jaxalign.losses.ppo import policy_loss

TASKS = PROMPTS // 2  # prompts that are aligned; the others stand for the text of pretraining
LIKELY, CERTAIN = 0.6, 0.9  # of the habitual token in answers and in text
PAIRS = 1_024  # of answers to each prompt, that the reward model learns from
ROLLOUTS, SAMPLES, TEXTS = 100, 8, 64  # answers to each prompt of a rollout, and texts beside them
POINTS = 10
REWARD_RATE = 3e-3
BETAS = (0.0, 0.02, 0.2, 0.6, 2.0)
GAMMAS = (1.0, 27.8)
BETA = 0.02  # beside pretraining gradients
RATES = (3e-3, 1e-2)
GAIN = 0.1  # in expected reward, at which text is compared


@functools.partial(jax.jit, static_argnames="gamma")
def train(
    start: Params,
    judged: jax.Array,
    text: jax.Array,
    key: jax.Array,
    rate: jax.Array,
    beta: jax.Array,
    gamma: float,
) -> Params:
    """RLOO on the answers, with γ times the loss of text [prompts, L, V] beside it; policies on the way, stacked."""
    prompts = jnp.repeat(jnp.arange(TASKS), SAMPLES)
    places = jnp.repeat(jnp.arange(TASKS, PROMPTS), TEXTS // (PROMPTS - TASKS))
    digits = VOCABULARY ** jnp.arange(LENGTH)[::-1]

    def gradient(params: Params, key: jax.Array) -> Params:
        own, drawn = jax.random.split(key)
        tokens = sample(params, prompts, own)
        old, reference = (sequence_logps(model, prompts, tokens) for model in (params, start))
        shaped = judged[prompts, tokens @ digits] - beta * (old - reference)
        gain = group_advantages(shaped.reshape(-1, SAMPLES), LEAVE_ONE_OUT)[0].reshape(-1, 1)
        texts = jax.random.categorical(drawn, jnp.log(text[places - TASKS]))

        def loss(params: Params) -> jax.Array:
            logps = sequence_logps(params, prompts, tokens)[:, None]
            found = policy_loss(logps, old[:, None], gain, jnp.ones_like(gain))[0]
            return found - gamma * token_logps(params, places, texts).mean()

        return jax.grad(loss)(params)

    return walk(gradient, start, key, rate, ROLLOUTS, POINTS)


@jax.jit
def look(stacked: Params, start: Params, best: jax.Array, text: jax.Array) -> tuple[jax.Array, ...]:
    """Expected reward and KL of each of the stacked policies, and nats a token of text: [points] each."""
    sequences = jnp.asarray(SEQUENCES)

    def logps(params: Params, prompt: jax.Array) -> jax.Array:
        return sequence_logps(params, jnp.full(len(sequences), prompt), sequences)

    asked, rest = jnp.arange(TASKS), jnp.arange(TASKS, PROMPTS)
    first = jax.lax.map(functools.partial(logps, start), asked)
    rewards = jax.lax.map(lambda prompt: reward(best, jnp.full(len(sequences), prompt), sequences), asked)
    true = jnp.log(text[:, jnp.arange(LENGTH), sequences]).sum(2)

    def one(params: Params) -> tuple[jax.Array, ...]:
        mine, said = (jax.lax.map(functools.partial(logps, params), prompts) for prompts in (asked, rest))
        p = jnp.exp(mine)
        gold, kl = (p * rewards).sum(1), (p * (mine - first)).sum(1)
        nats = -(jnp.exp(true) * said).sum(1) / LENGTH
        return gold.mean(), kl.mean(), nats.mean()

    return jax.lax.map(one, stacked)


def run(trial: Trial) -> Outcome:
    """Trains a policy, measured on its way."""
    rng = np.random.default_rng(trial.seed)
    demonstrated, best = map(jnp.asarray, demonstrate(rng))
    parts = zip((demonstrated[:TASKS], demonstrated[TASKS:]), (LIKELY, CERTAIN), strict=True)
    wanted = jnp.concatenate([habits(tokens, likely) for tokens, likely in parts])
    keys = jax.random.split(jax.random.key(trial.seed), 5)
    start, text = learn_start(keys[0], wanted), wanted[TASKS:]
    asked = jnp.tile(jnp.arange(TASKS), PAIRS)
    pairs = label(keys[2], best, asked, *(sample(start, asked, key) for key in jax.random.split(keys[1])))
    judged = tabulate(functools.partial(score, learn_rewards(pairs, keys[3], jnp.float32(REWARD_RATE))))
    rate = jnp.float32(trial.tuned["rate"])
    beta, gamma = jnp.float32(trial.arm["beta"]), float(trial.arm["gamma"])
    stacked = train(start, judged, text, keys[4], rate, beta, gamma)
    stacked = jax.tree.map(lambda first, others: jnp.concatenate((first[None], others)), start, stacked)
    gold, kl, nats = map(np.asarray, look(stacked, start, best, text))
    gain, tax = gold - gold[0], nats - nats[0]
    at, reached = cost_of(gain, tax, GAIN)
    measures = {
        "start": gold[0],
        "text": nats[0],
        "gain": gain[-1],
        "tax": tax[-1],
        "kl": kl[-1],
        "at": at,
        "reached": reached,
    }
    lines = {"tax": (gain, tax), "gain": (np.sqrt(np.maximum(kl, 0)), gain)}
    curves = {
        name: [(float(a), float(b)) for a, b in zip(*line, strict=True)] for name, line in lines.items()
    }
    return Outcome({name: float(x) for name, x in measures.items()}, curves)


def arm(beta: float, gamma: float = 0.0) -> Arm:
    """The arm of a KL penalty and of pretraining gradients."""
    return {"beta": beta, "gamma": gamma}


def get_study(size: str) -> Study:
    """What is affordable on two cores."""
    del size

    def of(measure: str, beta: float, gamma: float = 0.0) -> Effect:
        return value(measure, **arm(beta, gamma))

    low, high = GAMMAS
    return Study(
        name="ptx",
        title="Pretraining gradients in RL, or more KL penalty",
        papers=("arXiv 2203.02155 (InstructGPT), Figs. 29, 33 and 34",),
        question=(
            "Alignment by RL costs a model some of what pretraining taught it. Pretraining gradients beside those of "
            "RL (PPO-ptx) are said to give it back, and larger KL coefficients, up to 2.0, not to, while they cost "
            "reward; of these .01 to .02 are said to be best. Is that so at equal reward, where the reward, KL and the "
            "loss of text are exact?"
        ),
        setting=(
            f"{PROMPTS} prompts, sequences of {LENGTH} tokens out of {VOCABULARY}, all {len(SEQUENCES):,} of which are "
            f"summed over; one network for all prompts. {TASKS} prompts are asked: the model is in the habit of one "
            f"token at each place ({LIKELY:.0%}), at half of them a wrong one, and the reward is half for right tokens "
            f"and half for all of them together. What it writes after the other {PROMPTS - TASKS} stands for text, and "
            f"is more certain ({CERTAIN:.0%}). A reward model learns from {PAIRS:,} pairs of its own answers to each "
            f"prompt, labelled by a judge with noise, at a rate of {REWARD_RATE:g}. RL: RLOO of {SAMPLES} answers to "
            f"each prompt, {ROLLOUTS} rollouts of an update each, rewarded by the reward model ({SCALE:g} is the "
            f"judge's whole scale), KL in the reward times β, with γ times the loss a token of {TEXTS} texts beside "
            f"it. Text's loss counts as what it rises over that of the start. The learning rate is tuned by reward, "
            f"the same {len(RATES)} trials for every arm. Looked at before: seed 300, with 256 pairs to a prompt, 160 "
            f"rollouts, rates from 0.001 to 0.01 and all arms but β = {BETAS[3]:g}, and then seeds 300 and 301 with "
            "two arms; they chose the number of pairs, the gain at which text is compared, and left out the "
            "smallest rate. A version with language models was begun and given up for its cost, where text's loss "
            "rose by .24 nats a token in 16 rollouts of PPO."
        ),
        arms=(*map(arm, BETAS), *(arm(BETA, gamma) for gamma in GAMMAS)),
        seeds=tuple(range(10)),
        tuning=Tuning(tuple({"rate": rate} for rate in RATES), (200, 201, 202), "gain"),
        measures={
            "start": "expected reward of the start, 0 to 1",
            "gain": "by which it is more at the end",
            "text": "nats a token of text at the start",
            "tax": "by which it is more at the end",
            "at": f"by which it is more where reward has gained {GAIN:g}, or at the end where it never has",
            "reached": "whether it has, 1 or 0",
            "kl": "KL from the start at the end, nats an answer",
        },
        run=run,
        recipes={arm_name(arm(BETA, high)): "ppo_instructgpt_pythia_1_4b"},
        claims=(
            Claim(
                "alignment has a tax",
                f"without pretraining gradients, β = {BETA:g}, text's loss rises",
                of("tax", BETA),
                smallest=0.05,
                paper="SQuAD, DROP, HellaSwag and translation fall (Fig. 29)",
                unit="nats a token",
                seeds=10,
            ),
            Claim(
                "pretraining gradients give it back",
                f"at the end γ = {low:g} leaves less than half of it",
                of("tax", BETA) * 0.5 - of("tax", BETA, low),
                smallest=0.05,
                paper="PPO-ptx recovers most of it (Figs. 29 and 33)",
                unit="nats a token",
                seeds=10,
            ),
            Claim(
                "with the paper's γ, too",
                f"so does γ = {high:g}",
                of("tax", BETA) * 0.5 - of("tax", BETA, high),
                smallest=0.05,
                paper="γ = 27.8; 20 and more are enough (Fig. 33)",
                unit="nats a token",
                seeds=10,
            ),
            Claim(
                "at equal reward, too",
                f"where reward has gained {GAIN:g}, γ = {low:g} has cost text less than none has",
                of("at", BETA) - of("at", BETA, low),
                smallest=0.05,
                unit="nats a token",
                seeds=10,
            ),
            Claim(
                "more KL does not",
                f"at equal reward β = {BETAS[2]:g} has cost text more than γ = {low:g} has",
                of("at", BETAS[2]) - of("at", BETA, low),
                smallest=0.05,
                paper="no coefficient up to 2.0 recovers it (Fig. 34)",
                unit="nats a token",
                seeds=10,
            ),
            Claim(
                "much KL costs reward",
                f"β = {BETAS[4]:g} ends with less than γ = {low:g} does",
                of("gain", BETA, low) - of("gain", BETAS[4]),
                smallest=0.02,
                paper="reward falls with the coefficient (Fig. 34)",
                seeds=10,
            ),
            Claim(
                "pretraining gradients cost none",
                f"with γ = {low:g} reward ends at most .02 lower than without",
                of("gain", BETA, low) - of("gain", BETA) + 0.02,
                smallest=0.0,
                paper="labellers like it as much, or a little less (Figs. 1 and 33)",
                seeds=10,
            ),
            Claim(
                "a little KL is best",
                f"β = {BETA:g} ends with more reward than none",
                of("gain", BETA) - of("gain", BETAS[0]),
                smallest=0.01,
                paper=".01 to .02 are best of 0 to 2 (appendix)",
                seeds=10,
            ),
        ),
        discussion=(
            "Without pretraining gradients RL ruins what the network writes elsewhere: text's loss rises by 1.6 nats a "
            "token, to four times what it was, as the policy's weights are shared and nothing in the reward asks for "
            "text. γ = 1 leaves .03 of it, γ = 27.8 .02, as the paper says. Reward does not pay for γ = 1 but gains by "
            "it (.062, .017 to .108), which no figure of the paper shows; that the text's gradients hold the shared "
            "weights still is a guess that was not tested. γ = 27.8 is slower, .035 behind none (-.074 to .005), and "
            "was still rising. KL is not without effect, though, where the paper sees none: at equal reward β = 0.2 "
            "has cost text .32 less than 0.02 has (.18 to .47), and 0.6 and 2.0 end with a tax of .04 and .003. But "
            "they hold text by holding the policy: 0.6 gains .08 of reward and 2.0 .03, in the first 10 rollouts, and "
            "then nothing. Where all but 2.0 have gained .05, text has paid .28 with β = 0.02, .12 with 0.2, .03 with "
            "0.6, .06 with γ = 1 and .03 with γ = 27.8: for a small gain much KL is as good as pretraining gradients, "
            "for a large one it is no choice. At .1 it is .55, .23, never, .10 and .03. Most of what γ = 1 costs then "
            "is a debt that it pays back while reward goes on rising, .12 after 10 rollouts and .03 at the end, so "
            "that early points say the least for it. Whether a β of 0.02 has more reward than none is undecided. "
            "Things are simpler here than there: the text that is learned is the text that is measured, where the "
            "paper measures other tasks, and one update follows each rollout. The largest rate of the two was the best "
            "for all arms but β = 2.0, and larger ones were not tried; at 0.003 on the seeds of the tuning text's loss "
            "rises by 1.0 with β = 0.02, .22 with 0.2 and .03 with γ = 1."
        ),
        charts=(
            Chart(
                "What text pays for reward",
                "tax",
                "lines",
                x="gain in expected reward",
                y="nats a token of text, more than the start's",
            ),
            Chart(
                "Reward over KL", "gain", "lines", x="√KL from the start, √nats", y="gain in expected reward"
            ),
            Chart("Text's loss at the end", "tax", x="nats a token, more than the start's"),
            Chart("Gain in expected reward at the end", "gain"),
        ),
    )
