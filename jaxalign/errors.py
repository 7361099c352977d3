"""The errors jaxalign raises on purpose. Each message names the place, the value and the way out."""

from typing import Any


def shorten(value: Any, limit: int = 60) -> str:
    """A value as Python writes it, for a message: of a long one its two ends."""
    text = value if isinstance(value, str) else repr(value)
    if len(text) > limit:
        text = f"{text[: limit // 2]} … {text[-limit // 2 :]}"
    return repr(text) if isinstance(value, str) else text


def amount(number: int, noun: str, plural: str = "") -> str:
    """`1 row`, `2 rows`, `1,000 rows`; `plural` is of nouns that take no s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


class JaxalignError(Exception):
    """Base of every deliberate error; the command line prints it without a traceback."""


class ConfigError(JaxalignError, ValueError):
    """A config key or a flag has a value that cannot work."""


class UsageError(ConfigError):
    """A command that cannot be understood: a flag or a key that does not exist, is missing, or cannot be read."""


class DistributedError(JaxalignError, RuntimeError):
    """The processes of a run cannot find each other, or one of them has failed."""


class DataError(JaxalignError, ValueError):
    """A data file or row cannot be used. The message begins with `file:row`."""


class SessionError(JaxalignError, RuntimeError):
    """A Session is asked for what it cannot do now, such as an update without a gradient."""


class CheckpointError(JaxalignError, RuntimeError):
    """A checkpoint is missing, incomplete or of another shape than the model."""


class RewardError(JaxalignError, RuntimeError):
    """A reward function raised, asks for what the rows lack, or returned something that is not a finite number."""


class NonFiniteError(JaxalignError, FloatingPointError):
    """The loss or the gradient became NaN or infinite and the config says to stop, or a model says so."""


class AlarmError(JaxalignError, RuntimeError):
    """A number of the run left its bounds, and the config says to stop; or going back has not helped."""


class StepZeroError(JaxalignError, AssertionError):
    """A truth that must hold before the first update does not (see docs/architecture.md)."""
