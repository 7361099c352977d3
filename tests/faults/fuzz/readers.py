"""Files of rows in every format of text, plain and compressed."""

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

from tests.faults.fuzz.cases import (
    NUMBERS,
    STRANGE_TEXTS,
    WORDS,
    Random,
    Surface,
    any_value,
    as_json,
    chance,
    damaged,
)

_SUFFIXES = (".jsonl", ".jsonl", ".json", ".json", ".csv", ".tsv", ".txt", ".ndjson", "", ".bin")
_PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": lambda data: data}
_FIELDS = (
    "text",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "messages",
    "version",
    "data",
    "rows",
    "a,b",
    "",
)


def write(rng: Random, folder: Path) -> str:
    suffix = rng.choice(_SUFFIXES)
    data = _table(rng, suffix) if suffix in (".csv", ".tsv") else _json(rng, suffix)
    if chance(rng, 0.3):
        data = damaged(rng, data)
    if chance(rng, 0.03):
        data = data.decode("utf-8", "replace").encode(
            rng.choice(("utf-16", "utf-32", "utf-16-le", "utf-8-sig"))
        )
    if chance(rng, 0.02):
        packed = rng.choice(list(_PACKED))
        data, suffix = _PACKED[packed](data), suffix + packed
        if chance(rng, 0.3):
            data = damaged(rng, data)
    file = folder / f"data{suffix}"
    file.write_bytes(data)
    return str(file)


def _row(rng: Random) -> Any:
    if chance(rng, 0.05):
        return any_value(rng)
    return {rng.choice(_FIELDS): any_value(rng, 1) for _ in range(rng.randrange(1, 4))}


def _json(rng: Random, suffix: str) -> bytes:
    rows = [_row(rng) for _ in range(rng.randrange(6))]
    if suffix == ".json" and chance(rng, 0.6):
        whole: Any = rows
        if chance(rng, 0.4):
            whole = {rng.choice(_FIELDS): rows} | (
                {rng.choice(_FIELDS): _row(rng)} if chance(rng, 0.5) else {}
            )
        if chance(rng, 0.5):
            return json.dumps(whole, indent=rng.choice((0, 2))).encode()
        return as_json(rng, whole)
    ends = rng.choice((b"\n", b"\n", b"\r\n", b"\n\n", b" ", b"\r"))
    return ends.join(as_json(rng, row) if chance(rng, 0.2) else json.dumps(row).encode() for row in rows)


def _table(rng: Random, suffix: str) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else rng.choice(",,;"))
    width = rng.randrange(1, 4)
    for _ in range(rng.randrange(6)):
        cells = [rng.choice((*WORDS, *STRANGE_TEXTS, *NUMBERS)) for _ in range(width)]
        writer.writerow(cells[: rng.randrange(1, 4)] if chance(rng, 0.1) else cells)
    return file.getvalue().encode("utf-8", "surrogatepass")


def prepare() -> None:
    import pyarrow  # noqa: F401, which reads what is compressed

    import jaxalign.data.sources  # noqa: F401


def read(file: str) -> None:
    from jaxalign.data.sources import read_records
    from jaxalign.errors import DataError

    records = read_records(file)
    refused = None
    for index in range(len(records)):
        records.where(index)
        try:
            records.read(index)
        except DataError as error:
            refused = error
            records.raw(index)
    if refused is not None:
        raise refused


SURFACE = Surface(150, write, read, prepare)
