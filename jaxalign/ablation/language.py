"""Language models of a million parameters in the HHH world, as the studies train and examine them.

A seed is a whole new world: its facts, its corpus and questions, the first weights, and the order of the data. Stages
are those of configs/quickstart.py, changed by what an arm says.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxalign import parallel
from jaxalign.config import load_config
from jaxalign.data import DataConfig, build_dataset, read_records, train_sentencepiece
from jaxalign.evaluation import likelihood
from jaxalign.quickstart.evaluate import Examiner, make_examiner
from jaxalign.sampling.generate import SamplingConfig
from jaxalign.stages import parse_config, train
from jaxalign.storage import write_whole
from jaxalign.training.loop import Probe
from jaxalign.training.saved_model import find_model
from jaxalign.training.workdir import finished
from jaxalign.worlds import DatasetSizes, World, write_dataset

SAMPLING = SamplingConfig(max_new_tokens=32)
PROMPT_SLOTS, ANSWER_SLOTS = 48, 96
VOCABULARY = 768


def make_world(root: pathlib.Path, seed: int, sizes: DatasetSizes | None = None) -> World:
    """The world of a seed, with its data and tokenizer in `root`/data, made where they are missing."""
    world, data = World(seed=seed), root / "data"
    if not (data / "world.json").is_file():
        write_dataset(world, data, sizes=sizes, seed=seed)
    if not (data / "tokenizer.model").is_file():
        texts = [row["text"] for row in read_records(str(data / "corpus.jsonl"))]
        for row in read_records(str(data / "sft.jsonl")):
            texts += [message["content"] for message in row["messages"]]
        train_sentencepiece(texts, data / "tokenizer.model", VOCABULARY)
    return world


def write_side(root: pathlib.Path, side: str) -> pathlib.Path:
    """The preferred answers ("chosen") of the preference data, or the others, as rows {"messages"} for SFT."""
    path = root / "data" / f"{side}.jsonl"
    if not path.is_file():
        rows = read_records(str(root / "data/preference.jsonl"))
        lines = (json.dumps({"messages": [*row["prompt"], *row[side]]}) for row in rows)
        write_whole(path, "".join(f"{line}\n" for line in lines).encode())
    return path


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


def examine(
    root: pathlib.Path, run: pathlib.Path, world: World, *, questions: int, reference_run: str = "sft"
) -> dict[str, float]:
    """What a model is worth.

    gold, helpful, honest, harmless: the judge's mean score of an answer to each of `questions` held-out questions;
    kl: from the reference, in nats an answer; length: tokens of an answer; chosen, rejected: mean log-probability of
    the sequences of held-out pairs, in nats; accuracy: the share of pairs whose chosen one is likelier; corpus: nats a
    token of held-out text.
    """
    mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])
    with parallel.use_mesh(mesh):
        examiner: Examiner = make_examiner(
            root, world, SAMPLING, take=questions, prompt_slots=PROMPT_SLOTS, reference_run=reference_run
        )
        params = find_model(str(run), "a run of the study").load(mesh)
        found = examiner.measure(params)
        pairs = pair_logps(root, examiner, params)
    chosen, rejected = pairs
    return {
        "gold": found["score"][0],
        "helpful": found["helpful"][0],
        "honest": found["honest"][0],
        "harmless": found["harmless"][0],
        "kl": found["kl"][0],
        "length": found["length"],
        "chosen": float(chosen.mean()),
        "rejected": float(rejected.mean()),
        "accuracy": float((chosen > rejected).mean()),
        "corpus": found["corpus_loss"],
    }


def pair_logps(root: pathlib.Path, examiner: Examiner, params: Any) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the chosen and the rejected sequence of each held-out pair, in nats."""
    settings = DataConfig(
        eval=str(root / "data/preference_held_out.jsonl"),
        max_length=ANSWER_SLOTS,
        row_length=2 * ANSWER_SLOTS,
    )
    dataset = build_dataset(settings, examiner.reference.tokenizer(), "preference", "eval")
    found = likelihood(params, examiner.reference.config, dataset, batch_size=16)
    chosen, rejected = found.pairs
    return -found.nll[chosen], -found.nll[rejected]
