"""The signals that ask a program to end: SIGTERM, SIGINT (Ctrl-C), and SIGHUP, which comes when a terminal closes."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

TRY_AGAIN = 75  # EX_TEMPFAIL: the exit code by which a run asks for the same command again


def restart_signals() -> list[Any]:
    """SIGTERM, and SIGHUP where the system has it and the program was not started to ignore it, as by nohup."""
    hangup = getattr(signal, "SIGHUP", None)
    ignored = hangup is None or signal.getsignal(hangup) == signal.SIG_IGN
    return [signal.SIGTERM] if ignored else [signal.SIGTERM, hangup]


@contextlib.contextmanager
def handled(numbers: Sequence[int], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Has `handler` called, as f(number, frame), for these signals; puts the former handlers back at the end."""
    before = {}
    for number in numbers:
        # Only the main thread may set handlers; elsewhere the caller's stay.
        with contextlib.suppress(ValueError):
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextlib.contextmanager
def leaving_at_once(verb: str) -> Iterator[None]:
    """Ends the process with `TRY_AGAIN` at a signal that a restart follows.

    It holds wherever the training loop does not listen itself: all is on disk there that the same command needs.
    """

    def leave(number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        with contextlib.suppress(OSError):  # nobody may be there to read it
            os.write(2, f"\njaxalign {verb}: stopped by {name}; run the same command to go on\n".encode())
        os._exit(TRY_AGAIN)

    with handled(restart_signals(), leave):
        yield
