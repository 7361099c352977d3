"""A model's answers to prompts, measured by judges and by other models."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxalign.data import DataConfig, Dataset, Tokenizer, build_dataset
from jaxalign.data.kinds import PROMPTS
from jaxalign.errors import ConfigError
from jaxalign.evaluation.intervals import Interval, mean_interval, ratio_interval, win_rate
from jaxalign.models import ModelConfig, Params
from jaxalign.models.finite import check_finite
from jaxalign.rewards import Rewards
from jaxalign.sampling.answers import Answers, answer, sequence_kl, sequence_nll
from jaxalign.sampling.generate import SamplingConfig


@dataclasses.dataclass(frozen=True)
class Asked:
    """Prompts in the order of the answers to them, with all that their rows hold; lists of N."""

    prompts: list[Any]  # text, or messages
    rows: list[Mapping[str, Any]]
    where: list[str]  # file:row


Judge = Callable[[Asked, Answers], np.ndarray]  # -> scores [N]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Means over N prompts with 95 % intervals."""

    prompts: int
    scores: dict[str, Interval]  # by judge
    wins: dict[str, Interval]  # by judge: how often it scores the answer above the other model's, ties half
    kl: Interval | None  # sequence KL from the reference, nats
    # Of the answers under the base model, a token: reward bought with gibberish shows here.
    perplexity: Interval | None
    length: Interval  # tokens
    stopped: float  # share of answers that ended by themselves


def read_prompts(prompts: DataConfig, tokenizer: Tokenizer, *, slots: int = 0) -> Dataset:
    """The prompts that `prompts` names as its held-out data, in rows of `slots` tokens, or as the longest needs (0).

    Prompts that are longer than `slots` are counted in the dataset's report.
    """
    sized = dataclasses.replace(prompts, max_length=slots, row_length=slots)
    return build_dataset(sized, tokenizer, PROMPTS, "eval")


def asked(prompts: Dataset) -> Asked:
    """What was asked. Row r of the dataset holds the r-th prompt that fitted, which need not be the r-th record."""
    numbers = [item.row for item in prompts.rows.items]
    rows = [prompts.record(number) for number in numbers]
    return Asked([row["prompt"] for row in rows], rows, [prompts.where(number) for number in numbers])


def sample_answers(
    params: Params,
    config: ModelConfig,
    prompts: Dataset,
    tokenizer: Tokenizer,
    *,
    sampling: SamplingConfig,
    seed: int,
    batch_size: int,
) -> Answers:
    """One answer to each prompt; call inside `parallel.use_mesh`."""
    key = jax.random.key(seed)
    return answer(params, config, prompts, tokenizer, sampling=sampling, key=key, batch_size=batch_size)


def reward_judge(rewards: Rewards, *, batch_size: int) -> Judge:
    """Judges by reward functions; raises RewardError as `Rewards.score` does."""

    def score(asked: Asked, answers: Answers) -> np.ndarray:
        ids = [ids[said > 0].tolist() for ids, said in zip(answers.tokens, answers.mask, strict=True)]
        scores = rewards.score(
            asked.prompts,
            answers.texts,
            asked.rows,
            where=asked.where,
            completion_ids=ids,
            batch_size=batch_size,
        )
        return np.asarray(scores.total)

    return score


def measure_answers(
    asked: Asked,
    answers: Answers,
    *,
    judges: Mapping[str, Judge],
    other: Answers | None = None,
    config: ModelConfig | None = None,
    params: Params | None = None,
    reference: Params | None = None,
    base: Params | None = None,
    temperature: float = 1.0,
    batch_size: int = 64,
) -> Measured:
    """Measures answers to prompts; call inside `parallel.use_mesh`.

    Args:
      other: another model's answers to the same prompts, for the win rate by each judge.
      config: the architecture of `params` (the model that answered), `reference` and `base`, which KL and perplexity
        are measured by.

    Raises:
      ConfigError: a reference at temperature 0. NonFiniteError: a KL or a likelihood is NaN or infinite.
    """
    if reference is not None and temperature == 0:
        raise ConfigError(
            "--temperature=0: the KL of a distribution that is never sampled means nothing; leave out --reference, "
            "or set --temperature above 0"
        )
    scores = {name: judge(asked, answers) for name, judge in judges.items()}
    wins = {}
    if other is not None:
        wins = {name: win_rate(scores[name], judge(asked, other)) for name, judge in judges.items()}
    kl = perplexity = None
    if reference is not None:
        assert params is not None and config is not None
        at = {"batch_size": batch_size, "temperature": temperature}
        nats = sequence_kl(params, reference, config, answers, **at)
        check_finite(nats, config.dtype, asked.where.__getitem__, "answer")
        kl = mean_interval(nats)
    if base is not None:
        assert config is not None
        nll = sequence_nll(base, config, answers, batch_size=batch_size)
        check_finite(nll, config.dtype, asked.where.__getitem__, "answer")
        mean, low, high = np.exp(ratio_interval(nll, answers.lengths)).tolist()
        perplexity = (mean, low, high)
    return Measured(
        prompts=len(answers.texts),
        scores={name: mean_interval(values) for name, values in scores.items()},
        wins=wins,
        kl=kl,
        perplexity=perplexity,
        length=mean_interval(answers.lengths),
        stopped=float(answers.stopped.mean()),
    )
