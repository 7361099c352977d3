"""Where records come from: JSONL, Parquet and Arrow files, saved `datasets` folders and hub names."""

import json
import mmap
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import datasets.exceptions

from jaxalign.errors import DataError
from jaxalign.storage import is_remote, local_copy, to_path

SUFFIXES = (".jsonl", ".parquet", ".arrow")
HUB_TIMEOUT = 5.0  # seconds to wait for the hub's first answer


class Unusable(Exception):
    """A row that its dataset is known to hold and no stage can use; the message is why."""


@dataclass(frozen=True)
class Dropped:
    """Stands in place of a row that its recipe leaves out."""

    reason: str


@dataclass(frozen=True)
class Records(Sequence):
    """Rows with random access, and the name to blame them by."""

    rows: Sequence[Mapping[str, Any] | Dropped]
    name: str
    numbers: Sequence[int] | None = None  # the row of the file behind each record; None: one for one
    # What turns a row into our fields, one after the other, whenever it is asked for, so that memory does not grow with
    # the data. Each raises Unusable for a row to be dropped, and DataError, without the place, for a wrong one.
    adapters: tuple[Callable[[Mapping[str, Any]], Mapping[str, Any]], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any] | Dropped:
        row = self.rows[index]
        if isinstance(row, Dropped):
            return row
        try:
            for adapt in self.adapters:
                row = adapt(row)
        except Unusable as reason:
            return Dropped(str(reason))
        except DataError as error:
            raise DataError(f"{self.where(index)}: {error}") from None
        return row

    def where(self, index: int) -> str:
        """`file:row` of record `index`: 1-based, and for JSONL the line number an editor shows."""
        return f"{self.name}:{(index if self.numbers is None else self.numbers[index]) + 1}"


def read_records(
    source: str,
    *,
    split: str = "train",
    take: int | None = None,
    hub_options: Mapping[str, str] | None = None,
) -> Records:
    """Open a source of records and check that every row can be read.

    Args:
      source: a .jsonl, .parquet or .arrow file, a folder written by `Dataset.save_to_disk`, or a name on
        the Hugging Face hub.
      split: which split of a folder or hub dataset.
      take: read only the first `take` records; a hub dataset is then streamed instead of downloaded.
      hub_options: further arguments of `datasets.load_dataset` for a hub dataset.

    Raises DataError, naming file and line, for a missing source, a malformed line or an empty source.
    """
    if take is not None and take < 1:
        raise DataError(f"{source}: take={take} reads nothing; give a positive number or leave it out")
    path = to_path(source)
    rows: Any
    if path.is_dir():
        rows = _read_folder(local_copy(path), source, split)
    elif path.is_file():
        rows = _read_file(local_copy(path), source, take)
    elif is_remote(source):
        raise DataError(f"{source}: no such file or folder; check the path, and that you may read the bucket")
    elif path.suffix.lower() in (*SUFFIXES, ".json") or source.startswith((".", "/", "~")):
        raise DataError(f"{source}: no such file or folder (looked from {Path.cwd()}); check the path")
    else:
        rows = _read_hub(source, split, take, hub_options or {})
    if take is not None and not isinstance(rows, JsonLines):
        rows = rows[:take] if isinstance(rows, list) else rows.select(range(min(take, len(rows))))
    if len(rows) == 0:
        raise DataError(f"{source}: holds no records; give a source with at least one")
    return Records(rows, source)


class JsonLines(Sequence):
    """The lines of a JSONL file, parsed when asked for, so that memory does not grow with the file."""

    def __init__(self, path: Path, take: int | None = None, name: str = ""):
        self._bytes = _map_file(path)
        self._starts = [0]
        while self._starts[-1] < len(self._bytes) and len(self._starts) - 1 != take:
            end = self._bytes.find(b"\n", self._starts[-1])
            self._starts.append(len(self._bytes) if end < 0 else end + 1)
            _check_line(self._line(len(self) - 1), f"{name or path}:{len(self)}")

    def _line(self, index: int) -> bytes:
        return self._bytes[self._starts[index] : self._starts[index + 1]]

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return json.loads(self._line(index))


def _map_file(path: Path) -> bytes | mmap.mmap:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return b""  # an empty file cannot be mapped
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _check_line(line: bytes, where: str) -> None:
    if not line.strip():
        raise DataError(f"{where}: blank line; remove it")
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error}; fix or remove the line") from None
    if not isinstance(row, dict):
        raise DataError(
            f'{where}: a {type(row).__name__}, not a JSON object; write the record as {{"field": value}}'
        )


def _read_file(path: Path, name: str, take: int | None) -> Any:
    match path.suffix.lower():
        case ".jsonl":
            return JsonLines(path, take, name)
        case ".parquet":
            reader = datasets.Dataset.from_parquet
        case ".arrow":
            reader = datasets.Dataset.from_file
        case suffix:
            raise DataError(f"{name}: cannot read '{suffix}' files; write one of {', '.join(SUFFIXES)}")
    try:
        return reader(str(path))
    except Exception as error:  # pyarrow and datasets share no base class for a damaged file
        raise DataError(f"{name}: not a readable {path.suffix} file: {error}; write it again") from error


def _read_folder(path: Path, name: str, split: str) -> datasets.Dataset:
    try:
        loaded = datasets.load_from_disk(str(path))
    except FileNotFoundError:
        raise DataError(
            f"{name}: a folder, but not one written by Dataset.save_to_disk; name a file inside it instead"
        ) from None
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split not in loaded:
        raise DataError(f"{name}: has no split '{split}'; it has {', '.join(map(str, loaded))}")
    return loaded[split]


def _read_hub(
    name: str, split: str, take: int | None, options: Mapping[str, str]
) -> datasets.Dataset | list[dict[str, Any]]:
    # `datasets` would try for 25 seconds; with HF_HUB_OFFLINE it looks into its cache alone, at once.
    if not datasets.config.HF_HUB_OFFLINE and not _answers(datasets.config.HF_ENDPOINT):
        raise DataError(
            f"{name}: no such file here, and {datasets.config.HF_ENDPOINT} does not answer; correct the path, or "
            "save the dataset where there is a network (Dataset.save_to_disk) and name that folder, or set "
            "HF_HUB_OFFLINE=1 to use the copy in the cache of `datasets`"
        )
    load: Any = datasets.load_dataset
    try:
        if take is not None:
            return list(load(name, split=split, streaming=True, **options).take(take))
        return load(name, split=split, **options)
    # RuntimeError: a dataset that is a script, which `datasets` no longer runs
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{name}: no such file here, and split '{split}' of the hub dataset could not be read: "
            f"{error}; check the name, split and network, or save the dataset to a local folder and name that"
        ) from error


def _answers(url: str) -> bool:
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        error.close()  # a refusal is an answer too
    except OSError:
        return False
    return True
