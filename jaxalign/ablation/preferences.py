"""What studies of preferences and rewards share: the SFT model that a seed begins with, pairs, and reward models."""

import dataclasses
import itertools
import pathlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign import parallel
from jaxalign.ablation.language import examining, read_pairs, start_of, train_once, write_rows
from jaxalign.data import read_records
from jaxalign.data.loader import eval_batches
from jaxalign.evaluation import pair_scores
from jaxalign.models import ModelConfig, Params
from jaxalign.models.flops import Work
from jaxalign.quickstart.evaluate import Examiner
from jaxalign.quickstart.pairs import on_policy_pairs
from jaxalign.sampling.answers import Answers, sequence_rewards
from jaxalign.training.flops import count_work
from jaxalign.training.saved_model import find_model
from jaxalign.worlds import World
from jaxalign.worlds.preferences import preference_row

PROMPTS = 3_000  # that are answered twice for pairs
PAIR_ROWS = 16  # of pairs that are read at a time
UNENDED = 1.0  # taken off the reward of an answer that runs into the length limit


def make_sft(root: pathlib.Path, seed: int) -> World:
    """The world of a seed, with a model in `root`/sft that has learned to answer as demonstrators do."""
    world = start_of(seed, root)
    train_once("sft", root, root / "sft", seed)
    return world


def judge_answers(examiner: Examiner, params: Params, seed: int = 0) -> tuple[Answers, dict[str, np.ndarray]]:
    """A sampled answer to each of N questions, its gold score and harmlessness, and its KL in nats: [N] each."""
    answers = examiner.answers(params, seed=seed)
    judged = examiner.judgements(answers)
    return answers, {
        "gold": np.array([each.score for each in judged]),
        "harmless": np.array([each.harmless for each in judged]),
        "kl": examiner.kl(params, answers),
    }


def make_pairs(
    root: pathlib.Path,
    world: World,
    seed: int,
    *,
    questions: str = "prompts.jsonl",
    run: str = "sft",
    path: pathlib.Path | None = None,
) -> pathlib.Path:
    """Pairs of the SFT model's own answers, labelled by the judge with noise.

    Args:
      questions: a file of the data, of which the first `PROMPTS` are asked.
      run: a run in `root`, or the path of another, whose model answers in place of the SFT model.
      path: where the pairs are written.
    """
    path = path or root / "data/preference_on_policy.jsonl"
    if not path.is_file():
        settings = {"questions": questions, "reference_run": run}
        with examining(root, world, take=PROMPTS, **settings) as examiner:
            write_rows(path, on_policy_pairs(examiner, seed)[0])
    return path


def relabel(reward: pathlib.Path, pairs: pathlib.Path) -> tuple[pathlib.Path, Work]:
    """Pairs as a reward model sees them: the answer is chosen that it scores higher, without noise.

    Returns:
      The file beside `pairs` where they lie then, and the work of reading each answer once after its prompt.
    """
    path = pairs.with_name(f"{pairs.stem}_labelled.jsonl")
    mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])
    with parallel.use_mesh(mesh):
        model = find_model(str(reward), "the reward model")
        dataset = read_pairs(model, pairs)
        if not path.is_file():
            numbers, scores = pair_scores(model.load(mesh), model.config, dataset, batch_size=PAIR_ROWS)
            write_rows(path, map(_labelled, map(dataset.record, map(int, numbers)), scores.tolist()))
        each = [
            count_work(model.config, batch.segment_ids, batch.positions, batch.loss_mask)
            for batch in eval_batches(dataset.rows, PAIR_ROWS)
        ]
    return path, Work(*(float(sum(part)) for part in zip(*each, strict=True)))


def _labelled(row: Mapping[str, Any], scores: Sequence[float]) -> dict[str, Any]:
    sides = [(row[side], score) for side, score in zip(("chosen", "rejected"), scores, strict=True)]
    return preference_row(row["prompt"], *sides, rng=random.Random(0), noise=0)


def make_reward_model(
    root: pathlib.Path, name: str, seed: int, *, steps: int, pairs: int | None = None
) -> pathlib.Path:
    """A reward model in `root`/`name`, of the SFT model's own answers: the first `pairs` of them, or all."""
    path = root / "data/preference_on_policy.jsonl"
    if pairs is not None:
        rows = itertools.islice(read_records(str(path)), pairs)
        path = write_rows(root / f"data/preference_{pairs}.jsonl", rows)
    return train_once("reward", root, root / name, seed, {"data.train": str(path), "num_steps": steps})


@dataclasses.dataclass(frozen=True)
class Proxy:
    """A reward model, as RL uses it; inside a mesh."""

    params: Params
    config: ModelConfig

    @classmethod
    def load(cls, run: pathlib.Path) -> "Proxy":
        """That of a run."""
        model = find_model(str(run), "the reward model")
        return cls(model.load(jax.sharding.get_mesh()), model.config)

    def score(self, answers: Answers, *, batch_size: int = 64) -> np.ndarray:
        """Scores [N], less `UNENDED` for an answer that does not end."""
        scores = sequence_rewards(self.params, self.config, answers, batch_size=batch_size)
        return scores.astype(np.float64) - UNENDED * ~answers.stopped
