"""Reward functions on text, for PPO and evaluation: f(prompt, completion) -> float.

`prompt` is what the data has: text, or the messages of a conversation; `completion` is the answer's text.
"""

import functools
import importlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxalign.errors import ConfigError, RewardError

RewardFunction = Callable[[Any, str], float]

_LARGEST = float(np.finfo(np.float32).max)  # training computes with scores in float32


def import_reward_function(name: str, key: str) -> RewardFunction:
    """The callable that `module:function` names; `key` is where the name was given.

    Raises:
      ConfigError: not of that form, or not importable, or its file ends the program.
    """
    module, _, attribute = name.rpartition(":")
    try:
        function = _load_file(module) if module.endswith(".py") else _import(module)
        for part in attribute.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{key}={name!r} cannot be imported ({error}); write FILE.py:function, or module:function with the module "
            "installed, in the current folder or on PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{key}={name!r}: importing {module} raised {type(error).__name__}: {error}; mend it: importing should "
            "do no more than define the function"
        ) from error
    if not callable(function):
        raise ConfigError(f"{key}={name!r} is not callable")
    return function


def _import(module: str) -> Any:
    # A command line tool does not look into the current folder by itself, as `python -m` would.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(module)


def _load_file(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except OSError as error:
        raise ImportError(str(error)) from error
    return module


def call_reward_function(
    function: RewardFunction, prompts: Sequence[Any], texts: Sequence[str]
) -> np.ndarray:
    """The function's score of each completion: float64 [E].

    Raises:
      RewardError: the function raised, or returned something that is not a finite float32; shows the input.
    """
    name = getattr(function, "__name__", repr(function))
    scores = np.zeros(len(texts))
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        given = f"prompt {_short(prompt)}, completion {_short(text)}"
        try:
            score = float(function(prompt, text))
        except (Exception, SystemExit) as error:
            raise RewardError(
                f"the reward function {name} raised {type(error).__name__}: {error} for {given}; it must take "
                f"(prompt, completion) and return a number for any text, the empty one too"
            ) from error
        if not abs(score) <= _LARGEST:  # NaN is not either
            raise RewardError(
                f"the reward function {name} returned {score} for {given}; return a finite number, of at most "
                f"{_LARGEST:.2g}"
            )
        scores[i] = score
    return scores


def _short(value: Any, limit: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


@functools.cache
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ConfigError("the VADER reward needs a package: pip install vaderSentiment") from error
    return SentimentIntensityAnalyzer()


def vader(prompt: Any, completion: str) -> float:
    """VADER's compound sentiment, -1 to 1 (Hutto and Gilbert 2014), of the completion after a plain-text prompt.

    Of prompt and completion as one text; of the completion alone when the prompt is a conversation.
    """
    text = prompt + completion if isinstance(prompt, str) else completion
    return float(_vader().polarity_scores(text)["compound"])
