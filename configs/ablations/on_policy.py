"""On- and off-policy DPO against online RL, at equal KL (arXiv 2404.10719, 2405.08448, 2404.14367)."""

import pathlib
from typing import Any

import numpy as np

from jaxalign.ablation import Chart, Claim, Effect, Outcome, Study, Trial, Tuning, value
from jaxalign.ablation.costs import cost_of
from jaxalign.ablation.frontier import best_point, gain_at
from jaxalign.ablation.language import PRETRAINING, examining, train_once, write_rows, write_side
from jaxalign.ablation.optimisation import WIDTH, Optimisation, measure_start, timed_pairs
from jaxalign.ablation.preferences import PROMPTS, UNENDED, make_sft, relabel
from jaxalign.data import read_records
from jaxalign.models.flops import step_flops
from jaxalign.worlds import World

WAYS = ("outside", "sft+outside", "own", "iterative", "rl")
REWARD_STEPS = 120
STEPS, EVERY = 60, 5  # of DPO, and between two measurements
ROUNDS = 3
FIRST = 60  # steps of SFT on the preferred answers
ROLLOUTS, ROLLOUTS_EVERY = 24, 2  # of 64 answers
BETA = 0.1  # of DPO, and the weight of KL in the reward
RATES = (1e-4, 3e-4)
QUESTIONS = 256
AT = 1.0  # nats at which ways are compared
GAIN = 0.05  # of gold that costs are compared for


def share(seed: int, root: pathlib.Path) -> tuple[pathlib.Path, World]:
    """The SFT model and its answers, pairs from outside and of its own on the same prompts, and a reward model."""
    world, data = make_sft(root, seed), root / "data"
    outside = list(read_records(str(data / "preference.jsonl"), take=PROMPTS))
    write_rows(data / "outside.jsonl", outside)
    asked, part = [{"prompt": row["prompt"], "kind": "train"} for row in outside], PROMPTS // ROUNDS
    write_rows(data / "asked.jsonl", asked)
    for number in range(1, ROUNDS):
        write_rows(data / f"asked_{number}.jsonl", asked[number * part : (number + 1) * part])
    measure_start(root, world, QUESTIONS)
    timed_pairs(root, world, data / "own.jsonl", seed, questions="asked.jsonl")
    write_rows(data / "own_first.jsonl", read_records(str(data / "own.jsonl"), take=part))
    changes = {"data.train": f"{data}/outside.jsonl,{data}/own.jsonl", "num_steps": REWARD_STEPS}
    train_once("reward", root, root / "reward", seed, changes)
    labelled, _ = relabel(root / "reward", data / "outside.jsonl")
    write_side(root, "chosen", labelled.stem)
    return root, world


def sft(arm: Optimisation) -> None:
    """SFT on the preferred answers from outside; a fifth of all rows is text of the corpus."""
    data = arm.root / "data"
    changes = {
        "data.train": f"{data}/chosen_of_outside_labelled.jsonl,{data}/corpus.jsonl",
        "data.weights": (0.8, 0.2),
        "num_steps": FIRST,
        "batch_size": 16,
    }
    arm.train("sft", changes)


def dpo(arm: Optimisation, pairs: pathlib.Path, steps: int = STEPS, sampling: float | None = None) -> None:
    """DPO on pairs as the reward model labels them; sampled ones took so many seconds."""
    labelled, work = relabel(arm.root / "reward", pairs)
    model = arm.examiner.reference.config
    flops = step_flops(model, work, passes=1, scalar=True)
    flops += 0.0 if sampling is None else step_flops(model, work, passes=1)
    changes = {"data.train": str(labelled), "num_steps": steps, "eval_every": EVERY, "dpo.beta": BETA}
    arm.train("dpo", changes | rate(arm), flops, sampling or 0.0)


def own_seconds(arm: Optimisation) -> float:
    """Of sampling the SFT model's pairs."""
    return timed_pairs(arm.root, arm.world, arm.root / "data/own.jsonl", arm.trial.seed)


def iterate(arm: Optimisation) -> None:
    """Rounds of DPO, each on fresh pairs of the policy of then, which is the reference, too."""
    dpo(arm, arm.root / "data/own_first.jsonl", STEPS // ROUNDS, own_seconds(arm) / ROUNDS)
    for number in range(1, ROUNDS):
        path, draws = arm.trial.folder / f"round_{number}.jsonl", arm.trial.seed + 1_000 * number
        settings = {"questions": f"asked_{number}.jsonl", "run": str(arm.last.resolve())}
        seconds = timed_pairs(arm.root, arm.world, path, draws, **settings)
        dpo(arm, path, STEPS // ROUNDS, seconds)


def reinforce(arm: Optimisation) -> None:
    """RLOO on the reward model."""
    changes = {
        "data.train": f"{arm.root}/data/asked.jsonl",
        "num_steps": ROLLOUTS,
        "eval_every": ROLLOUTS_EVERY,
        "rloo.kl_coef": BETA,
        "rloo.missing_eos_penalty": UNENDED,
    }
    arm.train("rloo", changes | rate(arm))


def rate(arm: Optimisation) -> dict[str, Any]:
    """The learning rate that was tuned, constant after a tenth of the steps."""
    tuned = arm.trial.tuned["rate"]
    return {"optimizer.learning_rate": tuned, "optimizer.schedule": "constant", "optimizer.warmup": 0.1}


def run(trial: Trial) -> Outcome:
    """Trains an arm, and measures the way that it took."""
    (root, world), way = trial.shared, trial.arm["way"]
    with examining(root, world, take=QUESTIONS) as examiner:
        arm = Optimisation(trial, examiner)
        if way == "sft+outside":
            sft(arm)
        if way in ("outside", "sft+outside"):
            dpo(arm, root / "data/outside.jsonl")
        elif way == "own":
            dpo(arm, root / "data/own.jsonl", sampling=own_seconds(arm))
        elif way == "iterative":
            iterate(arm)
        else:
            reinforce(arm)
        accuracy = arm.accuracy()
    found = arm.points()
    golds = np.stack((found["even"], found["odd"]))
    gold, d, longer = golds.mean(0), np.sqrt(found["kl"]), found["length"] - found["length"][0]
    gain, (top, _) = gold - gold[0], best_point(golds)
    cost, reached = cost_of(gain, found["flops"], GAIN)
    measures = {
        "start": gold[0],
        "top": top,
        "last": gold[-1],
        "fall": top - gold[-1],
        "at": gain_at(d, gain, AT),
        "kl": found["kl"][-1],
        "length": longer[-1],
        "gain": gain[-1],
        "same": found["same"][-1],
        "accuracy": accuracy,
        "flops": found["flops"][-1] / 1e12,
        "cost": cost / 1e12,
        "reached": reached,
        "seconds": found["seconds"][-1],
    }
    lines = {
        "gold": (d, gain),
        "length": (d, longer),
        "flops": (found["flops"] / 1e12, gain),
        "seconds": (found["seconds"], gain),
    }
    curves = {name: list(zip(map(float, x), map(float, y), strict=True)) for name, (x, y) in lines.items()}
    return Outcome({name: float(x) for name, x in measures.items()}, curves)


def get_study(size: str) -> Study:
    """What is affordable on two cores."""
    del size

    def of(measure: str, way: str) -> Effect:
        return value(measure, way=way)

    return Study(
        name="on_policy",
        title="On- and off-policy DPO against online RL",
        papers=("arXiv 2404.10719, section 4 and Table 2", "arXiv 2405.08448", "arXiv 2404.14367"),
        question="TODO",
        setting="TODO",
        arms=tuple({"way": way} for way in WAYS),
        seeds=tuple(range(5)),
        measures={
            "start": "the judge's score of the SFT model's answers, 0 to 1",
            "top": "its score at the best point, found on one half of the questions and measured on the other",
            "last": "its score at the end",
            "fall": "top less last",
            "at": f"gain in gold at {AT:g} nats",
            "kl": "KL from the SFT model at the end, nats an answer",
            "length": "tokens by which answers are longer at the end",
            "gain": "gain in gold at the end",
            "same": f"the same among answers as long (within {WIDTH} tokens) to questions of the same kind",
            "accuracy": "share of held-out pairs from outside whose preferred answer gained on the other one",
            "flops": "10¹² FLOP of making pairs and of training",
            "cost": f"10¹² FLOP until gold has gained {GAIN:g}, or all where it never has",
            "reached": "whether it has, 1 or 0",
            "seconds": "of sampling pairs and of training steps",
        },
        run=run,
        share=share,
        claims=(Claim("x", "y", of("at", "sft+outside") - of("at", "outside"), smallest=0.02),),
        tuning=Tuning(tuple({"rate": rate} for rate in RATES), (100,), "at"),
        charts=(
            Chart("Gold reward", "gold", "lines", x="√KL, √nats", y="gain in gold"),
            Chart("Length", "length", "lines", x="√KL, √nats", y="tokens more an answer"),
            Chart("What it costs", "flops", "lines", x="10¹² FLOP", y="gain in gold"),
        ),
    )
