"""Step times are those of the device, whenever the host sent the step and whatever came between."""

import types

import jax.numpy as jnp
import pytest

from jaxalign.losses.metrics import Mean
from jaxalign.models import ModelConfig
from jaxalign.training import recorder as module
from jaxalign.training.flops import count_work
from jaxalign.training.progress import Progress
from jaxalign.training.writer import MetricWriter, read_metrics

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


def test_every_step_takes_as_long_as_the_device_took(tmp_path, monkeypatch):
    device = Device()
    monkeypatch.setattr(module.time, "monotonic", lambda: device.now)
    monkeypatch.setattr(module.jax, "device_get", device.get)
    monkeypatch.setattr(module, "peak_flops", lambda mesh: None)
    config = types.SimpleNamespace(log_every=1, on_nonfinite="stop")
    run = types.SimpleNamespace(config=config, steps=9, mesh=None)
    with MetricWriter(tmp_path, tensorboard=False) as writer, Progress(9, "sft", mode="silent") as progress:
        recorder = module.Recorder(run, writer, progress, {})
        for step in range(1, 10):
            recorder.begin(None)
            recorder.phase("update", device.send(step), wait=False)
            recorder.end(step, None)
            if step % 3 == 0:  # an evaluation, which takes a minute
                recorder.flush(None)
                device.now += 60.0
                recorder.restart_clock()
        recorder.flush(None)
    times = [line["values"]["perf/step_time"] for line in read_metrics(tmp_path)]
    assert times == pytest.approx([STEP + SEND, STEP, STEP] * 3)


@pytest.mark.parametrize("scalar", [False, True])
def test_mfu_counts_a_scalar_model_without_its_vocabulary(tmp_path, monkeypatch, scalar):
    device = Device()
    model = ModelConfig(vocab_size=50, num_layers=3, embed_dim=16, num_heads=4, head_dim=4, mlp_dim=24)
    monkeypatch.setattr(module.time, "monotonic", lambda: device.now)
    monkeypatch.setattr(module.jax, "device_get", device.get)
    monkeypatch.setattr(module, "peak_flops", lambda mesh: 1e6)
    config = types.SimpleNamespace(log_every=1, on_nonfinite="stop")
    run = types.SimpleNamespace(config=config, steps=1, mesh=None, model=model)
    segments, positions = jnp.ones((1, 8), jnp.int32), jnp.arange(8)[None]
    with MetricWriter(tmp_path, tensorboard=False) as writer, Progress(1, "sft", mode="silent") as progress:
        recorder = module.Recorder(run, writer, progress, {}, scalar=scalar)
        recorder.begin(None)
        recorder.phase("update", device.send(1) | count_work(segments, positions), wait=False)
        recorder.end(1, None)
        recorder.flush(None)
    (line,) = read_metrics(tmp_path)
    matrices = 3 * (4 * 16 * 16 + 3 * 16 * 24) + (1 if scalar else 50) * 16
    flops = 6 * matrices * 8 + 12 * 3 * 4 * 4 * (8 * 9 / 2)
    assert line["values"]["perf/mfu"] == pytest.approx(flops / (STEP + SEND) / 1e6, rel=1e-6)
