"""Distillation: what a student learns of people, of a teacher's answers, and of a teacher's view of its own answers."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxalign.ablation import Chart, Claim, Effect, Outcome, Study, Trial, value
from jaxalign.ablation.costs import trained_flops
from jaxalign.ablation.effects import arm_name
from jaxalign.ablation.language import (
    GREEDY,
    MOST,
    NUCLEUS,
    PRETRAINING,
    SAMPLING,
    beside_text,
    demonstrations,
    examining,
    mean_score,
    start_of,
    train_once,
    write_rows,
)
from jaxalign.data import read_records
from jaxalign.models import Params
from jaxalign.quickstart.evaluate import Examiner
from jaxalign.training.saved_model import find_model
from jaxalign.worlds import World, judge

ROWS = 400  # prompts of the student, the same for all arms, with a demonstration each
FLAWED = 0.5  # share of the demonstrations, those of the teachers too
WARM, STEPS = 40, 150  # of every student: on demonstrations, so that its answers end, and then of an arm
EARLY = 50  # steps in place of `STEPS`, before 400 demonstrations are learned by heart
TEACHING = 500  # of the strong teacher
RATE, TEACHERS_RATE = 2e-3, 1e-3  # of all arms, and of what comes before
BATCH, COMPLETIONS = 16, 48  # packed rows, of which four fifths hold about as many conversations
QUESTIONS = 300
PASSES = 18  # over the prompts, in so many steps
# Whose demonstrations a teacher learns from, and for how many steps.
TEACHERS = {"strong": ("others", TEACHING), "weak": ("own", WARM + STEPS)}
# How a teacher's answers are written that SFT learns from, and how many to a prompt.
ANSWERS = {"greedy answers": (GREEDY, 1), "many answers": (SAMPLING, PASSES)}
PROMPTS, NOISY = "own_prompts.jsonl", "noisy_held_out.jsonl"


def share(seed: int, root: pathlib.Path) -> tuple[pathlib.Path, World]:
    """The pretrained model of a seed, what the student is asked, and two teachers."""
    world, data = start_of(seed, root), root / "data"
    rows = list(demonstrations(world, "train", MOST, seed, flawed=FLAWED))
    write_rows(data / "own.jsonl", rows[:ROWS])
    write_rows(data / "others.jsonl", rows[ROWS:])
    write_rows(data / PROMPTS, ({"prompt": row["messages"][:-1]} for row in rows[:ROWS]))
    write_rows(data / NOISY, demonstrations(world, "held_out", QUESTIONS, seed, flawed=FLAWED))
    for teacher, (rows_of, steps) in TEACHERS.items():
        train_once(
            "sft", root, root / teacher, seed, learning(root, data / f"{rows_of}.jsonl", TEACHERS_RATE, steps)
        )
    train_once("sft", root, root / "start", seed, learning(root, data / "own.jsonl", TEACHERS_RATE, WARM))
    return root, world


def learning(root: pathlib.Path, rows: pathlib.Path, rate: float, steps: int) -> dict[str, Any]:
    """Changes of a config: SFT on rows."""
    return beside_text(root, rows) | {"batch_size": BATCH} | schedule(rate, steps)


def schedule(rate: float, steps: int) -> dict[str, Any]:
    """Changes of a config: what all students have in common."""
    return {
        "num_steps": steps,
        "optimizer.learning_rate": rate,
        "optimizer.schedule": "cosine",
        "optimizer.warmup": 0.1,
    }


def answered(root: pathlib.Path, world: World, teacher: str, signal: str) -> Iterator[dict[str, Any]]:
    """What a teacher answers to the prompts of the student, as rows for SFT; empty answers are left out."""
    sampling, times = ANSWERS[signal]
    common: dict[str, Any] = {"questions": PROMPTS, "reference_run": teacher, "sampling": sampling}
    with examining(root, world, take=ROWS, **common) as examiner:
        for seed in range(times):
            texts = examiner.answers(examiner.reference_params, seed=seed).texts
            for prompt, text in zip(examiner.prompts, texts, strict=True):
                if text.strip():
                    yield {"messages": [*prompt, {"role": "assistant", "content": text}]}


def find_rows(root: pathlib.Path, world: World, teacher: str, signal: str) -> pathlib.Path:
    """The rows that an arm learns from; of own samples, what the teacher would answer. Made where they are missing."""
    if teacher == "people":
        return root / "data/own.jsonl"
    signal = signal if signal in ANSWERS else "greedy answers"
    path = root / "data" / f"{teacher}_{signal.replace(' ', '_')}.jsonl"
    return write_rows(path, answered(root, world, teacher, signal))


def run(trial: Trial) -> Outcome:
    """Trains a student."""
    root, world = trial.shared
    teacher, signal = trial.arm["teacher"], trial.arm["signal"]
    rows, model = find_rows(root, world, teacher, signal), trial.folder / "model"
    start = {"model.init_from": str(root / "start")}
    if signal == "own samples":
        changes = {
            "data.train": str(root / "data" / PROMPTS),
            "batch_size": COMPLETIONS,
            "distill.teacher": str(root / teacher),
            "distill.num_minibatches": 1,
            # As much text of the corpus, by rows and by weight, as there is in the batches of SFT.
            "distill.ptx_data": f"{root}/data/corpus.jsonl",
            "distill.ptx_batch_size": 3,
            "distill.ptx_coef": 0.5,
        }
        changes |= start | schedule(RATE, STEPS)
        train_once("distill", root, model, trial.seed, changes)
    else:
        steps = EARLY if signal == "stopped early" else STEPS
        train_once("sft", root, model, trial.seed, start | learning(root, rows, RATE, steps))
    with examining(root, world, take=QUESTIONS, demonstrations=NOISY, reference_run="strong") as examiner:
        found = measure(examiner, find_model(str(model), "a run of the study").load(jax.sharding.get_mesh()))
    taught = [judge_row(world, row) for row in read_records(str(rows))]
    return Outcome(found | {"signal": float(np.mean(taught)), "flops": trained_flops(trial.folder) / 1e12})


def measure(examiner: Examiner, params: Params) -> dict[str, float]:
    """What a student is worth, and how far it is from the strong teacher."""
    found = examiner.measure(params)
    sampled = {"gold": NUCLEUS, "greedy": GREEDY}
    return {
        "plain": found["score"][0],
        "loss": found["loss"],
        "corpus": found["corpus_loss"],
        "length": found["length"],
        "kl": found["kl"][0] / found["length"],
        **{
            name: mean_score(dataclasses.replace(examiner, sampling=sampling), params)
            for name, sampling in sampled.items()
        },
    }


def judge_row(world: World, row: Mapping[str, Any]) -> float:
    """The judge's score of the answer of a row for SFT."""
    *prompt, said = row["messages"]
    return judge(world, prompt, said["content"]).score


def arm(teacher: str, signal: str) -> dict[str, str]:
    """The arm of a student that learns so from a teacher, "people" or a model."""
    return {"teacher": teacher, "signal": signal}


def get_study(size: str) -> Study:
    """What is affordable on two cores."""
    del size

    def of(measure: str, teacher: str, signal: str) -> Effect:
        return value(measure, **arm(teacher, signal))

    return Study(
        name="distillation",
        title="Distillation: a teacher's answers, people's, or the student's own",
        papers=("arXiv 2306.13649 (GKD)", "arXiv 2306.08543 (MiniLLM)", "arXiv 1606.07947"),
        question=(
            "A student can learn from what people wrote, from what a teacher answers to the same prompts, or from what "
            "the teacher thinks of the student's own answers, token by token (reverse KL, on-policy distillation). The "
            "last is said to be the best of the three. But a teacher often knows more than the data say, and its "
            "answers may be better or worse than they are. What does the teacher give, what the signal, and is "
            "anything left of it with a teacher that knows no more than the data?"
        ),
        setting=(
            f"A Llama of 1 million parameters, pretrained for {PRETRAINING} steps on the corpus of a synthetic world "
            f"(a new one for each seed). The student has {ROWS} prompts with a demonstration each, of which "
            f"{FLAWED:.0%} have a flaw (rambling, evasive, incomplete, invented, seldom wrong). It learns {WARM} steps "
            f"of these, so that its answers end, and then, in each arm, {STEPS} steps on the same prompts. Teachers "
            f"are of its size and pretrained as it is: the strong one learned {TEACHING} steps of {MOST - ROWS:,} "
            f"other demonstrations, as often flawed; the weak one {WARM + STEPS} steps of the student's own, so that "
            f"it knows nothing else. Signals: SFT on the demonstrations, or {EARLY} steps of it; SFT on the likeliest "
            f"answer of the teacher to each prompt, or on {PASSES} sampled ones; or reverse KL, exact over the "
            f"vocabulary, on {COMPLETIONS} answers a step that the student samples and the teacher reads, "
            f"{PASSES} to each prompt in all, about as many as SFT reads in its steps of {BATCH} packed rows. A fifth "
            "of the rows of SFT is text of the corpus; as much of it, with the same weight, stands beside reverse KL. "
            f"Scores are those of the judge for {QUESTIONS} held-out questions about other animals. The learning rate "
            f"is {RATE:g}, and {TEACHERS_RATE:g} of what comes before the arms. Tried before, on seed 100 alone: "
            "reverse KL from the pretrained model without those first steps (after 100 steps answers did not end and "
            "had 26 tokens of 32, so they were added); 100 steps, with rates from 0.0005 to 0.003, and 200; a teacher "
            "of 300; SFT on a single sampled answer, which was worse than on demonstrations; and rates of 0.001 and "
            "0.002 for three of the arms as they are here, with scores of .444 and .439 for demonstrations, .466 and "
            ".472 for sampled answers, and .519 and .531 for own samples."
        ),
        arms=(
            arm("people", "demonstrations"),
            arm("people", "stopped early"),
            *(arm("strong", signal) for signal in ANSWERS),
            arm("strong", "own samples"),
            arm("weak", "own samples"),
        ),
        seeds=tuple(range(5)),
        measures={
            "gold": "the judge's score of answers to held-out questions, temperature 0.7 and top-p 0.9, 0 to 1",
            "plain": "the same at temperature 1",
            "greedy": "the same of the likeliest tokens",
            "kl": "KL from the strong teacher on the student's own answers at temperature 1, nats a token",
            "loss": "nats a token of held-out demonstrations, half of them flawed",
            "corpus": "nats a token of held-out text",
            "length": "tokens of an answer at temperature 1",
            "signal": "the judge's score of the rows; of own samples, that of the teacher's likeliest answers",
            "flops": "of the student's training, sampling and the teacher's reading included, 10¹²",
        },
        run=run,
        share=share,
        recipes={
            arm_name(arm("people", "demonstrations")): "sft_minillm_gpt2",
            arm_name(arm("strong", "own samples")): "distill_minillm_gpt2",
        },
        claims=(
            Claim(
                "the strong teacher is better than the data",
                "its likeliest answers to the student's prompts score higher than the demonstrations do",
                of("signal", "strong", "greedy answers") - of("signal", "people", "demonstrations"),
                smallest=0.05,
            ),
            Claim(
                "a better teacher's answers teach more",
                "SFT on these answers is better than SFT on demonstrations, stopped early",
                of("gold", "strong", "greedy answers") - of("gold", "people", "stopped early"),
                smallest=0.03,
                paper="+4.2 BLEU, decoded greedily, with a teacher's likeliest outputs (1606.07947)",
            ),
            Claim(
                "own samples teach more than the teacher's",
                "reverse KL on its own samples makes a better student than SFT on as many of the teacher's",
                of("gold", "strong", "own samples") - of("gold", "strong", "many answers"),
                smallest=0.03,
                paper="on-policy distillation gains more than that on fixed sequences (GKD, Fig. 1)",
            ),
            Claim(
                "and not by sharpness alone",
                "without chance, too, it answers better",
                of("greedy", "strong", "own samples") - of("greedy", "strong", "many answers"),
                smallest=0.02,
            ),
            Claim(
                "it takes a teacher that knows more",
                "with a teacher that learned from the student's own demonstrations, own samples teach less",
                of("gold", "strong", "own samples") - of("gold", "weak", "own samples"),
                smallest=0.03,
            ),
            Claim(
                "a weak teacher adds nothing",
                "with that teacher the student is at most 0.02 better than after a few steps of demonstrations",
                of("gold", "people", "stopped early") - of("gold", "weak", "own samples") + 0.02,
                smallest=0.0,
            ),
            Claim(
                "the student comes nearer to the teacher",
                "on its own answers it is nearer to the strong teacher than after SFT on as many of that one's",
                of("kl", "strong", "many answers") - of("kl", "strong", "own samples"),
                smallest=0.03,
                paper="less exposure bias (MiniLLM, section 3)",
                unit="nats a token",
            ),
        ),
        discussion=(
            "What a teacher's answers are worth and what is learned from them are two things. The likeliest answers of "
            "the strong teacher score .14 more than the demonstrations, its sampled ones .12 less (.61 against .73): a "
            "small model that imitates people samples their flaws and slips of its own. Yet without chance students of "
            "the sampled ones answer better (.645 against .596), for there are 18 to a prompt, which say more of the "
            "teacher than one does. The likeliest answers give what decoding without chance gives: over demonstrations "
            "stopped early their students gain .09 at temperature 0.7 and .21 at 1, but nothing when both are decoded "
            "greedily (.596 and .592). The second claim holds as it was put; what is behind it is sharpness, not "
            "knowledge. Reverse KL on own samples is the best signal, by .075 over SFT on as many samples of the same "
            "teacher and by .055 without chance, as GKD says, and the student is nearer to the teacher by a fifth (.19 "
            "in place of .24 nats a token). It scores .62 where the teacher itself has .65, greedily .70 and .77 "
            "(measured after the runs). Its price is twice the FLOPs of SFT at equal steps, and a little likelihood of "
            "held-out demonstrations (1.01 in place of .92 nats a token), as reverse KL leaves out what is unlikely. "
            "What SFT on answers does with the same FLOPs was not tried; on demonstrations, three times as many steps "
            "give nothing. Most of the gain needs a teacher that knows more: the weak one gives .10 less. Whether that "
            "one gives nothing at all is not decided: against demonstrations stopped early, seeds differ from -.008 to "
            ".077. Its student is better than itself, which has learned the same demonstrations by heart (.53 and .46, "
            "greedily .60 and .53, measured after the runs): in these few steps what it learned by heart does not come "
            "over. Without first steps on demonstrations reverse KL failed in the one try: it weighs a token by the "
            "student's own probability, so that an end which the student never writes is learned slowly. GKD and "
            "MiniLLM begin after SFT, too."
        ),
        charts=(
            Chart("Score of sampled answers", "gold"),
            Chart("Score of the likeliest tokens", "greedy"),
            Chart("KL from the strong teacher on the student's answers", "kl", x="nats a token"),
        ),
    )
