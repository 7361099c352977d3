"""One folder of tiny data and finished tiny runs, made once, from which every stage can start."""

import pathlib
import random
from collections.abc import Callable

import pytest
from tiny import baseline_changes, run, sentence, write_data

from jaxalign.data import train_sentencepiece


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> pathlib.Path:
    """Data files, tiny.model, and the finished runs pretrain, sft and reward."""
    folder = tmp_path_factory.mktemp("runs")
    rng = random.Random(1)
    train_sentencepiece([sentence(rng, 5, 12) + ".?\n" for _ in range(200)], folder / "tiny.model", 336)
    write_data(folder)
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
