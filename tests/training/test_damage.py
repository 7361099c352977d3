"""Whatever changes in the files of a step is named when it is read, and the step before it is taken."""

import errno
import hashlib
import json
import os
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import checksums
from jaxalign.errors import CheckpointError
from jaxalign.training import step_files
from jaxalign.training.checkpoint import Checkpointer, load_params, save_params
from jaxalign.training.step_files import DamagedError

STATE = {"params": {"w": jax.random.normal(jax.random.key(0), (64, 32)), "b": jnp.arange(5.0)}}
ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), STATE)


def _saved(directory, steps=(1,)):
    with Checkpointer(directory, keep=9) as checkpointer:
        for step in steps:
            checkpointer.save(step, jax.tree.map(lambda x, n=step: x * n, STATE), {"step": step})


def _files(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _load(directory):
    with Checkpointer(directory) as checkpointer:
        state, meta = checkpointer.restore(1, ABSTRACT)
    return state, meta


def test_no_flipped_bit_and_no_cut_of_any_file_is_taken_for_the_state(tmp_path):
    """Every file of a step, each with bits flipped at random places and cut at one: an error, never another state."""
    _saved(tmp_path / "whole")
    rng = random.Random(0)
    names = [file.relative_to(tmp_path / "whole") for file in _files(tmp_path / "whole" / "1")]
    assert any(str(name).endswith("SHA256SUMS") for name in names) and len(names) > 6
    refused = 0
    for number, name in enumerate(names):
        for change in ("flip", "flip", "cut", "zero", "gone"):
            copy = shutil.copytree(tmp_path / "whole", tmp_path / f"{number}-{change}", dirs_exist_ok=True)
            file = copy / name
            data = bytearray(file.read_bytes())
            at = rng.randrange(len(data)) if data else 0
            if change == "flip" and data:
                data[at] ^= 1 << rng.randrange(8)
            elif change == "zero":
                data[at : at + 64] = bytes(len(data[at : at + 64]))
            file.write_bytes(data[:at] if change == "cut" else data)
            if change == "gone":
                file.unlink()
            if file.is_file() and file.read_bytes() == (tmp_path / "whole" / name).read_bytes():
                continue
            # Orbax's notes on its work, which nobody of ours reads, may change without harm.
            try:
                state, meta = _load(copy)
            except CheckpointError as error:
                refused += 1
                assert str(copy / "1") in str(error), error
            else:
                assert meta == {"step": 1}
                jax.tree.map(np.testing.assert_array_equal, state, STATE)
                assert name.name in ("commit_success.txt", "_CHECKPOINT_METADATA", "_METADATA"), name
            shutil.rmtree(copy)
    assert refused > 4 * (len(names) - 3)


def test_a_meta_with_numbers_for_keys_is_read_as_json_has_it(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, STATE, {"back": {9: 1, 10: 2}, "pair": (1, 2)})
        assert checkpointer.newest_whole() == 1
        assert checkpointer.load_meta() == {"back": {"9": 1, "10": 2}, "pair": [1, 2]}


def test_a_damaged_newest_step_is_set_aside_and_the_one_before_is_taken(tmp_path, capsys):
    _saved(tmp_path, (1, 2, 3))
    largest = max(_files(tmp_path / "3" / "arrays"), key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    (tmp_path / "2" / "meta" / "metadata").write_text('{"meta": {"step": 3}}')
    with Checkpointer(tmp_path, keep=9) as checkpointer:
        assert checkpointer.newest_whole() == 1 == checkpointer.newest
        state, meta = checkpointer.restore(1, ABSTRACT, verified=True)
        jax.tree.map(np.testing.assert_array_equal, state, STATE)
        checkpointer.save(2, STATE, {"step": 2})
        assert checkpointer.newest_whole() == 2
    told = capsys.readouterr().err.splitlines()
    name = largest.relative_to(tmp_path / "3")
    assert told[0] == (
        f"{tmp_path}/3 is half-written or damaged: {name} is not what was written (its SHA-256 is another). It is "
        "kept as damaged-3, and step 2 is taken instead"
    )
    assert told[1].endswith("It is kept as damaged-2, and step 1 is taken instead") and len(told) == 2
    assert (tmp_path / "damaged-3" / name).read_bytes() == data
    assert meta == {"step": 1}


def test_a_disk_that_cannot_be_read_is_a_damaged_step(tmp_path, monkeypatch, capsys):
    _saved(tmp_path, (1, 2))
    digest = hashlib.file_digest

    def broken(stream, name):
        if "/2/" in stream.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return digest(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", broken)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.newest_whole() == 1
    assert "cannot be read (Input/output error). It is kept as damaged-2" in capsys.readouterr().err


def test_where_every_step_is_damaged_nothing_begins_anew(tmp_path):
    _saved(tmp_path, (1, 2))
    for step in (1, 2):
        (tmp_path / str(step) / "arrays" / "SHA256SUMS").unlink()
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(DamagedError) as caught:
        checkpointer.newest_whole()
    assert str(caught.value) == (
        f"{tmp_path}/1 is half-written or damaged: arrays/SHA256SUMS is missing. Delete it; no other step is in "
        f"{tmp_path}"
    )


def test_a_step_of_the_first_format_is_read_and_of_a_later_one_refused(tmp_path):
    save_params(tmp_path, STATE["params"], {"scalar": False})
    path = tmp_path / "0"
    record = json.loads((path / "meta" / "metadata").read_text())
    assert record["format"] == step_files.FORMAT == 2 and record["checksums"]
    first = {"meta": record["meta"], "arrays": record["arrays"]}
    renamed = {"gormat" if name == "format" else name: value for name, value in record.items()}
    for changed in (renamed, renamed | {"checksums": False}):
        (path / "meta" / "metadata").write_text(json.dumps(changed))
        with pytest.raises(DamagedError, match=r"meta/metadata is not what was written"):
            load_params(tmp_path, ABSTRACT["params"])
    (path / "arrays" / "SHA256SUMS").unlink()
    (path / "meta" / "metadata").write_text(json.dumps(first))
    loaded = load_params(tmp_path, ABSTRACT["params"])
    jax.tree.map(np.testing.assert_array_equal, loaded, STATE["params"])
    (path / "meta" / "metadata").write_text(json.dumps(first | {"format": 3}))
    with pytest.raises(
        CheckpointError, match=r"/0 is of format 3, and this version of jaxalign reads up to 2"
    ):
        load_params(tmp_path, ABSTRACT["params"])


def test_without_checksums_steps_are_written_and_read_and_that_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checksums, "_told", [])
    with monkeypatch.context() as patch:
        patch.setenv("JAXALIGN_CHECKSUMS", "off")
        _saved(tmp_path, (1, 2))
        _load(tmp_path)
        assert (
            capsys.readouterr().err.count("JAXALIGN_CHECKSUMS=off: files are read and written without") == 1
        )
    assert not (tmp_path / "1" / "arrays" / "SHA256SUMS").exists()
    state, _ = _load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, state, STATE)
