"""One folder of tiny data and finished tiny runs, made once, from which every stage can start."""

import contextlib
import os
import pathlib
import random
from collections.abc import Callable, Iterator

import jax
import pytest
from tiny import baseline_changes, run, sentence, write_data

from jaxalign.data import train_sentencepiece

COMPILATION = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
    "jax_disable_most_optimizations": True,  # compiling takes longer than running
}


@contextlib.contextmanager
def cheap_compilation(cache: pathlib.Path) -> Iterator[None]:
    """Runs that compile the same program share it; leaves JAX's settings as they were."""
    settings = COMPILATION | {"jax_compilation_cache_dir": str(cache)}
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.getbasetemp()
    # The workers of pytest-xdist have folders in a common one.
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def _cheap_compilation(compilation_cache):
    with cheap_compilation(compilation_cache):
        yield


@pytest.fixture(scope="session")
def runs(tmp_path_factory, compilation_cache) -> pathlib.Path:
    """Data files, tiny.model, and the finished runs pretrain, sft and reward."""
    folder = tmp_path_factory.mktemp("runs")
    rng = random.Random(1)
    train_sentencepiece([sentence(rng, 5, 12) + ".?\n" for _ in range(200)], folder / "tiny.model", 336)
    write_data(folder)
    with cheap_compilation(compilation_cache):
        for stage in ("pretrain", "sft", "reward"):
            run(stage, folder, folder / stage, num_steps=6, optimizer__learning_rate=1e-2)
    return folder


@pytest.fixture(scope="session")
def baseline(runs, tmp_path_factory) -> Callable[[str], pathlib.Path]:
    """stage -> the folder of an uninterrupted run of it on one device, with the settings of baseline_changes."""
    done: dict[str, pathlib.Path] = {}

    def get(stage: str) -> pathlib.Path:
        if stage not in done:
            done[stage] = tmp_path_factory.mktemp(f"baseline-{stage}")
            run(stage, runs, done[stage], **baseline_changes(stage, runs))
        return done[stage]

    return get
