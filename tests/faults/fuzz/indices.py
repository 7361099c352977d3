"""Indices of sharded weights, and those of token stores with the heads of their parts."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from tests.faults.fuzz.cases import (
    STRANGE_TEXTS,
    Random,
    Surface,
    as_json,
    chance,
    damaged,
    mutated,
)
from tests.faults.fuzz.safetensors import SOUND, make_file
from tests.faults.fuzz.safetensors import read as read_weights

_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_INDEX = {
    "metadata": {"total_size": 34},
    "weight_map": dict(zip(("a.weight", "b.weight", "c"), (_SHARDS[0],) * 3, strict=True)),
}
_LIKELY = (
    *STRANGE_TEXTS,
    *_SHARDS,
    "",
    ".",
    "..",
    "/",
    "../outside/secret.json",
    "model.safetensors.index.json",
    1,
    None,
    [],
)


def write(rng: Random, folder: Path) -> tuple[str, Path]:
    if chance(rng, 0.5):
        index = mutated(rng, _INDEX, more=_LIKELY)
        (folder / "model.safetensors.index.json").write_bytes(
            as_json(rng, index) if chance(rng, 0.3) else json.dumps(index).encode()
        )
        for name in _SHARDS:
            if chance(rng, 0.7):
                data = make_file(rng, SOUND) if chance(rng, 0.2) else None
                (folder / name).write_bytes(_whole() if data is None else data)
        return "weights", folder
    store = folder / "store"
    store.mkdir()
    index, part = _store()
    if chance(rng, 0.6):
        index = mutated(rng, index, more=_LIKELY)
    (store / "store.json").write_bytes(
        as_json(rng, index) if chance(rng, 0.3) else json.dumps(index).encode()
    )
    if chance(rng, 0.6):
        length = int.from_bytes(part[8:16], "little")
        head = mutated(
            rng,
            json.loads(part[16 : 16 + length]),
            more=(*_LIKELY, "<i4", "|O", "<f8", [2**40], [-1], 10**12),
        )
        text = as_json(rng, head) if chance(rng, 0.2) else json.dumps(head).encode()
        part = part[:8] + len(text).to_bytes(8, "little") + text + part[16 + length :]
        part = damaged(rng, part) if chance(rng, 0.3) else part
    (store / "part-00000.tokens").write_bytes(part)
    return "store", store


def _whole() -> bytes:
    text = json.dumps(SOUND).encode()
    return len(text).to_bytes(8, "little") + text + bytes(34)


@functools.cache
def _store() -> tuple[dict[str, Any], bytes]:
    """The index and the only part of a store of one record."""
    import numpy as np

    from jaxalign.data.arrays import checksum_of
    from jaxalign.data.items import Item
    from jaxalign.data.parts import make_part
    from jaxalign.data.store import save_part

    item = Item(np.arange(8, dtype=np.int32), np.ones(8, np.float32), row=0)
    part = make_part([[item]], lambda record: (b"12345678", b"12345678"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store" / "part-00000.tokens"
        path.parent.mkdir()
        save_part(path, part)
        index = {
            "records": 1,
            "blank": 0,
            "items": 1,
            "tokens": 8,
            "parts": [[path.stat().st_size, checksum_of(path)]],
        }
        return {**index, "source": "data.jsonl", "about": {}}, path.read_bytes()


def read(given: tuple[str, Path]) -> None:
    from jaxalign.data.parts import Items
    from jaxalign.data.store import Store
    from jaxalign.errors import DataError

    kind, folder = given
    if kind == "weights":
        return read_weights(folder)
    said: list[str] = []
    found = Store(folder, None, "data.jsonl", {}, said.append).open()
    if found is None:
        raise DataError("; ".join(said) or "no store")
    items = Items([(part, 0) for part in found.parts])
    return [items[i] for i in range(min(len(items), 10))] and None


def prepare() -> None:
    import jaxalign.data.store
    import jaxalign.models.hf.safetensors  # noqa: F401

    _store()


SURFACE = Surface(80, write, read, prepare)
