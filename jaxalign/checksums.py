"""Folders that prove themselves: a SHA-256 of each file, in a list that `sha256sum -c SHA256SUMS` reads, too.

A flipped bit, a zeroed page or a file of another save is then an error where it is read, and not a model that is
subtly another. Objects on a store are left to the store, which keeps checksums of its own and looks at them.
"""

import concurrent.futures
import errno
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxalign.storage import Path, is_remote, naming, write_whole

SUMS = "SHA256SUMS"
VARIABLE = (
    "JAXALIGN_CHECKSUMS"  # "off" in the environment: none are computed, neither at writing nor at reading
)
_THREADS = 4  # hashing lets other threads run, and a disk answers several readers sooner

_told: list[str] = []


class Mismatch(Exception):
    """A file is not what its list says; the message names the file and what is wrong."""


def enabled() -> bool:
    """Whether checksums are computed; where the environment says no, that is told once on standard error."""
    if os.environ.get(VARIABLE, "on").lower() not in ("off", "0", "false", "no"):
        return True
    if not _told:
        _told.append(VARIABLE)
        print(f"{VARIABLE}=off: files are read and written without checksums", file=sys.stderr)
    return False


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """Writes the list of a folder's files, given by their paths in it; of a store, or where they are off, none."""
    names = sorted(names)
    if is_remote(folder) or not enabled():
        return
    lines = (f"{digest}  {name}\n" for name, digest in zip(names, _digests(folder, names), strict=True))
    write_whole(pathlib.Path(folder) / SUMS, "".join(lines).encode())


def read_sums(folder: Path) -> dict[str, str]:
    """The digests by path; of a folder without a list, none.

    Raises:
      Mismatch: the list cannot be read.
    """
    try:
        text = (folder / SUMS).read_text("utf-8")
    except FileNotFoundError:
        return {}
    except ValueError:
        raise Mismatch(f"{SUMS} is not text") from None
    entries = [line.split("  ", 1) for line in text.splitlines()]
    if not all(len(entry) == 2 and len(entry[0]) == hashlib.sha256().digest_size * 2 for entry in entries):
        raise Mismatch(f"{SUMS} is not a list of checksums")
    return {name: digest for digest, name in entries}


def check_sums(folder: Path, wants: Callable[[str], bool] = lambda name: True) -> int:
    """Reads those files of a folder that its list names, or of these the ones that are wanted by their paths.

    Returns:
      How many were read: 0 of a folder without a list, of a store, or where checksums are off.

    Raises:
      Mismatch: one is missing, another than was written, or on a part of the disk that cannot be read.
    """
    if is_remote(folder) or not enabled():
        return 0
    wanted = {name: digest for name, digest in read_sums(folder).items() if wants(name)}
    for name in wanted:
        if not (folder / name).is_file():
            raise Mismatch(f"{name} is missing")
    try:
        digests = _digests(folder, list(wanted))
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise Mismatch(f"{error.filename} cannot be read ({error.strerror})") from None
    for (name, digest), found in zip(wanted.items(), digests, strict=True):
        if found != digest:
            raise Mismatch(f"{name} is not what was written (its SHA-256 is another)")
    return len(wanted)


def digest_of(record: Mapping[str, Any]) -> str:
    """The SHA-256 of what JSON can hold, whatever the order of its names, in hexadecimal."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _digests(folder: Path, names: list[str]) -> list[str]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda name: _digest(folder / name), names))


def _digest(file: Path) -> str:
    opened: Any = file.open("rb")
    with naming(file), opened as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
