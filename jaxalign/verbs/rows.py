"""What the verbs that read rows have in common: they read them as training does."""

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from jaxalign.data import DataConfig
from jaxalign.data.dataset import open_sources
from jaxalign.data.invalid import RULES, BadRow, Invalid, write_dropped
from jaxalign.data.public.advice import advise
from jaxalign.data.records import Record, parse_record
from jaxalign.data.sources import Dropped, Records
from jaxalign.data.tables import MOST_ROW_BYTES
from jaxalign.errors import DataError, amount
from jaxalign.storage import Path
from jaxalign.verbs.requests import Request, flag

SOURCES = "rows as config.data.train takes them: files, folders, patterns, hub names, several with commas"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowsRequest(Request):
    """Which rows are read, and how; see `DataConfig`."""

    ignore_fields: str = flag(
        "fields of rows and messages to leave out on purpose, with commas", default="", show="NAMES"
    )
    invalid: str = flag(
        "rows that cannot be used: stop, or drop them, up to half of a source",
        default="stop",
        choices=RULES,
        show="RULE",
    )
    max_row_bytes: int = flag("bytes that a row may have", default=MOST_ROW_BYTES, at_least=1)

    def data_config(self, source: str, **more: Any) -> DataConfig:
        """The config of data that has `source` in the place of held-out data, which is read once and in order."""
        own = {each.name for each in dataclasses.fields(RowsRequest)} - {"ignore_fields"}
        given = {name: getattr(self, name) for name in own}
        ignore = (self.ignore_fields,) if self.ignore_fields else ()
        return DataConfig(eval=source, ignore_fields=ignore, **given, **more)

    @contextlib.contextmanager
    def named(self, **flags: str) -> Iterator[None]:
        """Lets errors about rows speak of flags in the place of keys of a config.

        Args:
          flags: the flag behind further fields of `DataConfig`.
        """
        own = {each.name: self.key(each.name) for each in dataclasses.fields(RowsRequest)}
        try:
            yield
        except DataError as error:
            text = str(error)
            for name, key in (own | flags).items():
                text = text.replace(f"config.data.{name}", key)
            raise type(error)(text) from error


@dataclasses.dataclass(frozen=True)
class Checked:
    """A row that can be used: its fields, what they make, and where it is."""

    fields: dict[str, Any]
    record: Record
    where: str


@dataclasses.dataclass(frozen=True)
class CheckedRows:
    """Sources all of whose rows have been read once: those that cannot be used are known."""

    sources: list[Records]
    kind: str
    dropped: Counter[str]  # rows by the reason why they are left out
    invalid: Sequence[BadRow]


def open_checked(config: DataConfig, kind: str) -> CheckedRows:
    """Reads `config.data.eval` and checks its rows as for training on data of `kind`, without any tokens.

    Raises:
      DataError: as `build_dataset` does for sources and rows.
    """
    sources, invalid = open_sources(config, kind, "eval"), Invalid(config.invalid)
    dropped: Counter[str] = Counter()
    for records in sources:
        for index in range(len(records)):
            found = _check_row(records, index, kind)
            if isinstance(found, DataError):
                found = invalid.note(records, index, found)
            if isinstance(found, str):
                dropped[found] += 1
            if invalid.enough(records, index):
                break
    invalid.check(sources, functools.partial(advise, kind=kind))
    return CheckedRows(sources, kind, dropped, invalid.rows)


def iterate_checked(opened: CheckedRows) -> Iterator[Checked]:
    """The rows that can be used, read once more, so that memory does not grow with them."""
    for records in opened.sources:
        for index in range(len(records)):
            found = _check_row(records, index, opened.kind)
            if isinstance(found, Checked):
                yield found


def _check_row(records: Records, index: int, kind: str) -> Checked | str | DataError:
    """A row, or why it is left out, or what is wrong with it."""
    try:
        row: Any = records.read(index)
        if isinstance(row, Dropped):
            return row.reason
        return Checked(dict(row), parse_record(row, kind), records.where(index))
    except DataError as error:
        return error


def write_beside(out: Path, rows: Sequence[BadRow]) -> str:
    """Writes rows that were left out beside what a verb writes; says so, or nothing where there are none."""
    if not rows:
        return ""
    path = out.with_name(f"{out.name}.dropped.jsonl")
    write_dropped(path, rows)
    return f"{amount(len(rows), 'row')} left out as invalid: see {path}"
