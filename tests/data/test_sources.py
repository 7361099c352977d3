"""Every kind of source gives the same rows, and every fault is named with its place."""

import http.server
import json
import socket
import threading

import datasets
import pytest

from jaxalign.data import sources
from jaxalign.data.sources import Records, read_records
from jaxalign.errors import DataError

ROWS = [{"text": f"row {i}", "extra": i} for i in range(5)]


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_formats_agree(tmp_path, jsonl):
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.to_parquet(tmp_path / "file.parquet")
    dataset.save_to_disk(tmp_path / "folder")
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "splits")
    arrow = next((tmp_path / "folder").glob("*.arrow"))
    for source in (jsonl, tmp_path / "file.parquet", tmp_path / "folder", tmp_path / "splits", arrow):
        records = read_records(str(source))
        assert list(records) == ROWS
        assert records[3] == ROWS[3]
        assert records.where(3) == f"{source}:4"
        assert list(read_records(str(source), take=2)) == ROWS[:2]
    with pytest.raises(DataError, match=r"splits: has no split 'test'; it has train"):
        read_records(str(tmp_path / "splits"), split="test")


def test_jsonl_without_last_newline(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    assert list(read_records(str(path))) == ROWS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', r"file.jsonl:3: not valid JSON: .*; fix or remove the row"),
        (b'{"n": ' + b"1" * 5000 + b"}", r"file.jsonl:3: not valid JSON: .*digits.*; fix or remove the row"),
        (
            b'{"n": ' + b"[" * 100000 + b"}",
            r"file.jsonl:3: not valid JSON: .*recursion.*; fix or remove the row",
        ),
        (b'{"text": "a", "text": "b"}', r"file.jsonl:3: the field 'text' stands twice in one object"),
        (b'["text"]', r"file.jsonl:3: a list, not a JSON object; write the record as {\"field\": value}"),
        (b'{"text": "\xff"}', r"file.jsonl:3: not UTF-8"),
    ],
)
def test_malformed_lines(tmp_path, line, message):
    path = tmp_path / "file.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 2 + line + b'\n{"text": "b"}\n')
    records = read_records(str(path))
    with pytest.raises(DataError, match=message):
        records[2]
    assert records[3] == {"text": "b"} and records.where(3) == f"{path}:4"
    assert records.raw(2) == line.decode("utf-8", "backslashreplace") + "\n"
    assert len(read_records(str(path), take=2)) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "holds no records"),
        ("broken.parquet", b"not parquet", "not a readable .parquet file"),
        ("broken.arrow", b"not arrow", "not a readable .arrow file"),
        (
            "rows.xlsx",
            b"a,b",
            r"rows.xlsx: cannot read '.xlsx'; write one of .jsonl, .*.txt, .parquet, .arrow, each",
        ),
        ("rows", b"{}", r"rows: cannot read 'a file without a suffix'; write one of .jsonl"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_records(str(tmp_path / name))


def test_missing_sources(tmp_path, jsonl):
    for missing in ("nowhere.jsonl", "folder/nowhere.parquet", "./nowhere", str(tmp_path / "nowhere")):
        with pytest.raises(DataError, match=r"nowhere.*: no such file or folder"):
            read_records(missing)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"no files in it, and not one written by Dataset.save_to_disk"):
        read_records(str(tmp_path / "none"))
    for missing in (
        "quickstart/data",
        "quickstart/data/sft.jsonl",
        str(tmp_path / "quickstart/data/sft.jsonl"),
    ):
        with pytest.raises(DataError, match=r"no such file or folder .*; `jaxalign quickstart` makes it"):
            read_records(missing)
    with pytest.raises(DataError, match=r"take=0 reads nothing"):
        read_records(str(jsonl), take=0)


def test_hub_names(monkeypatch):
    calls = []

    def load(path, split, streaming=False, **options):
        calls.append((path, split, streaming, options))
        dataset = datasets.Dataset.from_list(ROWS)
        return dataset.to_iterable_dataset() if streaming else dataset

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(sources, "_answers", lambda url: True)
    assert list(read_records("owner/name", split="validation")) == ROWS
    assert list(read_records("owner/name", take=2, hub_options={"name": "part"})) == ROWS[:2]
    assert calls == [("owner/name", "validation", False, {}), ("owner/name", "train", True, {"name": "part"})]


def test_hub_without_network(monkeypatch):
    with socket.socket() as unused:  # a port of this machine that nobody listens on
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("the hub was asked"))
    with pytest.raises(
        DataError, match=rf"owner/name: no such file here, and {endpoint} does not answer; .*HF_HUB_OFFLINE=1"
    ):
        read_records("owner/name")


def test_hub_that_answers_with_an_error(monkeypatch):
    def load(*args, **kwargs):
        raise RuntimeError("Dataset scripts are no longer supported")

    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
        monkeypatch.setattr(datasets, "load_dataset", load)
        with pytest.raises(
            DataError, match=r"owner/name: no such file here, .*scripts are no longer .*local"
        ):
            read_records("owner/name")


def test_records_in_memory():
    records = Records(ROWS, "world")
    assert len(records) == 5
    assert records.where(0) == "world:1"
