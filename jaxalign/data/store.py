"""Tokens on disk: made once by all cores, read by every process.

    ROOT/files/…json                what was read of each source file, so that it is read again only once it changes
    ROOT/KEY/part-00000.tokens, …   some thousand records each, see `parts.Part`
    ROOT/KEY/store.json             the parts, their sizes and checksums, and what the tokens depend on; written last
    ROOT/KEY/rows-….arrays          which items share a row, for one row length, number of segments and seed

The key is a digest of all that tokens depend on (`store_key`): tokens of other settings are never found. A part that is
there under its name is whole, so that a store that was being made when its process was killed is gone on with. Memory-
mapped arrays, and not ArrayRecord: an item at random takes 21 µs, from ArrayRecord 354 µs, or 37 µs where 256 are asked
for at once, and processes of a host share the pages.
"""

import hashlib
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from jaxalign.data.arrays import Damaged, check_sum, checksum_of, read_arrays, write_arrays
from jaxalign.data.bins import Bins
from jaxalign.data.encoder import Encoder
from jaxalign.data.parts import Part
from jaxalign.data.sources import Records
from jaxalign.data.worker import Runner, Span, Task
from jaxalign.errors import ConfigError
from jaxalign.locks import alone_until
from jaxalign.storage import DISK_REFUSES, Path, write_whole
from jaxalign.strict_json import parse_json

INDEX = "store.json"
KEY = "config.data.store"
PART_BYTES = 4 << 20  # of the source, about; another number is another FORMAT
MOST_PARTS = 4096  # each is a mapping, of which a process may have 65,530
_LARGEST_PART = 1 << 16  # records
_SAY_SECONDS = 30.0

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Stored:
    """A store that is whole: its parts, mapped, and what is known of its source without opening it."""

    parts: tuple[Part, ...]
    records: int
    blank: int  # see `Records.blank`
    tokens: int


@dataclass(frozen=True, eq=False)
class Store:
    """The store of a source: a local folder, and where it is shared on an object store, the folder there.

    `name` is what the source is called, `about` what `store_key.describe` gave.
    """

    folder: pathlib.Path
    shared: Path | None
    name: str
    about: Mapping[str, Any]
    tell: Tell

    def exists(self) -> bool:
        """Whether it was finished once, here or where it is shared."""
        return (self.folder / INDEX).is_file() or (
            self.shared is not None and (self.shared / INDEX).is_file()
        )

    def open(self) -> Stored | None:
        """The store, unless there is none, or a file of it is missing, cut or another's, which is said."""
        if self.shared is not None and not (self.folder / INDEX).is_file():
            self._download()
        try:
            return self._read()
        except Damaged as error:
            self.tell(f"{self.folder}: {error}; that is made again")
            (self.folder / INDEX).unlink(missing_ok=True)
            return None

    def make(self, records: Records, encoder: Encoder, run: Runner, size: int = 0) -> Stored:
        """Makes what is missing of the store, or waits for the process that does.

        Args:
          run: what has the parts made.
          size: bytes of the source.

        Raises:
          ConfigError: the folder cannot be written, or the disk is full.
        """
        said: list[str] = []

        def wait() -> None:
            if not said:
                said.append(
                    f"{self.name}: another process makes its tokens, in {self.folder}; waiting for it"
                )
                self.tell(said[0])

        place = self.shared or self.folder
        try:
            while True:
                with alone_until(place, lambda: (place / INDEX).is_file(), wait) as alone:
                    if alone:
                        self._make(records, encoder, run, size)
                if (found := self.open()) is not None:
                    return found
        except OSError as error:
            if error.errno not in DISK_REFUSES:
                raise ConfigError(
                    f"{KEY}: {self.folder} cannot be written ({error.strerror or error}); name another folder, or "
                    "'none' to make tokens at every start"
                ) from None
            raise self._full(error.strerror or str(error)) from None

    def verify(self) -> list[str]:
        """Reads all of a store; what is damaged is removed, so that it is made again, and named."""
        found = []
        for file in sorted([*self.folder.glob("part-*.tokens"), *self.folder.glob("rows-*.arrays")]):
            try:
                self._read_part(file) if file.suffix == ".tokens" else read_arrays(file)
                check_sum(file)
            except Damaged as error:
                found.append(f"{file}: {error}")
                file.unlink(missing_ok=True)
        if found:
            (self.folder / INDEX).unlink(missing_ok=True)
        return found

    def rows(self, name: str, find: Callable[[], Bins]) -> Bins:
        """The rows that `find` finds, which are kept under a name; nothing is said where they cannot be kept."""
        path = self.folder / f"rows-{name}.arrays"
        with suppress(Damaged, OSError):
            arrays, _ = read_arrays(path)
            check_sum(path)
            return Bins(arrays["members"], arrays["starts"])
        bins = find()
        with suppress(OSError):
            write_arrays(path, {"members": bins.members, "starts": bins.starts}, {})
        return bins

    def _read(self) -> Stored | None:
        try:
            index = parse_json((self.folder / INDEX).read_bytes())
            counts = [index[name] for name in ("records", "blank", "tokens")]
            entries = list(index["parts"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError):
            raise Damaged(f"{INDEX} cannot be read") from None
        if not all(type(count) is int and count >= 0 for count in counts):
            raise Damaged(f"{INDEX} does not say how many records and tokens there are")
        parts = []
        for number, entry in enumerate(entries):
            path = self.path(number)
            try:
                parts.append(self._read_part(path))
                if [path.stat().st_size, checksum_of(path)] != entry:
                    raise Damaged("it is not the one that was written")
            except Damaged as error:
                raise Damaged(f"{path.name}: {error}") from None
        return Stored(tuple(parts), *counts)

    def _read_part(self, path: pathlib.Path) -> Part:
        arrays, about = read_arrays(path)
        try:
            if about["place"] != _place(path):
                raise Damaged("it is another part, or of another store")
            words = dict(about["words"])
            words["pairs"] = [tuple(tuple(pair) for pair in pairs) for pairs in words["pairs"]]
            for name in ("ending", "remarks", "unread"):
                words[name] = [tuple(each) for each in words[name]]
            return Part(**arrays, words=words, bad=[tuple(each) for each in about["bad"]])
        except (KeyError, TypeError, ValueError):
            raise Damaged("its head is that of another file") from None

    def path(self, number: int) -> pathlib.Path:
        """The file of a part."""
        return self.folder / f"part-{number:05}.tokens"

    def _make(self, records: Records, encoder: Encoder, run: Runner, size: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        each = part_records(len(records), size)
        starts = range(0, len(records), each)
        counts = [min(each, len(records) - start) for start in starts]
        missing = [number for number, count in enumerate(counts) if not self._is_whole(number, count)]
        self.tell(
            f"{self.name}: making the tokens of {len(records):,} records in {self.folder}"
            + (
                f", {len(starts) - len(missing)} of {len(starts)} parts are there"
                if len(missing) < len(starts)
                else ""
            )
        )

        spans = [Span(starts[number], counts[number], self.path(number)) for number in missing]
        begun = said = time.monotonic()
        for done, written in enumerate(run(write_part, encoder, records, spans), 1):
            left = len(missing) - done
            if done == 1 and left * written > shutil.disk_usage(self.folder).free:
                raise self._full(f"{_mib(left * written)} more are needed")
            if left and time.monotonic() - said > _SAY_SECONDS:
                said = time.monotonic()
                minutes = math.ceil((said - begun) / done * left / 60)
                self.tell(f"{self.name}: {len(starts) - left} of {len(starts)} parts, {minutes} min to go")
        self.finish(len(starts), len(records), records.blank)

    def _is_whole(self, number: int, count: int | None = None) -> bool:
        """Whether a part is there, undamaged, and has `count` records; what is there and is not is removed."""
        path = self.path(number)
        if not path.is_file():
            return False
        try:
            part = self._read_part(path)
            check_sum(path)
            if count not in (None, len(part.first) - 1):
                raise Damaged(f"it has {len(part.first) - 1:,} records, not {count:,}")
        except Damaged as error:
            self.tell(f"{path}: {error}; it is made again")
            path.unlink()
            return False
        return True

    def finish(self, count: int, records: int, blank: int = 0) -> None:
        """Says that the store is whole, all of whose `count` parts are written, and copies it to where it is shared."""
        parts = [self._read_part(self.path(number)) for number in range(count)]
        index = {
            "records": records,
            "blank": blank,
            "items": sum(len(part.row) for part in parts),
            "tokens": sum(len(part.ids) for part in parts),
            "parts": [[self.path(n).stat().st_size, checksum_of(self.path(n))] for n in range(count)],
            "source": self.name,
            "about": dict(self.about),
        }
        written = json.dumps(index, indent=1).encode()
        if self.shared is not None:
            for number in range(count):
                epath.Path(self.path(number)).copy(self.shared / self.path(number).name, overwrite=True)
            write_whole(self.shared / INDEX, written)
        write_whole(self.folder / INDEX, written)

    def _download(self) -> None:
        """Copies a shared store to this host; parts that are here already are not copied again."""
        assert self.shared is not None
        if not (self.shared / INDEX).is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone_until(self.folder, lambda: (self.folder / INDEX).is_file(), lambda: None) as alone:
            if not alone:
                return
            written = (self.shared / INDEX).read_bytes()
            for number in range(len(json.loads(written)["parts"])):
                path = self.path(number)
                if self._is_whole(number):
                    continue
                partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
                with suppress(FileNotFoundError):
                    epath.Path(self.shared / path.name).copy(partial, overwrite=True)
                    partial.replace(path)
                if not self._is_whole(number):
                    self.tell(f"{self.shared / path.name}: damaged; it is made again")
                    (self.shared / INDEX).unlink()
                    return
            write_whole(self.folder / INDEX, written)

    def _full(self, reason: str) -> ConfigError:
        parts = list(self.folder.glob("part-*.tokens"))
        free = shutil.disk_usage(self.folder).free
        return ConfigError(
            f"{KEY}: the disk of {self.folder} takes no more ({reason}; {_mib(free)} are free); make room, name a "
            f"folder elsewhere, or 'none' to make tokens at every start. {len(parts)} whole parts, "
            f"{_mib(sum(part.stat().st_size for part in parts))}, are kept there for the next start"
        )


def part_records(count: int, size: int) -> int:
    """Records of each part of a source that has `count` of them in `size` bytes."""
    by_size = int(count * PART_BYTES / size) if size else _LARGEST_PART
    return max(1, -(-count // MOST_PARTS), min(by_size, _LARGEST_PART))


def write_part(encoder: Encoder, task: Task) -> int:
    """Encodes the records of a task and writes their part; returns its bytes."""
    save_part(task.path, encoder.encode(task.records, task.start))
    return task.path.stat().st_size


def save_part(path: pathlib.Path, part: Part) -> None:
    """Writes a part of the store that `path` lies in."""
    about = {"place": _place(path), "words": dict(part.words), "bad": list(part.bad)}
    write_arrays(path, part.arrays, about)


def _place(path: pathlib.Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"


def rows_name(
    row_length: int, max_segments: int, seed: int | None, chosen: np.ndarray | None, more: Any
) -> str:
    """Under which name the rows of some items of a store are kept."""
    digest = hashlib.sha256(repr((row_length, max_segments, seed, more)).encode())
    if chosen is not None:
        digest.update(chosen.astype("<i8").tobytes())
    return digest.hexdigest()[:24]
