"""Output that nobody reads: a verb goes on when the reader of stdout or stderr has gone, or their disk is full."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO


class Unbroken:
    """A text stream that goes on into nothing once it cannot be written any more; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes `text`; returns its length, as every stream does."""
        self._attempt(self._stream.write, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes one text after the other."""
        self._attempt(self._stream.writelines, lines)

    def flush(self) -> None:
        """Hands on what is held in buffers."""
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            function(*args)
        except OSError:
            # What waits in the buffers is written again later, when Python ends at the latest: it must go somewhere.
            with contextlib.suppress(OSError):  # a test's stream has no descriptor
                _discard(self._stream.fileno())


def _discard(descriptor: int) -> None:
    """Makes an open file of this process one that takes everything and keeps nothing."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, descriptor)
    os.close(nothing)


@contextlib.contextmanager
def unbroken_output() -> Iterator[None]:
    """Makes stdout and stderr `Unbroken`; flushes them at the end and puts the former ones back."""
    before = sys.stdout, sys.stderr
    # A program that was started without one of them has None there, and prints nothing.
    mine = [None if stream is None else Unbroken(stream) for stream in before]
    sys.stdout, sys.stderr = mine
    try:
        yield
    finally:
        for stream in mine:
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
