"""Which method when: ORPO, SFT then DPO, and RLHF, on answers of others and on the model's own."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.ablation import Chart, Claim, Effect, Outcome, Sources, Study, Trial, Tuning, value
from jaxalign.ablation.effects import Arm, arm_name
from jaxalign.ablation.sequence_training import (
    BATCH,
    FIRST_RATE,
    ROLLOUTS,
    STEPS,
    fine_tune,
    label,
    learn_rewards,
    reinforce,
    score,
    tabulate,
    train_dpo,
    train_orpo,
)
from jaxalign.ablation.sequences import (
    LENGTH,
    PROMPTS,
    VOCABULARY,
    habits,
    half_of_places,
    last,
    learn_start,
    measure,
    reward,
    sample,
)

LIKELY = 0.6  # of the model's habitual token at each place, which at half of the places is the best one
BETTER, WRONG = 0.5, 0.3  # of better data, at the other places: the best token, and the habitual one
PAIRS = 128  # of each prompt
RATES = (3e-4, 1e-3, 3e-3)
TIES = {"orpo": (0.1, 1.0), "dpo": (0.1, 0.4), "rlhf": (0.1, 0.4)}  # λ of ORPO, β of the others


def outside_habits(model: np.ndarray, other: np.ndarray, best: np.ndarray, support: str, quality: str) -> Any:
    """How others answer: probabilities [prompts, L, V].

    Args:
      model, other: the tokens that the model and others are in the habit of, int [prompts, L].
      support: "near" if where they err others err as the model does, "far" if otherwise.
      quality: "equal" if they are right as often as it, or "better".
    """
    right = model == best
    wrong = np.where(right, best, model if support == "near" else other)
    found = habits(jnp.asarray(wrong), LIKELY)
    if quality == "equal":
        return found
    mixed = BETTER * jax.nn.one_hot(best, VOCABULARY) + WRONG * jax.nn.one_hot(wrong, VOCABULARY)
    mixed = mixed + (1 - BETTER - WRONG) / VOCABULARY
    return jnp.where(right[..., None], found, mixed)


def run(trial: Trial) -> Outcome:
    """Trains a method on the pairs of an arm."""
    rng = np.random.default_rng(trial.seed)
    model = rng.integers(0, VOCABULARY, (PROMPTS, LENGTH))
    # Where the model errs, the best token and what others are in the habit of are two others.
    offsets = rng.permuted(np.tile(np.arange(1, VOCABULARY), (PROMPTS, LENGTH, 1)), axis=2)
    best, other = ((model + offsets[..., i]) % VOCABULARY for i in range(2))
    errs = half_of_places(rng)
    best = np.where(errs, best, model)
    keys = jax.random.split(jax.random.key(trial.seed), 6)
    start = learn_start(keys[0], habits(jnp.asarray(model), LIKELY))
    prompts = jnp.repeat(jnp.arange(PROMPTS), PAIRS)
    if trial.arm["data"] == "own":
        answers = [sample(start, prompts, key) for key in jax.random.split(keys[1])]
    else:
        theirs = outside_habits(model, other, best, trial.arm["support"], trial.arm["quality"])
        answers = [jax.random.categorical(key, jnp.log(theirs)[prompts]) for key in jax.random.split(keys[1])]
    pairs = label(keys[2], jnp.asarray(best), prompts, *answers)
    method, rate = trial.arm["method"], jnp.float32(trial.tuned["rate"])
    tie = TIES[method][trial.tuned["tie"]]
    if method == "orpo":
        trained = train_orpo(start, pairs, keys[3], rate, tie)
    else:
        tuned = fine_tune(start, pairs, keys[3])
        if method == "dpo":
            trained = last(train_dpo(tuned, pairs, keys[4], rate, tie))
        else:
            judged = tabulate(functools.partial(score, learn_rewards(pairs, keys[4], rate)))
            trained = last(reinforce(tuned, judged, keys[5], rate, jnp.float32(tie)))
    gold, kl = measure(trained, start, jnp.asarray(best))
    first, _ = measure(start, start, jnp.asarray(best))
    data = float(jnp.mean(jnp.stack([reward(jnp.asarray(best), prompts, x) for x in answers])))
    return Outcome({"gold": float(gold), "kl": float(kl), "start": float(first), "data": data})


METHODS = ("orpo", "dpo", "rlhf")
SUPPORTS, QUALITIES = ("near", "far"), ("equal", "better")
OWN: Arm = {"data": "own"}


def outside(support: str, quality: str) -> Arm:
    """Data of others."""
    return {"data": "outside", "support": support, "quality": quality}


def get_study(size: str) -> Study:
    """What is affordable on two cores."""
    del size
    sources = (OWN, *(outside(support, quality) for support in SUPPORTS for quality in QUALITIES))

    def of(method: str, data: Arm) -> Effect:
        return value("gold", method=method, **data)

    def lead(data: Arm) -> Effect:
        return of("orpo", data) - of("rlhf", data)

    rule = outside("far", "better")
    return Study(
        name="which_method",
        title="Which method when: data of others, or the model's own",
        papers=("arXiv 2403.07691 (ORPO), Tables 2 and 3", "arXiv 2404.10719"),
        question=(
            "A rule of thumb says: from answers of others learn by ORPO, in one stage; from the model's own outputs "
            "by RLHF. Is there such an interaction of method and data, with all methods tuned alike? And if there is, "
            "is it that others say what the model never would (support), or that they say it better (quality)?"
        ),
        setting=(
            f"{PROMPTS} prompts, sequences of {LENGTH} tokens out of {VOCABULARY}, all of which can be summed over: "
            "gold is the exact expected reward, half for right tokens and half for all of them together. The model is "
            f"in the habit of one token at each place (probability {LIKELY:g}), at half of the places a wrong one. "
            f"{PAIRS} pairs of answers to each prompt, labelled by a judge with noise: sampled from the model itself, "
            "or from others, who err as it does (near) or otherwise (far), and are right as often (equal) or more "
            f"often (better: {BETTER:g} where it errs). ORPO: {2 * STEPS} steps of {BATCH} pairs. DPO: {STEPS} steps "
            f"of SFT on preferred answers, then {STEPS} of DPO. RLHF: the same SFT, a reward model of the same pairs, "
            f"and {ROLLOUTS} rollouts of RLOO. Every arm tries the same {len(RATES) * 2} settings on seeds of their "
            f"own: {len(RATES)} learning rates, and two ties each (λ {TIES['orpo'][0]:g} or {TIES['orpo'][1]:g}; "
            f"β {TIES['dpo'][0]:g} or {TIES['dpo'][1]:g}). SFT learns at {FIRST_RATE:g}, the reward model at the "
            "rate that is tried. Before the rules were written only seed 300 was looked at: with half as many pairs "
            "of a model that is surer of itself, from whose own answers nothing was learned, and with a reward model "
            "whose rate was not tuned, which held RLHF back. A first run of the study, on seeds 0 to 19, is not "
            "counted: on some of them what others were in the habit of was the best token."
        ),
        arms=tuple({"method": method, **data} for data in sources for method in METHODS),
        seeds=tuple(range(20, 40)),
        tuning=Tuning(
            tuple({"rate": rate, "tie": tie} for rate in RATES for tie in range(2)),
            tuple(range(210, 213)),
            "gold",
        ),
        measures={
            "gold": "expected reward, 0 to 1",
            "kl": "KL to the model before training, in nats",
            "start": "expected reward of the model before training",
            "data": "mean reward of the answers in the data",
        },
        run=run,
        recipes={
            arm_name({"method": "orpo", **rule}): "orpo_opt_1_3b",
            arm_name({"method": "dpo", **rule}): "dpo_orpo_opt_1_3b",
            arm_name({"method": "rlhf", **rule}): "ppo_hh_llama2_7b",
        },
        claims=(
            Claim(
                "the rule",
                "ORPO's lead over RLHF is larger on others' better answers that are not the model's than on its own",
                lead(rule) - lead(OWN),
                smallest=0.02,
                paper="an opinion, of which no study is known",
                seeds=20,
            ),
            Claim(
                "ORPO wins on data of others",
                "on those answers ORPO gives the better model",
                lead(rule),
                smallest=0.02,
                paper="ORPO wins 41.7 % against DPO at 125M, 70.9 % at 1.3B (Table 3)",
                seeds=20,
            ),
            Claim(
                "RLHF wins on the model's own",
                "on its own answers RLHF gives the better model",
                of("rlhf", OWN) - of("orpo", OWN),
                smallest=0.02,
                seeds=20,
            ),
            Claim(
                "it is the support",
                "of answers no better than its own, ORPO's lead is larger where others err otherwise",
                lead(outside("far", "equal")) - lead(outside("near", "equal")),
                smallest=0.02,
                seeds=20,
            ),
            Claim(
                "it is the quality",
                "where others err as the model does, ORPO's lead is larger if they do so less",
                lead(outside("near", "better")) - lead(outside("near", "equal")),
                smallest=0.02,
                seeds=20,
            ),
            Claim(
                "one stage is as good as two",
                "on data of others, ORPO is no worse than SFT and then DPO, by less than 0.02",
                of("orpo", rule) - of("dpo", rule),
                smallest=0.02,
                near=0.0,
                paper="41.7 to 70.9 % wins against DPO (Table 3)",
                seeds=20,
            ),
            Claim(
                "RLHF before DPO on its own outputs",
                "from the same pairs of its own answers RLHF gives the better model than DPO",
                of("rlhf", OWN) - of("dpo", OWN),
                smallest=0.02,
                paper="PPO 99.5, DPO 55.4 on safety (2404.10719, Table 2)",
                seeds=20,
            ),
        ),
        discussion=(
            "There is an interaction, and it is the other way round: the more there is to learn from the data, the "
            "larger RLHF's lead, and it makes no difference whether others err as the model does or otherwise. With "
            "the weights of its paper ORPO imitates. Its likelihood term asks for the distribution of preferred "
            "answers, and what it reaches, .47, is little more than these are worth; DPO and RLHF go on from what "
            "answers have in common to better ones than the data have (.88 and .97). With ten and a hundred times "
            "the weight ORPO reaches .52 to .63 and .66 to .72 (seeds 300 and 301), still less. From the model's own "
            "answers nobody learns much, as right ones are rare among them. RLHF is held back by its reward model "
            "there: on the judge itself the same RL reaches .74 and .85, on a reward model that learned for sixteen "
            "times as long no more than before (.27 and .30; same seeds). DPO, which has no such model, gets .08 more "
            "from the same pairs. What is special here: a reward by single tokens, of which every preference says "
            "something, and methods that may go six nats from the start. Where moving far from the data costs what "
            "no pair shows, fluency above all, imitation has merits that this study cannot see."
        ),
        charts=(Chart("Expected reward", "gold"),),
        sources=Sources(
            "gold",
            {"data": ("data", "support", "quality"), "algorithm": ("method",)},
            "2406.09279 finds that preference data matter most, then the algorithm, then the reward model and its "
            "prompts; the first two are factors here, and come in that order. The data differ by how good their "
            "answers are, which a choice among public data sets may do less.",
        ),
    )
