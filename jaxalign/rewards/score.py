"""Several reward functions as one reward: a weighted sum, with the scores of each for metrics."""

import asyncio
import atexit
import dataclasses
import functools
import inspect
import math
import threading
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import ConfigError, RewardError
from jaxalign.losses.metrics import Metrics, masked_mean, masked_std
from jaxalign.rewards.functions import Episodes, Failed, RewardFunction, TrainerState
from jaxalign.rewards.imports import import_reward_function, read_form

UNSCORED = ("error", "nan")


class Scores(NamedTuple):
    """Scores of E completions. NaN stands where a function does not apply, in `total` where none does."""

    total: np.ndarray  # float64 [E], the weighted sum over the functions that apply
    each: dict[str, np.ndarray]  # float64 [E] by name of function, without weights


@dataclasses.dataclass(frozen=True)
class Rewards:
    """Reward functions of distinct names and their weights; see `load_rewards`."""

    functions: tuple[RewardFunction, ...]
    weights: tuple[float, ...]

    def score(
        self,
        prompts: Sequence[Any],
        texts: Sequence[str],
        rows: Sequence[Mapping[str, Any]] | None = None,
        *,
        where: Sequence[str] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: TrainerState | None = None,
        unscored: str = "error",
        batch_size: int = 0,
    ) -> Scores:
        """Scores completions by every function; those that are `async` wait for their answers together.

        Args:
          prompts: E prompts, text or messages, as the data has them.
          texts: E completions.
          rows: the fields of the row that each prompt is from; functions take them by name.
          where: `file:row` of each, for errors.
          completion_ids: the tokens of each completion.
          unscored: what becomes of a completion to which no function applies: "error", or "nan" in its total.
          batch_size: completions of one call; 0: all.

        Raises:
          RewardError: a function failed, or a row lacks a field that it asks for; names function, row and input.
        """
        if unscored not in UNSCORED:
            raise ValueError(f"unscored={unscored!r} is not one of {', '.join(UNSCORED)}")
        rows = [{}] * len(texts) if rows is None else rows
        episodes = Episodes(prompts, texts, rows, where, completion_ids, trainer_state)
        size = batch_size or max(1, len(episodes))
        parts = [episodes.part(i, i + size) for i in range(0, len(episodes), size)]
        columns = [_call_all(self.functions, part) for part in parts]
        each = {
            function.name: np.concatenate([np.zeros(0), *(column[i] for column in columns)])
            for i, function in enumerate(self.functions)
        }
        total = weighted_total(list(each.values()), self.weights)
        if unscored == "error" and np.isnan(total).any():
            names = ", ".join(each)
            first = episodes.describe(int(np.isnan(total).argmax()))
            raise RewardError(
                f"no reward function ({names}) returned a number for {first}; at least one must apply to every "
                "completion"
            )
        return Scores(total, each)


def load_rewards(
    names: Sequence[str], weights: Sequence[float] = (), key: str = "names", weights_key: str = "weights"
) -> Rewards:
    """Imports reward functions, each named `module:function` or `FILE.py:function`.

    Their names in metrics and errors are what stands after the colon; the second of one name is `name_2`.

    Args:
      weights: of each in the sum; () is 1 for all.
      key, weights_key: where names and weights were given, for errors.

    Raises:
      ConfigError: one cannot be imported or has a wrong signature, or the weights do not fit.
    """
    if not names:
        raise ConfigError(f"{key} names no reward function; write FILE.py:function, or module:function")
    if weights and len(weights) != len(names):
        raise ConfigError(
            f"{weights_key}={tuple(weights)} has {len(weights)} numbers for the {len(names)} functions of {key}; give "
            "one for each, or none"
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise ConfigError(f"{weights_key}={tuple(weights)} must hold finite numbers")
    functions: list[RewardFunction] = []
    files: dict[str, ModuleType] = {}
    for name in names:
        function = import_reward_function(name, key, files)
        called = _distinct(name.rpartition(":")[2], [f.name for f in functions])
        functions.append(read_form(function, called, f"{key}={name!r}"))
    return Rewards(tuple(functions), tuple(float(weight) for weight in weights or (1.0,) * len(names)))


def weighted_total(each: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Σ weight · score over the scores that are not NaN, as in TRL: float64 [E], NaN where all are."""
    scores = np.stack([np.asarray(x, np.float64) for x in each])
    total = np.nansum(np.asarray(weights, np.float64)[:, None] * scores, axis=0)
    return np.where(np.isnan(scores).all(axis=0), np.nan, total)


@jax.jit
def reward_metrics(each: Mapping[str, jax.Array], mask: jax.Array) -> Metrics:
    """`rewards/<name>/mean` and `rewards/<name>/std` of scores without weights, over completions they apply to.

    Args:
      each: float32 [E] by name of function, NaN where it does not apply.
      mask: float32 [E], 1 for a completion that counts.
    """
    metrics: Metrics = {}
    for name, scores in each.items():
        applies = mask * (1.0 - jnp.isnan(scores).astype(jnp.float32))
        metrics[f"rewards/{name}/mean"] = masked_mean(scores, applies)
        metrics[f"rewards/{name}/std"] = masked_std(scores, applies)
    return metrics


def _distinct(name: str, taken: Sequence[str]) -> str:
    if name not in taken:
        return name
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _call_all(functions: Sequence[RewardFunction], episodes: Episodes) -> list[np.ndarray]:
    """The scores of each function: float64 [E]."""
    for function in functions:
        function.check_rows(episodes)
    results = [function.call(episodes) for function in functions]
    waiting = [
        (i, j) for i, found in enumerate(results) for j, x in enumerate(found) if inspect.isawaitable(x)
    ]
    if waiting:
        for (i, j), result in zip(waiting, _await([results[i][j] for i, j in waiting]), strict=True):
            results[i][j] = result
    were_awaited = {i for i, _ in waiting}
    return [
        function.scores(found, episodes, awaited=i in were_awaited)
        for i, (function, found) in enumerate(zip(functions, results, strict=True))
    ]


def _await(awaitables: Sequence[Any]) -> list[Any]:
    """Waits for all at once; an exception is returned as `Failed`."""

    async def settled(awaitable: Any) -> Any:
        try:
            return await awaitable
        # One that left its task would end the event loop, if it is a SystemExit.
        except BaseException as error:
            return Failed(error)

    async def together() -> list[Any]:
        return await asyncio.gather(*map(settled, awaitables))

    future = asyncio.run_coroutine_threadsafe(together(), _event_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One event loop as long as this process lives, in a thread of its own.

    A client that a user's module keeps between calls belongs to the loop of the first one; and the caller may have a
    loop already, as a notebook does.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="reward functions")
    thread.start()

    def stop() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    atexit.register(stop)
    return loop
