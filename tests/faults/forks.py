"""Command lines run in processes of their own that start quickly, with a fault that meets them on the way.

A server imports JAX and all of jaxalign once, without touching a device, and each try is forked from it: what is left
of a start is what a kill can hit, opening files, tracing, compiling and training.
"""

import atexit
import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from jaxalign.compilation_cache import cache_variables

ROOT = pathlib.Path(__file__).parents[2]
CHANGES = "changes of files:"  # the last line of a log that came to its end, with their number
# What Python tells of before it is done, where it changes a file.
_CHANGING = frozenset(
    (
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.truncate",
        "os.link",
        "os.symlink",
        "shutil.rmtree",
    )
)


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is done to a try: a signal after some seconds, or at the n-th change of a file below `folder`."""

    number: int = signal.SIGKILL
    seconds: float = 0.0
    operation: int = 0
    folder: str = ""
    clock: float = 0.0  # seconds by which the clock is wrong


@dataclasses.dataclass(frozen=True)
class Ended:
    """What became of a try."""

    code: int  # negative: ended by this signal
    seconds: float
    log: str


def server() -> Any:
    """What processes are forked from; made at the first use."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.update(cache_variables(os.environ))
    paths = [str(ROOT / "tests" / "stages"), str(ROOT)]
    sys.path[:0] = [path for path in paths if path not in sys.path]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.imported"])
    return context


def attempt(
    argv: Sequence[str], log: pathlib.Path, fault: Fault | None = None, limit: float = 300.0
) -> Ended:
    """Runs `jaxalign ARGV` to its end, or to its fault.

    Raises:
      TimeoutError: it has not ended within `limit` seconds.
    """
    log.write_text("")  # it may be killed before it can write
    process = server().Process(target=_run, args=(list(argv), str(log), fault))
    began = time.monotonic()
    process.start()
    if fault is not None and not fault.operation and fault.number:
        process.join(fault.seconds)
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, fault.number)
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"{' '.join(argv)} did not end within {limit} s:\n{log.read_text()[-2000:]}")
    return Ended(process.exitcode, time.monotonic() - began, log.read_text(errors="replace"))


def _run(argv: list[str], log: str, fault: Fault | None) -> None:
    from jaxalign.cli import main

    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    changes = _arm(fault or Fault())
    code = main(argv)
    print(f"{CHANGES} {len(changes)}")
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def _arm(fault: Fault) -> list[str]:
    """Prepares the fault; returns a list to which each change of a file in its folder is going to be added."""
    seen: list[str] = []
    if fault.clock:
        right = time.time
        time.time = lambda: right() + fault.clock

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            changing = bool(flags & (os.O_WRONLY | os.O_RDWR)) if flags else "r" not in str(mode)
        else:
            path, changing = (arguments or ("",))[0], event in _CHANGING
        if changing and isinstance(path, str | os.PathLike) and os.fspath(path).startswith(fault.folder):
            seen.append(event)
            if len(seen) == fault.operation:
                os.kill(os.getpid(), fault.number)

    if fault.folder:
        sys.addaudithook(watch)
    return seen
