"""Where records come from: files, folders and patterns of files, saved `datasets` folders and hub names."""

import contextlib
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxalign.data.files import Shards, formats, kind_of, open_file
from jaxalign.data.tables import MOST_ROW_BYTES
from jaxalign.errors import DataError
from jaxalign.hub import QUICKSTART, way_to
from jaxalign.storage import Path as AnyPath
from jaxalign.storage import is_remote, local_copy, to_path

if TYPE_CHECKING:
    import datasets

HUB_TIMEOUT = 5.0  # seconds to wait for the hub's first answer
# The beginning of a file's name that says which split it is of, as the hub has them.
_SPLIT = re.compile(r"(train|training|test|valid|validation|val|dev|eval)([-_.]|$)", re.IGNORECASE)
# Beside the data in folders of the hub, of Spark and of our own.
_NO_DATA = re.compile(
    r"[._].*|readme.*|license.*|.*\.(md|lock|crc|ya?ml|sha256|request\.json)|dataset_infos?\.json",
    re.IGNORECASE,
)


class Unusable(Exception):
    """A row that its dataset is known to hold and no stage can use; the message is why."""


@dataclass(frozen=True)
class Dropped:
    """Stands in place of a row that its recipe leaves out."""

    reason: str


@dataclass(frozen=True)
class Records(Sequence):
    """Rows with random access, and the name to blame them by.

    A row may be a `DataError`, which says, without the place, why there is none.
    """

    rows: Sequence[Mapping[str, Any] | Dropped | DataError]
    name: str
    numbers: Sequence[int] | None = None  # the row of the source behind each record; None: one for one
    # What turns a row into our fields, one after the other, whenever it is asked for, so that memory does not grow with
    # the data. Each raises Unusable for a row to be dropped, and DataError, without the place, for a wrong one.
    adapters: tuple[Callable[[Mapping[str, Any]], Mapping[str, Any]], ...] = ()
    origin: Sequence[Any] | None = None  # the rows of the file, which `numbers` count; None: `rows`

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any] | Dropped:
        try:
            return self.read(index)
        except DataError as error:
            raise DataError(f"{self.where(index)}: {error}") from None

    def read(self, index: int) -> Mapping[str, Any] | Dropped:
        """Record `index`; a DataError does not name the place."""
        row = self.rows[index]
        if isinstance(row, DataError):
            raise row
        if isinstance(row, Dropped):
            return row
        try:
            for adapt in self.adapters:
                row = adapt(row)
        except Unusable as reason:
            return Dropped(str(reason))
        return row

    def between(self, start: int, stop: int) -> "Records":
        """Some of the records, without their places, for another process to read."""
        rows: Any = self.rows
        if hasattr(rows, "between"):
            rows = rows.between(start, stop)
        elif is_table(rows):
            rows = rows.select(range(start, stop))
        else:
            rows = rows[start:stop]
        return replace(self, rows=rows, numbers=None, origin=None)

    def readable(self) -> Iterator[Any]:
        """The rows that can be read, before any adapter has seen them."""
        for index in range(len(self)):
            with contextlib.suppress(DataError):
                yield self.rows[index]

    def raw(self, index: int) -> Any:
        """Record `index` as its file has it: a row, or the text of one that cannot be read."""
        rows, number = self._origin(index)
        try:
            return rows[number]
        except DataError:
            return rows.text(number)

    def where(self, index: int) -> str:
        """`file:row` of record `index`: counted from 1, or the line that an editor shows."""
        rows, number = self._origin(index)
        return rows.where(number) if hasattr(rows, "where") else f"{self.name}:{number + 1}"

    @property
    def blank(self) -> int:
        """Lines of the file with nothing on them, which are no rows."""
        return getattr(self.rows if self.origin is None else self.origin, "blank", 0)

    def _origin(self, index: int) -> tuple[Any, int]:
        rows = self.rows if self.origin is None else self.origin
        return rows, index if self.numbers is None else self.numbers[index]


class Places(list[str]):
    """Where each of some rows is from, as `Records.origin` of rows that were read already."""

    def where(self, index: int) -> str:
        """`file:row`."""
        return self[index]


def read_records(
    source: str,
    *,
    split: str = "train",
    take: int | None = None,
    hub_options: Mapping[str, str] | None = None,
    max_row_bytes: int = MOST_ROW_BYTES,
) -> Records:
    """Open a source of records. What is wrong with a single row is said when that row is read.

    Args:
      source: a file of `files.SUFFIXES`, also compressed; a folder of such files of one format, or a pattern like
        data/train-*.parquet, read in the order of their names, numbers in them as numbers; a folder written by
        `Dataset.save_to_disk`; or a name on the Hugging Face hub.
      split: which split of a folder or hub dataset; of a folder of files, those whose names begin with it, where
        their names say so.
      take: read only the first `take` records; a hub dataset is then streamed instead of downloaded.
      hub_options: further arguments of `datasets.load_dataset` for a hub dataset.
      max_row_bytes: a larger row of a file is an error when it is read.

    Raises DataError, naming the file, for a source that is missing, damaged or empty.
    """
    if take is not None and take < 1:
        raise DataError(f"{source}: take={take} reads nothing; give a positive number or leave it out")
    path = to_path(source)
    rows: Any
    if path.is_dir():
        found = _in_folder(path, source, split)
        rows = (
            _read_files(*found, take, max_row_bytes)
            if isinstance(found[0], list)
            else _load_saved(*found, split)
        )
    elif path.is_file():
        rows = open_file(local_copy(path), source, take, max_row_bytes)
    elif is_pattern(source):
        rows = _read_files(_matching(source), source, take, max_row_bytes)
    elif is_remote(source):
        raise DataError(f"{source}: no such file or folder; check the path, and that you may read the bucket")
    elif kind_of(source) or path.parts[:1] == (QUICKSTART,) or source.startswith((".", "/", "~")):
        raise DataError(f"{source}: no such file or folder (looked from {Path.cwd()}); {way_to(source)}")
    else:
        rows = _read_hub(source, split, take, hub_options or {})
    if take is not None and is_table(rows):
        rows = rows.select(range(min(take, len(rows))))
    if len(rows) == 0:
        raise DataError(f"{source}: holds no records; give a source with at least one")
    return Records(rows, source)


def is_table(rows: Any) -> bool:
    """Whether rows are a `datasets.Dataset`, told without that package, which takes a second to load."""
    return hasattr(rows, "select")


def find_files(source: str, split: str = "train") -> list[AnyPath]:
    """The files that `read_records` would read, none of them opened; [] for a name on the hub.

    Raises DataError for a folder or a pattern that it cannot read.
    """
    path = to_path(source)
    if path.is_dir():
        found, _ = _in_folder(path, source, split)
        if isinstance(found, list):
            return _in_order(found)
        return sorted(file for file in found.glob("**/*") if file.is_file())
    if path.is_file():
        return [path]
    return _in_order(_matching(source)) if is_pattern(source) else []


def split_names(names: str) -> tuple[str, ...]:
    """Sources separated by commas. A path that exists is one source, whatever is in its name."""
    parts = names.split(",")
    found = []
    while parts:
        whole = next((n for n in range(len(parts), 1, -1) if _exists(",".join(parts[:n]))), 1)
        name = ",".join(parts[:whole])
        found.append(name if to_path(name).exists() else name.strip())
        parts = parts[whole:]
    return tuple(found)


def _exists(source: str) -> bool:
    """Whether there is such a path, by itself or behind the name of a recipe."""
    behind = re.fullmatch(r"\s*[\w.-]+(/[\w.-]+)?:(?!//)(.+)", source)
    return any(place and to_path(place).exists() for place in (source, behind and behind[2]))


def is_pattern(source: str) -> bool:
    """Whether a source that is no path stands for all files whose names look like it."""
    return any(mark in source for mark in "*?[") and not to_path(source).exists()


def _matching(pattern: str) -> list[AnyPath]:
    parts = to_path(pattern).parts
    first = next(i for i, part in enumerate(parts) if any(mark in part for mark in "*?["))
    head = pattern[: pattern.index(parts[first])] if first else ""
    found = [path for path in to_path(head or ".").glob("/".join(parts[first:])) if path.is_file()]
    if not found:
        raise DataError(f"{pattern}: matches no file (looked from {Path.cwd()}); check the pattern")
    return found


def _read_files(paths: Sequence[AnyPath], name: str, take: int | None, max_row_bytes: int) -> Shards:
    """Files of one format, in the order of their names."""
    by_kind: dict[str, str] = {}
    for path in paths:
        by_kind.setdefault(kind_of(path.name), str(path))
    if len(by_kind) > 1:
        shown = ", ".join(by_kind[kind] for kind in sorted(by_kind))
        raise DataError(
            f"{name}: files of several kinds ({shown}); name one kind by a pattern, such as "
            f"{Path(name).parent if is_pattern(name) else name}/*{max(by_kind)}"
        )
    parts = []
    left = take
    for path in _in_order(paths):
        if left == 0:
            break
        part = open_file(local_copy(path), str(path), left, max_row_bytes)
        left = None if left is None else left - len(part)
        parts.append(part)
    return Shards(parts)


def _in_order(paths: Sequence[AnyPath]) -> list[AnyPath]:
    return sorted(paths, key=lambda path: _natural(str(path)))


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which 2 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _in_folder(path: AnyPath, name: str, split: str) -> tuple[Any, str]:
    """The files of rows in a folder, or the folder itself where `Dataset.save_to_disk` wrote it; and its name."""
    if any((path / file).is_file() for file in ("state.json", "dataset_dict.json")):
        return path, name
    children = [child for child in path.iterdir() if not _NO_DATA.fullmatch(child.name)]
    files = [child for child in children if child.is_file()]
    folders = sorted(child.name for child in children if child.is_dir())
    if not files and folders:
        inside = split if split in folders else folders[0]
        if split not in folders and len(folders) > 1:
            raise DataError(
                f"{name}: holds folders and no data ({', '.join(folders[:10])}); name one of them"
            )
        return _in_folder(path / inside, f"{name.rstrip('/')}/{inside}", split)
    strange = sorted(f"{folder}/" for folder in folders) + sorted(
        f.name for f in files if not kind_of(f.name)
    )
    if strange or not files:
        raise DataError(
            f"{name}: a folder with {', '.join(strange[:10]) or 'no files'} in it, and not one written by "
            f"Dataset.save_to_disk; a folder of data has files of {formats()}, and nothing else; name the files, or "
            f"give a pattern such as {name.rstrip('/')}/*.jsonl"
        )
    return _of_split(files, name, split), name


def _of_split(files: list[AnyPath], name: str, split: str) -> list[AnyPath]:
    """Of files whose names say which split they are of, those of one split."""
    mine = [file for file in files if re.match(rf"{re.escape(split)}([-_.]|$)", file.name, re.IGNORECASE)]
    others = [file for file in files if file not in mine]
    named = [file for file in others if _SPLIT.match(file.name)]
    if not mine and not named:
        return files
    if not mine or len(named) < len(others):
        shown = ", ".join(sorted(file.name for file in files)[:10])
        raise DataError(
            f"{name}: which of its files are of split {split!r}? It has {shown}; name the files, give a pattern, or "
            f"another split as in {name}@test"
        )
    return mine


def _load_saved(path: AnyPath, name: str, split: str) -> "datasets.Dataset":
    import datasets  # which takes a second, and files of text need nothing of it

    try:
        loaded = datasets.load_from_disk(str(local_copy(path)))
    except Exception as error:  # pyarrow and datasets share no base class for a damaged folder
        raise DataError(f"{name}: not a folder that can be read ({error}); write it again") from None
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split not in loaded:
        raise DataError(f"{name}: has no split '{split}'; it has {', '.join(map(str, loaded))}")
    return loaded[split]


def stream_hub(name: str, split: str, options: Mapping[str, str], start: int = 0) -> Iterator[Any]:
    """The rows of a hub dataset as they come over the network, from number `start` on.

    Raises:
      DataError: there is no such dataset, the network is gone, or a row cannot be read.
    """
    with _blaming(name, split):
        coming = _load_hub(name, split=split, streaming=True, **options)
        yield from coming.skip(start) if start else coming


def _read_hub(
    name: str, split: str, take: int | None, options: Mapping[str, str]
) -> "datasets.Dataset | list[dict[str, Any]]":
    with _blaming(name, split):
        if take is not None:
            return list(_load_hub(name, split=split, streaming=True, **options).take(take))
        return _load_hub(name, split=split, **options)


def _load_hub(name: str, /, **options: Any) -> Any:
    import datasets
    import datasets.config

    # `datasets` would try for 25 seconds; with HF_HUB_OFFLINE it looks into its cache alone, at once.
    if not datasets.config.HF_HUB_OFFLINE and not _answers(datasets.config.HF_ENDPOINT):
        raise DataError(
            f"{name}: no such file here, and {datasets.config.HF_ENDPOINT} does not answer; correct the path, or "
            "save the dataset where there is a network (Dataset.save_to_disk) and name that folder, or set "
            "HF_HUB_OFFLINE=1 to use the copy in the cache of `datasets`"
        )
    return datasets.load_dataset(name, **options)


@contextlib.contextmanager
def _blaming(name: str, split: str) -> Iterator[None]:
    """Says of which dataset an error is."""
    import datasets.exceptions

    try:
        yield
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
