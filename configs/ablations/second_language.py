"""Continued pretraining in a second language: what is forgotten of the first, and what replay of it saves."""

import pathlib
from collections.abc import Iterator

from jaxalign.ablation import Chart, Claim, Effect, Outcome, Study, Trial, value
from jaxalign.ablation.language import text_loss, train_once, write_rows
from jaxalign.data import read_records, train_sentencepiece
from jaxalign.quickstart.data import make_data
from jaxalign.worlds import DatasetSizes, World, japanese_corpus

SHARES = (0.0, 0.01, 0.05, 0.2)  # of rows, that are text of the first language
FIRST, STEPS = 300, 100  # of either language, of 32 rows of 64 tokens, replayed ones among them
RATE = 1e-3  # a third of the first pretraining's
VOCABULARY = 1_024  # of both languages
DOCUMENTS, HELD_OUT = 40_000, 500
# What has no use here is small.
SIZES = DatasetSizes(sft=10, sft_held_out=10, preference=10, preference_held_out=10, prompts=10)


def share(seed: int, root: pathlib.Path) -> pathlib.Path:
    """A model of the first language, whose tokenizer knows both."""
    world, data = World(seed=seed), root / "data"
    make_data(world, data, sizes=SIZES, seed=seed)
    write_rows(data / "japanese.jsonl", rows(world, DOCUMENTS, 2 * seed))
    write_rows(data / "japanese_held_out.jsonl", rows(world, HELD_OUT, 2 * seed + 1))
    if not (data / "tokenizer.model").is_file():
        files = (data / "corpus.jsonl", data / "japanese.jsonl")
        texts = [row["text"] for file in files for row in read_records(str(file))]
        train_sentencepiece(texts, data / "tokenizer.model", VOCABULARY)
    train_once("pretrain", root, root / "pretrain", seed, {"num_steps": FIRST})
    return root


def rows(world: World, count: int, seed: int) -> Iterator[dict[str, str]]:
    """Documents in Japanese."""
    return ({"text": text} for text in japanese_corpus(world, count, seed))


def run(trial: Trial) -> Outcome:
    """Trains an arm, and reads held-out text of both languages with it."""
    root, data = trial.shared, trial.shared / "data"
    model = root / "pretrain"
    if (replay := trial.arm["replay"]) is not None:
        changes = {
            "model.init_from": str(model),
            "data.train": f"{data}/japanese.jsonl",
            "data.eval": "",
            "num_steps": STEPS,
            "optimizer.learning_rate": RATE,
        }
        if replay:
            changes["data.train"] += f",{data}/corpus.jsonl"
            changes["data.weights"] = (1 - replay, replay)
        model = train_once("pretrain", root, trial.folder / "model", trial.seed, changes)
    files = {"english": "corpus_held_out", "japanese": "japanese_held_out"}
    return Outcome({name: text_loss(model, data / f"{file}.jsonl") for name, file in files.items()})


def of(measure: str, replay: float | None) -> Effect:
    """What an arm measured; None is the model before."""
    return value(measure, replay=replay)


def get_study(size: str) -> Study:
    """What is affordable on two cores."""
    del size
    none, least, little, much = SHARES
    before = of("english", None)
    forgotten = of("english", none) - before
    return Study(
        name="second_language",
        title="A second language: what replay saves of the first",
        papers=("arXiv 2407.02118", "arXiv 2403.08763"),
        question=(
            "A model that goes on with text of another language alone forgets the first. A few per cent of the old "
            "text among the new are said to prevent most of it, at almost no cost for the new language. How much is "
            "forgotten, how much do 1, 5 and 20 per cent save, and what do they cost?"
        ),
        setting=(
            f"A Llama of 1 million parameters, pretrained for {FIRST} steps on the English corpus of a synthetic "
            "world (a new one for each seed), with a tokenizer that knows both languages "
            f"({VOCABULARY:,} tokens). Then {STEPS} steps of 32 rows of 64 tokens of Japanese text on the same facts: "
            "names in katakana, no blanks, no letter and no token in common with the English. Of these rows a share "
            "is English text instead (replay), so that all arms take equally many steps, as in the paper. The "
            f"learning rate warms up again to {RATE:g}, a third of the first pretraining's, and decays again. Losses "
            "are of 500 held-out documents of each language, in nats a token; tokens of the two languages are not of "
            "the same length. Tried before, on seed 100 alone: replay of 0, 5 and 20 per cent, once each, in 150 "
            f"steps after 400; that there are {STEPS} after {FIRST} here is for their cost."
        ),
        arms=({"replay": None}, *({"replay": share} for share in SHARES)),
        seeds=tuple(range(5)),
        measures={
            "english": "nats a token of held-out text of the first language",
            "japanese": "nats a token of held-out text of the second",
        },
        run=run,
        share=share,
        claims=(
            Claim(
                "without replay the first language is forgotten",
                "the loss on the first language rises while the second is learned",
                forgotten,
                smallest=0.2,
                paper="replay is there against it (both papers)",
                unit="nats a token",
            ),
            Claim(
                "one per cent saves half",
                "with one row of a hundred, less than half as much is forgotten as without",
                forgotten * 0.5 - (of("english", least) - before),
                smallest=0.0,
                unit="nats a token",
            ),
            Claim(
                "five per cent save nine tenths",
                "with one row of twenty, less than a tenth as much is forgotten as without",
                forgotten * 0.1 - (of("english", little) - before),
                smallest=0.0,
                paper="5 to 30 % prevent forgetting (2407.02118)",
                unit="nats a token",
            ),
            Claim(
                "twenty per cent save all",
                "with one row of five the loss stays within 0.05 of what it was",
                of("english", much) - before,
                smallest=0.05,
                near=0.0,
                paper="25 % taken for German after English (2403.08763)",
                unit="nats a token",
            ),
            Claim(
                "replay costs the new language little",
                "with one row of five in the first language, the loss on the second is less than 0.05 higher",
                of("japanese", none) - of("japanese", much) + 0.05,
                smallest=0.0,
                paper="what is transferred is robust to replay (2407.02118)",
                unit="nats a token",
            ),
        ),
        discussion=(
            "Without replay next to nothing is left of the first language: 5.1 nats a token, where a model that knows "
            "nothing has 6.9. One row of a hundred, 32 rows in 100 steps, saves nearly nine tenths of that (.46 nats "
            "are lost in place of 4.1), one of twenty 94 per cent. That so little saves so much says that most of "
            "what is lost is cheap to keep: which tokens belong to a text at all, as the two languages share none. "
            "What is dear is the rest. From 1 to 5 to 20 per cent it falls from .46 to .24 to .09 nats, each time by "
            "about half, and with 20 per cent it is still .09 in each of five seeds, beyond what we said would count "
            "as all. Whether that is forgetting, or what a learning rate costs that rises again even on the old text "
            "alone, was not tried. The new language does not suffer: with 20 per cent of replay its loss is .03 lower "
            "in the mean, though a fifth fewer of its rows were read; but seeds differ by .2, so that a cost of .05 "
            "is not excluded. It is far from learned after 100 steps, 3.5 nats a token, and says nothing of what "
            "replay costs a model that has learned it."
        ),
        charts=(
            Chart("Held-out text of the first language", "english", x="nats a token"),
            Chart("Held-out text of the second language", "japanese", x="nats a token"),
        ),
    )
