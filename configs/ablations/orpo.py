"""ORPO (arXiv 2403.07691): what supervised fine-tuning does to rejected answers, and what the odds ratio changes."""

import pathlib

from jaxalign.ablation import Chart, Claim, Outcome, Study, Trial, value
from jaxalign.ablation.effects import arm_name
from jaxalign.ablation.language import PRETRAINING, beside_text, examine, start_of, train_once, write_side
from jaxalign.worlds import World

STEPS = 120  # of every arm, of 16 rows with two or more sequences
QUESTIONS = 200
COEFFICIENTS = (0.1, 1.0)
RATE = 2e-3


def share(seed: int, root: pathlib.Path) -> tuple[pathlib.Path, World]:
    """The pretrained model of a seed, which has seen no conversation."""
    world = start_of(seed, root)
    write_side(root, "chosen")
    return root, world


def run(trial: Trial) -> Outcome:
    """Trains an arm from the pretrained model, and compares it with that."""
    root, world = trial.shared
    method = trial.arm["method"]
    common = {"num_steps": STEPS, "optimizer.learning_rate": RATE, "optimizer.warmup": 0.1}
    chosen = {
        **beside_text(root, f"{root}/data/chosen.jsonl"),
        "batch_size": 32,  # rows of half the length: as many sequences as 16 rows of pairs
    }
    last = trial.folder / "last"
    if method == "base":
        last = root / "pretrain"
    elif method == "orpo":
        train_once("orpo", root, last, trial.seed, common | {"orpo.coef": trial.arm["coef"]})
    elif method == "sft":
        train_once("sft", root, last, trial.seed, common | chosen)
    else:
        first = trial.folder / "first"
        train_once("sft", root, first, trial.seed, common | chosen | {"num_steps": STEPS // 2})
        pairs = {"data.train": f"{root}/data/preference.jsonl", "model.init_from": str(first)}
        train_once("dpo", root, last, trial.seed, pairs | {"num_steps": STEPS // 2})
    found = examine(root, last, world, questions=QUESTIONS, reference_run="pretrain")
    names = ("gold", "helpful", "honest", "harmless", "chosen", "rejected", "accuracy", "corpus", "length")
    return Outcome({name: found[name] for name in names} | {"margin": found["chosen"] - found["rejected"]})


def get_study(size: str) -> Study:
    """What is affordable on two cores; the paper's own models are those of configs/orpo.py."""
    del size
    base, sft, both = {"method": "base"}, {"method": "sft"}, {"method": "sft+dpo"}
    arms = (base, sft, *({"method": "orpo", "coef": coef} for coef in COEFFICIENTS), both)

    def orpo(measure: str, coef: float):
        return value(measure, method="orpo", coef=coef)

    return Study(
        name="orpo",
        title="ORPO: one stage in place of two",
        papers=("arXiv 2403.07691",),
        question=(
            "Fine-tuning on preferred answers is said to make rejected ones likelier as well, as the two have much in "
            "common, and ORPO's odds ratio to push them down in the same stage. Do the signs and the order of the "
            "paper's figures hold, and is one stage as good as two of the same number of steps in all?"
        ),
        setting=(
            f"A Llama of 1 million parameters, pretrained for {PRETRAINING} steps on the corpus of a synthetic world "
            f"(a new one for each seed). From there every arm trains {STEPS} steps: SFT on the preferred answers, ORPO "
            f"with two weights of its odds ratio, or SFT for {STEPS // 2} and DPO for {STEPS // 2}; a fifth of all "
            "rows but DPO's is text of the corpus. Pairs are answers of demonstrators of different quality, chosen by "
            "a noisy judge; log-probabilities are of 600 held-out pairs, gold scores those of the judge without noise "
            f"for {QUESTIONS} held-out questions. Learning rates are those of the quickstart, not tuned for this study."
        ),
        arms=arms,
        seeds=tuple(range(5)),
        measures={
            "gold": "the judge's score of sampled answers, 0 to 1",
            "helpful": "its part for helpfulness",
            "honest": "its part for honesty",
            "harmless": "its part for harmlessness",
            "chosen": "log-probability of the preferred answers of held-out pairs, nats a sequence",
            "rejected": "log-probability of the others",
            "margin": "chosen less rejected",
            "accuracy": "share of pairs whose preferred answer is likelier",
            "corpus": "nats a token of held-out text",
            "length": "tokens of an answer",
        },
        run=run,
        share=share,
        recipes={
            arm_name(sft): "sft_orpo_opt_1_3b",
            arm_name({"method": "orpo", "coef": COEFFICIENTS[-1]}): "orpo_opt_1_3b",
            arm_name(both): "dpo_orpo_opt_1_3b",
        },
        claims=(
            Claim(
                "SFT raises rejected answers",
                "fine-tuning on preferred answers makes the rejected ones likelier than they were",
                value("rejected", **sft) - value("rejected", **base),
                smallest=1.0,
                paper="both rise (Fig. 3)",
                unit="nats",
            ),
            Claim(
                "ORPO holds them down",
                "with λ = 1 they are less likely than after SFT",
                value("rejected", **sft) - orpo("rejected", 1.0),
                smallest=1.0,
                paper="they fall (Fig. 7)",
                unit="nats",
            ),
            Claim(
                "ORPO pushes them below the start",
                "with λ = 1 they end less likely than before training",
                value("rejected", **base) - orpo("rejected", 1.0),
                smallest=1.0,
                paper="they fall (Fig. 7)",
                unit="nats",
            ),
            Claim(
                "preferred answers are kept",
                "λ = 1 costs the preferred answers less than half of what it takes from the rejected ones",
                (value("rejected", **sft) - orpo("rejected", 1.0)) * 0.5
                - (value("chosen", **sft) - orpo("chosen", 1.0)),
                smallest=0.0,
                paper="they rise (Fig. 7)",
                unit="nats",
            ),
            Claim(
                "the margin grows with λ",
                "λ = 1 separates the two more than λ = 0.1",
                orpo("margin", 1.0) - orpo("margin", 0.1),
                smallest=0.5,
                paper="more for larger λ (section 7.1)",
                unit="nats",
            ),
            Claim(
                "ORPO is better than SFT",
                "with λ = 1 its answers are better than those of SFT on the preferred ones",
                orpo("gold", 1.0) - value("gold", **sft),
                smallest=0.02,
                paper="wins 84 % against SFT at 1.3B (Table 2)",
            ),
            Claim(
                "one stage is as good as two",
                "with λ = 1 they are better than those of SFT and then DPO, of as many steps together",
                orpo("gold", 1.0) - value("gold", **both),
                smallest=0.02,
                paper="wins 41.7 % against DPO at 125M, 70.9 % at 1.3B (Table 3)",
            ),
        ),
        discussion=(
            "What the odds ratio does to log-probabilities is as the paper says: rejected answers are pushed down by "
            "several times what preferred ones lose, and more so for a larger λ. That they fall below where they began "
            "could not show here: the model begins without ever having seen a conversation, so that all answers "
            "become likelier by tens of nats first. That ORPO's answers are better than those of SFT did not show "
            "either, and the arms say where it is lost: with λ = 0.1 answers are as good as after SFT (.390 against "
            ".395) and the margin is larger; with λ = 1 the margin is five times that of SFT, preferred answers are "
            "3 nats less likely, and the score is .24. SFT and then DPO, of half the steps each, loses still more of "
            "both. At this size and this budget of steps a preference is paid for with likelihood; whether longer "
            "training turns the order was not tried."
        ),
        charts=(
            Chart("Score of sampled answers", "gold"),
            Chart("Log-probability of rejected answers", "rejected", x="nats a sequence"),
            Chart("Margin of preferred over rejected answers", "margin", x="nats a sequence"),
        ),
    )
