"""Answers to a whole set of prompts, and what models say of them."""

import bisect
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.data import Dataset, PromptBatch, Tokenizer
from jaxalign.data.packing import collate
from jaxalign.models import ModelConfig, Params
from jaxalign.models.finite import check_finite, check_ids
from jaxalign.models.scoring import exact_kl, score_tokens, segment_rewards
from jaxalign.parallel import batch_sharding
from jaxalign.sampling.generate import SamplingConfig, check_request, generate, join


@dataclasses.dataclass(frozen=True)
class Answers:
    """N answers, in the order of the prompts. Arrays are NumPy, T = prompt slots + new tokens."""

    texts: list[str]
    stopped: np.ndarray  # [N] bool: ended by a stop token
    tokens: np.ndarray  # [N, T] int32, prompt and answer
    positions: np.ndarray  # [N, T] int32
    segment_ids: np.ndarray  # [N, T] int32
    mask: np.ndarray  # [N, T] float32, 1 on the answer
    # [N, new tokens] float32, at the sampling temperature, over the whole vocabulary
    logp: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """[N] tokens of each answer, the stop token among them."""
        return self.mask.sum(1)


def answer(
    params: Params,
    config: ModelConfig,
    prompts: Dataset,
    tokenizer: Tokenizer,
    *,
    sampling: SamplingConfig,
    key: jax.Array,
    batch_size: int,
) -> Answers:
    """Samples one answer to every prompt of a dataset of kind "prompt"; see `answer_batches`."""
    parts = list(
        answer_batches(params, config, prompts, tokenizer, sampling=sampling, key=key, batch_size=batch_size)
    )
    arrays = ("stopped", "tokens", "positions", "segment_ids", "mask", "logp")
    texts = [text for part in parts for text in part.texts]
    return Answers(texts, *(np.concatenate([getattr(part, name) for part in parts]) for name in arrays))


def answer_batches(
    params: Params,
    config: ModelConfig,
    prompts: Dataset,
    tokenizer: Tokenizer,
    *,
    sampling: SamplingConfig,
    key: jax.Array,
    batch_size: int,
    samples: int = 1,
    start: int = 0,
) -> Iterator[Answers]:
    """Answers from number `start` on, a batch at a time; number i * samples + j is the j-th to the i-th prompt.

    An answer depends on `key` and its number, not on `batch_size` or `start`. Empty rows fill the last batch, so
    that all batches have one shape and compile once.

    Raises:
      ConfigError: see `check_request`. NonFiniteError: the model gives no numbers to sample by.
    """
    mesh = jax.sharding.get_mesh()
    check_request(config, prompts.rows.row_length, sampling.max_new_tokens, tokenizer.eos_ids)
    total = len(prompts.rows) * samples
    for first in range(start, total, batch_size):
        numbers = np.arange(first, first + batch_size, dtype=np.int32)
        live = numbers < total
        indices = np.where(live, numbers // samples, -1)
        collated: Any = collate(prompts.rows, indices.tolist())
        check_ids(collated.tokens, config)
        batch: PromptBatch = jax.device_put(collated, batch_sharding(mesh))
        completions = generate(
            params,
            config,
            batch.tokens,
            batch.positions,
            batch.segment_ids,
            key,
            sampling=sampling,
            stop_ids=tokenizer.eos_ids,
            rows=numbers,
        )
        joined = join(batch.tokens, batch.positions, batch.segment_ids, completions)
        tokens, positions, segment_ids, mask, stopped, logp = (
            np.array(x[live]) for x in jax.device_get((*joined, completions.stopped, completions.logp))
        )
        check_finite(logp, config.dtype, functools.partial(_where, prompts, indices[live]), "answer")
        texts = []
        for row, (ids, said) in enumerate(zip(tokens, mask, strict=True)):
            written = [int(i) for i in ids[said > 0]]
            text, kept, found = cut_at_stop(written, tokenizer, sampling.stops, sampling.min_new_tokens)
            texts.append(text)
            if found:
                gone = np.flatnonzero(said)[kept:]
                for x in (tokens, positions, segment_ids, mask):
                    x[row, gone] = 0
                logp[row, kept:], stopped[row] = 0, True
        yield Answers(texts, stopped, tokens, positions, segment_ids, mask, logp)


def _where(prompts: Dataset, indices: np.ndarray, row: int) -> str:
    return prompts.where(prompts.rows.items[int(indices[row])].row)


def answer_text(ids: Iterable[int], tokenizer: Tokenizer) -> str:
    """The text of sampled ids, without the stop token that ended them."""
    return tokenizer.decode_answer(int(i) for i in ids if i not in tokenizer.eos_ids)


def cut_at_stop(
    ids: Sequence[int], tokenizer: Tokenizer, stops: Sequence[str], least: int = 0
) -> tuple[str, int, bool]:
    """The text of a completion, stop tokens left out, that stands before the first stop string.

    Args:
      least: tokens before whose end no stop string ends a completion, as `SamplingConfig.min_new_tokens`.

    Returns:
      The text, how many of the tokens reach to that string's end, and whether there is one.
    """

    def decode(count: int) -> str:
        return answer_text(ids[:count], tokenizer)

    text, before = decode(len(ids)), len(decode(least)) if least else 0

    def find(text: str) -> list[int]:
        """Where stop strings begin that end behind the first tokens."""
        found = (text.find(stop, max(0, before - len(stop) + 1)) for stop in stops)
        return [place for place in found if place >= 0]

    places = find(text)
    if not places:
        return text, len(ids), False
    # The shortest beginning that holds a stop string: text only grows with tokens.
    kept = bisect.bisect_left(range(len(ids)), True, key=lambda n: bool(find(decode(n))))
    return text[: min(places)], kept, True


@functools.partial(jax.jit, static_argnames=("config", "temperature"))
def _kl(params, reference, config, tokens, positions, segment_ids, mask, temperature):
    kl = exact_kl(params, reference, config, tokens, positions, segment_ids, temperature=temperature)
    return jnp.sum(kl * mask, axis=1)


@functools.partial(jax.jit, static_argnames=("config",))
def _nll(params, config, tokens, positions, segment_ids, mask):
    return -jnp.sum(score_tokens(params, config, tokens, positions, segment_ids).logp * mask, axis=1)


@functools.partial(jax.jit, static_argnames=("config",))
def _rewards(params, config, tokens, positions, segment_ids, mask):
    del mask
    return segment_rewards(params, config, tokens, positions, segment_ids, 1)[:, 0]


def sequence_kl(
    params: Params,
    reference: Params,
    config: ModelConfig,
    answers: Answers,
    *,
    batch_size: int,
    temperature: float = 1.0,
) -> np.ndarray:
    """KL(policy || reference) along each answer that the policy sampled, in nats: float32 [N].

    The sum over the answer's positions of the KL of the whole next-token distribution: its mean over answers
    estimates the KL of the two distributions of sequences without bias, with less noise than log-ratios.
    """
    parts = [
        _kl(params, reference, config, *batch, temperature=temperature)
        for batch in _batches(answers, batch_size)
    ]
    return np.concatenate(jax.device_get(parts))[: len(answers.texts)]


def sequence_nll(params: Params, config: ModelConfig, answers: Answers, *, batch_size: int) -> np.ndarray:
    """-log p(answer | prompt) of each answer under a language model, in nats: float32 [N]."""
    parts = [_nll(params, config, *batch) for batch in _batches(answers, batch_size)]
    return np.concatenate(jax.device_get(parts))[: len(answers.texts)]


def sequence_rewards(params: Params, config: ModelConfig, answers: Answers, *, batch_size: int) -> np.ndarray:
    """A reward model's score of each answer, read at its last token, as sampled: float32 [N]."""
    parts = [_rewards(params, config, *batch) for batch in _batches(answers, batch_size)]
    return np.concatenate(jax.device_get(parts))[: len(answers.texts)]


def _batches(answers: Answers, batch_size: int) -> Iterator[tuple]:
    """Answers in batches of one shape, the last one filled up with empty rows."""
    mesh = jax.sharding.get_mesh()
    arrays = (answers.tokens, answers.positions, answers.segment_ids, answers.mask)
    layout = batch_sharding(mesh) if mesh.size > 1 else NamedSharding(mesh, PartitionSpec())
    for start in range(0, len(answers.texts), batch_size):
        part = [x[start : start + batch_size] for x in arrays]
        missing = batch_size - len(part[0])
        yield tuple(jax.device_put(np.pad(x, ((0, missing), (0, 0))), layout) for x in part)
