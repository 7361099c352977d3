"""Reward over KL of DPO and of RL (arXiv 2305.18290, Fig. 2), on sequences of which both are known exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.ablation import Chart, Claim, Effect, Outcome, Study, Trial, Tuning, value
from jaxalign.ablation.effects import as_effect
from jaxalign.ablation.sequence_training import (
    BATCH,
    ROLLOUTS,
    SAMPLES,
    SCALE,
    STEPS,
    Pairs,
    fine_tune,
    label,
    learn_rewards,
    reinforce,
    score,
    sequence_logps,
    tabulate,
    train_dpo,
)
from jaxalign.ablation.sequences import (
    LENGTH,
    PROMPTS,
    SEQUENCES,
    VOCABULARY,
    Params,
    habits,
    half_of_places,
    learn_start,
    measure,
    reward,
    sample,
)

LIKELY = 0.6  # of the SFT model's habitual token at each place, which at half of the places is the best one
PAIRS = 256  # of each prompt, half of them held out
DPO_STEPS, POINTS = 1_200, 10
BETAS = {"dpo": (0.05, 0.1, 1.0, 5.0), "rl": (0.1, 0.4, 1.6, 6.4), "rl_true": (0.1, 0.4, 1.6, 6.4)}
RATES = (1e-3, 3e-3, 1e-2)
NEAR, FAR = 1.0, 3.0  # nats at which methods are compared


def accuracy(params: Params, start: Params, pairs: Pairs) -> jax.Array:
    """How often the implicit reward of a policy ranks pairs as they are labelled."""
    prompts, *answers = pairs
    chosen, rejected = (
        sequence_logps(params, prompts, x) - sequence_logps(start, prompts, x) for x in answers
    )
    return jnp.mean(chosen > rejected)


@jax.jit
def look(stacked: Params, start: Params, best: jax.Array, held_out: Pairs) -> tuple[jax.Array, ...]:
    """Reward, KL to the start and implicit accuracy of each of the stacked policies: [points] each."""

    def one(params: Params) -> tuple[jax.Array, ...]:
        return *measure(params, start, best), accuracy(params, start, held_out)

    return jax.lax.map(one, stacked)


def run(trial: Trial) -> Outcome:
    """Trains a method once with each of its β, and looks at the policies on the way."""
    rng = np.random.default_rng(trial.seed)
    model = rng.integers(0, VOCABULARY, (PROMPTS, LENGTH))
    errs = half_of_places(rng)
    other = (model + rng.integers(1, VOCABULARY, model.shape)) % VOCABULARY
    best = jnp.asarray(np.where(errs, other, model))
    keys = jax.random.split(jax.random.key(trial.seed), 5)
    start = learn_start(keys[0], habits(jnp.asarray(model), LIKELY))
    prompts = jnp.tile(jnp.arange(PROMPTS), PAIRS)
    pairs = label(keys[2], best, prompts, *(sample(start, prompts, key) for key in jax.random.split(keys[1])))
    half = len(prompts) // 2
    pairs, held_out = tuple(x[:half] for x in pairs), tuple(x[half:] for x in pairs)
    method, rate = trial.arm["method"], jnp.float32(trial.tuned["rate"])
    start = fine_tune(start, pairs, keys[3])
    if method == "dpo":

        def train(beta: float) -> Params:
            return train_dpo(start, pairs, keys[4], rate, beta, POINTS, DPO_STEPS)

    else:
        if method == "rl":
            judged = tabulate(functools.partial(score, learn_rewards(pairs, keys[4], rate)))
        else:
            judged = SCALE * tabulate(functools.partial(reward, best))

        def train(beta: float) -> Params:
            return reinforce(start, judged, keys[4], rate, jnp.float32(beta), POINTS)

    found = np.array([look(train(beta), start, best, held_out) for beta in BETAS[method]])
    gold, kl, right = np.moveaxis(found, 1, 0)  # [β, points] each
    lowest = int(np.argmin(BETAS[method]))
    first = float(measure(start, start, best)[0])
    # The best of all policies that are no further than so many nats from the start, itself among them.
    reached = np.append(0.0, np.sort(kl.ravel()))
    envelope = np.maximum.accumulate(np.append(first, gold.ravel()[np.argsort(kl.ravel())]))
    near, far = (envelope[np.searchsorted(reached, nats, side="right") - 1] for nats in (NEAR, FAR))
    return Outcome(
        {
            "near": float(near),
            "far": float(far),
            "peak": float(gold[lowest].max()),
            "fall": float(gold[lowest].max() - gold[lowest, -1]),
            "agreement": float(np.corrcoef(right[lowest], gold[lowest])[0, 1]),
            "kl": float(kl.max()),
            "start": first,
        },
        {"gold": list(zip(reached.tolist(), envelope.tolist(), strict=True))},
    )


def get_study(size: str) -> Study:
    """What is affordable on two cores."""
    del size

    def of(method: str, measure: str = "far") -> Effect:
        return value(measure, method=method)

    def betas(method: str) -> str:
        return ", ".join(f"{beta:g}" for beta in BETAS[method])

    return Study(
        name="frontier",
        title="Reward over KL: DPO and RL",
        papers=("arXiv 2305.18290 (DPO), Fig. 2", "arXiv 2406.02900"),
        question=(
            "DPO is said to reach more reward than PPO at every KL, even where PPO is given the true reward. Later "
            "work says that DPO over-optimises as RLHF does: reward peaks early in training and falls, and how often "
            "the implicit reward ranks pairs rightly says little of it. What of that holds where reward and KL of "
            "every policy are exact, and RL is tuned as DPO is?"
        ),
        setting=(
            f"{PROMPTS} prompts, sequences of {LENGTH} tokens out of {VOCABULARY}, all {len(SEQUENCES):,} of which are "
            "summed over. The model is in the habit of one token at each place, at half of them a wrong one; the "
            "reward is half for right tokens and half for all of them together. "
            f"{PAIRS // 2} pairs of its own answers to each prompt, labelled by a judge with noise; SFT of {STEPS} "
            "steps on the preferred ones gives the start, to which KL is taken. From there DPO "
            f"({DPO_STEPS:,} steps of {BATCH} pairs), RLOO on a reward model of the same pairs, or RLOO on the judge "
            f"itself without noise ({ROLLOUTS} rollouts of {PROMPTS * SAMPLES}). A run trains with each of four β "
            f"(DPO {betas('dpo')}; RL {betas('rl')}, where {SCALE:g} is the judge's whole scale) and looks at {POINTS} "
            "policies on the way of each: what counts is the best of those within so many nats. The learning rate, "
            f"of the reward model too, is tuned among the same {len(RATES)} for all. Nothing was looked at before "
            "but seed 300, with one rate."
        ),
        arms=tuple({"method": method} for method in BETAS),
        seeds=tuple(range(20)),
        tuning=Tuning(tuple({"rate": rate} for rate in RATES), tuple(range(200, 205)), "far"),
        measures={
            "near": f"the largest expected reward within {NEAR:g} nat of the start",
            "far": f"that within {FAR:g} nats",
            "peak": "with the lowest β, the largest expected reward on the way",
            "fall": "that less the expected reward at the end",
            "agreement": "with the lowest β, the correlation over training of expected reward and held-out accuracy",
            "kl": "the largest KL to the start, in nats",
            "start": "expected reward of the start, 0 to 1",
        },
        run=run,
        recipes={"method=dpo": "dpo_imdb_gpt2_large"},
        claims=(
            Claim(
                "DPO before RL on a reward model",
                f"within {FAR:g} nats DPO reaches more",
                of("dpo") - of("rl"),
                smallest=0.02,
                paper="DPO's frontier lies above PPO's everywhere (Fig. 2)",
                seeds=20,
            ),
            Claim(
                "close to the start, too",
                f"so it does within {NEAR:g} nat",
                of("dpo", "near") - of("rl", "near"),
                smallest=0.01,
                paper="DPO's frontier lies above PPO's everywhere (Fig. 2)",
                seeds=20,
            ),
            Claim(
                "DPO before RL on the true reward",
                f"within {FAR:g} nats DPO reaches more than RL does with the judge itself as its reward",
                of("dpo") - of("rl_true"),
                smallest=0.02,
                paper="above PPO-GT, too (Fig. 2)",
                seeds=20,
            ),
            Claim(
                "the reward model is what RL lacks",
                f"within {FAR:g} nats RL on the true reward reaches more than on a reward model",
                of("rl_true") - of("rl"),
                smallest=0.02,
                paper="PPO-GT lies above PPO (Fig. 2)",
                seeds=20,
            ),
            Claim(
                "DPO over-optimises",
                "with the lowest β, DPO's reward falls after a best point",
                of("dpo", "fall"),
                smallest=0.02,
                paper="best after a quarter of the first epoch (2406.02900)",
                seeds=20,
            ),
            Claim(
                "accuracy does not show it",
                "over DPO's training, held-out accuracy and reward do not go together: their correlation is below .5",
                as_effect(0.5) - of("dpo", "agreement"),
                smallest=0.1,
                paper="accuracy and likelihood say little of win rates (2406.02900)",
                seeds=20,
            ),
        ),
        discussion=(
            "From one set of pairs DPO reaches a little more than RL on a reward model, as the paper says, near the "
            "start and further away. But not because of how it optimises: RL on the judge itself reaches .22 more than "
            "DPO within three nats, where the paper has it below. There PPO was tuned little; here all have the same "
            "trials. So what RL lacks is a good reward model, from as many pairs as DPO has. DPO does not "
            "over-optimise here: after 37 passes over the pairs with the lowest β, reward ends .005 below its best "
            "point, and with three times the rate at it (seed 300). Short sequences leave less room for what no pair "
            "shows than a language does; the study of unseen answers looks at that. Accuracy on held-out pairs goes "
            "with reward over training about half (.52 ± .14), which decides nothing either way."
        ),
        charts=(
            Chart(
                "The largest expected reward within a KL",
                "gold",
                "lines",
                x="KL to the start, nats",
                y="reward",
            ),
            Chart(f"Within {FAR:g} nats", "far"),
        ),
    )
