"""Output that nobody reads, after which a verb goes on; and text from elsewhere, which a terminal shall not obey."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

# What a terminal obeys instead of showing, what turns the direction of a line, and what is no whole character.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Unbroken:
    """A text stream that goes on into nothing once it cannot be written any more, and writes what its encoding lacks as
    Python escapes it; all else is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes `text`; returns its length, as every stream does."""
        try:
            self._attempt(self._stream.write, text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self._attempt(self._stream.write, text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes one text after the other."""
        for line in lines:
            self.write(line)

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


def shown(text: str) -> str:
    """Text as a terminal can show it: control characters by their pictures or numbers, so that none is obeyed."""
    return _CONTROLS.sub(lambda found: _picture(found[0]), text)


def say(text: object, stream: TextIO | None = None) -> None:
    """Prints what may hold text of data, templates or models, to stdout or another stream, and does not wait."""
    print(shown(str(text)), file=stream, flush=True)


def _picture(character: str) -> str:
    number = ord(character)
    if number < 0x20:
        return chr(0x2400 + number)
    return "\u2421" if number == 0x7F else f"<U+{number:04X}>"
