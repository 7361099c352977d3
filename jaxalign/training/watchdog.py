"""Ends a process that hangs, saying where: a collective that another process never joins would wait for ever."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

import jax

EXIT_CODE = 70  # EX_SOFTWARE
PATIENCE = 4  # times the limit for what is not a step: compiling, evaluating, writing


class Watchdog:
    """Calls `leave` when the loop has said nothing for `limit` seconds (0: never). Use as a context manager."""

    def __init__(self, limit: float, *, leave: Callable[[int], None] = os._exit) -> None:
        self._limit, self._leave = limit, leave
        self._news = threading.Condition()
        self._done = False
        self.at("start", patient=True)

    def at(self, where: str, *, patient: bool = False) -> None:
        """Says what the loop is about to do; `patient` where that may take much longer than a step."""
        with self._news:
            self._where = where
            self._allowed = self._limit * (PATIENCE if patient else 1)
            self._deadline = time.monotonic() + self._allowed
            self._news.notify()

    def __enter__(self) -> "Watchdog":
        if self._limit:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._news:
            self._done = True
            self._news.notify()

    def _watch(self) -> None:
        with self._news:
            while not self._done:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    break
                self._news.wait(left)
            else:
                return
        try:  # whatever reads the output may have ended already
            # The stream that the process was started with: sys.stderr may be a test's, without a file descriptor.
            print(
                f"process {jax.process_index()} of {jax.process_count()} hangs: {self._allowed:g} s in {self._where}. "
                f"Look in the output of the other processes for the one that failed first. If nothing is wrong, raise "
                f"config.hang_timeout (seconds; 0 waits for ever). All threads:",
                file=sys.__stderr__,
                flush=True,
            )
            if sys.__stderr__ is not None:
                faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        finally:
            self._leave(EXIT_CODE)
