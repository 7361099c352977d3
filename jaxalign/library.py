"""A model as an object: parameters, architecture and tokenizer together, on the devices of one mesh.

import jaxalign
model = jaxalign.load("runs/sft")        # a run, a Hugging Face folder or a hub name
model.generate("Who asks?", n=4, temperature=0.8)
model.score(["Who asks?"], [" The fox."])
"""

import dataclasses
import functools
import os
import tempfile
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign import parallel
from jaxalign.data import (
    DataConfig,
    Records,
    Tokenizer,
    dataset_from_records,
    eval_batches,
)
from jaxalign.data.encode import encode_completion
from jaxalign.data.items import Item
from jaxalign.data.kinds import DEMONSTRATIONS, PROMPTS
from jaxalign.data.packing import build_rows
from jaxalign.data.records import parse_record
from jaxalign.errors import ConfigError, DataError
from jaxalign.models import ModelConfig, Params, logits
from jaxalign.models.finite import check_ids
from jaxalign.models.scoring import score_tokens, segment_rewards
from jaxalign.sampling.answers import Answers, answer_batches
from jaxalign.sampling.generate import SamplingConfig
from jaxalign.storage import to_path
from jaxalign.tokens import check_tokens
from jaxalign.training.saved_model import find_model, save_model

Prompt = str | Sequence[dict[str, str]]  # text to go on with, or the messages of a conversation
FORMATS = ("jaxalign", "hf")


@dataclasses.dataclass(frozen=True)
class Sample:
    """A completion that a model has sampled."""

    prompt: list[int]
    tokens: list[int]  # what was sampled, the stop token included
    logprobs: list[float]  # of `tokens`, in nats, at the sampling temperature and over the whole vocabulary
    text: str  # without stop tokens
    stop_reason: str  # "stop": a stop token was sampled; "length": the limit was reached

    def datum(self, advantage: float) -> dict[str, list]:
        """Token-level data for `Session.forward_backward`: prompt and completion, which has this advantage."""
        before = [0.0] * len(self.prompt)
        return {
            "tokens": self.prompt + self.tokens,
            "logprobs": before + self.logprobs,
            "advantages": before + [float(advantage)] * len(self.tokens),
        }


@dataclasses.dataclass(frozen=True)
class Model:
    """A language model, or with `scalar` a reward model. `dataclasses.replace(model, params=...)` gives it others."""

    params: Params
    config: ModelConfig
    tokenizer: Tokenizer
    scalar: bool
    mesh: Mesh
    meta: dict[str, Any]  # what a saved model keeps beside its parameters

    def encode(self, text: str) -> list[int]:
        """The ids of a text, after BOS where the tokenizer has one."""
        bos = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        return bos + self.tokenizer.encode(text)

    def logits(self, text: str | Sequence[int]) -> jax.Array:
        """The logits of the token after each token of a text, or of given ids: float32 [T, V].

        Raises:
          ConfigError: it is a reward model, which has none. DataError: an id that the model does not have, or more of
            them than it is made for.
        """
        self._check_language_model("logits")
        ids = np.asarray([self.encode(text) if isinstance(text, str) else list(text)], np.int32)
        check_tokens(ids[0], self.config.vocab_size, self.config.max_length, "text")
        positions = np.arange(ids.size, dtype=np.int32)[None]
        with parallel.use_mesh(self.mesh):
            return _logits(self.params, self.config, ids, positions, np.ones_like(ids))[0]

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        n: int = 1,
        seed: int = 0,
        batch_size: int = 64,
        **sampling: Any,
    ) -> list[str] | list[list[str]]:
        """Samples n completions of each prompt, as text without stop tokens.

        Args:
          prompts: one prompt, whose completions come back as a list; or several, and a list for each.
          batch_size: completions at a time; they do not depend on it.
          sampling: fields of `SamplingConfig`: max_new_tokens, temperature, top_k, top_p, min_p, min_new_tokens,
            repetition_penalty, stop (a text or several).

        Raises:
          ConfigError: it is a reward model, or a value cannot work. DataError: a prompt cannot be used.
        """
        key = jax.random.key(seed)
        found = self.sample(prompts, n=n, key=key, batch_size=batch_size, sampling=SamplingConfig(**sampling))
        texts = [
            each.text if isinstance(each, Sample) else [sample.text for sample in each] for each in found
        ]
        return cast("list[str] | list[list[str]]", texts)

    def sample(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        n: int = 1,
        key: jax.Array,
        batch_size: int = 64,
        sampling: SamplingConfig | None = None,
    ) -> list[Sample] | list[list[Sample]]:
        """Samples as `generate` does, and returns tokens and log-probabilities beside the text."""
        self._check_language_model("completions")
        if n < 1 or batch_size < 1:
            raise ConfigError(f"n={n}, batch_size={batch_size}: both must be at least 1")
        single = _is_one(prompts)
        records = Records([{"prompt": p} for p in ([prompts] if single else prompts)], "prompts")
        if not len(records):
            return []
        dataset = dataset_from_records([records], DataConfig(), self.tokenizer, PROMPTS, "eval")
        with parallel.use_mesh(self.mesh):
            batches = answer_batches(
                self.params,
                self.config,
                dataset,
                self.tokenizer,
                sampling=sampling or SamplingConfig(),
                key=key,
                batch_size=min(batch_size, len(records) * n),
                samples=n,
            )
            samples = [_sample(answers, i) for answers in batches for i in range(len(answers.texts))]
        grouped = [samples[start : start + n] for start in range(0, len(samples), n)]
        return grouped[0] if single else grouped

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[Any], *, batch_size: int = 16
    ) -> np.ndarray:
        """One number for each completion after its prompt: float32 [N].

        A language model's is log p(completion | prompt) in nats, its stop token included; a reward model's its score.

        Args:
          completions: text after prompts of text; text, or messages of the assistant, after messages.

        Raises:
          ConfigError: one text in the place of a list. DataError: a completion cannot be used; names its number,
            counted from 1.
        """
        for name, given in (("prompts", prompts), ("completions", completions)):
            if isinstance(given, str):  # of which each character would be one
                raise ConfigError(f"{name}={given!r} is one text; write a list, [{given!r}]")
        examples = [
            _encode_pair(prompt, completion, self.tokenizer, f"completions:{i}")
            for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), 1)
        ]
        if not examples:
            return np.zeros(0, np.float32)
        width = max(len(example.ids) for example in examples)
        if width > self.config.max_length:
            number = next(i for i, example in enumerate(examples, 1) if len(example.ids) == width)
            raise DataError(
                f"completions:{number}: {width} tokens with its prompt, and the model is made for "
                f"{self.config.max_length}; shorten it"
            )
        rows = build_rows([examples], DEMONSTRATIONS, row_length=width, max_segments=1, packing=False)
        read = _rewards if self.scalar else _log_probabilities
        parts = []
        with parallel.use_mesh(self.mesh):
            for batch in eval_batches(rows, min(batch_size, len(rows))):
                check_ids(batch.tokens, self.config)
                arrays = (batch.tokens, batch.positions, batch.segment_ids, batch.loss_mask)
                parts.append(read(self.params, self.config, *arrays))
        return np.concatenate(jax.device_get(parts))[: len(rows)]

    def save(self, folder: str | os.PathLike, *, format: str = "jaxalign") -> None:
        """Writes the model into a new folder, for `load`, or with format "hf" for transformers, vLLM and the like.

        Raises:
          ConfigError: the folder is not empty, or Hugging Face has no architecture for the model.
        """
        from jaxalign.verbs.convert import ConvertRequest, convert

        if format not in FORMATS:
            raise ConfigError(f"format={format!r} is not one of {', '.join(FORMATS)}")
        with tempfile.TemporaryDirectory() as made:
            with parallel.use_mesh(self.mesh):
                parts = (to_path(made), self.params, self.config, self.tokenizer)
                save_model(*parts, scalar=self.scalar, meta=self.meta)
            convert(ConvertRequest(made, str(folder), format))

    def _check_language_model(self, what: str) -> None:
        if self.scalar:
            raise ConfigError(f"a reward model has no {what}; load a language model")


def load(
    path: str | os.PathLike, *, dtype: str = "float32", chat_template: str = "", template_args: str = ""
) -> Model:
    """Loads a model onto the first device.

    Args:
      path: a run, the folder of a model, a Hugging Face folder, or the name of a model on the hub.
      dtype: of the computation: float32, bfloat16 or float16. Parameters are float32.
      chat_template: a Jinja file to be used instead of the model's own.
      template_args: values of variables that the template reads, such as "enable_thinking=False".

    Raises:
      CheckpointError, ConfigError: there is no model, or it is damaged or of an unknown kind.
    """
    found = find_model(str(path), "path")
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    with parallel.use_mesh(mesh):
        params = found.load(mesh)
    config = dataclasses.replace(found.config, dtype=dtype)
    tokenizer = found.tokenizer(str(chat_template), template_args)
    return Model(params, config, tokenizer, found.scalar, mesh, found.meta)


def _is_one(prompts: Prompt | Sequence[Prompt]) -> bool:
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], dict))


def _sample(answers: Answers, i: int) -> Sample:
    said = answers.mask[i] > 0
    length = int(said.sum())
    return Sample(
        prompt=answers.tokens[i][(answers.segment_ids[i] > 0) & ~said].tolist(),
        tokens=answers.tokens[i][said].tolist(),
        logprobs=answers.logp[i, :length].tolist(),
        text=answers.texts[i],
        stop_reason="stop" if answers.stopped[i] else "length",
    )


def _encode_pair(prompt: Prompt, completion: Any, tokenizer: Tokenizer, where: str) -> Item:
    if not isinstance(prompt, str) and isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    # "finished": the completion is taken as it is, though it may begin as its prompt does.
    row = {"prompt": prompt, "completion": completion, "finished": True}
    record: Any = parse_record(row, DEMONSTRATIONS, where)
    return encode_completion(record, tokenizer)


_logits = jax.jit(logits, static_argnames="config")


@functools.partial(jax.jit, static_argnames="config")
def _log_probabilities(params, config, tokens, positions, segment_ids, mask):
    return jnp.sum(score_tokens(params, config, tokens, positions, segment_ids).logp * mask, axis=1)


@functools.partial(jax.jit, static_argnames="config")
def _rewards(params, config, tokens, positions, segment_ids, mask):
    return segment_rewards(params, config, tokens, positions, segment_ids, 1)[:, 0]
