"""Locks on what one program alone may write: a second one is told by whom it is written, and ends.

A lock is the kernel's own, flock on a small file. It ends with the process that holds it, however that ends, so that
a file which is left behind stops nobody. Where there is no flock (object stores, some network disks), there is no lock.
"""

import contextlib
import datetime
import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from jaxalign.errors import ConfigError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

SILENCE = 120.0  # seconds without a sign of life, after which a process is taken for dead
_ASK_SECONDS = 0.5
_SETTLE_SECONDS = 2.0
LOCK = ".lock"  # the file in a folder by which one program has it for itself


def try_lock(file: IO) -> bool | None:
    """Locks an open file until it is closed: True. False: another program has it. None: it cannot be locked here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def locked(file: Any, flag: str) -> Iterator[None]:
    """Holds the lock `file`, a path, which is made if missing and stays; `flag`, as given, names what it protects.

    Raises:
      ConfigError: another process holds it (named by host, number and start), or the file cannot be written.
    """
    if fcntl is None or not isinstance(file, pathlib.Path):
        yield
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held = file.open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{flag}: {file} cannot be written ({error.strerror}); name another place"
        ) from None
    with held:
        if try_lock(held) is False:
            held.seek(0)
            owner = held.read().strip() or "another process"
            name = flag.partition("=")[0]
            raise ConfigError(
                f"{flag} is in use by {owner}; wait until that has ended, stop it, or name another {name}"
            )
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        held.truncate(0)
        held.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
        held.flush()
        yield


@contextlib.contextmanager
def alone_until(folder: Any, done: Callable[[], bool], wait: Callable[[], None]) -> Iterator[bool]:
    """True: this process alone is to make what belongs into a folder. False: another one has made it meanwhile.

    Where there is no flock, the one that makes it writes a sign of life every few seconds, and who has seen none for
    `SILENCE` seconds, by his own clock, takes its place.

    Args:
      folder: a path, also on an object store, that can be written to.
      done: whether all is made.
      wait: called once, when another process is found to be making it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(folder, pathlib.Path):
        with (folder / LOCK).open("a+") as file:
            while (found := try_lock(file)) is False:
                if done():
                    break
                wait()
                time.sleep(_ASK_SECONDS)
            if found is not None:
                yield bool(found) and not done()
                return
    with _signs_of_life(folder / f"{LOCK}.alive", done, wait) as alone:
        yield alone


@contextlib.contextmanager
def _signs_of_life(file: Any, done: Callable[[], bool], wait: Callable[[], None]) -> Iterator[bool]:
    own = f"{socket.gethostname()} {os.getpid()} {time.time_ns()}"
    seen, since = "", time.monotonic()

    def write(count: int) -> None:
        if not isinstance(file, pathlib.Path):
            file.write_text(f"{own} {count}")
            return
        partial = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}")
        partial.write_text(f"{own} {count}")
        partial.replace(file)  # nobody shall find it empty

    while True:
        if done():
            yield False
            return
        found = file.read_text() if file.exists() else ""
        if found != seen:
            seen, since = found, time.monotonic()
        if not found or time.monotonic() - since > SILENCE:
            write(0)
            time.sleep(_SETTLE_SECONDS)  # of several that found none, the last to write is the one
            if file.read_text().startswith(own):
                break
            continue
        wait()
        time.sleep(_ASK_SECONDS)
    ended = threading.Event()

    def live() -> None:
        count = 0
        while not ended.wait(SILENCE / 8):
            count += 1
            with contextlib.suppress(OSError):
                write(count)

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            file.unlink()
