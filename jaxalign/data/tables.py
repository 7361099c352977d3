"""Rows of tables, Parquet and Arrow; and Parquet files that are small on the disk and fill the memory when read."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxalign.errors import DataError

if TYPE_CHECKING:
    import datasets

MOST_ROW_BYTES = 16 << 20  # `config.data.max_row_bytes`; a book has one or two million
_AT_ONCE = 8  # rows
_TOGETHER = 512  # rows that are checked together
_LARGE = 1 << 30  # bytes of a row group, which is read as a whole
_MOST_FOLD = 50  # text is packed to a third or a tenth


def open_table(path: Path, name: str, take: int | None, max_row_bytes: int) -> "TableRows":
    """The rows of a file of Parquet or Arrow; see `files.open_file`."""
    import datasets  # which takes a second, and files of text need nothing of it
    from datasets.io.parquet import ParquetDatasetReader

    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            reader = ParquetDatasetReader(str(path))
            # What `datasets` has converted once it maps from then on: it is not read again at every start.
            if not Path(reader.builder.cache_dir).is_dir():
                _check_parquet(path, name, max_row_bytes)
            table: Any = reader.read()
        else:
            table = datasets.Dataset.from_file(str(path))
    except DataError:
        raise
    except Exception as error:  # pyarrow and datasets share no base class for a damaged file
        raise DataError(f"{name}: not a readable {kind} file: {error}; write it again") from error
    table = table if take is None else table.select(range(min(take, len(table))))
    return TableRows(table, name, max_row_bytes)


def too_large(size: int, most: int) -> DataError:
    """What to raise, without the place, for a row of more bytes than a row may have."""
    return DataError(
        f"a row of {size:,} bytes, where {most:,} are allowed: an end of a line may be missing; cut it, or set "
        f"config.data.max_row_bytes={size} or more"
    )


class TableRows(Sequence):
    """The rows of a table of `datasets`."""

    blank = 0

    def __init__(self, table: "datasets.Dataset", name: str, max_row_bytes: int = MOST_ROW_BYTES) -> None:
        self._table, self._name, self._most = table, name, max_row_bytes
        self._sound: set[int] = set()  # blocks of rows that were looked at

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            self._check(index)
            return self._table[index]
        except DataError:
            raise
        except (ValueError, OverflowError) as error:  # text that is not UTF-8, a time that is none
            raise DataError(f"cannot be read ({error}); remove the row, or write the file again") from None

    def _check(self, index: int) -> None:
        """Raises for a row that is too large, or damaged: its numbers could point anywhere. Looks at many at a time."""
        block = index // _TOGETHER
        if block in self._sound or self._table._indices is not None:
            return
        for start, count in ((block * _TOGETHER, _TOGETHER), (index, 1)):
            rows = self._table.data.slice(start, count)
            if rows.nbytes > self._most:
                if count == 1:
                    raise too_large(rows.nbytes, self._most)
                continue
            try:
                rows.validate(full=True)
            except ValueError:
                if count == 1:
                    raise
                continue
            if count > 1:
                self._sound.add(block)
            return

    def text(self, index: int) -> str:
        """What can be shown of a row that cannot be read."""
        return str(self._table.data.slice(index, 1).schema)

    def where(self, index: int) -> str:
        """`file:row`, counted from 1."""
        return f"{self._name}:{index + 1}"

    def between(self, start: int, stop: int) -> "TableRows":
        """Some of the rows, for another process; their numbers are forgotten."""
        return TableRows(self._table.select(range(start, stop)), self._name, self._most)


def _check_parquet(path: Path, name: str, max_row_bytes: int) -> None:
    """Reads a file once, some rows at a time, before it is read by whole row groups.

    Raises:
      DataError: a row group has more than a gigabyte and is packed fifty-fold, which no text is; or the file is
        damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for number in range(file.metadata.num_row_groups):
                _check_group(file, number, name, max_row_bytes)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a readable .parquet file: {error}; write it again") from None


def _check_group(file: Any, number: int, name: str, max_row_bytes: int) -> None:
    group = file.metadata.row_group(number)
    packed = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
    if group.num_rows * max_row_bytes <= _LARGE:
        return
    # What stands in the file once it is unpacked; values that stand there once for many rows are found by reading.
    sizes = (batch.nbytes for batch in file.iter_batches(batch_size=_AT_ONCE, row_groups=[number]))
    most = max(_LARGE, _MOST_FOLD * packed)
    for size in itertools.chain([group.total_byte_size], itertools.accumulate(sizes)):
        if size > most:
            raise DataError(
                f"{name}: its row group {number + 1} takes {packed:,} bytes in the file, and more than {size:,} once "
                "it is read; write the file again with fewer rows in a group (row_group_size of pyarrow's write_table)"
            )
