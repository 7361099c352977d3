"""Every format of file gives the same records, whatever it is packed in, and bad ones are refused in words."""

import bz2
import csv
import errno
import gzip
import json
import lzma
import os
import tracemalloc

import datasets
import pyarrow
import pytest

from jaxalign.data import DataConfig, build_dataset
from jaxalign.data.dataset import open_sources
from jaxalign.data.sources import read_records, split_names
from jaxalign.errors import DataError

# Line separators of Unicode, a carriage return, a quote, a comma and a bracket: all within texts.
ROWS = [
    {"prompt": "one\u2028two\u0085three", "completion": 'a "b", [c]\r\nd\re{', "id": "0"},
    {"prompt": "日本語 \ufeff", "completion": "\u0000 \\", "id": "1"},
    {"prompt": "plain", "completion": "text", "id": "2"},
]


def lines(rows=ROWS, end="\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def read(path, **options):
    return list(read_records(str(path), **options))


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


JSON = {
    "lines": lines(),
    "crlf": lines(end="\r\n"),
    "blank lines": "\n" + lines(end="\n \n\n") + "\n",
    "no last line end": lines().rstrip("\n"),
    "an array": json.dumps(ROWS),
    "an array of lines": "[" + ",\n".join(json.dumps(row) for row in ROWS) + "]\n",
    "a pretty array": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "pretty rows": "\n".join(json.dumps(row, indent=2) for row in ROWS),
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSONL", ".ndjson"])
@pytest.mark.parametrize("text", list(JSON))
def test_json_of_every_layout(tmp_path, text, suffix):
    path = tmp_path / f"rows{suffix}"
    for mark in ("", "\ufeff"):
        path.write_bytes((mark + JSON[text]).encode())
        assert read(path) == ROWS
        assert read(path, take=2) == ROWS[:2]


@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_with_one_list_of_rows(tmp_path, indent):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"version": "1.0", "data": ROWS, "count": 3}, indent=indent))
    assert read(path) == ROWS and read_records(str(path)).where(2) == f"{path}:3"
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    path.write_text(json.dumps(row, indent=indent))
    assert read(path) == [row]  # this list is of one row


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"train": ROWS, "test": ROWS},
            r"rows.json: holds several lists of rows \(train, test\); write each",
        ),
        ({"system": "Be brief.", "data": ROWS}, r"the field 'system' stands beside the list of rows 'data'"),
        (
            {"prompt": ["a", "b"], "completion": ["c", "d"]},
            r"one object of columns \(prompt, completion\); write an",
        ),
        (
            {"0": {"text": "a"}, "1": {"text": "b"}},
            r"one object of rows under names of their own \(0, 1\); write an",
        ),
    ],
)
def test_objects_that_may_mean_several_things(tmp_path, value, message):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=message):
        read_records(str(path))


def test_a_json_file_that_is_cut(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, indent=1)[:-8])
    with pytest.raises(DataError, match=r"rows.json: it ends within an array or object, .*; mend the end"):
        read_records(str(path))
    path.write_text('[{"text": "a"}, 7, {"text": }, {"text": "b"}]')
    records = read_records(str(path))
    assert len(records) == 4 and records[3] == {"text": "b"}
    for index, message in ((1, "rows.json:2: a int, not a JSON object"), (2, "rows.json:3: not valid JSON")):
        with pytest.raises(DataError, match=message):
            records[index]


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", zstd),
        (".GZ", gzip.compress),
    ],
)
def test_packed_files(tmp_path, suffix, pack):
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    for name, data in {
        "rows.jsonl": lines().encode(),
        "rows.json": json.dumps(ROWS).encode(),
        "rows.parquet": (tmp_path / "rows.parquet").read_bytes(),
        "twice.jsonl": lines(ROWS[:1]).encode(),
    }.items():
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(pack(data) + (pack(lines(ROWS[1:]).encode()) if name == "twice.jsonl" else b""))
        records = read_records(str(path))
        assert list(records) == ROWS and records.where(1) == f"{path}:2"
    path.write_bytes(pack(lines().encode() * 100)[:-20])
    with pytest.raises(
        DataError, match=rf"twice.jsonl{suffix}: cannot be unpacked .*; it is damaged or cut short"
    ):
        read_records(str(path))


def test_a_full_disk_is_no_damaged_file(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(lines().encode()))
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*rows\.jsonl'$"):
        read_records(str(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_encodings_with_a_mark(tmp_path, encoding):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines().encode(encoding))
    assert read(path) == ROWS
    for plain in ("utf-16-le", "utf-16-be"):
        path.write_bytes(lines().encode(plain))
        with pytest.raises(DataError, match=r"rows.jsonl: looks like UTF-16 without a byte order mark"):
            read_records(str(path))


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_tables_of_cells(tmp_path, suffix, delimiter, mark):
    path = tmp_path / f"rows{suffix}"
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(mark)
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    records = read_records(str(path))
    assert list(records) == ROWS
    # The first row has two line ends in it, the header one.
    assert [records.where(i) for i in range(3)] == [f"{path}:{line}" for line in (2, 4, 5)]


def test_a_cell_is_text_or_nothing_and_a_ragged_row_is_an_error(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\n007,true\n\nNA,\n a, b,c\n"d"e,f\n"x\ny",z\n')
    records = read_records(str(path))
    assert records[0] == {"prompt": "007", "completion": "true"}
    assert records[1] == {"prompt": "NA", "completion": None}
    assert records.blank == 1 and records[4] == {"prompt": "x\ny", "completion": "z"}
    with pytest.raises(
        DataError, match=r"rows.csv:5: 3 cells under 2 names \(prompt, completion\); put text"
    ):
        records[2]
    with pytest.raises(DataError, match=r"rows.csv:6: not valid CSV: .*; double the quotes"):
        records[3]
    path.write_text('prompt,completion\na,b\n"c,d\ne,f\n')
    with pytest.raises(DataError, match=r"rows.csv:3: a quote opens in this row and never closes"):
        read_records(str(path))
    path.write_text("a,b,a\n1,2,3\n")
    with pytest.raises(DataError, match=r"rows.csv:1: the column 'a' stands twice"):
        read_records(str(path))
    path.write_text("prompt,completion\n")
    with pytest.raises(DataError, match=r"rows.csv: holds no records"):
        read_records(str(path))


def test_a_text_file_has_a_text_in_each_line(tmp_path, tokenizer):
    path = tmp_path / "corpus.txt"
    path.write_bytes("\ufeff the fox\u2028jumps\r\n\n\t\nover\rthe dog ".encode())
    records = read_records(str(path))
    assert list(records) == [{"text": " the fox\u2028jumps"}, {"text": "over\rthe dog "}]
    assert [records.where(i) for i in range(2)] == [f"{path}:1", f"{path}:4"]
    config = DataConfig(train=str(path), max_length=32, row_length=64)
    report = build_dataset(config, tokenizer, "text").report
    assert report.read == report.kept == 2 and str(report).endswith("; 2 blank lines skipped")


def test_shards_come_in_the_order_of_their_numbers(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"text": str(i)} for i in range(24)]
    for part in (10, 2, 0, 1):
        own = rows[part * 2 : part * 2 + 2]
        (folder / f"train-{part}-of-12.jsonl").write_text(lines(own))
        datasets.Dataset.from_list(own).to_parquet(tmp_path / f"train-{part}.parquet")
    (folder / "README.md").write_text("what it is")
    (folder / ".cache").mkdir()
    wanted = rows[:6] + rows[20:22]
    for source in (folder, f"{folder}/train-*.jsonl", f"{tmp_path}/*.parquet", f"{tmp_path}/*/*.jsonl"):
        records = read_records(str(source))
        assert list(records) == wanted
        assert records.where(6).endswith(("/train-10-of-12.jsonl:1", "/train-10.parquet:1"))
        assert read(source, take=3) == wanted[:3]
    with pytest.raises(IndexError):
        records[8]


def test_folders_by_split(tmp_path):
    names = ("train-0.jsonl", "train-1.jsonl", "test-0.jsonl")
    (tmp_path / "data").mkdir()
    for name in names:
        (tmp_path / "data" / name).write_text(lines([{"text": name}]))
    for folder in (tmp_path, tmp_path / "data"):
        assert read(folder) == [{"text": name} for name in names[:2]]
        assert read(folder, split="test") == [{"text": names[2]}]
        config = DataConfig(train=f"{folder}@test")
        assert [row["text"] for row in open_sources(config, "text", "train")[0]] == [names[2]]
    with pytest.raises(
        DataError, match=r"which of its files are of split 'dev'\? It has test-0.jsonl, train-0"
    ):
        read_records(str(tmp_path), split="dev")
    (tmp_path / "data/more.jsonl").write_text(lines([{"text": "more"}]))
    with pytest.raises(DataError, match=r"which of its files are of split 'train'\? It has more.jsonl"):
        read_records(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.jsonl", "b.csv"), r"files of several kinds \(.*b.csv, .*a.jsonl\); name one kind by a pattern"),
        (("a.jsonl", "notes.pdf"), r"a folder with notes.pdf in it, and not one written by .*\*.jsonl"),
        (("x/a.jsonl", "y/a.jsonl"), r"holds folders and no data \(x, y\); name one of them"),
        (("a.jsonl", "y/a.jsonl"), r"a folder with y/ in it"),
    ],
)
def test_folders_that_may_mean_several_things(tmp_path, names, message):
    for name in names:
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_text("{}")
    with pytest.raises(DataError, match=message):
        read_records(str(tmp_path / "d"))
    with pytest.raises(DataError, match=r"\*.parquet: matches no file"):
        read_records(f"{tmp_path}/*.parquet")


def test_a_comma_in_a_name(tmp_path):
    first, second = tmp_path / "name,with, comma.jsonl", tmp_path / "b.jsonl"
    for path in (first, second):
        path.write_text(lines([{"instruction": "q", "output": path.name}]))
    names = f"{second}, alpaca:{first},{second}"
    assert split_names(names) == (str(second), f"alpaca:{first}", str(second))
    for train in (names, (str(second), f"alpaca:{first}", str(second))):
        opened = open_sources(DataConfig(train=train), "sft", "train")
        assert [r[0]["messages"][1]["content"] for r in opened] == [second.name, first.name, second.name]
    assert split_names("a.jsonl,b.jsonl") == ("a.jsonl", "b.jsonl")


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines())
    records = read_records(str(path))
    other = tmp_path / "other.jsonl"
    other.write_text(lines(ROWS[::-1]))
    assert records[0] == ROWS[0]
    other.replace(path)  # another file has the name now: the one that was opened is still there
    assert list(records) == ROWS and read(path) == ROWS[::-1]
    changed = read_records(str(path))
    with path.open("r+") as file:
        file.truncate(40)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match=r"rows.jsonl has been written to since it was opened; start again"):
        changed[0]


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("[" + ",".join(json.dumps({"text": "x" * 10_000}) for _ in range(2000)) + "]")
    tracemalloc.start()
    records = read_records(str(path))
    assert sum(len(row["text"]) for row in records) == 20_000_000  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
