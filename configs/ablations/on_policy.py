"""On- and off-policy DPO against online RL, at equal KL (arXiv 2404.10719, 2405.08448, 2404.14367)."""

import pathlib
from typing import Any

from jaxalign.ablation import Chart, Claim, Effect, Outcome, Study, Trial, Tuning, value
from jaxalign.ablation.language import PRETRAINING, beside_text, examining, train_once, write_rows, write_side
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
RATES = (3e-5, 1e-4, 3e-4)
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
    changes = {
        **beside_text(arm.root, arm.root / "data/chosen_of_outside_labelled.jsonl"),
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
        return arm.outcome(kl=AT, least=GAIN)


def get_study(size: str) -> Study:
    """What is affordable on two cores."""
    del size

    def of(measure: str, way: str) -> Effect:
        return value(measure, way=way)

    return Study(
        name="on_policy",
        title="On- and off-policy DPO against online RL",
        papers=(
            "arXiv 2404.10719, section 4 and Table 2",
            *("arXiv 2405.08448", "arXiv 2404.14367", "arXiv 2310.03716", "arXiv 2406.02900"),
        ),
        question=(
            "Pairs that another than the policy has written are said to make DPO worse than online RL, as they say "
            "nothing of what the policy itself does wrong; SFT on the data, pairs of its own answers and fresh ones in "
            "several rounds are said to close the gap step by step. Is that so with one set of prompts, one labeller, "
            "and at the same KL? Do answers only get longer? And is DPO the cheaper one?"
        ),
        setting=(
            f"A Llama of 1 million parameters, a new world for each seed: {PRETRAINING} steps of pretraining, then the "
            f"SFT of the quickstart. {PROMPTS:,} prompts, each with two answers of demonstrators (outside) and two of "
            f"the SFT model (own). A reward model learns {REWARD_STEPS} steps, one pass, from both sets, chosen by a "
            "noisy judge. It alone labels all pairs that DPO sees, by the higher score without noise, and is what RL "
            f"is rewarded by. DPO, β = {BETA:g}: {STEPS} steps of 16 rows, one pass, on outside pairs; on them after "
            f"{FIRST} steps of SFT on the preferred ones (at the quickstart's rate); on own pairs; or {ROUNDS} rounds "
            f"of {STEPS // ROUNDS} steps, each on fresh pairs of a third of the prompts by the policy of then, the "
            f"round's reference. RL: RLOO of four answers a prompt, {ROLLOUTS} rollouts of 64, KL in the reward times "
            f"{BETA:g}, {UNENDED:g} off an answer without an end. Rates are constant after a warm-up. Gold is the "
            f"judge without noise on {QUESTIONS} held-out questions, by the same draws at every {EVERY}th step and "
            f"{ROLLOUTS_EVERY}nd rollout; KL from the SFT model is exact over the vocabulary on the policy's own "
            "answers. FLOPs are model FLOPs of all forward and backward passes: of sampling and labelling pairs as "
            "they are used, of reference and reward models, and of updates; a pair takes DPO 4 forward and 2 backward "
            "passes of a sequence, 2 forward more for its labels and 2 for sampling, a completion takes RL 5 forward "
            "(sampling, reward model, reference, policy, update) and one backward. Tried beforehand, on seed 100 "
            "alone: all arms at the two larger of the rates, whose results chose the compared KL and gain and added "
            "the smallest rate."
        ),
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
            "slope": "the judge's score of the SFT model's answers, a token more",
            "accuracy": "share of held-out pairs from outside whose preferred answer gained on the other one",
            "flops": "10¹² FLOP of making pairs and of training",
            "cost": f"10¹² FLOP until gold has gained {GAIN:g}, or all where it never has",
            "reached": "whether it has, 1 or 0",
            "reward_flops": "10¹² FLOP of training the reward model, in none of the others",
            "seconds": "of sampling pairs and of training steps",
        },
        run=run,
        share=share,
        recipes={"way=outside": "dpo_hh_llama2_7b", "way=rl": "ppo_hh_llama2_7b"},
        claims=(
            Claim(
                "SFT on the data helps",
                "DPO on outside pairs ends better where SFT on the preferred ones came first",
                of("last", "sft+outside") - of("last", "outside"),
                smallest=0.02,
                paper="safe answers: 55.4 % → 71.8 % (2404.10719, Table 2)",
            ),
            Claim(
                "own answers help more",
                "DPO on own pairs ends better than both together",
                of("last", "own") - of("last", "sft+outside"),
                smallest=0.02,
                paper="71.8 % → 86.7 % to 99.9 %, labelled anew (there)",
            ),
            Claim(
                "fresh answers help still more",
                "rounds of fresh pairs end better than one of as many pairs and steps",
                of("last", "iterative") - of("last", "own"),
                smallest=0.02,
                paper="86.7 % → 99.9 % over the rounds (there)",
            ),
            Claim(
                "online beats offline at equal KL",
                f"at a KL of {AT:g} RL has gained more gold than DPO on outside pairs",
                of("at", "rl") - of("at", "outside"),
                smallest=0.02,
                paper="online is better at every KL, on 4 tasks (2405.08448, Fig. 1)",
            ),
            Claim(
                "offline is better at pairs",
                "DPO on outside pairs tells held-out ones apart better than RL does",
                of("accuracy", "outside") - of("accuracy", "rl"),
                smallest=0.02,
                paper="offline is better at classification, online at generation (2405.08448)",
            ),
            Claim(
                "answers get longer",
                "DPO on own pairs lengthens answers",
                of("length", "own"),
                smallest=0.5,
                paper="DPO: 203 → 248, 100 → 164 tokens; PPO, too (2310.03716)",
                unit="tokens",
            ),
            Claim(
                "length is not the half of it",
                "among answers of equal length RL keeps more than half of its gain",
                of("same", "rl") - of("gain", "rl") * 0.5,
                smallest=0.02,
                paper="a reward of length alone gets 56 to 64 %, PPO 58 to 63 % (2310.03716)",
            ),
            Claim(
                "DPO is cheaper",
                f"up to a gain of {GAIN:g}, RL and its reward model take more FLOPs than own pairs and DPO",
                of("cost", "rl") + of("reward_flops", "rl") - of("cost", "own"),
                smallest=0.1,
                paper="no reward model, no sampling in training (2305.18290)",
                unit="10¹² FLOP",
            ),
            Claim(
                "DPO's gold falls",
                "on outside pairs gold falls after a best point within one pass",
                of("fall", "outside"),
                smallest=0.02,
                paper="best near a quarter of an epoch (2406.02900)",
            ),
        ),
        discussion=(
            "At the end of training the order is the papers': the judge's score is .31 after SFT, .18 after DPO on "
            "outside pairs, .38 where SFT on them came first, .43 on own pairs, .46 in rounds, .51 after RL. But "
            "the first step of it is mostly a learning rate. Tuning compared gains at 1 nat; SFT on the preferred "
            "answers alone gets there, so that the trials of that arm differ by less than .001, and outside pairs "
            "got the larger rate for a difference of .009. At 3e-5, which the other arms of DPO have, outside pairs"
            " end at .34 and 2.2 nats on the same five seeds, not .18 and 13 (run after the claims, and in no "
            "verdict); SFT first then adds .04 (-.05 to .12), own pairs .09 (.02 to .16). SFT on the preferred "
            "answers gains .11 by itself, and DPO on the pairs afterwards loses .04 of it. So at one rate it is "
            "shown that own pairs end better than outside ones, and not that SFT on the data helps DPO. The fall of"
            " gold depends on the rate, too: at 1e-4 outside pairs are best after 10 to 15 of 60 steps, as in the "
            "paper, and end worse than they began; at 3e-5 they are best after 30 to 55, and lose .06 (-.01 to .13)"
            " from there. At equal KL the ways are closer than at the end. At .69 nats, the most that all runs "
            "reach, gains are .098 on outside pairs (.106 at 3e-5), .125 on own ones, .143 in rounds, .124 by RL: "
            "RL does not differ from own pairs (.000, -.012 to .012), nor beyond doubt from outside ones. At 1 nat "
            "it is beyond these at either rate, and as good as rounds; own pairs had ended before. So it is at one "
            "rate, too (RL at 3e-5, five runs as above): at .47 nats RL has gained .116 and own pairs .121 (-.005, "
            "-.017 to .007), outside ones .099, and the ends are .44, .43 and .34. What RL has is that it bears the"
            " larger rate: it holds its gold at 1.4 nats, where DPO on own pairs at the larger rates, tried on seed"
            " 100, was falling. Twelve rounds of DPO, tried there, were no better than three (gain .135 and .141). "
            "Whether it is DPO's labels, which say nothing of how much better an answer is, was not tested. DPO on "
            "outside pairs tells held-out pairs apart better and answers worse, as Tang et al. say, at one rate by "
            ".08 (.07 to .09); those pairs are from outside as well. Length is no explanation here: the judge does "
            "not pay for it (-.003 a token, -.008 to .003), RL and rounds make answers shorter by 1.7 and 1.5 "
            "tokens, and about three quarters of the gains of RL and of own pairs are there among answers of equal "
            "length. Only outside pairs at the larger rate may lengthen them (4.0, -.7 to 8.6). DPO is cheaper by "
            "the reward model alone, 1.84 · 10¹² FLOP: up to a gain of .05 RL takes .045 of its own and 2 seconds, "
            "DPO .44 and about 14 on own pairs, .16 and about 3 on outside ones. All arms need that model here, for"
            " their labels; whoever has it finds RL ten times as cheap as own pairs and DPO, or four times at one "
            "rate (.10 and .44 at 3e-5). Seconds were taken beside other work on the same cores."
        ),
        tuning=Tuning(tuple({"rate": rate} for rate in RATES), (100,), "at"),
        charts=(
            Chart("Gold reward", "gold", "lines", x="√KL, √nats", y="gain in gold"),
            Chart("Length", "length", "lines", x="√KL, √nats", y="tokens more an answer"),
            Chart("What it costs", "flops", "lines", x="10¹² FLOP", y="gain in gold"),
        ),
    )
