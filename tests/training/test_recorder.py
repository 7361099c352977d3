"""Step times are those of the device, whenever the host sent the step and whatever came between."""

import json
import math
import types

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.metrics import Difference, Last, Max, Mean, Min, Std
from jaxalign.models import ModelConfig
from jaxalign.training import recorder as module
from jaxalign.training.alarms import Alarms
from jaxalign.training.flops import count_work, flops_metric, tokens_metric, update_flops
from jaxalign.training.progress import Progress
from jaxalign.training.window import Window
from jaxalign.training.writer import MetricWriter, read_metrics

NO_ALARMS = types.SimpleNamespace(alarms=Alarms(()), look=lambda step, values: None)
STEP, SEND = 10.0, 0.125  # seconds that the device takes for a step, and the host for sending it


class Device:
    """A clock, and a queue of steps each of which is done when the ones before it are."""

    def __init__(self):
        self.now = self.free = 0.0
        self.done: dict[float, float] = {}

    def send(self, number):
        self.now += SEND
        self.free = max(self.free, self.now) + STEP
        self.done[number] = self.free
        return {
            "skipped_steps": Mean(jnp.float32(0), jnp.float32(1)),
            "number": Mean(jnp.float32(number), jnp.float32(1)),
        }

    def get(self, metrics):
        if "number" in metrics:
            self.now = max(self.now, self.done[float(metrics["number"].total)])
        return metrics


def logged_run(steps):
    """What a recorder reads of a run that logs every step."""
    config = types.SimpleNamespace(log_every=1, on_nonfinite="stop")
    return types.SimpleNamespace(config=config, steps=steps, mesh=None, epochs_after=lambda step: step / 4)


def test_every_step_takes_as_long_as_the_device_took(tmp_path, monkeypatch):
    device = Device()
    monkeypatch.setattr(module.time, "monotonic", lambda: device.now)
    monkeypatch.setattr(module.jax, "device_get", device.get)
    monkeypatch.setattr(module, "peak_flops", lambda mesh: None)
    monkeypatch.setattr(module, "peak_memory", lambda mesh: None)
    run = logged_run(9)
    with MetricWriter(tmp_path, tensorboard=False) as writer, Progress(9, "sft", mode="silent") as progress:
        recorder = module.Recorder(run, writer, progress, NO_ALARMS, {})
        for step in range(1, 10):
            recorder.begin()
            recorder.phase("update", device.send(step), wait=False)
            recorder.end(step, None)
            if step % 3 == 0:  # an evaluation, which takes a minute
                recorder.flush(None)
                device.now += 60.0
                recorder.restart_clock()
        recorder.flush(None)
    first, *lines = [line["values"] for line in read_metrics(tmp_path)]
    # The first step compiles, too: its time is that of no other.
    assert first["perf/first_step_time"] == pytest.approx(STEP + SEND) and "perf/step_time" not in first
    assert [line["perf/step_time"] for line in lines] == pytest.approx(([STEP + SEND, STEP, STEP] * 3)[1:])
    assert [line["epoch"] for line in lines] == [step / 4 for step in range(2, 10)]


def test_a_step_whose_phases_are_waited_for_takes_what_they_take(tmp_path, monkeypatch):
    """Its times add up, also of the steps before and after what stands between steps."""
    device = Device()
    monkeypatch.setattr(module.time, "monotonic", lambda: device.now)
    monkeypatch.setattr(module, "peak_flops", lambda mesh: None)
    monkeypatch.setattr(module, "peak_memory", lambda mesh: 3 * 2**30)
    compiled, within = 5, {1: 4, 3: 2, 5: 1}
    monkeypatch.setattr(module, "count_compilations", lambda: compiled)
    run = logged_run(5)
    with MetricWriter(tmp_path, tensorboard=False) as writer, Progress(5, "ppo", mode="silent") as progress:
        recorder = module.Recorder(run, writer, progress, NO_ALARMS, {})
        for step in range(1, 6):
            recorder.begin()
            device.now += 0.5
            recorder.batch(types.SimpleNamespace(rows=None))
            device.now += 4.0 + step
            recorder.phase("rollout", {"perf/score_time": Mean(1.5, 1.0)}, wait=True)
            device.now += 2.0
            compiled += within.get(step, 0)
            recorder.phase("update", {"skipped_steps": Mean(jnp.float32(0), jnp.float32(1))}, wait=True)
            recorder.end(step, None)
            if step == 3:
                recorder.flush(None)
                compiled += 10
                with recorder.saving():
                    device.now += 7.0
                recorder.restart_clock()
        recorder.flush(None)
    first, *lines = [line["values"] for line in read_metrics(tmp_path)]
    assert first["perf/first_step_time"] == 7.5 and "perf/rollout_time" not in first
    for step, line in enumerate(lines, 2):
        assert line["perf/rollout_time"] == 4 + step and line["perf/score_time"] == 1.5
        assert (
            line["perf/step_time"] == line["perf/data_time"] + line["perf/rollout_time"] + 2.0 == 6.5 + step
        )
        assert line.get("perf/checkpoint_time") == (7.0 if step == 4 else None)
        assert line["perf/peak_device_memory"] == 3 and 0.05 < line["perf/peak_host_memory"] < 100
    # Not what the first two steps compile, nor what is compiled between steps.
    assert [line["perf/recompiles"] for line in lines] == [0, 2, 2, 3]


def record(folder, config, metrics, before=None, start=0, stop=None, monkeypatch=None):
    """Feeds a step's metrics after the other, and returns what a checkpoint would hold at the end."""
    run = types.SimpleNamespace(
        config=config, steps=len(metrics), mesh=None, epochs_after=lambda step: step / 4
    )
    with MetricWriter(folder, tensorboard=False) as writer, Progress(9, "sft", mode="silent") as progress:
        recorder = module.Recorder(run, writer, progress, NO_ALARMS, before or {})
        for step in range(start, len(metrics) if stop is None else stop):
            recorder.begin()
            recorder.phase("update", metrics[step], wait=False)
            recorder.end(step + 1, None)
        recorder.flush(None)
        return json.loads(json.dumps(recorder.metrics()))


def test_a_line_is_about_all_steps_since_the_last_and_a_kill_changes_none(tmp_path, monkeypatch):
    """Sums of a weight that differs by step, in float64, against NumPy over all entries."""
    monkeypatch.setattr(module, "peak_flops", lambda mesh: None)
    monkeypatch.setattr(module, "peak_memory", lambda mesh: None)
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 8)
    entries = [rng.normal(3, 1, size).astype(np.float32) for size in sizes]
    f32 = jnp.float32
    steps = [
        {
            "nll": Mean(f32(x.sum()), f32(len(x))),
            "loss": Mean(f32(x.mean()), f32(1)),
            "margin": Difference(f32(x.sum()), f32(len(x)), f32(x[0]), f32(1)),
            "max": Max(f32(x.max())),
            "min": Min(f32(x.min())),
            "std": Std(f32(len(x)), f32(x.mean()), f32(np.square(x - x.mean()).sum())),
            "learning_rate": Last(f32(number)),
            "skipped_steps": Max(f32(number // 4)),
            **dict.fromkeys(("perf/tokens", "perf/pairs"), Mean(f32(len(x)), f32(1))),
        }
        for number, x in enumerate(entries)
    ]
    config = types.SimpleNamespace(log_every=3, on_nonfinite="skip")
    record(tmp_path / "whole", config, steps)
    lines = read_metrics(tmp_path / "whole")
    assert [line["step"] for line in lines] == [1, 3, 6, 8]
    for line, begin in zip(lines, (0, 1, 3, 6), strict=True):
        own, values = entries[begin : line["step"]], line["values"]
        x = np.concatenate(own).astype(np.float64)
        assert values["nll"] == pytest.approx(x.mean(), rel=1e-6)
        assert values["loss"] == pytest.approx(np.mean([each.mean() for each in own]), rel=1e-6)
        assert values["margin"] == pytest.approx(x.mean() - np.mean([each[0] for each in own]), abs=1e-6)
        assert (values["max"], values["min"]) == (x.max(), x.min())
        assert values["std"] == pytest.approx(x.std(ddof=1) if len(x) > 1 else 0, rel=1e-5)
        assert (
            values["learning_rate"] == line["step"] - 1 and values["skipped_steps"] == (line["step"] - 1) // 4
        )
        assert values["num_tokens"] == sizes[: line["step"]].sum()
    before = record(tmp_path / "killed", config, steps, stop=5)
    record(tmp_path / "killed", config, steps, before, start=5)
    plain = lambda folder: [  # noqa: E731
        {k: v for k, v in line["values"].items() if not k.startswith("perf/")}
        for line in read_metrics(folder)
    ]
    assert plain(tmp_path / "killed") == plain(tmp_path / "whole")


def test_a_step_that_is_left_out_makes_no_mean_nan():
    window = Window()
    for loss in (2.0, math.nan, 4.0):
        window.add(
            {"loss": Mean(np.float32(loss), np.float32(1)), "skipped_steps": Max(np.float32(loss != loss))}
        )
    assert window.values() == {"loss": 3.0, "skipped_steps": 1.0}
    again = Window(json.loads(json.dumps(window.text())))
    assert again.values() == window.values()
    window.clear()
    window.add({"loss": Mean(np.float32(math.inf), np.float32(1))})
    assert window.values() == {"loss": math.inf}


@pytest.mark.parametrize("scalar", [False, True])
def test_mfu_counts_a_scalar_model_without_its_vocabulary(tmp_path, monkeypatch, scalar):
    device = Device()
    model = ModelConfig(vocab_size=50, num_layers=3, embed_dim=16, num_heads=4, head_dim=4, mlp_dim=24)
    monkeypatch.setattr(module.time, "monotonic", lambda: device.now)
    monkeypatch.setattr(module.jax, "device_get", device.get)
    monkeypatch.setattr(module, "peak_flops", lambda mesh: 1e6)
    monkeypatch.setattr(module, "peak_memory", lambda mesh: None)
    config = types.SimpleNamespace(log_every=3, on_nonfinite="stop")
    run = types.SimpleNamespace(config=config, steps=3, mesh=None, model=model, epochs_after=lambda step: 0.0)
    segments, positions = jnp.ones((1, 8), jnp.int32), jnp.arange(8)[None]
    with MetricWriter(tmp_path, tensorboard=False) as writer, Progress(1, "sft", mode="silent") as progress:
        recorder = module.Recorder(run, writer, progress, NO_ALARMS, {})
        batch = types.SimpleNamespace(segment_ids=segments, positions=positions)
        work = tokens_metric(count_work(model, segments, positions))
        work |= flops_metric(update_flops(model, batch, scalar=scalar)) | flops_metric(1e3, "/rollout")
        for step in (1, 2, 3):
            recorder.begin()
            recorder.phase("update", device.send(step) | work, wait=False)
            recorder.end(step, None)
        recorder.flush(None)
    first, line = read_metrics(tmp_path)
    assert "perf/mfu" not in first["values"]
    matrices = 3 * (4 * 16 * 16 + 3 * 16 * 24) + (1 if scalar else 50) * 16
    flops = 6 * matrices * 8 + 12 * 3 * 4 * 4 * (8 * 9 / 2) + 1e3
    assert not any(name.startswith("perf/flops") for name in line["values"])
    assert line["values"]["perf/total_flos"] == pytest.approx(3 * flops, rel=1e-6)
    assert line["values"]["perf/mfu"] == pytest.approx(flops / STEP / 1e6, rel=1e-6)
    assert line["values"]["perf/tokens_per_second"] == pytest.approx(8 / STEP)
