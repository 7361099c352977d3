"""Quality or quantity in supervised fine-tuning: how many demonstrations, and how many of them flawed."""

import pathlib

from jaxalign.ablation import Chart, Claim, Effect, Outcome, Study, Trial, value
from jaxalign.ablation.effects import arm_name
from jaxalign.ablation.language import (
    GREEDY,
    NUCLEUS,
    PRETRAINING,
    beside_text,
    demonstrations,
    examine,
    score_sampled,
    start_of,
    train_once,
    write_rows,
)
from jaxalign.worlds import World

ROWS = (100, 400, 1_600)
FLAWED = (0.0, 0.5)  # share of the demonstrations
STEPS, FEW = 200, 50  # of 16 rows with several conversations each
QUESTIONS = 300
MEASURED = ("gold", "helpful", "honest", "harmless", "loss", "corpus", "length")
PERFECT = "perfect_held_out.jsonl"


def share(seed: int, root: pathlib.Path) -> tuple[pathlib.Path, World]:
    """The pretrained model of a seed, which has seen no conversation, and held-out answers without a flaw."""
    world = start_of(seed, root)
    write_rows(root / "data" / PERFECT, demonstrations(world, "held_out", QUESTIONS, seed, flawed=0.0))
    return root, world


def run(trial: Trial) -> Outcome:
    """Trains an arm from the pretrained model."""
    root, world = trial.shared
    rows, flawed, steps = (trial.arm[key] for key in ("rows", "flawed", "steps"))
    made = demonstrations(world, "train", rows, trial.seed, flawed=flawed)
    data = write_rows(trial.folder / "demonstrations.jsonl", made)
    changes = {
        **beside_text(root, data),
        "batch_size": 16,
        "num_steps": steps,
        "optimizer.warmup": 0.1,
    }
    model = train_once("sft", root, trial.folder / "model", trial.seed, changes)
    common = {"questions": QUESTIONS, "reference_run": "pretrain"}
    found = examine(root, model, world, demonstrations=PERFECT, sampling=NUCLEUS, **common)
    greedy = score_sampled(root, model, world, sampling=GREEDY, **common)
    return Outcome({name: found[name] for name in MEASURED} | {"greedy": greedy})


def arm(rows: int, flawed: float = 0.0, steps: int = STEPS) -> dict[str, float]:
    """The arm with so many demonstrations."""
    return {"rows": rows, "flawed": flawed, "steps": steps}


def of(measure: str, rows: int, flawed: float = 0.0, steps: int = STEPS) -> Effect:
    """What an arm measured."""
    return value(measure, **arm(rows, flawed, steps))


def get_study(size: str) -> Study:
    """What is affordable on two cores."""
    del size
    few, some, many = ROWS
    flawed = FLAWED[1]
    return Study(
        name="sft_quality",
        title="SFT: quality or quantity",
        papers=(
            "arXiv 2305.11206 (LIMA), section 5 and appendix B",
            "arXiv 2307.09288 (Llama 2), section 3.1",
        ),
        question=(
            "Few demonstrations of high quality are said to be enough, and many of mixed quality to be no substitute: "
            "the score is flat from 2,000 rows to 32,000, filtered rows beat unfiltered ones, and held-out likelihood "
            "gets worse while answers get better. Is that so where the quality of every demonstration is known, and "
            "where a row more is not also a training step more?"
        ),
        setting=(
            f"A Llama of 1 million parameters, pretrained for {PRETRAINING} steps on the corpus of a synthetic world "
            f"(a new one for each seed). From there SFT on {few}, {some} or {many:,} demonstrations, the smaller sets "
            "within the larger ones and on the same questions whatever their quality: none flawed, or half of them, "
            "and those flawed as the world's demonstrators are (rambling, evasive, incomplete, invented, seldom "
            f"wrong). All train {STEPS} steps of 16 packed rows, a fifth of them text of the corpus; where epochs are "
            f"to be equal instead, {FEW} steps on a quarter of the demonstrations stand beside {STEPS} on four times "
            f"as many. Gold scores are those of the judge for {QUESTIONS} held-out questions about other animals, "
            "answered as LIMA samples (temperature 0.7, top-p 0.9). Learning rate and schedule are those of the "
            "quickstart. Tried before, on seed 100 alone: all arms with 120 and 30 steps, at temperature 1 and without "
            "chance (after 30 steps sampled scores were below 0.1, as answers did not end; so steps were made more, "
            "and LIMA's sampling was taken), and four of the arms as they are here."
        ),
        arms=(
            *(arm(rows, share) for share in FLAWED for rows in ROWS),
            arm(few, steps=FEW),
            arm(some, steps=FEW),
        ),
        seeds=tuple(range(5)),
        measures={
            "gold": "the judge's score of answers sampled with temperature 0.7 and top-p 0.9, 0 to 1",
            "greedy": "the same of the likeliest tokens",
            "helpful": "the part of gold for helpfulness",
            "honest": "its part for honesty",
            "harmless": "its part for harmlessness",
            "loss": "nats a token of held-out demonstrations without a flaw",
            "corpus": "nats a token of held-out text",
            "length": "tokens of such an answer",
        },
        run=run,
        share=share,
        recipes={arm_name(arm(many)): "sft_lima_llama2_7b"},
        claims=(
            Claim(
                "quality counts",
                "of equally many demonstrations, those without flaws make better answers",
                of("gold", many) - of("gold", many, flawed),
                smallest=0.02,
                paper="3.83 filtered, 3.33 unfiltered of 6, 2,000 rows each (LIMA, Fig. 5)",
            ),
            Claim(
                "quantity does not",
                "of the same quality, in equally many steps, four times as many change the score by less than 0.04",
                of("gold", many) - of("gold", some),
                smallest=0.04,
                near=0.0,
                paper="flat from 2,000 to 32,000 (LIMA, Fig. 6)",
            ),
            Claim(
                "many rows do not repair the likeliest answer",
                "with half of the demonstrations flawed, greedy answers too stay worse, though most agree on no flaw",
                of("greedy", many) - of("greedy", many, flawed),
                smallest=0.02,
            ),
            Claim(
                "in equal epochs quantity counts",
                "where four times as many demonstrations are also four times as many steps, they make better answers",
                of("gold", many) - of("gold", some, steps=FEW),
                smallest=0.03,
            ),
            Claim(
                "more epochs cost likelihood",
                "four times as many epochs on few demonstrations make held-out ones less likely",
                of("loss", few) - of("loss", few, steps=FEW),
                smallest=0.05,
                paper="perplexity rises (LIMA, appendix B)",
                unit="nats a token",
            ),
            Claim(
                "and still better answers",
                "the same epochs make better answers",
                of("gold", few) - of("gold", few, steps=FEW),
                smallest=0.02,
                paper="quality rises while perplexity does (LIMA, appendix B)",
            ),
        ),
        discussion=(
            "Quality counts as the paper says, by .05 of 1 at equal rows. But rows count more here: four times as "
            "many give .12 in equally many steps, and .15 in equal epochs, so that it is the rows and not the steps "
            "(200 steps in place of 50 on the same 400 rows give .03, with an interval around 0). What is flat in "
            "LIMA is not flat here from 100 to 1,600 rows; whether it becomes so beyond, where the paper begins to "
            "look, was not tried. Read across the table, a set that is half flawed scores as a flawless one of half "
            "to two thirds of its rows: 1,600 as about 860, 400 as about 270. So flawed rows do little harm and "
            "little good, and a quarter as many without flaws are no match for it (.49 against .56). Of 1,600 rows "
            "the likeliest answer shows no trace of the flaws (.672 and .667), though the rule leaves this undecided: "
            "as most demonstrators agree on an answer without flaws, greedy decoding takes their vote, and the flaws "
            "come back as soon as one samples. With more epochs on 100 rows held-out demonstrations become less "
            "likely, as in LIMA, but answers do not become better. They get worse without chance (.49 to .43), and "
            "equal at temperature 0.7, where a sharper distribution makes up for it: likelihood and greedy score "
            "agree here."
        ),
        charts=(
            Chart("Score, sampled as LIMA does", "gold"),
            Chart("Score of the likeliest tokens", "greedy"),
            Chart("Held-out demonstrations without a flaw", "loss", x="nats a token"),
        ),
    )
