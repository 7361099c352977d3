"""A token store gives what memory gives, is made once, goes on after a kill, and notices what is not its own."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from jaxalign.data import encode_sources, store
from jaxalign.data.arrays import Damaged, check_sum, read_arrays, write_arrays
from jaxalign.data.batch import ARRAYS
from jaxalign.data.config import DataConfig
from jaxalign.data.dataset import build_dataset, build_datasets
from jaxalign.data.packing import collate
from jaxalign.errors import ConfigError, DataError

CONFIG = DataConfig(max_length=32, row_length=64)
WORDS = "the quick brown fox jumps over a lazy dog and sleeps".split()


def words(rng, most=12):
    return " ".join(rng.choice(WORDS, rng.integers(1, most)))


def rows_of(kind, count=120):
    rng = np.random.default_rng(0)
    rows = []
    for n in range(count):
        prompt, answers = f"{words(rng)} {n % 80}?", [f" {words(rng)} {n} {k}" for k in range(3)]
        rows.append(
            {
                "text": {"text": words(rng, 60)},
                "sft": {"prompt": prompt, "completion": answers[0], "topic": "x"},
                "preference": {
                    "prompt": prompt,
                    "chosen": answers[0],
                    "rejected": answers[1],
                    "margin": n / 7,
                },
                "preference or sft": {"prompt": prompt, "responses": answers, "scores": [n % 3, 5, 1]}
                if n % 2
                else {"prompt": prompt, "completion": answers[0]},
                "unpaired": {"prompt": prompt, "completion": answers[0], "label": n % 3 == 0},
                "prompt": {"prompt": [{"role": "user", "content": prompt}]},
            }[kind]
        )
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of a kilobyte of the source."""
    monkeypatch.setattr(store, "PART_BYTES", 1000)
    monkeypatch.setattr(encode_sources, "_workers", lambda: 1)


def same(one, other):
    assert one.fingerprint == other.fingerprint and one.report == other.report
    assert [(row.where, row.problem) for row in one.invalid] == [(r.where, r.problem) for r in other.invalid]
    assert (one.rows.bounds, one.rows.row_length, len(one.rows)) == (
        other.rows.bounds,
        other.rows.row_length,
        len(other.rows),
    )
    everything = [collate(each.rows, range(len(each.rows))) for each in (one, other)]
    for name in ARRAYS[type(everything[0])]:
        np.testing.assert_array_equal(*(getattr(batch, name) for batch in everything), err_msg=name)
    for first, second in zip(one.rows.items, other.rows.items, strict=True):
        assert (first.row, first.note, first.remarks, first.ending) == (
            second.row,
            second.note,
            second.remarks,
            second.ending,
        )


def stores(folder):
    return sorted(path.parent for path in pathlib.Path(folder).glob("*/store.json"))


@pytest.mark.parametrize("kind", ["text", "sft", "preference", "preference or sft", "unpaired", "prompt"])
def test_a_store_gives_what_memory_gives(tokenizer, tmp_path, capsys, small_parts, kind):
    rows = rows_of(kind)
    train, held = write(tmp_path / "train.jsonl", rows[:100]), write(tmp_path / "eval.jsonl", rows[80:])
    config = replace(CONFIG, train=train, eval=held, row_length=128, seed=3, max_segments=16)
    wanted = build_datasets(config, tokenizer, kind)
    kept = replace(config, store=str(tmp_path / "stores"))
    made = build_datasets(kept, tokenizer, kind)
    assert len(stores(tmp_path / "stores")) == 2
    assert "making the tokens of 100 records" in capsys.readouterr().err
    # The sources are not opened again, but where one of their records is asked for.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_sources, "open_source", lambda *_, **__: pytest.fail("opened"))
        found = build_datasets(kept, tokenizer, kind)
    for memory, first, second in zip(wanted, made, found, strict=True):
        same(memory, first)
        same(memory, second)
        assert second.record(3) == memory.record(3) and second.where(3) == memory.where(3)
        assert len(second.sources[0]) == len(memory.sources[0])
    assert capsys.readouterr().err == ""
    fraction = replace(config, eval="", eval_fraction=0.2)
    for memory, second in zip(
        build_datasets(fraction, tokenizer, kind),
        build_datasets(replace(fraction, store=kept.store), tokenizer, kind),
        strict=True,
    ):
        same(memory, second)


def test_bad_rows_are_told_of_from_a_store_as_from_the_source(tokenizer, tmp_path, small_parts):
    rows = rows_of("sft", 60)
    rows[7] = {"prompt": "why?"}
    rows[41] = {"prompt": "why?", "completion": " "}
    config = replace(CONFIG, train=write(tmp_path / "a.jsonl", rows))
    kept = replace(config, store=str(tmp_path / "stores"))
    messages = []
    for each in (config, kept, kept):
        with pytest.raises(DataError) as error:
            build_dataset(each, tokenizer, "sft")
        messages.append(str(error.value))
    assert messages[0] == messages[1] == messages[2] and "a.jsonl:42:" in messages[0]
    dropping = [replace(each, invalid="drop") for each in (config, kept)]
    memory, stored = (build_dataset(each, tokenizer, "sft") for each in dropping)
    same(memory, stored)
    assert stored.invalid[1].records.raw(41) == rows[41]


def test_nothing_is_stored_of_a_source_without_a_row_that_can_be_used(tokenizer, tmp_path, small_parts):
    config = replace(CONFIG, train=write(tmp_path / "a.jsonl", [{"prompt": "why?"}] * 1500))
    with pytest.raises(DataError, match="none of the first 1,000 rows"):
        build_dataset(replace(config, store=str(tmp_path / "stores")), tokenizer, "sft")
    assert not list((tmp_path / "stores").glob("*/part*"))


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"max_length": 30}, True),
        ({"overlong": "truncate"}, True),
        ({"control_tokens": "letters"}, True),
        ({"ignore_fields": ("topic",)}, True),
        ({"seed": 5}, False),
        ({"row_length": 96}, False),
        ({"packing": False}, False),
        ({"invalid": "drop"}, False),
        ({"max_segments": 4}, False),
    ],
)
def test_tokens_are_made_again_for_what_changes_them_alone(tokenizer, tmp_path, small_parts, changes, again):
    config = replace(CONFIG, train=write(tmp_path / "a.jsonl", rows_of("sft", 30)), store=str(tmp_path / "s"))
    build_dataset(config, tokenizer, "sft")
    same(
        build_dataset(replace(config, **changes, store="none"), tokenizer, "sft"),
        build_dataset(replace(config, **changes), tokenizer, "sft"),
    )
    assert len(stores(tmp_path / "s")) == 1 + again


def test_another_tokenizer_or_template_never_finds_it(tokenizer, tmp_path, small_parts, monkeypatch):
    config = replace(
        CONFIG, train=write(tmp_path / "a.jsonl", rows_of("prompt", 20)), store=str(tmp_path / "s")
    )
    build_dataset(config, tokenizer, "prompt")
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}<|user|>{{ m.content }}!<|end|>{% endfor %}<|assistant|>")
    other = replace(config, chat_template=str(template))
    same(
        build_dataset(replace(other, store="none"), tokenizer, "prompt"),
        build_dataset(other, tokenizer, "prompt"),
    )
    assert len(stores(tmp_path / "s")) == 2
    monkeypatch.setattr(type(tokenizer), "serialized", property(lambda self: b"another"))
    build_dataset(config, tokenizer, "prompt")
    assert len(stores(tmp_path / "s")) == 3


def test_a_source_that_changes_is_read_again_and_that_is_said(tokenizer, tmp_path, capsys, small_parts):
    path = tmp_path / "a.jsonl"
    config = replace(CONFIG, train=write(path, rows_of("sft", 20)), store=str(tmp_path / "s"))
    before = build_dataset(config, tokenizer, "sft")
    os.utime(path, (1, 1))  # the same bytes at another time are the same source
    assert build_dataset(config, tokenizer, "sft").fingerprint == before.fingerprint
    assert len(stores(tmp_path / "s")) == 1 and "has changed" not in capsys.readouterr().err
    write(path, rows_of("sft", 21))
    assert build_dataset(config, tokenizer, "sft").report.read == 21
    assert f"{path} has changed since its tokens were stored" in capsys.readouterr().err


def damage_cut(path):
    os.truncate(path, path.stat().st_size - 5)


def damage_empty(path):
    os.truncate(path, 0)


def damage_gone(path):
    path.unlink()


def damage_swap(path):
    path.write_bytes(path.with_name("part-00001.tokens").read_bytes())


@pytest.mark.parametrize("damage", [damage_cut, damage_empty, damage_gone, damage_swap])
def test_a_damaged_part_is_made_again(tokenizer, tmp_path, capsys, small_parts, damage):
    config = replace(CONFIG, train=write(tmp_path / "a.jsonl", rows_of("sft", 60)), store=str(tmp_path / "s"))
    before = build_dataset(replace(config, store="none"), tokenizer, "sft")
    build_dataset(config, tokenizer, "sft")
    (folder,) = stores(tmp_path / "s")
    times = {path: path.stat().st_mtime_ns for path in folder.glob("part*")}
    assert len(times) > 3
    damage(folder / "part-00002.tokens")
    capsys.readouterr()
    same(build_dataset(config, tokenizer, "sft"), before)
    assert "part-00002.tokens: it" in capsys.readouterr().err
    again = [path.name for path, made in times.items() if path.stat().st_mtime_ns != made]
    assert again == ["part-00002.tokens"]


def test_a_flipped_bit_is_found_when_all_is_read(tokenizer, tmp_path, small_parts):
    config = replace(CONFIG, train=write(tmp_path / "a.jsonl", rows_of("sft", 60)), store=str(tmp_path / "s"))
    before = build_dataset(replace(config, store="none"), tokenizer, "sft")
    build_dataset(config, tokenizer, "sft")
    (folder,) = stores(tmp_path / "s")
    path = folder / "part-00001.tokens"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    found = store.Store(folder, None, "a", {}, print).verify()
    assert len(found) == 1 and "part-00001.tokens: its checksum is wrong" in found[0]
    same(build_dataset(config, tokenizer, "sft"), before)
    assert store.Store(folder, None, "a", {}, print).verify() == []


def test_several_processes_make_the_same_store(tokenizer, tmp_path, monkeypatch):
    """Real ones, with a template, which is compiled anew in each."""
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}<|user|>{{ m.content }}!<|end|>{% endfor %}<|assistant|>")
    train = write(tmp_path / "a.jsonl", rows_of("prompt", 60))
    config = replace(CONFIG, train=train, chat_template=str(template))
    monkeypatch.setattr(store, "PART_BYTES", 1000)
    for workers in (1, 2):
        monkeypatch.setattr(encode_sources, "_workers", lambda workers=workers: workers)
        build_dataset(replace(config, store=str(tmp_path / str(workers))), tokenizer, "prompt")
    (one,), (two,) = stores(tmp_path / "1"), stores(tmp_path / "2")
    assert one.name == two.name
    parts = sorted(path.name for path in one.glob("part*"))
    assert len(parts) > 3
    for name in parts:
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_full_disk(tokenizer, tmp_path, small_parts, monkeypatch):
    train = write(tmp_path / "a.jsonl", rows_of("sft", 60))
    config = replace(CONFIG, train=train, store=str(tmp_path / "s"))
    real = store.save_part

    def save(path, part):
        if path.name == "part-00002.tokens":
            raise OSError(28, "No space left on device", str(path))
        real(path, part)

    monkeypatch.setattr(store, "save_part", save)
    message = (
        r"^config.data.store: the disk of .* takes no more \(No space left on device; [\d,]+ MiB are free\)"
    )
    with pytest.raises(ConfigError, match=message + r".* 2 whole parts, 0 MiB, are kept"):
        build_dataset(config, tokenizer, "sft")
    assert not stores(tmp_path / "s") and not list((tmp_path / "s").rglob("*.partial"))
    monkeypatch.setattr(store, "save_part", real)
    same(
        build_dataset(config, tokenizer, "sft"),
        build_dataset(replace(config, store="none"), tokenizer, "sft"),
    )
    # Said at the first part, where it can be foreseen.
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(ConfigError, match="more are needed; 0 MiB are free"):
        build_dataset(replace(config, max_length=31), tokenizer, "sft")


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "x"
    arrays = {
        "a": np.arange(5),
        "same": np.full(1000, 7),
        "nan": np.full(9, np.nan),
        "none": np.zeros((0, 2)),
    }
    write_arrays(path, arrays, {"k": [1]})
    found, about = read_arrays(path)
    check_sum(path)
    assert about == {"k": [1]} and path.stat().st_size < 1000
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert not found[name].flags.writeable
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(Damaged):
            read_arrays(path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_arrays(tmp_path / "y", arrays, {})
    assert [each.name for each in tmp_path.iterdir()] == ["x"]


def test_one_of_two_processes_makes_it_and_the_other_waits(
    tokenizer, tmp_path, capsys, small_parts, monkeypatch
):
    config = replace(CONFIG, train=write(tmp_path / "a.jsonl", rows_of("sft", 60)), store=str(tmp_path / "s"))
    real, written = store.save_part, []

    def save(path, part):
        written.append(path.name)
        time.sleep(0.05)
        real(path, part)

    monkeypatch.setattr(store, "save_part", save)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(build_dataset(config, tokenizer, "sft")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == len(set(written)) > 3  # each part once
    assert len({dataset.fingerprint for dataset in found}) == 1 and len(found) == 3
    assert capsys.readouterr().err.count("another process makes its tokens") >= 1


@pytest.mark.slow
def test_without_locks_a_dead_process_is_known_by_its_silence(tmp_path, monkeypatch):
    from jaxalign import locks

    monkeypatch.setattr(locks, "try_lock", lambda _: None)
    monkeypatch.setattr(locks, "SILENCE", 1.0)
    monkeypatch.setattr(locks, "_SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(locks, "_ASK_SECONDS", 0.05)
    (tmp_path / ".lock.alive").write_text("a process that was killed 3")
    begun, asked = time.monotonic(), []
    with locks.alone_until(tmp_path, lambda: False, lambda: asked.append(1)) as alone:
        assert alone and asked and time.monotonic() - begun > 1.0
        # Longer than silence would be taken for death, since this one gives signs of life.
        waited = []
        other = threading.Thread(
            target=lambda: waited.append(
                locks.alone_until(tmp_path, lambda: time.monotonic() - begun > 3.5, lambda: None).__enter__()
            )
        )
        other.start()
        other.join()
        assert waited == [False]
    assert not (tmp_path / ".lock.alive").exists()


KILLED = """
import sys
from jaxalign.data import DataConfig, load_tokenizer, encode_sources, store
from jaxalign.data.dataset import build_dataset
store.PART_BYTES = 8_000
train, folder, model = sys.argv[1:]
build_dataset(DataConfig(max_length=32, row_length=64, train=train, store=folder), load_tokenizer(model), "sft")
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_whole_parts_never(tokenizer, tmp_path, monkeypatch):
    train = write(tmp_path / "a.jsonl", rows_of("sft", 2000))
    arguments = [train, str(tmp_path / "s"), str(tokenizer.path)]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("s/*/part*.tokens"))) < 3 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not stores(tmp_path / "s")
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/*/part*.tokens")}
    monkeypatch.setattr(store, "PART_BYTES", 8_000)
    monkeypatch.setattr(encode_sources, "_workers", lambda: 1)
    config = replace(CONFIG, train=train)
    same(
        build_dataset(replace(config, store=str(tmp_path / "s")), tokenizer, "sft"),
        build_dataset(config, tokenizer, "sft"),
    )
    assert len(kept) >= 3 and all(path.stat().st_mtime_ns == made for path, made in kept.items())


def test_small_sources_leave_nothing_behind(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    config = replace(CONFIG, train=write(tmp_path / "a.jsonl", rows_of("sft", 20)))
    before = build_dataset(config, tokenizer, "sft")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(encode_sources, "LARGE", 100)
    same(build_dataset(config, tokenizer, "sft"), before)
    assert len(stores(tmp_path / "cache" / "stores")) == 1
    build_dataset(replace(config, store="none", max_length=31), tokenizer, "sft")
    assert len(stores(tmp_path / "cache" / "stores")) == 1


def test_several_files_are_one_source(tokenizer, tmp_path, small_parts):
    rows = rows_of("sft", 50)
    (tmp_path / "d").mkdir()
    for n in range(12):
        write(tmp_path / "d" / f"part-{n}.jsonl", rows[4 * n : 4 * n + 4] + rows[:1])
    for train in (str(tmp_path / "d"), str(tmp_path / "d" / "*.jsonl")):
        config = replace(CONFIG, train=train)
        same(
            build_dataset(config, tokenizer, "sft"),
            build_dataset(replace(config, store=str(tmp_path / "s")), tokenizer, "sft"),
        )


@pytest.mark.slow
def test_starting_takes_no_longer_and_no_more_memory_for_more_tokens(tmp_path):
    """Of 20 M synthetic tokens, by what is read of them: the pages of tokens stay on the disk."""
    from benchmarks.store import in_process, write_store

    write_store(tmp_path, 20_000_000)
    first, later = in_process(tmp_path), in_process(tmp_path)
    assert first["fingerprint"] == later["fingerprint"] and first["rows"] == later["rows"]
    assert later["tokens"] == pytest.approx(20e6, rel=0.05) and later["efficiency"] > 0.95
    # 40 MB of tokens; what is in memory is lengths and rows of 40,000 records.
    assert later["own_mib"] < 10 and later["peak_mib"] < 20
    assert later["seconds"] < 5
