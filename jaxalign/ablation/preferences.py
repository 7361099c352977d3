"""What studies of preferences and rewards share: the SFT model that a seed begins with, pairs, and reward models."""

import dataclasses
import itertools
import pathlib

import jax
import numpy as np

from jaxalign.ablation.language import examining, start_of, train_once, write_rows
from jaxalign.data import read_records
from jaxalign.models import ModelConfig, Params
from jaxalign.quickstart.evaluate import Examiner
from jaxalign.quickstart.pairs import on_policy_pairs
from jaxalign.sampling.answers import Answers, sequence_rewards
from jaxalign.training.saved_model import find_model
from jaxalign.worlds import World

PROMPTS = 3_000  # that are answered twice for pairs
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


def make_pairs(root: pathlib.Path, world: World, seed: int) -> pathlib.Path:
    """Pairs of the SFT model's own answers, labelled by the judge with noise."""
    path = root / "data/preference_on_policy.jsonl"
    if not path.is_file():
        with examining(root, world, take=PROMPTS, questions="prompts.jsonl") as examiner:
            write_rows(path, on_policy_pairs(examiner, seed)[0])
    return path


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
