"""Reward functions on text, for PPO and evaluation: f(prompt, completion) -> float."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from jaxalign.errors import ConfigError

RewardFunction = Callable[[Any, str], float]


def import_reward_function(name: str, key: str) -> RewardFunction:
    """The callable that `module:function` names; `key` is where the name was given.

    Raises:
      ConfigError: not of that form, or not importable.
    """
    module, _, attribute = name.partition(":")
    try:
        function = importlib.import_module(module)
        for part in attribute.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{key}={name!r} cannot be imported ({error}); write module:function, "
            f"with the module on PYTHONPATH"
        ) from error
    if not callable(function):
        raise ConfigError(f"{key}={name!r} is not callable")
    return function


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
