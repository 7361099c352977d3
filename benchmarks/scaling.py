"""How time and memory of a training step grow: with the length of sequences, batch, depth, vocabulary, the spread of
lengths, and the number of devices.

    python -m benchmarks.scaling --out=scaling                  # all; --axes=length,depth for some

Every point runs in a process of its own, on random weights and tokens. Prints a table with the slope of each line in a
log-log plot, 1 being proportional, and draws the plots where --out names a folder.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

from jaxalign.host_memory import restart_with_huge_pages

STEPS = 6  # the first two of which are not counted
BASE = {"length": 256, "rows": 16, "depth": 6, "vocabulary": 4096, "spread": 0.0, "devices": 1}
AXES = {
    "length": (64, 128, 256, 512, 1024, 2048),
    "rows": (2, 4, 8, 16, 32),
    "depth": (2, 4, 8, 16, 32),
    "vocabulary": (1024, 4096, 16_384, 65_536),
    # Standard deviation of the logarithm of lengths, of which the mean is `length` / 4 and the longest `length`.
    "spread": (0.0, 0.5, 1.0, 1.5),
    # Virtual ones, which share the cores: what it costs to split a batch.
    "devices": (1, 2, 4, 8),
}


@dataclasses.dataclass(frozen=True)
class Point:
    """What one process measures: a step of SFT of a Llama of width 256."""

    length: int
    rows: int
    depth: int
    vocabulary: int
    spread: float
    devices: int


def measure(point: Point) -> dict[str, float]:
    """Median seconds of a step, peak memory in GB, tokens of a step, and seconds to the end of the first."""
    import jax
    import numpy as np

    from jaxalign import parallel
    from jaxalign.data import Batch
    from jaxalign.data.bins import pack
    from jaxalign.models import init_params
    from jaxalign.parallel.chips import peak_host_memory, peak_memory
    from jaxalign.stages import default_config, parse_config
    from jaxalign.training.optimizer import make_optimizer
    from jaxalign.training.state import init_train_state

    if point.devices > 1:
        jax.config.update("jax_num_cpu_devices", point.devices)
    began = time.perf_counter()
    values = default_config("sft")
    sizes = {"vocab_size": point.vocabulary, "num_layers": point.depth, "embed_dim": 256, "mlp_dim": 1024}
    sizes |= {"num_heads": 8, "num_kv_heads": 8, "head_dim": 32, "max_length": point.length, "remat": "none"}
    values.model.update(sizes)
    values.optimizer.learning_rate = 1e-4
    values.num_steps = STEPS
    config = parse_config(values)
    rng = np.random.default_rng(0)
    tokens = point.rows * point.length
    if point.spread:
        draws = np.exp(rng.normal(0, point.spread, tokens))
        lengths = np.clip(draws * point.length / 4 / draws.mean(), 2, point.length).astype(int)
        lengths = lengths[: np.searchsorted(np.cumsum(lengths), 0.95 * tokens)]
    else:
        lengths = np.full(point.rows, point.length)
    bins = [np.asarray(b) for b in pack(lengths, point.length, max_segments=point.length)][: point.rows]
    shape = (point.rows, point.length)
    arrays: dict[str, Any] = {name: np.zeros(shape, np.int32) for name in ("positions", "segment_ids")}
    for row, members in enumerate(bins):
        at = 0
        for segment, member in enumerate(members, 1):
            n = int(lengths[member])
            arrays["positions"][row, at : at + n], arrays["segment_ids"][row, at : at + n] = (
                np.arange(n),
                segment,
            )
            at += n
    real = arrays["segment_ids"] > 0
    arrays["tokens"] = rng.integers(0, point.vocabulary, shape).astype(np.int32) * real
    arrays["loss_mask"] = (real & (arrays["positions"] > 0)).astype(np.float32)
    batch: Any = Batch(**arrays, rows=np.zeros((point.rows, 1), np.int32))
    mesh = parallel.make_mesh(parallel.MeshConfig(data=point.devices, fsdp=1), jax.devices()[: point.devices])
    with parallel.use_mesh(mesh):
        model = config.architecture(jax.default_backend())
        step = config.stage.step(config, model, total_steps=STEPS)
        state = init_train_state(
            init_params(jax.random.key(0), model), make_optimizer(config.optimizer, STEPS)
        )
        state = jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
        batch = jax.device_put(batch, parallel.batch_sharding(mesh))
        at = [began]
        for _ in range(STEPS):
            state, metrics = step(state, batch, {})
            jax.block_until_ready((state, metrics))
            at.append(time.perf_counter())
        peak = peak_memory(mesh) or peak_host_memory()
    gaps = [b - a for a, b in itertools.pairwise(at[2:])]
    return {
        "seconds": statistics.median(gaps),
        "first_step": at[1] - at[0],
        "peak_gb": peak / 1e9,
        "tokens": int(real.sum()),
    }


def slope(xs: list[float], ys: list[float]) -> float:
    """Of the straight line through the logarithms."""
    import numpy as np

    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def draw(axis: str, xs: list[float], found: list[dict[str, float]], folder: pathlib.Path) -> None:
    """Seconds and memory against one axis, both logarithmic, as an SVG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    for place, (name, unit) in enumerate((("seconds", "s a step"), ("peak_gb", "GB at most"))):
        ys = [x[name] for x in found]
        ax = figure.add_subplot(1, 2, place + 1)
        ax.loglog(xs, ys, marker="o", color="#0072b2")
        ax.set_xlabel(axis)
        ax.set_ylabel(unit)
        ax.set_title(f"slope {slope(xs, ys):.2f}")
    figure.savefig(folder / f"{axis}.svg")


def main() -> None:
    """Prints a table for every axis."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":", maxsplit=1)[0])
    parser.add_argument("--axes", default=",".join(AXES))
    parser.add_argument("--out", default="", help="a folder for the plots and results.json")
    parser.add_argument("--point", default="", help="measures this one, as JSON, in this process")
    given = parser.parse_args()
    restart_with_huge_pages()  # as the command `jaxalign` does
    if given.point:
        print(json.dumps(measure(Point(**json.loads(given.point)))))
        return
    results: dict[str, Any] = {}
    for axis in given.axes.split(","):
        found = []
        for x in AXES[axis]:
            point = json.dumps(BASE | {axis: x})
            command = [sys.executable, "-m", "benchmarks.scaling", f"--point={point}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
            if done.returncode:
                sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
            found.append(json.loads(done.stdout.splitlines()[-1]))
        results[axis] = dict(zip(map(str, AXES[axis]), found, strict=True))
        print(f"\n| {axis} | s a step | tokens/s | GB | first step, s |\n|---|---|---|---|---|")
        for x, each in zip(AXES[axis], found, strict=True):
            speed = each["tokens"] / each["seconds"]
            cells = (
                f"{each['seconds']:.3f}",
                f"{speed:,.0f}",
                f"{each['peak_gb']:.2f}",
                f"{each['first_step']:.1f}",
            )
            print(f"| {x:,} | {' | '.join(cells)} |", flush=True)
        if axis != "spread":
            times, sizes = ([each[name] for each in found] for name in ("seconds", "peak_gb"))
            xs = list(map(float, AXES[axis]))
            print(f"\nslopes: time {slope(xs, times):.2f}, memory {slope(xs, sizes):.2f}", flush=True)
            if given.out:
                pathlib.Path(given.out).mkdir(parents=True, exist_ok=True)
                draw(axis, xs, found, pathlib.Path(given.out))
    if given.out:
        (pathlib.Path(given.out) / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
