"""The process in which cases are read: it notes which case it is at, what was opened, and how each one ended."""

import importlib
import os
import random
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

from tests.faults.fuzz.cases import Surface

MEMORY = 1 << 30  # bytes that a case may take
# Beyond that allocations fail, so that no case takes the machine's memory; one that tries to is a fault as well.
_ADDRESSES = 3 << 30
LONGEST_MESSAGE = 20_000  # characters
_SENT = 200  # results at a time
_PACKAGE = f"{Path(__file__).parents[3] / 'jaxalign'}/"
# The case that is being read, the processor time when it began, and how many were accepted and refused since the last
# results were sent.
PROGRESS = struct.Struct("qdqq")
_RUNS_CODE = (
    *(
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "os.forkpty",
        "subprocess.Popen",
        "pty.spawn",
    ),
    *(
        "socket.connect",
        "socket.getaddrinfo",
        "urllib.Request",
        "pickle.find_class",
        "ctypes.dlopen",
        "ctypes.call_function",
    ),
)
_WRITES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
)


class Forbidden(BaseException):
    """A case does what none may; no `except Exception` takes it for an error of its own."""


class Guard:
    """Notes, and stops, what a case may not do. An audit hook cannot be taken away again: it is switched."""

    def __init__(self, *folders: Path) -> None:
        self.on = False
        self.noted: list[str] = []
        self._folders = tuple(f"{folder}{os.sep}" for folder in folders)
        # What Python loads when it first needs it.
        self._code = tuple(
            {f"{os.path.realpath(path)}{os.sep}" for path in (*sys.path, sys.prefix, sys.base_prefix) if path}
        )
        prefixes = (sys.prefix, sys.base_prefix)
        self._libraries = tuple(f"{os.path.realpath(prefix)}{os.sep}" for prefix in prefixes)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path = args[0]
            if isinstance(path, str | bytes) and not self._may_open(os.fsdecode(path), args[2]):
                self._refuse(f"opens {os.fsdecode(path)!r}")
        elif event == "exec":
            name = getattr(args[0], "co_filename", "")
            if not self._may_run(name, sys._getframe(1).f_code.co_filename):
                self._refuse(f"runs code of {name!r}")
        elif event in _RUNS_CODE:
            self._refuse(f"{event} {args!r}"[:300])
        # What is relative to an open folder was looked at when that was opened.
        elif (
            event in _WRITES
            and args[-1] in (-1, None)
            and not os.path.realpath(os.fsdecode(args[0])).startswith(self._folders)
        ):
            self._refuse(f"{event} {args!r}"[:300])

    def _may_run(self, name: str, caller: str) -> bool:
        if name.startswith((*self._folders, "<template>", "the built-in", "<frozen")):
            return True  # a template, or what Python imports
        if name in (
            "<string>",
            "<unknown>",
        ):  # of libraries: what named tuples are made of, literals of Jinja's
            return os.path.realpath(caller).startswith(self._libraries)
        return os.path.isabs(name) and self._is_code(name)

    def _may_open(self, path: str, flags: int) -> bool:
        real = os.path.realpath(path)
        if real.startswith(self._folders):
            return True
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        return not writes and (real == os.devnull or path in sys.path or self._is_code(real))

    def _is_code(self, path: str) -> bool:
        return os.path.realpath(path).startswith(self._code)

    def _refuse(self, what: str) -> None:
        self.noted.append(what)
        raise Forbidden(what)


def load(surface: str) -> Surface:
    """A surface by its name, or by that of a module that has one."""
    name = surface if "." in surface else f"tests.faults.fuzz.{surface}"
    return importlib.import_module(name).SURFACE


def generator(seed: int, surface: str, case: int) -> random.Random:
    """What a case is drawn from: the same for the same seed, surface and number, whoever reads it."""
    return random.Random(f"{seed}/{surface}/{case}")


def work(results: Connection, memory: str, root: str, surface: str, seed: int, cases: range) -> None:
    """Reads the cases and sends how many were accepted and refused, and what was at fault: (case, what); at last None,
    or the traceback of what is wrong with the harness itself."""
    try:
        _work(results, memory, root, surface, seed, cases)
        results.send(None)
    except Exception:
        results.send(traceback.format_exc())


def _work(results: Connection, memory: str, root: str, surface: str, seed: int, cases: range) -> None:
    warnings.simplefilter("ignore")
    shared = SharedMemory(memory, track=False) if sys.version_info >= (3, 13) else SharedMemory(memory)
    folder = Path(root).resolve()
    os.environ["TMPDIR"] = str(folder / "temporary")
    tempfile.tempdir = None
    chosen = load(surface)
    chosen.prepare()
    # What libraries print of damaged files, past Python.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    guard = Guard(folder / "case", folder / "temporary")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + _ADDRESSES, resource.RLIM_INFINITY))
    counts = {"accepted": 0, "refused": 0}
    for case in cases:
        inside = folder / "case"
        if inside.exists():
            shutil.rmtree(inside)
        inside.mkdir(parents=True)
        (inside / "temporary").mkdir()
        tempfile.tempdir = str(inside / "temporary")
        given = chosen.write(generator(seed, surface, case), inside)
        shared.buf[: PROGRESS.size] = PROGRESS.pack(case, time.process_time(), *counts.values())
        how = outcome(guard, lambda given=given: chosen.read(given))
        if how in counts:
            counts[how] += 1
        shared.buf[: PROGRESS.size] = PROGRESS.pack(-1, 0.0, *counts.values())
        if how not in counts or sum(counts.values()) == _SENT:
            results.send((counts, None if how in counts else (case, how)))
            counts = dict.fromkeys(counts, 0)
            shared.buf[: PROGRESS.size] = PROGRESS.pack(-1, 0.0, 0, 0)
    results.send((counts, None))


def _peak() -> int:
    """The most memory of this program so far, KiB; getrusage counts that of the one which started it, too."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text())
    assert found is not None
    return int(found[1])


def outcome(guard: Guard, read: Callable[[], Any]) -> str:
    """How a case ends."""
    from jaxalign.errors import JaxalignError

    guard.noted.clear()
    before = _peak()
    begun = time.process_time()
    said = "accepted"
    try:
        guard.on = True
        read()
    except JaxalignError as error:
        said = (
            "refused"
            if len(str(error)) <= LONGEST_MESSAGE
            else f"a message of {len(str(error)):,} characters"
        )
        said = said if str(error).strip() else "an error without a message"
        cause: BaseException | None = error
        while cause is not None:
            said = "memory: it could not be had" if isinstance(cause, MemoryError) else said
            cause = cause.__cause__ or cause.__context__
    except Forbidden:
        pass
    except BaseException as error:
        guard.on = False
        said = _place(error)
    finally:
        guard.on = False
    taken = (_peak() - before) << 10
    if guard.noted:
        return guard.noted[0]
    if taken > MEMORY:
        return f"memory: {taken / 2**20:,.0f} MiB"
    if (seconds := time.process_time() - begun) > 2:
        return f"time: {seconds:.1f} s"
    return said


def _place(error: BaseException) -> str:
    """Kind and message of an error, and the innermost place in jaxalign."""
    passed = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in passed if frame.filename.startswith(_PACKAGE)]
    where = f" at {frames[-1].filename.removeprefix(_PACKAGE)}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}: {str(error)[:200]}"
