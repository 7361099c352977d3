"""Locks on what one program alone may write: a second one is told by whom it is written, and ends.

A lock is the kernel's own, flock on a small file. It ends with the process that holds it, however that ends, so that
a file which is left behind stops nobody. Where there is no flock (object stores, some network disks), there is no lock.
"""

import contextlib
import datetime
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import IO, Any

from jaxalign.errors import ConfigError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

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
