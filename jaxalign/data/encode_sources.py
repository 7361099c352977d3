"""The sources of a config as tokens: from a store, or encoded into one, or in memory."""

import functools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.cache_folder import cache_folder
from jaxalign.data.encoded import Encoded
from jaxalign.data.encoder import Encoder
from jaxalign.data.invalid import Invalid
from jaxalign.data.mapping import check_mapping
from jaxalign.data.public.recipes import open_source
from jaxalign.data.sources import Dropped, Records
from jaxalign.data.store import Store
from jaxalign.data.store_key import (
    SourceFiles,
    describe,
    file_contents,
    files_of,
    hub_contents,
    key_of,
    was_stored,
)
from jaxalign.data.worker import run_tasks
from jaxalign.errors import ConfigError
from jaxalign.storage import Path, is_remote, to_path
from jaxalign.streams import say

IN_MEMORY = "none"
LARGE = 32 << 20  # bytes of a source that takes longer to encode than its store would be in the way
_PROBED = 1000  # records at the beginning of a source, see `Invalid.enough`


@dataclass(frozen=True)
class Deferred(Records):
    """The records of a source whose tokens are known: it is opened when a record is asked for."""

    opener: Callable[[], Records] = lambda: Records((), "")
    count: int = 0
    blank_lines: int = 0

    @functools.cached_property
    def opened(self) -> Records:
        """The records themselves."""
        return self.opener()

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Mapping[str, Any] | Dropped:
        return self.opened.read(index)

    def between(self, start: int, stop: int) -> Records:
        return self.opened.between(start, stop)

    def readable(self) -> Iterator[Any]:
        return self.opened.readable()

    def raw(self, index: int) -> Any:
        return self.opened.raw(index)

    def where(self, index: int) -> str:
        return self.opened.where(index)

    @property
    def blank(self) -> int:
        return self.blank_lines


@dataclass(frozen=True)
class Asked:
    """Sources that a config names, and how they are to be read."""

    names: tuple[str, ...]
    kind: str
    part: str
    options: Mapping[str, Any]  # of `open_source`

    def files(self, name: str) -> SourceFiles | None:
        """The files that one of them names, none of them opened; None: it is on the hub."""
        return files_of(name, self.kind, self.part, self.options)

    def open(self, name: str) -> Records:
        """One of them, opened."""
        return open_source(name, self.kind, self.part, **self.options)


@dataclass(frozen=True)
class Place:
    """Where stores lie: `config.data.store`."""

    store: str = ""

    @property
    def root(self) -> Path:
        """The folder of all stores."""
        return to_path(self.store) if self.store else own_folder()

    @property
    def local(self) -> pathlib.Path:
        """The same on this host, where the former is on an object store: its stores are copied here."""
        root = self.root
        return root if isinstance(root, pathlib.Path) else own_folder()

    def find(self, source: SourceFiles, encoder: Encoder) -> Store | None:
        """The store of a source, there or not; None: its tokens belong into memory."""
        memory = self.local / "files"
        if not self._wants(source.size) and (self.store == IN_MEMORY or not was_stored(source.files, memory)):
            return None
        return self._store(source.name, encoder, source.reading, file_contents(source.files, memory, tell))

    def find_hub(self, records: Records, encoder: Encoder, reading: Mapping[str, Any]) -> Store | None:
        """The same of a hub dataset, which is in the cache of `datasets`."""
        contents, size = hub_contents(records)
        wanted = contents and self._wants(size)
        return self._store(records.name, encoder, reading, contents) if wanted else None

    def _wants(self, size: int) -> bool:
        if self.store:
            return self.store != IN_MEMORY
        if size < LARGE:
            return False
        folder = next(each for each in (self.local, *self.local.parents) if each.exists())
        if not os.access(folder, os.W_OK):
            tell(
                f"{folder} cannot be written, so tokens are made at every start; name a folder in config.data.store"
            )
            return False
        return True

    def _store(
        self, name: str, encoder: Encoder, reading: Mapping[str, Any], contents: Sequence[tuple[str, str]]
    ) -> Store:
        about = describe(encoder, reading, contents)
        key = key_of(about)
        shared = self.root / key if is_remote(self.store) else None
        return Store(self.local / key, shared, name, about, tell)


def own_folder() -> pathlib.Path:
    """Where this user's stores lie that no config names a place for."""
    return cache_folder() / "stores"


def tell(line: str) -> None:
    """Says what becomes of a store."""
    say(line, sys.stderr)


@dataclass(frozen=True)
class StoredSource:
    """A source of files that has a store, be it there or not."""

    store: Store
    open: Callable[[], Records]
    size: int  # bytes of its files


def find_stores(asked: Asked, encoder: Encoder, place: Place) -> list[StoredSource]:
    """The sources, each with its store.

    Raises:
      ConfigError: one has none, as it is no source of files, or its tokens belong into memory.
    """
    found = []
    for name in asked.names:
        source = asked.files(name)
        store = None if source is None else place.find(source, encoder)
        if source is None or store is None:
            why = "is no file or folder" if source is None else "is kept in memory by config.data.store"
            raise ConfigError(
                f"{name}: {why}, so there is no store of it; save it to files, and name a store"
            )
        found.append(StoredSource(store, functools.partial(asked.open, name), source.size))
    return found


def encode_sources(
    asked: Asked, encoder: Encoder, invalid: Invalid, place: Place
) -> tuple[list[Records], list[Encoded]]:
    """The records of the sources and their tokens, which are read from a store, encoded into one, or in memory.

    A source whose store is there is not opened. `invalid` takes note of bad rows.

    Raises:
      DataError: a source cannot be read. ConfigError: a store cannot be written.
    """
    files = [asked.files(name) for name in asked.names]
    stores = [None if source is None else place.find(source, encoder) for source in files]
    stored = [None if store is None else store.open() for store in stores]
    records: list[Records] = []
    for name, source, found in zip(asked.names, files, stored, strict=True):
        if found is None or source is None:
            records.append(asked.open(name))
        else:
            opener = functools.partial(asked.open, name)
            records.append(
                Deferred((), source.name, opener=opener, count=found.records, blank_lines=found.blank)
            )
    if not any(stored):
        check_mapping(records, asked.options["fields"])
    encoded: list[Encoded] = []
    for number, each in enumerate(records):
        first_row, store, known = sum(map(len, encoded)), stores[number], stored[number]
        if files[number] is None:
            reading = {"source": asked.names[number], "part": asked.part, **asked.options}
            store = place.find_hub(each, encoder, reading)
            known = None if store is None else store.open()
        if known is None:
            source = files[number]
            encoded.append(
                encode_records_of(each, encoder, invalid, first_row, store, source.size if source else 0)
            )
        else:
            encoded.append(Encoded(known.parts, first_row, store=store))
        note_bad(encoded[-1], each, invalid)
    return records, encoded


def encode_records_of(
    records: Records,
    encoder: Encoder,
    invalid: Invalid,
    first_row: int = 0,
    store: Store | None = None,
    size: int = 0,
) -> Encoded:
    """The tokens of records, encoded into a store where they have one; bad rows are in its parts.

    Args:
      size: bytes of their files.
    """
    early = invalid.rule == "stop"
    if store is not None and early and len(records) > _PROBED:
        # Where none of the first rows can be used, the rest need not be read, nor anything stored.
        probe = encoder.encode(records.between(0, _PROBED), stop_early=True)
        if len(probe.bad) == _PROBED:
            store = None
    if store is None:
        return Encoded((encoder.encode(records, stop_early=early),), first_row)
    run = functools.partial(run_tasks, workers=_workers())
    return Encoded(store.make(records, encoder, run, size).parts, first_row, store=store)


def note_bad(encoded: Encoded, records: Records, invalid: Invalid) -> None:
    """Tells `invalid` of the rows that could not be used when the tokens were made."""
    start = 0
    for part in encoded.parts:
        invalid.take(records, start, part.bad)
        start += len(part.first) - 1


def _workers() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
