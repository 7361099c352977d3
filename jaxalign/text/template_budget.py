"""How much time and memory what is rendered from other people's templates may take.

JAXALIGN_TEMPLATE_MIB=256       for one rendering
JAXALIGN_TEMPLATE_SECONDS=1     of processor time, for one rendering
"""

import functools
import math
import os
import threading
import time

from jaxalign.errors import ConfigError

MIB, SECONDS = "JAXALIGN_TEMPLATE_MIB", "JAXALIGN_TEMPLATE_SECONDS"
_DEFAULTS = {MIB: 256.0, SECONDS: 1.0}


class OverLimit(Exception):
    """A template wants more than it may have; the message says of what, and how it is given more."""


class Budget(threading.local):
    """What is left to the rendering under way, in each thread its own; without one, there is no end to it."""

    def __init__(self) -> None:
        self.left: float = math.inf
        self.seconds = 0.0
        self.until = self.processor_until = math.inf

    def charge(self, size: float) -> None:
        """Takes `size` bytes off what is left."""
        self.left -= size
        if self.left < 0:
            raise OverLimit(
                f"it makes too much text and lists: {MIB}={limit(MIB):g} is how many MiB it may make"
            )

    def tick(self) -> None:
        """Looks at the clock.

        Reading the processor's may take as long as rendering: half of the time goes by the wall's, and only from then
        on counts what others leave of the processor.
        """
        if time.monotonic() > self.until:
            if self.processor_until == math.inf:
                self.processor_until = time.thread_time() + self.seconds / 2
            left = self.processor_until - time.thread_time()
            if left <= 0:
                raise OverLimit(
                    f"it takes too long: {SECONDS}={limit(SECONDS):g} is how many seconds of processor time it may have"
                )
            self.until = time.monotonic() + left


budget = Budget()


def limit(name: str) -> float:
    """The limit that the environment variable of this name sets, or its default.

    Raises:
      ConfigError: it is no number above 0.
    """
    return _limit(name, os.environ.get(name, ""))


@functools.cache
def _limit(name: str, text: str) -> float:
    try:
        value = float(text) if text else _DEFAULTS[name]
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ConfigError(f"{name}={text!r} must be a number above 0")
    return value


class limited:
    """Gives all that is compiled or rendered inside one budget, of which this is a `share` unless it is within one."""

    def __init__(self, share: float = 1.0) -> None:
        self._share = share

    def __enter__(self) -> None:
        self._inner = budget.left < math.inf
        if self._inner:
            return
        budget.seconds = self._share * limit(SECONDS)
        budget.left = self._share * limit(MIB) * 2**20
        budget.until = time.monotonic() + budget.seconds / 2

    def __exit__(self, *_: object) -> None:
        if not self._inner:
            budget.left = budget.until = budget.processor_until = math.inf
