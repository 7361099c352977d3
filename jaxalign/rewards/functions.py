"""One reward function: called by its form, and what it returns checked."""

import dataclasses
import pathlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.errors import ConfigError, RewardError

# Training computes with scores in float32.
LARGEST = float(np.finfo(np.float32).max)
# These of a row's fields are not passed on: the prompt is given already, the completion is another.
NOT_FIELDS = ("prompt", "completion", "completion_ids")
_SEARCH_SECONDS = 2.0
_FOLDER = str(pathlib.Path(__file__).parent)


@dataclasses.dataclass(frozen=True)
class TrainerState:
    """What TRL's reward functions may ask of a training run, as their argument `trainer_state`."""

    global_step: int  # updates made so far
    max_steps: int


@dataclasses.dataclass(frozen=True)
class Episodes:
    """E completions, and what is known of each."""

    prompts: Sequence[Any]  # text, or the messages of a conversation, as the data has them
    texts: Sequence[str]  # the completions
    rows: Sequence[Mapping[str, Any]]  # all fields of the rows that the prompts are from
    where: Sequence[str] | None = None  # `file:row` of each
    completion_ids: Sequence[Sequence[int]] | None = None  # the tokens of each completion
    trainer_state: TrainerState | None = None

    def __post_init__(self) -> None:
        for name in ("prompts", "rows", "where", "completion_ids"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.texts):
                raise ValueError(f"{len(self.texts)} completions, but {len(column)} {name}; give one of each")

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, start: int, stop: int) -> "Episodes":
        """The episodes from number `start` to `stop` - 1."""
        columns = (self.prompts, self.texts, self.rows, self.where, self.completion_ids)
        parts: Any = [x if x is None else x[start:stop] for x in columns]
        return Episodes(*parts, trainer_state=self.trainer_state)

    def describe(self, i: int) -> str:
        """One episode, for an error message."""
        place = f"{self.where[i]}, " if self.where is not None else ""
        return f"{place}prompt {shorten(self.prompts[i])}, completion {shorten(self.texts[i])}"


@dataclasses.dataclass(frozen=True)
class Failed:
    """Stands in place of a result: the exception that came instead."""

    error: BaseException


@dataclasses.dataclass(frozen=True)
class RewardFunction:
    """A function and its form, which `imports.read_form` finds out."""

    name: str
    function: Callable[..., Any]
    batched: bool  # whether one call takes all completions
    required: tuple[str, ...] = ()  # parameters without a default
    optional: tuple[str, ...] = ()  # and those with one
    rest: bool = False  # whether it takes all fields of the rows, as **fields
    positional: bool = False  # it has two parameters of other names, which are prompt and completion

    def check_rows(self, episodes: Episodes) -> None:
        """Checks that every row has the fields that the function requires.

        Raises:
          RewardError: names the function, the parameter, and the fields that the row has.
        """
        given = self._given(episodes)
        for name in self.required:
            if name in given:
                continue
            asks = f"the reward function {self.name} has a parameter {name}"
            if name in ("completion_ids", "trainer_state"):
                raise RewardError(f"{asks}, which is known in training only; give the parameter a default")
            for i, row in enumerate(episodes.rows):
                if name in NOT_FIELDS or name not in row:
                    fields = ", ".join(field for field in row if field not in NOT_FIELDS) or "none"
                    place = "the row" if episodes.where is None else episodes.where[i]
                    raise RewardError(
                        f"{asks}, and {place} has no such field (beside the prompt it has: {fields}); add the field, "
                        "null where it does not apply, or give the parameter a default"
                    )

    def call(self, episodes: Episodes) -> list[Any]:
        """Calls the function on rows that have been checked; results may still have to be awaited.

        Returns:
          A result for each episode, or the single one of a function of batches. After a `Failed` one none follow.
        """
        results: list[Any] = []
        for by_position, by_name in self._arguments(episodes):
            try:
                results.append(self.function(*by_position, **by_name))
            except (Exception, SystemExit) as error:
                return [*results, Failed(error)]
        return results

    def scores(self, results: Sequence[Any], episodes: Episodes, *, awaited: bool) -> np.ndarray:
        """The scores in the results of `call`, awaited where `awaited`: float64 [E], NaN where one is None.

        Raises:
          RewardError: the function failed, or did not return a number for each episode.
        """
        if self.batched:
            (result,) = results
            if isinstance(result, Failed):
                raise self._failure(result.error, episodes, self._find(episodes, awaited))
            results = self._one_each(result, len(episodes))
        scores = np.zeros(len(episodes))
        for i, result in enumerate(results):
            if isinstance(result, Failed):
                raise self._failure(result.error, episodes, i)
            scores[i] = np.nan if result is None else self._number(result, episodes, i)
        return scores

    def _given(self, episodes: Episodes) -> dict[str, Sequence[Any]]:
        """What is no field of a row, by the name of its parameter: E values each."""
        given: dict[str, Sequence[Any]] = {"prompt": episodes.prompts, "completion": episodes.texts}
        if self.batched:
            # As in TRL: a completion has the form of its prompt.
            answers = [
                text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
                for prompt, text in zip(episodes.prompts, episodes.texts, strict=True)
            ]
            given = {"prompts": list(episodes.prompts), "completions": answers}
        if episodes.completion_ids is not None:
            given["completion_ids"] = list(episodes.completion_ids)
        if episodes.trainer_state is not None:
            given["trainer_state"] = [episodes.trainer_state] * len(episodes)
        return given

    def _arguments(self, episodes: Episodes) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The arguments of each call, by position and by name."""
        if self.positional:
            yield from (((p, t), {}) for p, t in zip(episodes.prompts, episodes.texts, strict=True))
            return
        given = self._given(episodes)
        wanted = {*self.required, *self.optional}
        names = dict.fromkeys(name for row in episodes.rows for name in row if name not in NOT_FIELDS)
        taken = [name for name in (*given, *names) if self.rest or name in wanted]
        if self.batched:
            columns: dict[str, Any] = {
                name: given[name] if name in given else [row.get(name) for row in episodes.rows]
                for name in taken
            }
            if "trainer_state" in columns and episodes.trainer_state is not None:
                columns["trainer_state"] = episodes.trainer_state
            yield (), columns
            return
        for i, row in enumerate(episodes.rows):
            yield (), {n: given[n][i] if n in given else row[n] for n in taken if n in given or n in row}

    def _find(self, episodes: Episodes, awaited: bool) -> int | None:
        """The episode at which a function of batches fails, by giving it one alone after the other for a while."""
        if len(episodes) == 1:
            return 0
        until = time.monotonic() + _SEARCH_SECONDS
        for i in range(0 if awaited else len(episodes)):
            if isinstance(self.call(episodes.part(i, i + 1))[0], Failed):
                return i
            if time.monotonic() > until:
                break
        return None

    def _failure(self, error: BaseException, episodes: Episodes, i: int | None) -> BaseException:
        """What to raise for an exception from the function, at episode `i` or somewhere among all of them."""
        if isinstance(error, ConfigError | KeyboardInterrupt):
            return error
        if i is None:
            given = f"{len(episodes)} completions, the first of {episodes.describe(0)}"
        else:
            given = episodes.describe(i)
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame for frame in frames if not frame.filename.startswith(_FOLDER)]
        line = f" (in {theirs[0].filename}, line {theirs[0].lineno})" if theirs else ""
        failure = RewardError(
            f"the reward function {self.name} raised {type(error).__name__}: {error} for {given}{line}; it must "
            f"return {'numbers' if self.batched else 'a number'} for any text, the empty one too"
        )
        failure.__cause__ = error
        return failure

    def _one_each(self, result: Any, count: int) -> list[Any]:
        """The values in the result of a function of batches."""
        values = None
        if not isinstance(result, str | bytes | Mapping | set):
            try:
                values = list(result)
            except TypeError:  # not iterable
                pass
        if values is None or len(values) != count:
            found = shorten(result) if values is None else f"{len(values)} values"
            raise RewardError(
                f"the reward function {self.name} returned {found} for {count} completions; a function with this "
                "signature takes a batch: return a list of one number for each completion, in their order"
            )
        return values

    def _number(self, value: Any, episodes: Episodes, i: int) -> float:
        number = None
        if not isinstance(value, str | bytes):
            try:
                # Arrays of one number give it by item(): those of NumPy, JAX and torch.
                number = float(value.item() if hasattr(value, "item") else value)
            except (TypeError, ValueError, RuntimeError):
                pass
        # A comparison with NaN is false.
        if number is None or not abs(number) <= LARGEST:
            raise RewardError(
                f"the reward function {self.name} returned {shorten(value) if number is None else number} for "
                f"{episodes.describe(i)}; return a finite number, of at most {LARGEST:.2g}, or None where the function "
                "does not apply"
            )
        return number


def shorten(value: Any, limit: int = 200) -> str:
    """The value's repr, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
