"""A model's answers to a file of prompts, measured by a reward function and by the model it came from."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.data import DataConfig, build_dataset, load_tokenizer
from jaxalign.data.invalid import BadRow
from jaxalign.errors import ConfigError
from jaxalign.evaluation.intervals import Interval, mean_interval
from jaxalign.models import ModelConfig, Params
from jaxalign.rewards import Rewards
from jaxalign.sampling.answers import Answers, answer, sequence_kl, sequence_nll
from jaxalign.sampling.generate import SamplingConfig


@dataclasses.dataclass(frozen=True)
class Measured:
    """Means over prompts with 95 % intervals, and the answers."""

    score: Interval  # of the reward functions
    kl: Interval | None  # sequence KL from the reference, nats
    # Of the answers under the base model, a token: reward bought with gibberish shows here.
    perplexity: float | None
    length: Interval  # tokens
    stopped: float  # share of answers that ended by themselves
    prompts: list[Any]
    texts: list[str]
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)  # prompts, by reason
    invalid: tuple[BadRow, ...] = ()  # those among them that could not be used


def measure_answers(
    params: Params,
    reference: Params | None,
    base: Params | None,
    config: ModelConfig,
    tokenizer_path: str | os.PathLike,
    prompts: DataConfig,
    rewards: Rewards,
    *,
    sampling: SamplingConfig,
    prompt_slots: int,
    seed: int = 0,
    batch_size: int = 64,
    template_args: str = "",
    keep: Callable[[Sequence[Any], Answers], None] | None = None,
) -> Measured:
    """Samples one answer to each prompt; call inside `parallel.use_mesh`.

    Args:
      prompts: names them as its held-out data.
      reference, base: the models that KL and perplexity are measured by, of the architecture of the first.
      template_args: values of variables that the chat template reads; see `parse_template_args`.
      keep: is given prompts and answers before they are judged, which may fail.

    Raises:
      ConfigError: a reference at temperature 0, or no prompt fits in `prompt_slots` tokens.
      RewardError: a reward function failed; see `Rewards.score`.
    """
    if reference is not None and sampling.temperature == 0:
        raise ConfigError(
            "--temperature=0: the KL of a distribution that is never sampled means nothing; leave out --reference, "
            "or set --temperature above 0"
        )
    tokenizer = load_tokenizer(tokenizer_path, template_args=template_args)
    data = dataclasses.replace(prompts, max_length=prompt_slots, row_length=prompt_slots)
    dataset = build_dataset(data, tokenizer, "prompt", "eval")
    key = jax.random.key(seed)
    answers: Answers = answer(
        params, config, dataset, tokenizer, sampling=sampling, key=key, batch_size=batch_size
    )
    # Row r holds the r-th prompt that fitted, which need not be the r-th record.
    rows = [dataset.record(item.row) for item in dataset.rows.items]
    asked = [row["prompt"] for row in rows]
    if keep is not None:
        keep(asked, answers)
    scores = rewards.score(
        asked,
        answers.texts,
        rows,
        where=[dataset.where(item.row) for item in dataset.rows.items],
        completion_ids=[
            ids[said > 0].tolist() for ids, said in zip(answers.tokens, answers.mask, strict=True)
        ],
        batch_size=batch_size,
    )
    kl = perplexity = None
    if reference is not None:
        at = {"batch_size": batch_size, "temperature": sampling.temperature}
        kl = mean_interval(sequence_kl(params, reference, config, answers, **at))
    if base is not None:
        nll = sequence_nll(base, config, answers, batch_size=batch_size)
        perplexity = float(np.exp(nll.sum() / answers.lengths.sum()))
    return Measured(
        score=mean_interval(scores.total),
        kl=kl,
        perplexity=perplexity,
        length=mean_interval(answers.lengths),
        stopped=float(answers.stopped.mean()),
        prompts=asked,
        texts=answers.texts,
        left_out=dataset.report.dropped,
        invalid=dataset.invalid,
    )
