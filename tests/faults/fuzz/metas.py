"""What stands beside the arrays of checkpoints, and the small files of a run."""

import json
from pathlib import Path
from typing import Any

from tests.faults.fuzz.cases import STRANGE_TEXTS, Random, Surface, as_json, chance, mutated

_MODEL = {
    "vocab_size": 64,
    "num_layers": 2,
    "embed_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 8,
    "mlp_dim": 64,
}
_RECORD: dict[str, Any] = {
    "meta": {
        "model": _MODEL,
        "scalar": False,
        "weights": "params",
        "step": 4,
        "phase": 4,
        "steps": 8,
        "selection": {"best": {"position": 4, "step": 4, "value": 1.5}},
        "config": {"stage": "sft", "data": {"tokenizer": "tokenizer"}},
        "fingerprint": "a",
        "data_fingerprint": "b",
    },
    "arrays": {"params/embedding": {"shape": [64, 32], "dtype": "float32"}},
}
_SUMMARY = {"steps": 8, "best": {"position": 4, "step": 4, "value": 1.5}}
_LIKELY = (*STRANGE_TEXTS, 10**9, 10**12, -1, 0, None, [], {}, "4", [4], {"best": None}, True, 1e400)


def _json(rng: Random, values: Any) -> bytes:
    values = mutated(rng, values, more=_LIKELY) if chance(rng, 0.6) else values
    return as_json(rng, values) if chance(rng, 0.2) else json.dumps(values).encode()


def write(rng: Random, folder: Path) -> tuple[Path, str]:
    run = folder / "run"
    for step in rng.sample((0, 4, 8), rng.randrange(1, 3)):
        place = run / ("model" if chance(rng, 0.2) else "checkpoints") / str(step)
        (place / "meta").mkdir(parents=True)
        (place / "arrays").mkdir()
        (place / "meta" / "metadata").write_bytes(_json(rng, _RECORD))
        sizes: Any = (
            {"d/0": 3} if chance(rng, 0.7) else mutated(rng, {"d/0": 3, "../../../x": 1, "": 0}, more=_LIKELY)
        )
        (place / "arrays" / "files.json").write_bytes(
            as_json(rng, sizes) if chance(rng, 0.1) else json.dumps(sizes).encode()
        )
        (place / "arrays" / "d").mkdir()
        (place / "arrays" / "d" / "0").write_bytes(b"abc")
    if chance(rng, 0.3):
        (run / "summary.json").write_bytes(_json(rng, _SUMMARY))
    if chance(rng, 0.3):
        (run / "settings.json").write_bytes(_json(rng, {"config.stage": "sft", "config.batch_size": 8}))
    if chance(rng, 0.1):
        (run / "checkpoints").mkdir(exist_ok=True)
        (run / "checkpoints" / "12").write_bytes(b"no folder")
    return run, rng.choice(("", "@latest", "@best", "@4", "@99", "@x", "/checkpoints/4", "/model"))


def read(given: tuple[Path, str]) -> None:
    import contextlib
    import io

    from jaxalign.training.saved_model import find_model

    run, which = given
    with contextlib.redirect_stderr(io.StringIO()):
        find_model(f"{run}{which}", "config.model.init_from")


def prepare() -> None:
    import jax

    import jaxalign.training.saved_model  # noqa: F401

    jax.devices()


SURFACE = Surface(12, write, read, prepare)
