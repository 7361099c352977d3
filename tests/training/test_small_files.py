"""The small files of a run and its checkpoints, in forms that nobody wrote on purpose."""

import errno
import json
import os

import numpy as np
import pytest

from jaxalign.cli import main
from jaxalign.errors import CheckpointError
from jaxalign.training.reference import _file_of, _read_scores
from jaxalign.training.saved_model import find_model
from jaxalign.training.workdir import find_checkpoint, finished

MODEL = {"vocab_size": 64, "num_layers": 2, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 4, "head_dim": 8}
META = {"model": MODEL, "scalar": False, "step": 4, "steps": 8, "config": {"data": {"tokenizer": "t"}}}


def make(run, step=4, **changes):
    place = run / "checkpoints" / str(step)
    (place / "meta").mkdir(parents=True)
    (place / "arrays").mkdir()
    (place / "arrays" / "files.json").write_text("{}")
    (place / "meta" / "metadata").write_text(json.dumps({"meta": META, "arrays": {}} | changes))
    return run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meta": None}, "does not hold the objects meta and arrays"),
        ({"arrays": [1]}, "does not hold the objects meta and arrays"),
        ({"meta": META | {"model": 5}}, "another version of jaxalign wrote it"),
        (
            {"meta": META | {"model": MODEL | {"num_layers": 10**9}}},
            "num_layers=1000000000 must be at least 1 and",
        ),
        ({"meta": META | {"scalar": "yes"}}, "its scalar or its tokenizer is of another type"),
        (
            {"meta": META | {"config": {"data": {"tokenizer": 5}}}},
            "its scalar or its tokenizer is of another type",
        ),
        ({"meta": META | {"config": 5}}, "another version of jaxalign wrote it"),
    ],
)
def test_meta(tmp_path, changes, message):
    run = make(tmp_path / "run", **changes)
    with pytest.raises(CheckpointError, match=rf"config\.model\.init_from='.*run.*': .*{message}"):
        find_model(str(run / "checkpoints" / "4"), "config.model.init_from")


def test_steps_and_the_best_of_strange_metas(tmp_path):
    run = make(tmp_path / "run")
    make(run, 8, meta=META | {"step": [8]})
    make(run, 12, meta=META | {"step": 12, "selection": "best"})
    assert find_checkpoint(run, "latest").name == "12" and find_checkpoint(run, "4").name == "4"
    for text in ("[", "[1]", '{"steps": 12, "best": 5}', '{"steps": 12, "best": {"position": "4"}}'):
        (run / "summary.json").write_text(text)
        with pytest.raises(CheckpointError, match="no checkpoint is the best"):
            find_checkpoint(run, "best")
    (run / "summary.json").write_text('{"steps": 12, "best": {"position": 4}}')
    assert find_checkpoint(run, "best").name == "4" and finished(run)["steps"] == 12


def test_a_damaged_newest_checkpoint_is_named_and_no_other_taken_for_it(tmp_path):
    run = make(tmp_path / "run")
    make(run, 8, meta=META | {"step": 8})
    meta = run / "checkpoints" / "8" / "meta" / "metadata"
    meta.write_bytes(bytes(meta.stat().st_size))
    for which in ("latest", "best"):
        with pytest.raises(CheckpointError, match=r"checkpoints/8 is half-written or damaged: meta/metadata"):
            find_checkpoint(run, which)
    assert find_checkpoint(run, "4").name == "4"


def test_scores_of_a_reference_that_are_cut_or_anothers(tmp_path):
    data = _file_of(np.arange(12, dtype=np.float32).reshape(4, 3))
    path = tmp_path / "scores.npy"
    path.write_bytes(data)
    assert _read_scores(path, 4).tolist() == np.arange(12).reshape(4, 3).tolist()
    flipped = [data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :] for at in range(len(data))]
    for content, count in (
        (data[:-1], 4),
        (b"", 4),
        (b"\x80\x04pickle", 4),
        (data, 5),
        *((x, 4) for x in flipped),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"scores\.npy: .*; delete it, and it is made again"):
            _read_scores(path, count)
    path.write_bytes(_file_of(np.full((4, 3), np.nan, np.float32)))
    with pytest.raises(CheckpointError, match="numbers that are not finite"):
        _read_scores(path, 4)


@pytest.mark.parametrize("number", [errno.ENOTDIR, errno.EACCES, errno.ENOENT, errno.EROFS, errno.ENOSPC])
def test_what_the_disk_says_has_no_traceback(monkeypatch, capsys, number):
    def refuse(request):
        raise OSError(number, os.strerror(number), "/data/run\x1b[2J/settings.json")

    monkeypatch.setattr("jaxalign.verbs.version.run", refuse)
    assert main(["version"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("jaxalign version: /data/run␛[2J/settings.json: ") and os.strerror(number) in said
    assert said.endswith("then run the same command\n") and "Traceback" not in said
