"""Files on object storage, gs://bucket/..., beside local ones.

Local paths are pathlib's; others are `epath.Path`s, which have the same methods. What differs there: an object appears
whole, once its writing has ended, and can only be written anew; a folder without files does not exist.
"""

import atexit
import contextlib
import errno
import fnmatch
import functools
import glob
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import fsspec
import fsspec.config
from etils import epath

from jaxalign.errors import ConfigError
from jaxalign.locks import try_lock
from jaxalign.strict_json import NotJSON, parse_json

Path = pathlib.Path | epath.Path

# What a disk may refuse to write for.
DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
SCHEME = "gs://"
_UPLOAD_SECONDS = 60.0
_TURN_SECONDS = 0.01  # between two looks at whether a file is being written
_TEMPORARY = "jaxalign-"  # how the names of temporary folders begin
_OWNED = ".owned"  # the file in each that its owner keeps locked


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` begins with a scheme, such as gs://."""
    return re.match(r"[a-z][a-z0-9+.-]*://", os.fspath(path)) is not None


def to_path(path: str | os.PathLike) -> Path:
    """The path that `path` names.

    Raises:
      ConfigError: it is on a store of another kind than Google's, or the package for that one is missing.
    """
    text = os.fspath(path)
    if not is_remote(text):
        return pathlib.Path(text).expanduser()
    if not text.startswith(SCHEME):
        raise ConfigError(
            f"{text}: of all object stores only {SCHEME}BUCKET/... works; mount the other, or copy it"
        )
    # TensorStore and other processes write there, too: a listing that is kept would hide what they wrote.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError:
        raise ConfigError(
            f"{text}: {SCHEME} needs more packages: pip install '.[gcs]' in jaxalign's checkout"
        ) from None
    return epath.Path(text)


def split_place(place: str) -> tuple[str, str]:
    """The two parts of "RUN@WORD", a run and one of its checkpoints; without @ the second is empty."""
    run, at, word = place.rpartition("@")
    return (run, word) if at and word.isalnum() else (place, "")


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file under another name first: one that exists is whole, also after a power cut. Objects always are.

    Several programs, or threads, may write one file at a time: they take turns, and the last one's stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # What is no file, as /dev/stdout may be, can be written but not replaced.
    if not isinstance(path, pathlib.Path) or (path.exists() and not path.is_file()):
        path.write_bytes(data)
        return
    path = pathlib.Path(os.path.realpath(path))  # a link stays one
    partial = path.with_name(f"{path.name}.partial")
    with naming(path), _alone(partial) as file:
        file.write(data)
        file.flush()
        # The name may reach the disk before the content does, and a power cut come between them.
        os.fsync(file.fileno())
        partial.replace(path)
    sync(path.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an error of writing, of which the system says no place, that of what is written."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def _alone(partial: pathlib.Path) -> Iterator[IO[bytes]]:
    """An empty file that no other program writes meanwhile; waits until none does."""
    while True:
        with partial.open("ab") as file:
            while try_lock(file) is False:
                time.sleep(_TURN_SECONDS)
            try:
                mine = os.path.samestat(os.fstat(file.fileno()), partial.stat())
            except FileNotFoundError:
                mine = False
            # Else its writer has given it its name before it was locked here: it is another's result.
            if mine:
                file.truncate(0)
                yield file
                return


def sync(path: Path) -> None:
    """Waits until a local file, or the names in a folder, are on the disk, and would be there after a power cut."""
    if not isinstance(path, pathlib.Path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network disks do not know this of a folder.
        if error.errno in DISK_REFUSES:
            raise
    finally:
        os.close(descriptor)


def json_line(value: Any) -> str:
    """A value as a line of a JSONL file, in its own characters; halves of one, which UTF-8 cannot hold, are escaped."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, default=str)
    return f"{text}\n"


def claim(path: Path, facts: dict[str, Any], way_out: str) -> dict[str, Any]:
    """Writes JSON-able `facts` where nothing is yet, so that a later start can tell whether it continues this one.

    Returns:
      What the file holds, which is `facts` for the first that comes.

    Raises:
      ConfigError: the file is not a JSON object; ends with `way_out`.
    """
    if not path.is_file():
        write_whole(path, json.dumps(facts).encode())
    return read_json(path, lambda reason: ConfigError(f"{path}: {reason}; {way_out}"))


def read_json(path: Path, refuse: Callable[[str], Exception]) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
      What `refuse` makes of the reason: "missing", "not JSON (...)", "a list, not an object" or what the disk says.
    """
    try:
        values = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise refuse("missing") from None
    except OSError as error:
        raise refuse(f"not readable ({error.strerror or error})") from None
    except NotJSON as error:
        raise refuse(f"not JSON ({error})") from None
    if not isinstance(values, dict):
        raise refuse(f"a {type(values).__name__}, not an object")
    return values


def local_copy(path: Path, *patterns: str) -> pathlib.Path:
    """A local path as it is; of any other a copy that lasts as long as this process.

    Args:
      patterns: names of files; when given, only these are copied from a folder, and none from folders in it.
    """
    return path if isinstance(path, pathlib.Path) else _downloaded(str(path), patterns)


@functools.cache
def _downloaded(url: str, patterns: tuple[str, ...]) -> pathlib.Path:
    source = epath.Path(url)
    target = temporary_folder() / source.name
    _download(source, target, patterns)
    return target


def _download(source: epath.Path, target: pathlib.Path, patterns: tuple[str, ...]) -> None:
    if not source.is_dir():
        source.copy(target)
        return
    target.mkdir()
    for child in source.iterdir():
        # What marks an empty folder is listed as a child of it which does not exist.
        if not child.exists() or (patterns and child.is_dir()):
            continue
        if not patterns or any(fnmatch.fnmatch(child.name, pattern) for pattern in patterns):
            _download(child, target / child.name, ())


def upload(folder: pathlib.Path, target: Path) -> None:
    """Copies the files of a local folder, and of the folders in it; config.json last, as a sign that all are there."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: (file.name == "config.json", file)):
        epath.Path(file).copy(target / file.relative_to(folder), overwrite=True)


def temporary_folder(beside: pathlib.Path | None = None) -> pathlib.Path:
    """A new local folder that vanishes when the process ends; or, if it was killed, when another one asks for one.

    Args:
      beside: a path whose name the folder may be given in the end, being on the same disk.
    """
    place, prefix = (pathlib.Path(tempfile.gettempdir()), _TEMPORARY)
    if beside is not None:
        place, prefix = beside.parent, f".{beside.name}."
    for left in place.glob(f"{glob.escape(prefix)}*"):
        _remove_if_left(left)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    # The folder is known by a file that is locked as long as this process lives, and before it has its name.
    unnamed = folder / f"{_OWNED}.new"
    file = unnamed.open("wb")
    if try_lock(file):
        unnamed.rename(folder / _OWNED)
    atexit.register(file.close)  # after the folder has gone: what is registered last runs first
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    inside = folder / "files"  # where the caller finds nothing but what it puts there
    inside.mkdir()
    return inside


def _remove_if_left(folder: pathlib.Path) -> None:
    """Removes a temporary folder of this user's whose owner is gone. A process number would not tell: containers that
    share a disk count their processes apart."""
    mark = folder / _OWNED
    try:
        if not mark.is_file() or folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return
        with mark.open("rb+") as file:
            if try_lock(file):
                shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # its owner has just removed it
        return


class Lines:
    """A text file that grows by lines.

    In a local file a line is kept at once, and what a killed process left of its last one is removed. An object has to
    be written anew for every change: its lines are held in memory until `flush`, which is wanted when they are `due`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn = 0  # bytes of an unfinished line that were removed
        self._held: list[str] | None = None  # None: local
        self._changed, self._written = False, time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if not isinstance(path, pathlib.Path):
            self._held = whole.decode().split("\n")[:-1]
        elif len(whole) < len(content):
            self.torn = len(content) - len(whole)
            os.truncate(path, len(whole))
        self._count, self._digest = whole.count(b"\n"), hashlib.sha256(whole)

    @property
    def due(self) -> bool:
        """Whether lines have been waiting for a `flush` for a minute."""
        return self._changed and time.monotonic() - self._written > _UPLOAD_SECONDS

    def __len__(self) -> int:
        return self._count

    def digest(self) -> str:
        """The SHA-256 of all lines, in hexadecimal."""
        return self._digest.hexdigest()

    def append(self, *lines: str) -> None:
        """Adds lines at the end."""
        self._count += len(lines)
        self._digest.update(_text(lines).encode())
        if self._held is None:
            with naming(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(_text(lines))
            return
        self._held += lines
        self._changed = True

    def replace(self, lines: Iterable[str]) -> None:
        """Puts `lines` in the place of all that were there."""
        lines = list(lines)
        self._count, self._digest = len(lines), hashlib.sha256(_text(lines).encode())
        if self._held is None:
            write_whole(self.path, _text(lines).encode())
        else:
            self._held = lines
            self._changed = True
            self.flush()

    def flush(self) -> None:
        """Makes sure that all lines are in the file, and on the disk."""
        if self._held is None and self.path.exists():
            sync(self.path)
        if self._changed and self._held is not None:
            self.path.write_bytes(_text(self._held).encode())
            self._changed, self._written = False, time.monotonic()


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
