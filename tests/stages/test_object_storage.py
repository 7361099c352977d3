"""Runs in gs://: the whole way through Orbax, TensorStore and epath, with Google's store played by this process."""

import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import types

import jax
import numpy as np
import pytest
from etils import epath
from fake_gcs import Bucket, FakeFileSystem, serve
from orbax.checkpoint._src.path import gcs_utils
from tensorboardX.proto.event_pb2 import Event
from tiny import assert_same_bits, baseline_changes, final_state, history, run

from jaxalign import locks, parallel, storage
from jaxalign.data import DataConfig, encode_sources, load_tokenizer, read_records, train_sentencepiece
from jaxalign.data import store as token_store
from jaxalign.data.dataset import build_dataset
from jaxalign.data.public.recipes import open_source
from jaxalign.errors import CheckpointError, ConfigError, DataError
from jaxalign.quickstart.pipeline import quickstart
from jaxalign.training.loop import Stopped
from jaxalign.training.saved_model import find_model
from jaxalign.training.writer import MetricWriter, read_metrics
from jaxalign.verbs.convert import ConvertRequest, convert
from jaxalign.verbs.generate import GenerateRequest, generate


@pytest.fixture(scope="session")
def store():
    """One for the whole process, as TensorStore reads its address once."""
    bucket = Bucket()
    with serve(bucket) as environment:
        os.environ.update(environment)
        yield bucket


@pytest.fixture
def bucket(store, monkeypatch, tmp_path):
    """An empty bucket, and an empty current folder in which nothing may be left."""
    store.objects.clear()
    store.writes.clear()
    monkeypatch.setattr(FakeFileSystem, "bucket", store)
    for scheme in ("gs", "gcs"):
        monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, scheme, FakeFileSystem)
    # Asked through Google's own client, which is not installed with the tests.
    kind = types.SimpleNamespace(hierarchical_namespace_enabled=False)
    monkeypatch.setattr(gcs_utils, "get_bucket", lambda name: kind)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield store
    assert list(here.iterdir()) == []


def put(store, source, target):
    """A copy of a local file in the store."""
    store.put(target, source.read_bytes())
    return f"gs://{target}"


def params_of(path):
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    with parallel.use_mesh(mesh):
        return jax.device_get(find_model(str(path), "--model").load(mesh))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(bucket, runs, baseline):
    changes = baseline_changes("pretrain", runs)
    with pytest.raises(Stopped):
        run("pretrain", runs, "gs://bucket/pre", stop_at=lambda *now: now == (2, 0), **changes)
    assert [line["step"] for line in read_metrics("gs://bucket/pre") if line["kind"] == "train"] == [1]
    summary = run("pretrain", runs, "gs://bucket/pre", **changes)
    whole, remote = baseline("pretrain"), epath.Path("gs://bucket/pre")
    assert history("gs://bucket/pre") == history(whole)
    assert history("gs://bucket/pre", "eval") == history(whole, "eval")
    for folder in ("checkpoints", "model"):
        assert_same_bits(final_state(remote, folder), final_state(whole, folder))
    assert json.loads((remote / "summary.json").read_text()) == json.loads(json.dumps(summary))
    before = read_metrics("gs://bucket/pre")
    run("pretrain", runs, "gs://bucket/pre", **changes)
    assert read_metrics("gs://bucket/pre") == before


@pytest.mark.slow
def test_a_checkpoint_that_a_kill_left_unfinished_is_not_gone_on_from(bucket, runs, baseline):
    changes = baseline_changes("pretrain", runs) | {"checkpoint_every": 1}
    with pytest.raises(Stopped):
        run("pretrain", runs, "gs://bucket/pre", stop_at=lambda *now: now == (2, 0), **changes)
    newest = [name for name in bucket.objects if name.startswith("bucket/pre/checkpoints/2/")]
    # Written last, in this order, and a kill may come before any of them.
    for end in ("meta/metadata", "arrays/files.json", "/commit_success.txt"):
        for name in [name for name in newest if name.endswith(end)]:
            del bucket.objects[name]
    run("pretrain", runs, "gs://bucket/pre", **changes)
    assert history("gs://bucket/pre") == history(baseline("pretrain"))
    assert_same_bits(final_state(epath.Path("gs://bucket/pre")), final_state(baseline("pretrain")))


def test_a_run_that_was_copied_there_is_a_model(bucket, runs):
    for file in (runs / "sft").rglob("*"):
        if file.is_file():
            put(bucket, file, f"bucket/copy/{file.relative_to(runs / 'sft')}")
    same(params_of("gs://bucket/copy"), params_of(runs / "sft"))


@pytest.mark.slow
def test_model_data_and_reference_may_all_lie_there(bucket, runs, tmp_path):
    """DPO, as it reads most: a model with its tokenizer, data, and log-probabilities kept from an earlier start."""
    convert(ConvertRequest(str(runs / "sft"), "gs://bucket/sft", "jaxalign"))
    same(params_of("gs://bucket/sft"), params_of(runs / "sft"))
    pairs = put(bucket, runs / "pairs.jsonl", "bucket/data/pairs.jsonl")
    changes = baseline_changes("dpo", runs) | {"dpo.precompute_reference": True}
    run("dpo", runs, tmp_path / "dpo", **changes)
    changes |= {"data.eval": pairs, "data.train": pairs, "model.init_from": "gs://bucket/sft"}
    with pytest.raises(Stopped):
        run("dpo", runs, "gs://bucket/dpo", stop_at=lambda *now: now == (2, 0), **changes)
    run("dpo", runs, "gs://bucket/dpo", **changes)
    assert history("gs://bucket/dpo") == history(tmp_path / "dpo")
    assert_same_bits(
        final_state(epath.Path("gs://bucket/dpo"), "model"), final_state(tmp_path / "dpo", "model")
    )
    kept = {
        f"bucket/dpo/reference_logp/{file.name}": file.read_bytes()
        for file in (tmp_path / "dpo/reference_logp").iterdir()
    }
    assert {name: bucket.objects[name].data for name in kept} == kept
    assert sorted(name for name in bucket.writes if "reference_logp" in name) == sorted(
        kept
    )  # once for both starts


def test_a_hugging_face_folder_there_is_the_same_model(bucket, runs):
    convert(ConvertRequest(str(runs / "sft"), "gs://bucket/hf", "hf", max_shard_size="20KB"))
    assert "bucket/hf/model.safetensors.index.json" in bucket.objects
    same(params_of("gs://bucket/hf"), params_of(runs / "sft"))
    there, here = (find_model(path, "--model").tokenizer() for path in ("gs://bucket/hf", str(runs / "sft")))
    assert there.encode("the lazy dog") == here.encode("the lazy dog")
    with pytest.raises(ConfigError, match=r"--out=gs://bucket/hf exists and is not an empty folder"):
        convert(ConvertRequest(str(runs / "sft"), "gs://bucket/hf", "hf"))
    there.save("gs://bucket/again")
    again = {name.split("/")[-1]: stored.data for name, stored in bucket.objects.items() if "/again/" in name}
    assert again["tokenizer.json"] == bucket.objects["bucket/hf/tokenizer.json"].data
    assert again.keys() >= {"tokenizer_config.json", "chat_template.jinja", "generation_config.json"}


@pytest.mark.slow
def test_completions_go_on_where_they_were_stopped(bucket, runs, tmp_path):
    prompts = put(bucket, runs / "prompts.jsonl", "bucket/prompts.jsonl")
    same = {"model": str(runs / "sft"), "prompts": prompts, "max_new_tokens": 4, "batch_size": 8}
    make = functools.partial(GenerateRequest, **same)
    list(generate(make(out=str(tmp_path / "out.jsonl"))))
    first = generate(make(out="gs://bucket/out.jsonl"))
    assert [next(first) for _ in range(2)][1] == "8 of 24"
    first.close()
    wanted = (tmp_path / "out.jsonl").read_bytes()
    assert bucket.objects["bucket/out.jsonl"].data.splitlines() == wanted.splitlines()[:8]
    started, *_ = generate(make(out="gs://bucket/out.jsonl"))
    assert started.endswith("; 8 of 24 completions are there")
    assert bucket.objects["bucket/out.jsonl"].data == wanted


def test_lines_wait_for_a_minute_or_a_flush(bucket, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(storage.time, "monotonic", lambda: clock[0])
    steps = lambda: [line["step"] for line in read_metrics("gs://bucket/run")]  # noqa: E731
    with MetricWriter("gs://bucket/run", tensorboard=False) as writer:
        for step, clock[0] in enumerate((1.0, 2.0, 63.0, 64.0), 1):
            writer.write(step, {"loss": step})
        assert steps() == [1, 2, 3]
        writer.flush()
        assert steps() == [1, 2, 3, 4]
        writer.write(5, {"loss": 5})
    assert bucket.writes == ["bucket/run/metrics.jsonl"] * 3
    with MetricWriter("gs://bucket/run", tensorboard=False) as writer:
        writer.truncate_after(2)
        writer.write(3, {"loss": 30})
    assert [line["values"]["loss"] for line in read_metrics("gs://bucket/run")] == [1, 2, 30]


def test_tensorboard_files_are_whole_there(bucket):
    with MetricWriter("gs://bucket/run") as writer:
        writer.write(1, {"loss": 0.5})
        writer.flush()
        writer.write(2, {"loss": 0.25})
    (name,) = (name for name in bucket.objects if "tfevents" in name)
    assert name.startswith("bucket/run/tensorboard/train/events")
    data, values = bucket.objects[name].data, []
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        values += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    assert values == [(1, "loss", 0.5), (2, "loss", 0.25)]


def test_only_process_0_writes(bucket, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricWriter("gs://bucket/run") as writer:
        writer.truncate_after(0)
        writer.write(1, {"loss": 1.0})
        writer.flush()
    assert bucket.writes == []


def test_errors_name_the_path_that_was_given(bucket, runs):
    bucket.put("bucket/bad.jsonl", b'{"text": "a"}\n{\n')
    for source in ("gs://bucket/bad.jsonl", "gs://bucket/ba*.jsonl"):
        with pytest.raises(DataError, match=r"^gs://bucket/bad.jsonl:2: not valid JSON"):
            list(read_records(source))
    for source in ("gs://bucket/none.jsonl", "sharegpt:gs://bucket/none.jsonl"):
        with pytest.raises(DataError, match=r"^gs://bucket/none.jsonl: no such file or folder"):
            open_source(source, "sft")
    with pytest.raises(
        CheckpointError, match=r"^--model='gs://bucket/none': no checkpoint in gs://bucket/none"
    ):
        find_model("gs://bucket/none", "--model")
    with pytest.raises(ConfigError, match=r"^config.data.tokenizer=gs://bucket/none: no such file"):
        load_tokenizer("gs://bucket/none")
    with pytest.raises(
        ConfigError, match=r"config.data.chat_template=gs://bucket/none.jinja: .*none.jinja; correct"
    ):
        load_tokenizer(runs / "tiny.model", "gs://bucket/none.jinja")
    with pytest.raises(ConfigError, match=r"--workdir=gs://bucket/q: a quickstart works in a local folder"):
        quickstart("gs://bucket/q", fast=True)
    with pytest.raises(ConfigError, match=r"^s3://bucket/run: of all object stores only gs://"):
        run("pretrain", runs, "s3://bucket/run")


def test_without_gcsfs_the_error_names_the_extra(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r"^gs://bucket/run: gs:// needs .* pip install '\.\[gcs\]'"):
        run("pretrain", runs, "gs://bucket/run")
    assert list(tmp_path.iterdir()) == []


def test_a_local_path_is_pathlibs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.to_path("runs/a:b") == pathlib.Path("runs/a:b")
    assert storage.to_path("~/x") == pathlib.Path.home() / "x"  # a shell leaves the ~ in --workdir=~/x alone
    MetricWriter("runs/one", tensorboard=False).write(1, {"loss": 1.0})  # kept at once, without a flush
    assert [line["step"] for line in read_metrics(tmp_path / "runs/one")] == [1]


def test_what_a_killed_process_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    hold = "from jaxalign.storage import temporary_folder as t; print(t(), flush=True); input()"
    command = [sys.executable, "-c", hold]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    dead, alive = (
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    folders = [pathlib.Path(child.stdout.readline().strip()) for child in (dead, alive)]
    for folder in folders:
        (folder / "a.txt").write_text("a")
    # Folders that merely look alike, one named after a process that has ended.
    others = [tmp_path / f"jaxalign-{dead.pid}-abc", tmp_path / "jaxalign-other"]
    for other in others:
        other.mkdir()
    dead.kill()
    dead.communicate()
    mine = storage.temporary_folder()
    assert list(mine.iterdir()) == []
    left = sorted(tmp_path.iterdir())
    assert left == sorted([mine.parent, folders[1].parent, *others])
    assert (folders[1] / "a.txt").read_text() == "a"
    alive.communicate("\n")
    assert not folders[1].exists()


@pytest.fixture
def stored(bucket, tmp_path, monkeypatch):
    """Reads data whose tokens are stored in a bucket, on a host with the cache folder of the given name."""
    train_sentencepiece(["the quick brown fox"] * 20, tmp_path / "t.model", 300)
    tokenizer = load_tokenizer(tmp_path / "t.model")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"fox {n}"}) + "\n" for n in range(40)))
    config = DataConfig(train=str(tmp_path / "a.jsonl"), store="gs://b/tokens", max_length=16, row_length=32)
    monkeypatch.setattr(locks, "_SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(token_store, "PART_BYTES", 200)
    monkeypatch.setattr(encode_sources, "_workers", lambda: 1)

    def read(host):
        monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / host))
        return build_dataset(config, tokenizer, "text").fingerprint

    return read


def test_a_token_store_in_a_bucket_is_made_once_and_copied_to_every_host(
    stored, bucket, tmp_path, monkeypatch
):
    made = stored("one")
    names = sorted(bucket.objects)
    assert sum(".tokens" in name for name in names) > 2 and not any("alive" in name for name in names)
    monkeypatch.setattr(token_store, "write_part", lambda *_: pytest.fail("made again"))
    assert stored("two") == made
    # What was cut on a host is copied again; what was cut in the bucket is made again.
    (part,) = (tmp_path / "two").rglob("part-00001.tokens")
    part.unlink()
    assert stored("two") == made


def test_a_damaged_part_in_a_bucket_is_made_again(stored, bucket):
    made = stored("one")
    (name,) = (name for name in bucket.objects if name.endswith("part-00001.tokens"))
    whole = bucket.objects[name].data
    bucket.put(name, whole[:-3])
    assert stored("two") == made
    assert bucket.objects[name].data == whole
