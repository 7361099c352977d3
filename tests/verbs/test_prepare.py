"""`jaxalign prepare` makes what a run of the same config finds, and mends what it finds damaged."""

import json
import pathlib
import subprocess
import sys

import pytest

from jaxalign.cli import main
from jaxalign.data import train_sentencepiece
from jaxalign.data.dataset import build_dataset
from jaxalign.stages import default_config, parse_config
from jaxalign.text.tokenizer import load_tokenizer

CONFIG = """
import jaxalign


def get_config(arg=""):
    config = jaxalign.default_config("pretrain")
    config.data.train = {train!r}
    config.data.tokenizer = {tokenizer!r}
    config.data.max_length = 32
    return config
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    train_sentencepiece(["the quick brown fox jumps"] * 20, tmp_path / "t.model", 300)
    train = tmp_path / "a.jsonl"
    train.write_text("".join(json.dumps({"text": f"the quick fox {n}"}) + "\n" for n in range(30)))
    file = tmp_path / "config.py"
    file.write_text(CONFIG.format(train=str(train), tokenizer=str(tmp_path / "t.model")))
    return file


def test_a_run_starts_with_what_was_prepared(config, tmp_path, capsys):
    assert main(["prepare", f"--config={config}"]) == 0
    said = capsys.readouterr()
    assert "30 records: 30 kept" in said.out and "making the tokens of 30 records" in said.err
    (index,) = (tmp_path / "cache").rglob("store.json")
    assert str(index.parent) in said.out
    values = default_config("pretrain")
    values.data.train, values.data.tokenizer = str(tmp_path / "a.jsonl"), str(tmp_path / "t.model")
    values.data.max_length = 32
    data = parse_config(values).data
    # A small source, which by itself would not be looked for.
    dataset = build_dataset(data, load_tokenizer(data.tokenizer), "text")
    assert [store.folder for store in dataset.stores] == [index.parent]
    assert capsys.readouterr().err == ""


def test_a_flipped_bit_is_named_and_mended(config, tmp_path, capsys):
    command = ["prepare", f"--config={config}", f"--config.data.store={tmp_path / 's'}"]
    assert main(command) == 0
    (part,) = (tmp_path / "s").rglob("part-*.tokens")
    whole = part.read_bytes()
    capsys.readouterr()
    assert main([*command, "--verify"]) == 0 and "checksum" not in capsys.readouterr().out
    flipped = bytearray(whole)
    flipped[-200] ^= 1
    part.unlink()
    part.write_bytes(flipped)
    assert main(command) == 0
    assert part.read_bytes() == flipped  # its size and its recorded checksum are right
    assert main([*command, "--verify"]) == 0
    assert f"{part}: its checksum is wrong; it is made again" in capsys.readouterr().out
    assert part.read_bytes() == whole


def test_nothing_is_prepared_where_nothing_is_kept(config, capsys):
    assert main(["prepare", f"--config={config}", "--config.data.store=none"]) == 1
    assert "config.data.store='none' keeps no tokens" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(config, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["prepare", f"--config={config}", f"--config.data.store={tmp_path / 'file'}"]) == 1
    said = capsys.readouterr().err
    assert "config.data.store" in said and "cannot be written" in said and "Traceback" not in said
    assert pathlib.Path(tmp_path / "file").read_text() == ""


@pytest.mark.slow
def test_beam_makes_the_very_same_store(config, tmp_path):
    """By a process of its own, as Beam warns of much when it is imported."""
    pytest.importorskip("apache_beam")
    made = {}
    for name, flags in {
        "local": [],
        "beam": ["--runner=beam", "--beam-options=--runner=DirectRunner"],
    }.items():
        command = [sys.executable, "-m", "jaxalign", "prepare", f"--config={config}"]
        done = subprocess.run(
            [*command, f"--config.data.store={tmp_path / name}", *flags],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        files = sorted((tmp_path / name).rglob("*/*.tokens")) + sorted((tmp_path / name).rglob("store.json"))
        made[name] = [file.read_bytes() for file in files]
    assert len(made["local"]) == 2 and made["beam"] == made["local"]


def test_beam_that_is_not_there_is_named(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    command = ["prepare", f"--config={config}", f"--config.data.store={tmp_path / 's'}", "--runner=beam"]
    assert main(command) == 1
    assert "pip install 'jaxalign[beam]'" in capsys.readouterr().err
    assert main([*command[:-1], "--beam-options=--x"]) == 2
    assert "--beam-options='--x' is read with --runner=beam alone" in capsys.readouterr().err
