"""What a loss is made of when it is asked for by itself, as in a `Session`: its objective, its batch, its models."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxalign.data import PROMPTS, DataConfig, Records, dataset_from_records, eval_batches
from jaxalign.errors import ConfigError, DataError
from jaxalign.library import Model, load
from jaxalign.losses.metrics import Metrics
from jaxalign.models import ModelConfig, Params
from jaxalign.models.scoring import Scores, score_batch
from jaxalign.sections import freeze
from jaxalign.stages import find_stage
from jaxalign.tokens import TOKEN_LOSSES, TokenBatch, encode_tokens, slots, token_loss
from jaxalign.training.stage import Stage, add_router_losses, check_loss, real_tokens

Loss = str | Stage | Callable[[Scores, TokenBatch], tuple[jax.Array, Metrics]]


@dataclasses.dataclass(frozen=True)
class Asked:
    """An objective and its arguments."""

    objective: Callable[..., tuple[jax.Array, tuple[Metrics, jax.Array | None]]]  # of (params, batch, frozen)
    batch: Any
    frozen: dict[str, Params]
    lengths: list[int]  # tokens of each datum; empty for rows


def prepare(
    model: Model,
    others: dict[str, Model],
    data: Sequence[Mapping[str, Any]],
    loss_fn: Loss,
    settings: Mapping[str, Any],
) -> Asked:
    """The objective of a loss and its arguments.

    Args:
      others: models that losses have read so far, by their path; those of this one are added.

    Raises:
      DataError: a row cannot be used. ConfigError: no such loss or option, or one that is not for these data.
    """
    data = list(data)
    if not data:
        raise DataError("data: there are none; give at least one row")
    if isinstance(loss_fn, Stage) or (isinstance(loss_fn, str) and loss_fn not in TOKEN_LOSSES):
        stage = find_stage(loss_fn) if isinstance(loss_fn, str) else loss_fn
        _check_trains(stage, model)
        options = freeze(stage.options, ConfigDict(dict(settings)), f"config.{stage.name}")
        frozen = _frozen(model, others, stage, options)
        objective = _stage_objective(
            stage, options, model.config, tuple((name, other.config) for name, other in frozen.items())
        )
        batch = _rows(data, stage, model)
        return Asked(objective, batch, {name: other.params for name, other in frozen.items()}, [])
    bound: tuple[tuple[str, Any], ...] = ()
    needed: tuple[str, ...] = ()
    if isinstance(loss_fn, str):
        bound, needed = token_loss(loss_fn, settings)
        loss_fn = TOKEN_LOSSES[loss_fn][0]
    elif settings:
        raise ConfigError(
            "loss_fn_config is for stages and named losses; bind a function's with functools.partial"
        )
    if model.scalar:
        raise ConfigError(
            "a reward model has no log-probabilities; use a stage that trains one, such as 'reward'"
        )
    batch = encode_tokens(data, model.config.vocab_size, model.config.max_length, needed)
    objective = _token_objective(loss_fn, bound, model.config)
    return Asked(objective, batch, {}, [len(datum["tokens"]) for datum in data])


def _check_trains(stage: Stage, model: Model) -> None:
    """Raises ConfigError unless the stage learns from given data, and trains models like this one."""
    if stage.data == PROMPTS:
        raise ConfigError(
            f"stage {stage.name!r} samples by itself; here call sample, and forward_backward with 'ppo' or "
            "'importance_sampling' on what it returns"
        )
    if stage.scalar != model.scalar:
        kinds = ("language model", "reward model")
        raise ConfigError(
            f"stage {stage.name!r} trains a {kinds[stage.scalar]}, and the session has a {kinds[model.scalar]}"
        )


def _rows(data: list[Mapping[str, Any]], stage: Stage, model: Model) -> Any:
    """A batch of rows, one sequence, pair or ranking in each."""
    longest = model.config.max_length
    config = DataConfig(max_length=longest, row_length=2 * longest, packing=False, overlong="error")
    rows = dataset_from_records([Records(data, "data")], config, model.tokenizer, stage.data, "eval").rows
    width = slots(max(len(item.ids) for item in rows.items))
    return next(eval_batches(dataclasses.replace(rows, row_length=width), len(rows)))


def _frozen(model: Model, others: dict[str, Model], stage: Stage, options: Any) -> dict[str, Model]:
    """The models that the loss of a stage reads."""
    out: dict[str, Model] = {}
    for name, wanted in stage.frozen(options).items():
        if wanted.precompute:
            raise ConfigError(
                f"stage {stage.name!r} would have {name!r} score all data before training; here it scores each batch: "
                "leave that option off"
            )
        if wanted.path and wanted.path not in others:
            other = load(wanted.path, dtype=model.config.dtype)
            if other.scalar or not _same_tokenizer(other, model):
                raise ConfigError(
                    f"{wanted.key}={wanted.path!r} must be a language model with the tokenizer of the session's"
                )
            others[wanted.path] = other
        out[name] = others[wanted.path] if wanted.path else model
    return out


def _same_tokenizer(a: Model, b: Model) -> bool:
    text = "The quick brown fox, 12 élans & 狐?\n"
    one, two = a.tokenizer, b.tokenizer
    return (
        one.vocab_size == two.vocab_size
        and one.encode(text) == two.encode(text)
        and one.eos_ids == two.eos_ids
    )


@functools.lru_cache(maxsize=32)
def _stage_objective(
    stage: Stage, options: Any, model: ModelConfig, others: tuple[tuple[str, ModelConfig], ...]
) -> Callable:
    loss = stage.objective(model, options, dict(others))
    totals = stage.total(model, options, dict(others))

    def objective(
        params: Params, batch: Any, frozen: dict[str, Params]
    ) -> tuple[jax.Array, tuple[Metrics, None]]:
        value, metrics = loss(params, batch, totals(params, batch, frozen), frozen)
        return value, (metrics, None)

    return objective


@functools.lru_cache(maxsize=32)
def _token_objective(
    loss_fn: Callable, settings: tuple[tuple[str, Any], ...], model: ModelConfig
) -> Callable:
    where = f"loss_fn {getattr(loss_fn, '__qualname__', repr(loss_fn))}"

    def objective(
        params: Params, batch: TokenBatch, frozen: dict
    ) -> tuple[jax.Array, tuple[Metrics, jax.Array]]:
        policy = score_batch(params, model, batch)
        value, metrics = check_loss(loss_fn(policy, batch, **dict(settings)), where)
        value, metrics = add_router_losses(value, metrics, policy.router, batch, real_tokens(batch), model)
        return value, (metrics, policy.logp)

    return objective
