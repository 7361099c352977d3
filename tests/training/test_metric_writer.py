"""The history file holds each step once, is valid JSON, and survives a kill."""

import hashlib
import json
import math
import time

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxalign.errors import DataError
from jaxalign.training.writer import MetricWriter, read_metrics


def _losses(path):
    return [(r["step"], r["values"]["loss"]) for r in read_metrics(path)]


def test_round_trip_of_every_kind_of_scalar(tmp_path):
    start = time.time()
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"loss": 0.1, "rewards/margins": np.float32(0.5)})
        writer.write(np.int64(2), {"loss": jnp.float32(3.0), "kl": float("nan"), "n": 7}, kind="eval")
        writer.write(3, {"up": jnp.inf, "down": -np.inf})
    records = read_metrics(tmp_path)
    assert str(records) == str(read_metrics(tmp_path / "metrics.jsonl"))
    assert [(r["step"], r["kind"]) for r in records] == [(1, "train"), (2, "eval"), (3, "train")]
    assert all(start <= r["time"] <= time.time() for r in records)
    assert records[0]["values"] == {"loss": 0.1, "rewards/margins": 0.5}
    assert records[1]["values"] | {"kl": 0.0} == {"loss": 3.0, "kl": 0.0, "n": 7.0}
    assert math.isnan(records[1]["values"]["kl"])
    assert records[2]["values"] == {"up": math.inf, "down": -math.inf}


def test_non_finite_values_are_strings_in_strict_json(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf})

    def refuse(constant):
        raise AssertionError(constant)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line["values"] == {"a": "NaN", "b": "Infinity", "c": "-Infinity"}


def test_resuming_keeps_each_step_once(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        for step in range(1, 8):
            writer.write(step, {"loss": step})
            writer.write(step, {"loss": -step}, kind="eval")
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.truncate_after(4)
        for step in range(5, 9):
            writer.write(step, {"loss": 10 * step})
    expected = [pair for s in range(1, 5) for pair in ((s, s), (s, -s))] + [(s, 10 * s) for s in range(5, 9)]
    assert _losses(tmp_path) == expected
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_truncating_nothing_is_harmless(tmp_path):
    with MetricWriter(tmp_path / "new", tensorboard=False) as writer:
        writer.truncate_after(0)
        writer.write(1, {"loss": 1.0})
        writer.truncate_after(1)
    assert _losses(tmp_path / "new") == [(1, 1.0)]


@pytest.mark.parametrize(
    "torn", ['{"step": 2, "ti', '{"step": 2, "time": 0, "kind": "train", "values": {"loss": 2}}']
)
def test_a_line_cut_by_a_kill_is_not_read_and_not_continued(tmp_path, torn):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert _losses(tmp_path) == [(1, 1.0)]
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(2, {"loss": 2.5})
    assert _losses(tmp_path) == [(1, 1.0), (2, 2.5)]


@pytest.mark.parametrize("line", ["loss=3", "[]", '{"step": 3}'])
def test_a_foreign_line_is_named(tmp_path, line):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"loss": 1.0})
    with writer.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: .* is not a metrics record .*; delete it"):
        read_metrics(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"metrics\.jsonl: no such file; give a run directory"):
        read_metrics(tmp_path)


def _events(directory):
    """The events of every run in a folder: TFRecords of length (8 bytes), its checksum (4), event, checksum (4)."""
    events = []
    for path in sorted(directory.rglob("events.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            run = path.parent.relative_to(directory).as_posix()
            events.append((run, Event.FromString(data[12 : 12 + length])))
            data = data[16 + length :]
    return events


def _scalars(directory):
    return [
        (run, event.step, value.tag, value.simple_value)
        for run, event in _events(directory)
        for value in event.summary.value
    ]


def test_training_and_every_evaluation_set_share_the_chart_of_a_quantity(tmp_path):
    with MetricWriter(tmp_path, sets=["old", "new"]) as writer:
        writer.write(3, {"loss": 1.5, "rewards/margins": 0.25})
        writer.write(
            3,
            {"eval/loss": 1.25, "eval/old/loss": 1.0, "eval/new/rewards/margins": 2.0, "judge": 0.5},
            "eval",
        )
    assert sorted(_scalars(tmp_path / "tensorboard")) == [
        ("eval", 3, "judge", 0.5),
        ("eval", 3, "loss", 1.25),
        ("eval/new", 3, "rewards/margins", 2.0),
        ("eval/old", 3, "loss", 1.0),
        ("train", 3, "loss", 1.5),
        ("train", 3, "rewards/margins", 0.25),
    ]
    names = {"loss": 1.25, "old/loss": 1.0, "new/rewards/margins": 2.0, "judge": 0.5}
    assert [(line["kind"], line["values"]) for line in read_metrics(tmp_path)][1] == ("eval", names)


def test_a_file_of_an_earlier_version_is_read_by_the_names_of_today(tmp_path):
    line = {"step": 4, "time": 0.0, "kind": "eval", "values": {"eval/loss": 1.5, "judge/score": "NaN"}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (found,) = read_metrics(tmp_path)
    assert list(found["values"]) == ["loss", "judge/score"] and found["values"]["loss"] == 1.5


def test_tensorboard_hides_steps_after_a_resume(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(3, {"loss": math.nan})
        writer.write(4, {"loss": 1.25}, kind="eval")
    with MetricWriter(tmp_path) as writer:
        writer.truncate_after(3)
        writer.write(4, {"loss": 9.0})
    restarts = [
        (run, event.step)
        for run, event in _events(tmp_path / "tensorboard")
        if event.session_log.status == SessionLog.START
    ]
    assert sorted(restarts) == [("eval", 4), ("train", 4)]  # the run to which nothing more was written, too
    first, *rest = sorted(_scalars(tmp_path / "tensorboard"), key=lambda event: event[1])
    assert first[:3] == ("train", 3, "loss") and math.isnan(first[3])
    assert sorted(rest) == [("eval", 4, "loss", 1.25), ("train", 4, "loss", 9.0)]


def test_what_was_written_is_on_disk_at_once(tmp_path):
    """A killed process flushes nothing."""
    writer = MetricWriter(tmp_path)
    for step in range(20):
        writer.write(step, {"loss": step})
    writer.write_samples(19, [{"prompt": "p", "completion": "c"}])
    found = [(step, x) for _, step, tag, x in _scalars(tmp_path / "tensorboard") if tag == "loss"]
    assert found == [(step, float(step)) for step in range(20)]
    assert len(read_metrics(tmp_path)) == 20 and (tmp_path / "samples.jsonl").read_text().count("\n") == 1
    writer.close()


def test_samples_are_lines_and_text_and_each_step_stands_once(tmp_path):
    sample = {"set": "old", "prompt": "a *b*\n# c\u2028d", "completion": "e", "score": 0.5}
    with MetricWriter(tmp_path) as writer:
        for step in (2, 4):
            writer.write_samples(step, [sample, sample])
        writer.write_samples(5, [])
    with MetricWriter(tmp_path) as writer:
        writer.truncate_after(2)
        writer.write_samples(4, [sample])
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().split("\n")[:-1]]
    assert lines == [{"step": step} | sample for step in (2, 2, 4)]
    (text, *_) = [
        value.tensor.string_val[0].decode()
        for _, event in _events(tmp_path / "tensorboard")
        for value in event.summary.value
        if value.tag == "samples/text_summary"
    ]
    assert "**prompt**\n\n    a *b*\n    # c\u2028d\n" in text and "    0.5" in text


def test_samples_of_an_evaluation_that_is_made_again_are_written_once(tmp_path):
    for answers in (["a", "b"], ["c"]):
        with MetricWriter(tmp_path, tensorboard=False) as writer:
            writer.truncate_after(2)
            for step in (1, 2) if answers == ["a", "b"] else (2, 3):
                writer.write_samples(step, [{"answer": f"{answer}{step}"} for answer in answers])
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in lines] == ["a1", "b1", "c2", "c3"]


def test_what_is_not_as_it_was_when_a_run_goes_on_is_said(tmp_path, capsys):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": 1.0})
            if step == 2:
                state = writer.state()
        writer.write_samples(2, [{"prompt": "a", "answer": "b"}])
    path = tmp_path / "metrics.jsonl"
    two = b"".join(path.read_bytes().splitlines(keepends=True)[:2])
    assert state["metrics.jsonl"] == {"lines": 2, "sha256": hashlib.sha256(two).hexdigest()}
    assert state["samples.jsonl"]["lines"] == 0

    def go_on():
        with MetricWriter(tmp_path, tensorboard=False) as writer:
            writer.truncate_after(2, state)
            assert writer.state()["metrics.jsonl"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        return capsys.readouterr().err

    path.write_bytes(path.read_bytes() + b'{"step": 4, "ti')
    assert go_on() == f"{path}: its last line was cut off and is removed, 15 bytes\n"
    assert path.read_bytes() == two
    path.write_bytes(two.replace(b"1.0", b"9.0"))
    assert go_on() == (
        f"{path}: its first 2 lines are not as they were written; what they say is not to be trusted\n"
    )
    path.write_bytes(two.split(b"\n")[0] + b"\n")
    assert go_on() == f"{path}: 1 of its first 2 lines are missing, and what they said is lost\n"
    path.write_bytes(b"")
    assert go_on() == f"{path}: 2 of its first 2 lines are missing, and what they said is lost\n"
    with MetricWriter(tmp_path / "new", tensorboard=False) as writer:
        writer.truncate_after(0, {})
    assert capsys.readouterr().err == ""


def test_a_number_of_hundreds_of_digits_is_none(tmp_path):
    line = f'{{"step": 1, "kind": "train", "time": 1.0, "values": {{"loss": 1{"0" * 400}}}}}\n'
    (tmp_path / "metrics.jsonl").write_text(line)
    with pytest.raises(DataError, match=r"metrics\.jsonl:1: .*values are no numbers by name"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("line", [b"\xff\xfe", b"3", b'{"step": "1"}', b"[" * 100_000])
def test_a_damaged_line_is_named(tmp_path, name, line):
    (tmp_path / name).write_bytes(line + b"\n")
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        with pytest.raises(DataError, match=rf"{name}:1: .* is not a metrics record .*; delete it$"):
            writer.truncate_after(2)
