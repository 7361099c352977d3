"""Headers of safetensors files."""

import json
from pathlib import Path
from typing import Any

from tests.faults.fuzz.cases import (
    NUMBERS,
    STRANGE_NUMBERS,
    Random,
    Surface,
    any_value,
    as_json,
    chance,
    damaged,
    mutated,
)

SOUND: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "F16", "shape": [], "data_offsets": [32, 34]},
}
_LIKELY: tuple[Any, ...] = (
    *NUMBERS,
    *STRANGE_NUMBERS,
    *(
        "F32",
        "BF16",
        "I64",
        "U8",
        "F8_E4M3",
        "",
        [0, 24],
        [24, 0],
        [0, 0],
        [],
        [2, 3],
        [-1],
        [-2, -3],
        [0, 10**12],
    ),
    *(
        [2**32, 2**32],
        [10**30],
        [1.5, 2],
        ["2", "3"],
        [[2], 3],
        {},
        None,
        [True, 6],
        [0.0, 24.0],
        ["0", "24"],
    ),
)


def make_file(rng: Random, header: Any) -> bytes:
    """A file with a header of some sort."""
    header = mutated(rng, header, more=_LIKELY)
    text = as_json(rng, header) if chance(rng, 0.3) else json.dumps(header).encode()
    length = (
        len(text)
        if chance(rng, 0.9)
        else rng.choice((0, 1, len(text) - 1, len(text) + 1, 2**31, 2**63, 2**64 - 1))
    )
    data = max(length, 0).to_bytes(8, "little") + text + bytes(rng.choice((34, 34, 34, 33, 35, 0, 24)))
    return damaged(rng, data) if chance(rng, 0.1) else data


def write(rng: Random, folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(make_file(rng, SOUND))
    if chance(rng, 0.02):
        (folder / "model.safetensors.index.json").write_bytes(as_json(rng, any_value(rng)))
    if chance(rng, 0.01):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


def read(folder: Path) -> None:
    from jaxalign.models.hf.safetensors import equal, find_tensors, read_tensor

    found = list(find_tensors(folder).values())
    for stored in found:
        read_tensor(stored)
    if found:
        equal(found[0], found[-1])


def prepare() -> None:
    import jaxalign.models.hf.safetensors  # noqa: F401


SURFACE = Surface(140, write, read, prepare)
