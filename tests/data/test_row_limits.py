"""A row of a file has so many bytes at most, and what is larger is known without being held in memory."""

import json
import resource

import pyarrow
import pyarrow.parquet
import pytest

from jaxalign.data import DataConfig, tables
from jaxalign.data.dataset import open_sources
from jaxalign.data.kinds import TEXT
from jaxalign.data.sources import read_records
from jaxalign.errors import ConfigError, DataError


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def write(path, rows):
    if path.suffix == ".csv":
        path.write_text("text\n" + "".join(f"{row}\n" for row in rows))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path)
    elif path.suffix == ".txt":
        path.write_text("".join(f"{row}\n" for row in rows))
    else:
        lines = [json.dumps({"text": row}) for row in rows]
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]")
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt", ".parquet"])
def test_a_row_that_is_too_large_is_refused_by_file_row_and_key(tmp_path, suffix):
    source = write(tmp_path / f"rows{suffix}", ["short", "x" * 5_000, "last"])
    assert [row["text"] for row in read_records(source)] == ["short", "x" * 5_000, "last"]
    records = read_records(source, max_row_bytes=1_000)
    assert records[0] == {"text": "short"} and records[2] == {"text": "last"}
    message = r"a row of 5,0\d\d bytes, where 1,000 are allowed.*config\.data\.max_row_bytes=50\d\d or more"
    with pytest.raises(DataError, match=rf"rows{suffix}:\d: {message}"):
        records[1]
    assert len(str(records.raw(1))) < 2_100
    assert [row["text"] for row in read_records(source, max_row_bytes=5_100)][1] == "x" * 5_000


def test_the_key_of_the_config(tmp_path):
    source = write(tmp_path / "rows.jsonl", ["short", "x" * 5_000])
    (records,) = open_sources(DataConfig(train=source, max_row_bytes=100), TEXT, "train")
    assert records[0]["text"] == "short"
    with pytest.raises(DataError, match=r"rows\.jsonl:2: a row of 5,0\d\d bytes, where 100 are allowed"):
        records[1]
    with pytest.raises(ConfigError, match=r"config\.data\.max_row_bytes=0 must be at least 1"):
        DataConfig(train=source, max_row_bytes=0)


@pytest.mark.slow
def test_one_row_of_a_hundred_megabytes_takes_no_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        file.write('{"text": "')
        for _ in range(104):
            file.write("x" * 1_000_000)
        file.write('"}\n{"text": "short"}\n')
    before = peak()
    records = read_records(str(path))
    with pytest.raises(
        DataError, match=r"rows\.jsonl:1: a row of 104,000,01\d bytes, where 16,777,216 are allowed"
    ):
        records[0]
    assert records[1] == {"text": "short"} and len(records.raw(0)) == 2_000
    assert peak() - before < 150 << 20  # the file is mapped once, to see whether it is one value


@pytest.mark.slow
def test_parquet_that_fills_the_memory_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x" * 10_000_000] * 120}), path, compression="zstd")
    assert path.stat().st_size < 1 << 20
    before = peak()
    with pytest.raises(
        DataError, match=r"rows\.parquet: its row group 1 takes [\d,]+ bytes in the file, and more than"
    ):
        read_records(str(path))
    assert peak() - before < 1 << 30


def test_text_of_a_table_that_is_no_text(tmp_path):
    path = tmp_path / "rows.parquet"
    broken = pyarrow.StringArray.from_buffers(
        1, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), path)
    records = read_records(str(path))
    with pytest.raises(DataError, match=r"rows\.parquet:1: cannot be read \(.*UTF"):
        records[0]


def test_a_table_that_was_converted_once_is_not_read_again(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["the fox"] * 200}), path)
    read = []
    check = tables._check_parquet
    monkeypatch.setattr(tables, "_check_parquet", lambda *how: (read.append(how), check(*how)))
    for _ in range(3):
        assert list(read_records(str(path)))[199] == {"text": "the fox"}
    assert len(read) == 1
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a bear"] * 200}), path)
    assert list(read_records(str(path)))[199] == {"text": "a bear"} and len(read) == 2
