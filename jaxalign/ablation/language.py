"""Language models of a million parameters in the HHH world, as the studies train and examine them.

A seed is a whole new world: its facts, its corpus and questions, the first weights, and the order of the data. Stages
are those of configs/quickstart.py, changed by what an arm says.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxalign import parallel
from jaxalign.config import load_config
from jaxalign.data import DataConfig, Dataset, build_dataset, read_records
from jaxalign.evaluation import likelihood, mean_nll
from jaxalign.models import Params
from jaxalign.quickstart.data import make_data, make_tokenizer
from jaxalign.quickstart.evaluate import SAMPLING, Examiner, make_examiner
from jaxalign.sampling.generate import SamplingConfig
from jaxalign.stages import parse_config, train
from jaxalign.storage import write_whole
from jaxalign.training.loop import Probe
from jaxalign.training.saved_model import SavedModel, find_model
from jaxalign.training.workdir import finished
from jaxalign.worlds import DatasetSizes, World, demonstration
from jaxalign.worlds.questions import Split
from jaxalign.worlds.questions import questions as ask
from jaxalign.worlds.world import stream

ANSWER_SLOTS, TEXT_SLOTS = 96, 64
# As LIMA samples, and without chance.
NUCLEUS = dataclasses.replace(SAMPLING, temperature=0.7, top_p=0.9)
GREEDY = dataclasses.replace(SAMPLING, temperature=0.0)
PRETRAINING = 400  # steps of the model that arms begin with
MOST = 6_000  # demonstrations of a world


def make_world(root: pathlib.Path, seed: int, sizes: DatasetSizes | None = None) -> World:
    """The world of a seed, with its data and tokenizer in `root`/data, made where they are missing."""
    world = World(seed=seed)
    make_data(world, root / "data", sizes=sizes, seed=seed)
    make_tokenizer(root / "data")
    return world


def start_of(seed: int, root: pathlib.Path) -> World:
    """The world of a seed, and in `root`/pretrain a model of it that has seen no conversation."""
    world = make_world(root, seed)
    train_once("pretrain", root, root / "pretrain", seed, {"num_steps": PRETRAINING})
    return world


def write_rows(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> pathlib.Path:
    """Writes JSONL where it is not there yet."""
    if not path.is_file():
        write_whole(path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    return path


def write_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Arrays by name, as `np.load` reads them; whole or not at all."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    write_whole(path, file.getvalue())


def demonstrations(
    world: World, split: Split, count: int, seed: int, *, flawed: float | None
) -> Iterator[dict[str, Any]]:
    """Rows {"messages"} for SFT, of which a share has a flawed answer; fewer are the first of more.

    The questions are the same whatever `flawed` is; None is the share of the demonstrators of the world's data.
    """
    rng = stream(f"demonstrations/{split}", seed)
    # A list of questions begins otherwise if it is longer: so it always has the same length.
    for question in ask(world, split, MOST, 5 * seed + 4)[:count]:
        text = demonstration(world, question, rng, flawed=flawed)
        yield {"messages": [*question.messages, {"role": "assistant", "content": text}]}


def write_side(root: pathlib.Path, side: str, pairs: str = "preference") -> pathlib.Path:
    """The preferred answers ("chosen") of the preference data, or the others, as rows {"messages"} for SFT.

    Args:
      pairs: the name of the data's file; of others than the world's own it stands in the new file's name.
    """
    rows = read_records(str(root / f"data/{pairs}.jsonl"))
    name = side if pairs == "preference" else f"{side}_of_{pairs}"
    return write_rows(
        root / "data" / f"{name}.jsonl", ({"messages": [*row["prompt"], *row[side]]} for row in rows)
    )


def beside_text(root: pathlib.Path, file: pathlib.Path | str, text: float = 0.2) -> dict[str, Any]:
    """Changes of a config: it trains on the rows of a file, and for a share of all rows on text of the corpus."""
    return {
        "data.train": f"{file},{root}/data/corpus.jsonl",
        "data.weights": (1 - text, text),
        "data.eval": "",
    }


def train_once(
    stage: str,
    root: pathlib.Path,
    workdir: pathlib.Path,
    seed: int,
    changes: Mapping[str, Any] | None = None,
    probe: Probe | None = None,
) -> pathlib.Path:
    """Runs a stage of configs/quickstart.py into `workdir`, or goes on with it, or finds it done.

    Args:
      root: where the data and the models lie that the stage begins with.
      changes: keys of the config and their values, as {"orpo.coef": 0.1}.
      probe: measures the weights at every evaluation, see `stages.train`.
    """
    if finished(workdir) is None:
        config = load_config("quickstart", stage=stage, root=str(root))
        config.seed = seed
        with config.unlocked():
            config.update_from_flattened_dict(dict(changes or {}))
        config.log_every = max(1, config.num_steps // 20)
        train(parse_config(config), workdir, devices=jax.devices()[:1], probe=probe, quiet=True)
    return workdir


@contextlib.contextmanager
def examining(root: pathlib.Path, world: World, **settings: Any) -> Iterator[Examiner]:
    """An examiner, inside its mesh; `settings` are those of `make_examiner`."""
    with parallel.use_mesh(parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])):
        yield make_examiner(root, world, **settings)


@contextlib.contextmanager
def _opened(
    root: pathlib.Path, run: pathlib.Path, world: World, **settings: Any
) -> Iterator[tuple[Examiner, Params]]:
    with examining(root, world, **settings) as examiner:
        yield examiner, find_model(str(run), "a run of the study").load(jax.sharding.get_mesh())


def read_pairs(model: SavedModel, path: pathlib.Path, take: int = 0) -> Dataset:
    """The pairs of a file, or the first `take` of them, as a model reads them."""
    settings = DataConfig(eval=str(path), take=take, max_length=ANSWER_SLOTS, row_length=2 * ANSWER_SLOTS)
    return build_dataset(settings, model.tokenizer(), "preference", "eval")


def examine(
    root: pathlib.Path,
    run: pathlib.Path,
    world: World,
    *,
    questions: int,
    reference_run: str = "sft",
    demonstrations: str = "sft_held_out.jsonl",
    sampling: SamplingConfig = SAMPLING,
) -> dict[str, float]:
    """What a model is worth.

    gold, helpful, honest, harmless: the judge's mean score of an answer to each of `questions` held-out questions;
    kl: from the reference, in nats an answer; length: tokens of an answer; loss: nats a token of held-out
    demonstrations, those of a file of the data; chosen, rejected: mean log-probability of the sequences of held-out
    pairs, in nats; accuracy: the share of pairs whose chosen one is likelier; corpus: nats a token of held-out text.
    """
    settings = {"take": questions, "reference_run": reference_run, "demonstrations": demonstrations}
    with _opened(root, run, world, sampling=sampling, **settings) as (examiner, params):
        found = examiner.measure(params)
        chosen, rejected = pair_logps(root, examiner, params)
    return {
        "gold": found["score"][0],
        "helpful": found["helpful"][0],
        "honest": found["honest"][0],
        "harmless": found["harmless"][0],
        "kl": found["kl"][0],
        "length": found["length"],
        "loss": found["loss"],
        "chosen": float(chosen.mean()),
        "rejected": float(rejected.mean()),
        "accuracy": float((chosen > rejected).mean()),
        "corpus": found["corpus_loss"],
    }


def score_sampled(
    root: pathlib.Path,
    run: pathlib.Path,
    world: World,
    *,
    questions: int,
    sampling: SamplingConfig,
    reference_run: str = "sft",
) -> float:
    """The judge's mean score of answers, and nothing else."""
    opened = _opened(root, run, world, sampling=sampling, take=questions, reference_run=reference_run)
    with opened as (examiner, params):
        return mean_score(examiner, params)


def mean_score(examiner: Examiner, params: Params) -> float:
    """The judge's mean score of sampled answers."""
    return float(np.mean([each.score for each in examiner.judgements(examiner.answers(params))]))


def text_loss(run: pathlib.Path, file: pathlib.Path) -> float:
    """Nats a token of texts under a model; a token is one of its own tokenizer's."""
    mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])
    with parallel.use_mesh(mesh):
        model = find_model(str(run), "a run of the study")
        settings = DataConfig(eval=str(file), max_length=TEXT_SLOTS, row_length=TEXT_SLOTS)
        dataset = build_dataset(settings, model.tokenizer(), "text", "eval")
        return mean_nll(model.load(mesh), model.config, dataset, batch_size=64)


def pair_logps(root: pathlib.Path, examiner: Examiner, params: Any) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the chosen and the rejected sequence of each held-out pair, in nats."""
    dataset = read_pairs(examiner.reference, root / "data/preference_held_out.jsonl")
    found = likelihood(params, examiner.reference.config, dataset, batch_size=16)
    chosen, rejected = found.pairs
    return -found.nll[chosen], -found.nll[rejected]
