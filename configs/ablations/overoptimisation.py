"""Reward over-optimisation (arXiv 2210.10760): gold and proxy reward over KL, for best-of-n and for RL."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxalign.ablation import Chart, Claim, Outcome, Study, Trial, cross, value
from jaxalign.ablation.effects import Arm, arm_name
from jaxalign.ablation.forms import FORMS, best_of_n, fit, held_out_rmse, peak
from jaxalign.ablation.frontier import best_point, gain_at, halves
from jaxalign.ablation.language import PRETRAINING, examining, train_once, write_arrays
from jaxalign.ablation.preferences import (
    PROMPTS,
    UNENDED,
    Proxy,
    judge_answers,
    make_pairs,
    make_reward_model,
    make_sft,
)
from jaxalign.models import Params
from jaxalign.quickstart.evaluate import Examiner
from jaxalign.sampling.answers import answer_batches
from jaxalign.training.writer import read_metrics
from jaxalign.worlds import World, judge

PAIRS = {"few": 256, "all": None}  # comparisons that a reward model learns from
REWARD_STEPS = 100
QUESTIONS = 128  # held-out ones
SAMPLES = 96  # answers to each, for best-of-n
NS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24)  # nearly evenly spaced in √KL
ROLLOUTS, PROBES = 40, 10  # of RL
RATE = 1.5e-4
AT = 1.0  # nats at which best-of-n and RL are compared


def share(seed: int, root: pathlib.Path) -> tuple[pathlib.Path, World]:
    """The SFT model, its pairs and reward models, and its answers to each question with the judge's scores of them."""
    world = make_sft(root, seed)
    make_pairs(root, world, seed)
    for name, pairs in PAIRS.items():
        make_reward_model(root, f"reward_{name}", seed, steps=REWARD_STEPS, pairs=pairs)
    path = root / "answers.npz"
    if not path.is_file():
        with examining(root, world, take=QUESTIONS) as examiner:
            write_arrays(path, sample_answers(examiner, root, seed))
    return root, world


def sample_answers(examiner: Examiner, root: pathlib.Path, seed: int) -> dict[str, np.ndarray]:
    """Scores of answers to each question by the judge, "gold", and the reward models: [questions, SAMPLES]."""
    proxies = {name: Proxy.load(root / f"reward_{name}") for name in PAIRS}
    scores: dict[str, list[Any]] = {name: [] for name in ("gold", *PAIRS)}
    batches = answer_batches(
        examiner.reference_params,
        examiner.reference.config,
        examiner.questions,
        examiner.reference.tokenizer(),
        sampling=examiner.sampling,
        key=jax.random.key(seed),
        batch_size=SAMPLES,
        samples=SAMPLES,
    )
    for answers, prompt in zip(batches, examiner.prompts, strict=True):
        for name, proxy in proxies.items():
            scores[name].append(proxy.score(answers, batch_size=SAMPLES))
        gold = {text: judge(examiner.world, prompt, text).score for text in set(answers.texts)}
        scores["gold"].append([gold[text] for text in answers.texts])
    return {name: np.array(found) for name, found in scores.items()}


@dataclasses.dataclass(frozen=True)
class Frontier:
    """Points of growing optimisation, the start as the first."""

    d: np.ndarray  # [K] √KL
    gold: np.ndarray  # [2, K], of one half of the questions and of the other
    proxy: np.ndarray  # [K]


def best_of(scores: Mapping[str, np.ndarray], reward: str) -> Frontier:
    """Best-of-n for each of `NS`, as if the samples of a question were all answers there are."""
    points = []
    for n in (1, *NS):
        found = []
        for gold, proxy in zip(scores["gold"], scores[reward], strict=True):
            chosen, kl = best_of_n(proxy, n)
            found.append((chosen @ gold, chosen @ proxy, kl))
        points.append(np.array(found))  # [questions, 3]
    gold, proxy, kl = np.moveaxis(np.array(points), -1, 0)
    return Frontier(np.sqrt(np.maximum(kl.mean(1), 0)), halves(gold), proxy.mean(1))


def reinforce(trial: Trial, scores: Mapping[str, np.ndarray]) -> Frontier:
    """Trains on a reward model, and measures the policy on the way."""
    (root, world), reward = trial.shared, trial.arm["pairs"]
    last = trial.folder / "last"
    with examining(root, world, take=QUESTIONS) as examiner:
        proxy = Proxy.load(root / f"reward_{reward}")

        def probe(step: int, params: Params) -> dict[str, float]:
            answers, found = judge_answers(examiner, params, seed=step)
            even, odd = halves(found["gold"])
            return {
                "kl": float(found["kl"].mean()),
                "even": float(even),
                "odd": float(odd),
                "proxy": float(proxy.score(answers).mean()),
            }

        changes = {
            "rloo.reward": str(root / f"reward_{reward}"),
            "rloo.kl_coef": 0.0,
            "rloo.missing_eos_penalty": UNENDED,
            "num_steps": ROLLOUTS,
            "eval_every": ROLLOUTS // PROBES,
            "optimizer.learning_rate": RATE,
            "optimizer.schedule": "constant",
        }
        train_once("rloo", root, last, trial.seed, changes, probe)
    found = [line["values"] for line in read_metrics(last) if line["kind"] == "eval"]
    start = {"kl": 0.0, "proxy": scores[reward].mean()}
    start["even"], start["odd"] = halves(scores["gold"].mean(1))
    columns = {name: np.array([point[name] for point in (start, *found)]) for name in start}
    return Frontier(np.sqrt(columns["kl"]), np.stack((columns["even"], columns["odd"])), columns["proxy"])


def run(trial: Trial) -> Outcome:
    """Measures the frontier of a way to optimise a reward model."""
    scores = dict(np.load(trial.shared[0] / "answers.npz"))
    way, reward = trial.arm["way"], trial.arm["pairs"]
    found = best_of(scores, reward) if way == "best-of-n" else reinforce(trial, scores)
    d, gold = found.d, found.gold.mean(0)
    gain = gold - gold[0]
    top, tops = best_point(found.gold)
    form = "best-of-n" if way == "best-of-n" else "rl"
    measures = {
        "start": gold[0],
        "top": top,
        "last": gold[-1],
        "fall": top - gold[-1],
        "proxy": found.proxy[-1] - found.proxy[0],
        "rise": found.proxy[-1] - np.mean(found.proxy[tops]),
        "d_last": d[-1],
        "d_peak": np.clip(peak(form, *fit(form, d[1:], gain[1:])), 0, d.max()),
        "at": gain_at(d, gain, AT),
        "agree": agreement(scores["gold"], scores[reward]),
        **{f"rmse_{name}": held_out_rmse(name, d[1:], gain[1:]) for name in FORMS},
    }
    lines = {"gold": gain, "proxy": found.proxy - found.proxy[0]}
    curves = {
        name: [(float(x), float(y)) for x, y in zip(d, line, strict=True)] for name, line in lines.items()
    }
    return Outcome({name: float(x) for name, x in measures.items()}, curves)


def agreement(gold: np.ndarray, proxy: np.ndarray) -> float:
    """The share of pairs of answers to a question that the reward model ranks as the judge, where that ranks them."""
    more, higher = gold[:, 1:] - gold[:, :-1], proxy[:, 1:] - proxy[:, :-1]
    return float((more * higher > 0)[more != 0].mean())


def get_study(size: str) -> Study:
    """`small` is what is affordable on two cores."""
    del size

    def rl(pairs: str) -> Arm:
        return {"way": "rl", "pairs": pairs}

    def best(pairs: str) -> Arm:
        return {"way": "best-of-n", "pairs": pairs}

    return Study(
        name="overoptimisation",
        title="Reward over-optimisation: gold and proxy reward over KL",
        papers=("arXiv 2210.10760",),
        question=(
            "A reward model stands for what is wanted, and what is optimised hard enough exploits where it is wrong. "
            "Does gold reward rise and then fall as the proxy goes on rising, later with more comparisons; do the "
            "forms of the paper tell how, for best-of-n and for RL; and does RL need more KL for the same gold?"
        ),
        setting=(
            f"A Llama of 1 million parameters, a new world for each seed: {PRETRAINING} steps of pretraining, then the "
            f"SFT of the quickstart, which answers {PROMPTS:,} prompts twice. The judge compares the two with noise, "
            f"and a reward model learns {REWARD_STEPS} steps from all of these comparisons (about 2,950) or from the "
            f"first {PAIRS['few']}. Gold is the judge without noise, on {QUESTIONS} held-out questions. Best-of-n: "
            f"{SAMPLES} answers to each question stand for all there are, so that what is chosen and its KL are exact "
            f"for any n, ties among them; n = {', '.join(map(str, NS))}. RL: RLOO of four answers a prompt without a "
            f"KL penalty, {ROLLOUTS} rollouts of 64, clip 0.2, learning rate {RATE:g}, measured {PROBES} times on the "
            f"way by one answer to each question; an answer that does not end loses {UNENDED:g}. KL is exact over the "
            "vocabulary, on the policy's own answers. RL was tried beforehand on seed 100, at a learning rate of 4e-4 "
            "with both reward models and at 1.5e-4 with the smaller one; best-of-n was not."
        ),
        arms=cross(way=("best-of-n", "rl"), pairs=tuple(PAIRS)),
        seeds=tuple(range(5)),
        measures={
            "start": "the judge's score of the SFT model's answers, 0 to 1",
            "top": "its score at the best point, found on one half of the questions and measured on the other",
            "last": "its score at the end: after the last rollout, or of the largest n",
            "fall": "top less last",
            "proxy": "gain of the reward model's score up to the end",
            "rise": "its gain from the best point of gold to the end",
            "d_last": "√KL at the end, in √nats",
            "d_peak": "√KL of the peak by the fitted form of the paper, at most the largest",
            "at": f"gain in gold at {AT:g} nats",
            "agree": "share of pairs of the SFT model's answers that the reward model ranks as the judge",
            "rmse_best-of-n": "error of d (α - β d) at points left out",
            "rmse_rl": "error of d (α - β log d) there",
            "rmse_saturating": "error of α (1 - exp(-d / β)) there",
        },
        run=run,
        share=share,
        recipes={arm_name(rl("all")): "ppo_overoptimisation_pythia_1b"},
        claims=(
            Claim(
                "gold falls",
                "RL on the smaller reward model loses gold reward after a best point",
                value("fall", **rl("few")),
                smallest=0.02,
                paper="gold peaks, then falls (Fig. 1)",
            ),
            Claim(
                "the proxy rises meanwhile",
                "from there to the end its proxy goes on rising",
                value("rise", **rl("few")),
                smallest=0.2,
                paper="it rises as long as it is optimised (Fig. 1)",
            ),
            Claim(
                "more comparisons, a later peak",
                "with all comparisons the peak of RL lies at a larger √KL",
                value("d_peak", **rl("all")) - value("d_peak", **rl("few")),
                smallest=0.2,
                paper="more data, less over-optimisation; near chance under about 2,000 comparisons",
                unit="√nats",
            ),
            Claim(
                "best-of-n has its form",
                "d (α - β d) says more of points left out than d (α - β log d) does",
                value("rmse_rl", **best("few")) - value("rmse_best-of-n", **best("few")),
                smallest=0.0005,
                paper="R = d (α - β d), α .49 and β .12 for a reward model of 3M (Fig. 3)",
            ),
            Claim(
                "RL has its form",
                "for RL it is the other way round",
                value("rmse_best-of-n", **rl("few")) - value("rmse_rl", **rl("few")),
                smallest=0.001,
                paper="R = d (α - β log d), β .175 for a reward model of 3M (Fig. 3)",
            ),
            Claim(
                "RL needs more KL",
                f"at {AT:g} nats, best-of-n has gained more gold reward than RL",
                value("at", **best("few")) - value("at", **rl("few")),
                smallest=0.02,
                paper="RL spends far more KL for the same gold",
            ),
        ),
        discussion=(
            "Gold falls in every seed after its best point, by .02 to .16 under the smaller reward model and by .05 to "
            ".26 under the larger one, while the proxy goes on rising: what the paper shows is there ten times of ten. "
            "But seeds differ much in how far, and after Holm's correction for six claims five seeds do not put it "
            "beyond doubt; ten would have been needed. The same holds for RL's need of more KL (.03 less gold at 1 "
            "nat from the smaller reward model, .10 less from the larger one) and for the later peak (1.13 in place of "
            ".94 √nats). A reward model of 256 comparisons agrees with the judge on 63 % of pairs, one of all on 77 %. "
            "Best-of-n follows its form with both, as in the paper: of points left out it is wrong by .008 where the "
            "form of RL is by .013. RL's curves do not tell the two forms apart (.035 and .038; .048 and .039 with "
            "all comparisons): they end at 1.7 to 4.6 times the √KL of the peak, where gold is back at about what it "
            "began with, and one answer to each question at each of ten points is more noise than the simulation of "
            "the forms' power had assumed. A saturating form is the worst for RL."
        ),
        charts=(
            Chart("Gold reward", "gold", "lines", x="√KL, √nats", y="gain in gold"),
            Chart("Proxy reward", "proxy", "lines", x="√KL, √nats", y="gain in proxy"),
        ),
    )
