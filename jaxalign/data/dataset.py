"""From a data config to packed rows: read, check, render, tokenise, pack."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.data.chat import load_template
from jaxalign.data.encode import OVERLONG, EncodingReport, encode_dataset, members
from jaxalign.data.packing import Item, Rows, build_rows
from jaxalign.data.records import KINDS
from jaxalign.data.sources import Records, read_records
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import ConfigError, DataError


@dataclass(frozen=True)
class DataConfig:
    """`config.data`. A source is a file, folder or hub name; see `read_records`."""

    train: str | tuple[str, ...] = ""  # sources; several also as one string, separated by commas
    eval: str | tuple[str, ...] = ""
    split: str = "train"  # of a folder or hub dataset
    take: int = 0  # records of each source to read, a hub dataset being streamed; 0 reads all
    weights: tuple[float, ...] = ()  # each training source's share of rows; () is each row once per epoch
    tokenizer: str = ""  # .model file, or folder with one
    chat_template: str = ""  # Jinja file; "" is the built-in template
    max_length: int = 1024  # tokens of one sequence
    row_length: int = 1024  # tokens of one packed row
    packing: bool = True  # False: one sequence, pair or ranking per row
    max_segments: int = 32  # sequences in one packed row
    overlong: str = "drop"  # what is longer than max_length: "error", "drop" or "truncate"; text is split
    seed: int = 0  # which sequences share a row


@dataclass(frozen=True, eq=False)
class Dataset:
    """Packed rows, what became of every record, and where to look one up.

    Record numbers, as in `Batch.rows`, run through all sources in order, starting at 0.
    """

    rows: Rows
    report: EncodingReport
    fingerprint: str  # sha256 of all token ids and masks: equal data and equal tokenisation
    sources: tuple[Records, ...]

    def record(self, number: int) -> Mapping[str, Any]:
        """The raw fields of a record, also those no stage reads."""
        source, index = self._find(number)
        return source[index]

    def where(self, number: int) -> str:
        """`file:row` of a record."""
        source, index = self._find(number)
        return source.where(index)

    def _find(self, number: int) -> tuple[Records, int]:
        index = number
        for source in self.sources:
            if 0 <= index < len(source):
                return source, index
            index -= len(source)
        raise IndexError(f"record {number} of {sum(map(len, self.sources))}")


def build_dataset(config: DataConfig, tokenizer: Tokenizer, kind: str, part: str = "train") -> Dataset:
    """Read the sources of `config.data.<part>` and make rows of them; see `dataset_from_records`."""
    key = f"config.data.{part}"
    names = getattr(config, part)
    names = tuple(names.split(",")) if isinstance(names, str) else tuple(names)
    if not all(names) or not names:
        raise ConfigError(f"{key}={getattr(config, part)!r}: names no data; write a file, folder or hub name")
    try:
        sources = [read_records(name, split=config.split, take=config.take or None) for name in names]
    except DataError as error:
        raise DataError(f"{error} (from {key})") from error
    return dataset_from_records(sources, config, tokenizer, kind, part)


def dataset_from_records(
    sources: Sequence[Records], config: DataConfig, tokenizer: Tokenizer, kind: str, part: str = "train"
) -> Dataset:
    """Check, encode and pack records of `kind` (see `parse_record`), from files or made in memory.

    Weights apply to the training part; held-out data is always taken once.
    """
    weights = tuple(config.weights) if part == "train" else ()
    _check(config, kind, len(sources), weights)
    template = load_template(config.chat_template) if config.chat_template else None
    encoded: list[list[Item]] = []
    report = EncodingReport()
    for source in sources:
        items, source_report = encode_dataset(
            source,
            kind,
            tokenizer,
            template,
            max_length=config.max_length,
            overlong=config.overlong,
            group_length=config.row_length,
            first_row=report.read,
        )
        encoded.append(items)
        report += source_report
    most = max(len(members(item)) for items in encoded for item in items)
    if config.packing and most > config.max_segments:
        raise ConfigError(
            f"config.data.max_segments={config.max_segments}: must be {most} or more, for so long a ranking"
        )
    rows = build_rows(
        encoded,
        kind,
        row_length=config.max_length if kind == "prompt" else config.row_length,
        max_segments=config.max_segments,
        packing=config.packing,
        seed=config.seed,
        weights=weights,
        pad_id=tokenizer.pad_id,
    )
    return Dataset(rows, report, _fingerprint(rows.items), tuple(sources))


def _check(config: DataConfig, kind: str, source_count: int, weights: tuple[float, ...]) -> None:
    sequences, what = (2, "a pair") if kind.startswith("preference") else (1, "the longest sequence")
    shortest_row = sequences * config.max_length
    checks = [
        (kind in KINDS, f"kind={kind!r}: write one of {', '.join(KINDS)}"),
        (config.overlong in OVERLONG, f"overlong={config.overlong!r}: write one of {', '.join(OVERLONG)}"),
        (
            config.max_length >= 2,
            f"max_length={config.max_length}: must be at least 2, a context and a target",
        ),
        (
            config.row_length >= shortest_row,
            f"row_length={config.row_length}: must be at least {sequences} x max_length={config.max_length}, "
            f"so that a row holds {what}",
        ),
        (
            config.max_segments >= sequences,
            f"max_segments={config.max_segments}: must be at least {sequences}",
        ),
        (config.take >= 0, f"take={config.take}: must be 0 or more"),
        (
            not weights or (len(weights) == source_count and min(weights) > 0),
            f"weights={weights}: give one positive share for each of the {source_count} sources, or none",
        ),
    ]
    for holds, problem in checks:
        if not holds:
            raise ConfigError(f"config.data.{problem}")


def _fingerprint(items: Sequence[Item]) -> str:
    digest = hashlib.sha256()
    for item in items:
        for example in members(item):
            digest.update(len(example.ids).to_bytes(8, "little"))
            digest.update(example.ids.astype("<i4").tobytes())
            digest.update(example.mask.astype("<f4").tobytes())
    return digest.hexdigest()
