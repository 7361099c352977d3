"""Files of rows, each row read when it is asked for: JSON, CSV, plain text, Parquet and Arrow, plain or compressed.

What is found out when a file is opened is where each row begins and ends; so memory does not grow with the file, and a
row that cannot be read is an error of that row alone. A compressed file, or one in UTF-16, is unpacked into a temporary
folder first.
"""

import bisect
import bz2
import codecs
import contextlib
import csv
import functools
import gzip
import itertools
import lzma
import mmap
import os
import shutil
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxalign import strict_json
from jaxalign.data.json_spans import (
    NotWhole,
    first_line,
    list_of_rows,
    one_value,
    opens_alone,
    spans_of_array,
    spans_of_values,
)
from jaxalign.data.tables import MOST_ROW_BYTES, TableRows, open_table, too_large
from jaxalign.errors import DataError, shorten
from jaxalign.storage import DISK_REFUSES, naming, temporary_folder

LINES = (".jsonl", ".ndjson")
SUFFIXES = (*LINES, ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_BLOCK = 1 << 20  # bytes of a line that are held at once
_SHOWN = 2_000  # bytes of a row that is too large
_OPEN_FILES = 64  # at a time; a folder may hold thousands
_MARKS = (  # longest first: the mark of UTF-16 begins that of UTF-32
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
csv.field_size_limit(2**31 - 1)  # by itself it stops at 131,072 characters

Span = tuple[
    int, int, int
]  # where a row begins and ends, in bytes, and its number as an editor or a reader counts


def kind_of(path: Path | str) -> str:
    """The suffix that says how a file is read, in small letters and without that of its compression; "" for none."""
    name = Path(path).name.lower()
    for packed in COMPRESSIONS:
        name = name.removesuffix(packed)
    suffix = Path(name).suffix
    return suffix if suffix in SUFFIXES else ""


def formats() -> str:
    """What can be read, for errors."""
    return f"{', '.join(SUFFIXES)}, each also with {', '.join(COMPRESSIONS)} behind it"


def open_file(
    path: Path, name: str, take: int | None = None, max_row_bytes: int = MOST_ROW_BYTES
) -> "FileRows | TableRows":
    """The rows of a file, or its first `take`.

    Args:
      name: what errors call it.
      max_row_bytes: a larger row is an error when it is read.

    Raises:
      DataError: it is of no format that is known, or damaged as a whole; names the file.
    """
    kind = kind_of(path)
    if not kind:
        found = Path(name).suffix or "a file without a suffix"
        raise DataError(f"{name}: cannot read {found!r}; write one of {formats()}")
    plain = _unpacked(path, name)
    if kind in (".parquet", ".arrow"):
        return open_table(plain, name, take, max_row_bytes)
    plain = _in_utf8(plain, name)
    made = functools.partial(FileRows, plain, name, take=take, max_row_bytes=max_row_bytes)
    if kind in (".csv", ".tsv"):
        return _read_csv(plain, name, made, "\t" if kind == ".tsv" else "")
    if kind == ".txt":
        return made(_lines(plain), _parse_text)
    return _read_json(plain, name, made, lines=kind in LINES)


class FileRows(Sequence):
    """The rows of a file of text, parsed when they are asked for.

    Raises:
      DataError: the file has changed since it was opened, or (without the place) the row cannot be read.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        spans: Iterable[Span | None],
        parse: Callable[[bytes], dict[str, Any]],
        take: int | None = None,
        max_row_bytes: int = MOST_ROW_BYTES,
    ) -> None:
        """`spans`: None stands for a blank line, which is no row."""
        self._path, self._name, self._parse, self._most = path, name, parse, max_row_bytes
        self._signature = _signature(path)
        self._starts, self._ends, self._numbers = array("q"), array("q"), array("q")
        self.blank = 0
        for span in spans:
            if span is None:
                self.blank += 1
                continue
            if len(self._starts) == take:
                break
            for values, value in zip((self._starts, self._ends, self._numbers), span, strict=True):
                values.append(value)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        found = self._bytes(index, self._most + 1)
        if len(found) > self._most:
            raise too_large(self._ends[index] - self._starts[index], self._most)
        return self._parse(found)

    def text(self, index: int) -> str:
        """A row as it stands in the file, for one that cannot be parsed; of one that is too large, its beginning."""
        found = self._bytes(index, self._most + 1)
        shown = found if len(found) <= self._most else found[:_SHOWN]
        return shown.decode("utf-8", "backslashreplace")

    def where(self, index: int) -> str:
        """`file:line`, as an editor shows it; in an array `file:row`, counted from 1."""
        return f"{self._name}:{self._numbers[index]}"

    def between(self, start: int, stop: int) -> "FileRows":
        """Some of the rows, for another process."""
        spans = zip(*(each[start:stop] for each in (self._starts, self._ends, self._numbers)), strict=True)
        made = FileRows(self._path, self._name, spans, self._parse, max_row_bytes=self._most)
        made._signature = self._signature
        return made

    def _bytes(self, index: int, most: int) -> bytes:
        """A row, or its first `most` bytes."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        file, start = _opened(self._path, self._signature), self._starts[index]
        found = os.pread(file.number, min(self._ends[index] - start, most), start)
        status = os.fstat(file.number)
        if (status.st_size, status.st_mtime_ns) != self._signature[2:]:
            raise DataError(f"{self._name} has been written to since it was opened; start again")
        return found


class Shards(Sequence):
    """The rows of several files, one after the other."""

    def __init__(self, parts: Sequence[FileRows | TableRows]) -> None:
        self._parts = parts
        self._ends = list(itertools.accumulate(len(part) for part in parts))
        self.blank = sum(part.blank for part in parts)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Any:
        part, inside = self._find(index)
        return part[inside]

    def text(self, index: int) -> str:
        """See `FileRows.text`."""
        part, inside = self._find(index)
        return part.text(inside)

    def where(self, index: int) -> str:
        """The place of a row in its own file."""
        part, inside = self._find(index)
        return part.where(inside)

    def between(self, start: int, stop: int) -> "Shards":
        """Some of the rows, for another process; of a table their numbers are forgotten."""
        parts = []
        for part, end in zip(self._parts, self._ends, strict=True):
            begin = end - len(part)
            if begin < stop and start < end:
                parts.append(part.between(max(start - begin, 0), min(stop, end) - begin))
        return Shards(parts)

    def _find(self, index: int) -> tuple[FileRows | TableRows, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, index)
        return self._parts[number], index - (self._ends[number - 1] if number else 0)


def _signature(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _Opened:
    """A file that is open as long as somebody knows it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@functools.lru_cache(maxsize=_OPEN_FILES)
def _opened(path: Path, signature: tuple[int, int, int, int]) -> _Opened:
    """The file that had this signature, open while it is in use, so that another may take its name meanwhile."""
    return _Opened(path)


@functools.cache
def _once(path: Path, signature: tuple[int, int, int, int], make: Callable[..., None], *more: str) -> Path:
    """A file that `make(path, target, *more)` writes into a temporary folder, once as long as `path` is the same."""
    target = temporary_folder() / path.stem
    make(path, target, *more)
    return target


def _unpacked(path: Path, name: str) -> Path:
    if path.suffix.lower() not in COMPRESSIONS:
        return path
    import pyarrow

    try:
        return _once(path, _signature(path), _unpack)
    except (OSError, EOFError, lzma.LZMAError, zlib.error, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.errno in DISK_REFUSES:
            raise  # of the temporary folder, whose disk is full
        raise DataError(
            f"{name}: cannot be unpacked as {path.suffix.lower()} ({error}); it is damaged or cut short, or has the "
            "wrong suffix; copy it again"
        ) from None


def _unpack(path: Path, target: Path) -> None:
    import pyarrow

    openers: dict[str, Callable[[Path], Any]] = {
        ".gz": gzip.open,
        ".bz2": bz2.open,
        ".xz": lzma.open,
        ".zst": lambda path: pyarrow.input_stream(str(path), compression="zstd"),
    }
    with contextlib.closing(openers[path.suffix.lower()](path)) as packed:
        with naming(target), target.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)


def _in_utf8(path: Path, name: str) -> Path:
    """The file itself, or a copy where it begins with the mark of another encoding of Unicode."""
    with path.open("rb") as file:
        head = file.read(4)
    encoding = next((encoding for mark, encoding in _MARKS if head.startswith(mark)), "")
    if not encoding:
        if b"\0" in head:
            raise DataError(
                f"{name}: looks like UTF-16 without a byte order mark, or like no text at all; save it as UTF-8"
            )
        return path
    try:
        return _once(path, _signature(path), _transcode, encoding)
    except UnicodeError as error:
        raise DataError(
            f"{name}: begins as {encoding.upper()} and is not ({error}); save it as UTF-8"
        ) from None


def _transcode(path: Path, target: Path, encoding: str) -> None:
    # newline="": carriage returns inside of texts stay what they are.
    with (
        path.open(encoding=encoding, newline="") as file,
        target.open("w", encoding="utf-8", newline="") as out,
    ):
        shutil.copyfileobj(file, out, 1 << 20)


def _lines(path: Path) -> Iterator[Span | None]:
    """Lines end at line feeds alone: U+2028, U+0085 and carriage returns may stand in a text."""
    with path.open("rb") as file:
        start = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
        file.seek(start)
        for number in itertools.count(1):
            size, filled, block = 0, False, b""
            while not block.endswith(b"\n") and (
                block := file.readline(_BLOCK)
            ):  # whatever the length of the line
                size, filled = size + len(block), filled or bool(block.strip())
            if not size:
                return
            yield (start, start + size, number) if filled else None
            start += size


def _first_line(path: Path) -> bytes:
    span = next(filter(None, _lines(path)), None)
    return b"" if span is None else _slice(path, span).strip()


def _slice(path: Path, span: Span) -> bytes:
    """A line of names, of which more than a block are none."""
    with path.open("rb") as file:
        file.seek(span[0])
        return file.read(min(span[1] - span[0], _BLOCK))


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 ({error}); save the file as UTF-8") from None


def _parse_text(line: bytes) -> dict[str, Any]:
    return {"text": _decode(line).removesuffix("\n").removesuffix("\r")}


def parse_json(text: bytes) -> dict[str, Any]:
    """The object that a row of JSON is.

    Raises:
      DataError, without the place: it is none, or has one name twice.
    """
    try:
        row = strict_json.parse_json(_decode(text))
    except strict_json.SaidTwice as error:
        raise DataError(str(error)) from None
    except strict_json.NotJSON as error:
        raise DataError(f"not valid JSON: {error}; fix or remove the row") from None
    if not isinstance(row, dict):
        raise DataError(f'a {type(row).__name__}, not a JSON object; write the record as {{"field": value}}')
    return row


def _read_json(path: Path, name: str, made: Callable[..., FileRows], *, lines: bool) -> FileRows:
    """Rows a line each, or an array of rows, or rows over several lines, or an object with one list of rows."""

    def rows(spans: Iterable[Span | None]) -> FileRows:
        return made(spans, parse_json)

    data = _map(path)
    start = len(codecs.BOM_UTF8) if data[:3] == codecs.BOM_UTF8 else 0
    first, whole, more = first_line(data, start)
    if first == b"{" and whole and (lines or more):
        return rows(_lines(path))
    if first not in (b"{", b"[") or (first == b"{" and lines and not opens_alone(data, start)):
        return rows(
            _lines(path)
        )  # the first row is damaged: one over several lines begins with a bracket alone
    try:
        if first == b"[":
            return rows(_numbered(spans_of_array(data, start)))
        inside = list_of_rows(data, start, name) if one_value(data, start) else None
        return rows(
            _numbered(spans_of_values(data, start) if inside is None else spans_of_array(data, inside))
        )
    except NotWhole as error:
        if whole and more:  # rows that are arrays, one a line: each is refused by itself
            return rows(_lines(path))
        raise DataError(
            f"{name}: {error}; mend the end of the file, or write one row a line (.jsonl)"
        ) from None


def _numbered(spans: Iterable[tuple[int, int]]) -> Iterator[Span]:
    return ((start, end, number) for number, (start, end) in enumerate(spans, 1))


def _map(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return b""  # an empty file cannot be mapped
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read_csv(path: Path, name: str, made: Callable[..., FileRows], delimiter: str) -> FileRows:
    """Rows of cells under a line of names. A cell is text; an empty one is as a field that is not there."""
    first = _decode(_first_line(path)).removeprefix("\ufeff")
    if not delimiter:
        # Excel writes semicolons where the comma is for decimals.
        delimiter = ";" if ";" in first and "," not in first else ","
    spans = _csv_spans(path, name, delimiter)
    names = next(filter(None, spans), None)
    header = [] if names is None else [cell.strip() for cell in _cells(_slice(path, names), delimiter)]
    twice = {column for column in header if header.count(column) > 1}
    if twice:
        raise DataError(f"{name}:1: the column {min(twice)!r} stands twice; rename or remove one")

    def parse(text: bytes) -> dict[str, Any]:
        cells = _cells(text, delimiter)
        if len(cells) != len(header):
            raise DataError(
                f"{len(cells)} cells under {len(header)} names ({', '.join(header)}); put text with a "
                f"{shorten(delimiter)} or a line break in it between double quotes"
            )
        return {column: cell or None for column, cell in zip(header, cells, strict=True)}

    return made(spans, parse)


def _cells(text: bytes, delimiter: str) -> list[str]:
    # A line that ends the row is no part of it; those within quotes are kept as they are.
    line = _decode(text).removesuffix("\n").removesuffix("\r")
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        raise DataError(f"not valid CSV: {error}; double the quotes that a cell holds") from None


def _csv_spans(path: Path, name: str, delimiter: str) -> Iterator[Span | None]:
    ends = [len(codecs.BOM_UTF8)]

    def lines() -> Iterator[str]:
        with path.open("rb") as file:
            if file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
                ends[0] = 0
            for line in file:
                ends.append(ends[-1] + len(line))
                yield line.decode("latin-1")  # only commas, quotes and line ends matter here

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num
        del ends[:-1]
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "end of data" in str(error):
                raise DataError(
                    f"{name}:{number + 1}: a quote opens in this row and never closes; close or double it"
                ) from None
            cells = ["?"]  # parsing the row says what is wrong
        if cells is None:
            return
        yield (ends[0], ends[-1], number + 1) if len(cells) > 1 or any(map(str.strip, cells)) else None
