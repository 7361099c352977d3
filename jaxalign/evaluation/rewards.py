"""Reward functions on text, for PPO and evaluation: f(prompt, completion) -> float.

`prompt` is what the data has: text, or the messages of a conversation; `completion` is the answer's text.
"""

import functools
import importlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from jaxalign.errors import ConfigError

RewardFunction = Callable[[Any, str], float]


def import_reward_function(name: str, key: str) -> RewardFunction:
    """The callable that `module:function` names; `key` is where the name was given.

    Raises:
      ConfigError: not of that form, or not importable.
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
