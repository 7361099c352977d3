"""`verify` finds what has changed in runs and exported folders, and loading finds it, too."""

import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from jaxalign import parallel
from jaxalign.cli import main
from jaxalign.errors import CheckpointError
from jaxalign.models import ModelConfig
from jaxalign.text.tokenizer import load_tokenizer, train_sentencepiece
from jaxalign.training.checkpoint import Checkpointer
from jaxalign.training.saved_model import find_model, save_model
from jaxalign.training.verify import Finding, verify
from jaxalign.training.writer import MetricWriter
from tests.models import hf_files


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The model of a run, and the same exported."""
    folder = tmp_path_factory.mktemp("places")
    train_sentencepiece((f"the {n} fox\n" for n in range(400)), folder / "tokenizer.model", 300)
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    config = ModelConfig(vocab_size=tokenizer.vocab_size, num_kv_heads=2, max_length=64)
    save_model(
        folder / "run" / "model", hf_files.random_params(config), config, tokenizer, scalar=False, meta={}
    )
    assert main(["convert", f"--from={folder / 'run'}", f"--out={folder / 'hf'}", "--to=hf"]) == 0
    return folder


def _flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def _load(folder):
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    with parallel.use_mesh(mesh):
        model = find_model(str(folder), "--model")
        model.tokenizer()
        return model.load(mesh)


def test_what_is_whole_is_called_so(places, capsys):
    assert main(["verify", str(places / "run"), str(places / "hf")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{places}/run/model/0: whole, checksums agree" in lines
    assert any(line.startswith(f"{places}/hf/SHA256SUMS: whole, ") for line in lines)


def test_each_part_is_named_by_its_path_in_the_place(places, tmp_path):
    assert verify(str(places / "run" / "model" / "0")) == [Finding(".", note="checksums agree")]
    assert verify(str(places / "run" / "model"))[0] == Finding("0", note="checksums agree")
    folder = shutil.copytree(places / "run", tmp_path / "run")
    shutil.copytree(folder / "model" / "0", folder / "checkpoints" / "30")
    shutil.copytree(folder / "model" / "0", folder / "checkpoints" / "4")
    (folder / "summary.json").write_text('{"steps": 3}')
    found = {finding.part: finding.note for finding in verify(str(folder)) if not finding.fault}
    assert [part for part in found if "SUMS" not in part] == [
        *("checkpoints/4", "checkpoints/30", "model/0", "summary.json")
    ]
    assert found["summary.json"] == "1 entry"
    shutil.rmtree(folder / "model" / "0" / "arrays")  # one that lost its arrays is a step, too
    (finding,) = verify(str(folder / "model" / "0"))
    assert finding.part == "." and "arrays/files.json is missing" in finding.fault


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_flipped_bit_of_an_exported_model_is_named(places, tmp_path, name, capsys):
    folder = shutil.copytree(places / "hf", tmp_path / "hf")
    _load(folder)
    _flip(folder / name)
    with pytest.raises(
        CheckpointError, match=rf"hf: {name} is not what was written .*; get a whole copy, or"
    ):
        _load(folder)
    assert main(["verify", str(folder)]) == 1
    assert f"hf/SHA256SUMS: DAMAGED: {name} is not what was written" in capsys.readouterr().out


def test_a_flipped_bit_of_a_run_is_named(places, tmp_path, capsys):
    folder = shutil.copytree(places / "run", tmp_path / "run")
    _flip(max((folder / "model" / "0" / "arrays").rglob("*"), key=lambda file: file.stat().st_size))
    with pytest.raises(
        CheckpointError, match=r"model/0 is half-written or damaged: arrays/.* is not what was"
    ):
        _load(folder)
    assert main(["verify", str(folder)]) == 1
    assert "run/model/0: DAMAGED: " in capsys.readouterr().out


def test_rows_that_come_twice_or_backwards_are_found(places, tmp_path, capsys):
    folder = shutil.copytree(places / "run", tmp_path / "run")
    rows = [
        {"step": step, "time": 0.0, "kind": kind, "values": {"loss": "NaN"}}
        for step, kind in ((1, "train"), (2, "train"), (2, "eval"))
    ]
    for more, fault in (
        ([], "whole, 3 lines"),
        ([rows[1]], "DAMAGED: line 4 is the second of step 2 and kind 'train'"),
        ([rows[0]], "DAMAGED: line 4 is of step 1, after one of step 2"),
        (["x"], "DAMAGED: line 4 is no row of metrics"),
        ([rows[2] | {"step": 3, "values": {"loss": "NaM"}}], "DAMAGED: line 4 is no row of metrics"),
        ([rows[2] | {"step": 3, "values": [1.0]}], "DAMAGED: line 4 is no row of metrics"),
        ([{"step": 3, "kind": "train"}], "DAMAGED: line 4 is no row of metrics"),
    ):
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows + more))
        assert main(["verify", str(folder)]) == int("DAMAGED" in fault)
        assert f"run/metrics.jsonl: {fault}" in capsys.readouterr().out
    for rows, fault in (("", "whole, 0 lines"), ('{"step": 1}\n\0', "DAMAGED: line 2 is no row of samples")):
        (folder / "samples.jsonl").write_text(rows)
        main(["verify", str(folder)])
        assert f"run/samples.jsonl: {fault}" in capsys.readouterr().out
    (folder / "summary.json").write_text('{"steps": 3')
    assert main(["verify", str(folder)]) == 1
    assert "run/summary.json: DAMAGED: it is not JSON" in capsys.readouterr().out


def test_lines_that_were_changed_or_removed_since_the_checkpoint_are_found(tmp_path, capsys):
    with MetricWriter(tmp_path, tensorboard=False) as writer, Checkpointer(tmp_path / "checkpoints") as saved:
        for step in (1, 2, 3):
            writer.write(step, {"loss": 0.5})
        saved.save(3, {"x": jnp.float32(0)}, {"writer": writer.state()})
        writer.write(4, {"loss": 0.25})
    file = tmp_path / "metrics.jsonl"
    text = file.read_text()
    for content, fault in (
        (text, "whole, 4 lines"),
        (
            text.replace("0.25", "0.75"),
            "whole, 4 lines",
        ),  # later than the checkpoint, which knows nothing of it
        (
            text.replace("0.5", "0.7"),
            "DAMAGED: its first 3 lines are not as they were written; what they say is not to be trusted",
        ),
        ("\n".join(text.split("\n")[2:]), "DAMAGED: 1 of its first 3 lines are missing"),
        (None, "DAMAGED: 3 of its first 3 lines are missing, and what they said is lost"),
    ):
        file.unlink() if content is None else file.write_text(content)
        assert main(["verify", str(tmp_path)]) == int("DAMAGED" in fault)
        assert f"{file}: {fault}" in capsys.readouterr().out


def test_a_place_with_nothing_to_verify_is_refused(tmp_path, capsys):
    for place in (tmp_path, tmp_path / "none"):
        assert main(["verify", str(place)]) == 1
    told = capsys.readouterr().err.splitlines()
    assert "neither checkpoints nor a list of checksums (SHA256SUMS) is there" in told[0]
    assert "none: no such folder" in told[1]


def test_nothing_is_called_whole_where_no_checksum_is_computed(places, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(places / "run", tmp_path / "run")
    _flip(max((folder / "model" / "0" / "arrays").rglob("*"), key=lambda file: file.stat().st_size))
    monkeypatch.setenv("JAXALIGN_CHECKSUMS", "off")
    assert main(["verify", str(folder)]) == 1
    told = capsys.readouterr()
    assert "JAXALIGN_CHECKSUMS is off, and nothing can be compared" in told.err and "whole" not in told.out


def test_a_file_in_place_of_a_folder_is_found_and_the_reverse(places, tmp_path, capsys):
    folder = shutil.copytree(places / "run", tmp_path / "run")
    (folder / "checkpoints").write_text("")
    (folder / "metrics.jsonl").mkdir()
    assert main(["verify", str(folder)]) == 1
    told = capsys.readouterr().out
    assert (
        "run/checkpoints: DAMAGED: a file, where" in told
        and "run/metrics.jsonl: DAMAGED: a folder, where" in told
    )
