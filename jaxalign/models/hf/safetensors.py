"""Safetensors files, read and written one tensor at a time.

    8 bytes   length of the header, little-endian
    header    JSON: name -> {"dtype", "shape", "data_offsets": [begin, end]}; "__metadata__": strings
    data      the tensors, row-major, one after another

Plain reads, because a memory map would count every page that was touched as memory of this process.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.errors import CheckpointError, shorten
from jaxalign.strict_json import NotJSON, parse_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype(np.float16)}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000  # bytes, as the format says
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_PIECE = 1 << 24  # bytes that `equal` holds of each tensor


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a tensor lies, and as what."""

    name: str
    file: pathlib.Path
    code: str  # "F32", "BF16", ...
    shape: tuple[int, ...]
    start: int  # byte of the file

    @property
    def dtype(self) -> np.dtype:
        """Raises CheckpointError for a type that holds no parameters of ours."""
        if self.code not in DTYPES:
            raise CheckpointError(
                f"{self.file}: tensor {self.name} is stored as {self.code}; convert it to one of "
                f"{', '.join(DTYPES)} first (quantised checkpoints: use the model they were made from)"
            )
        return DTYPES[self.code]


def read_header(file: pathlib.Path) -> dict[str, Stored]:
    """The tensors of one file.

    Raises:
      CheckpointError: the file is cut short, or its header is not what the format says.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise _damaged(file, f"has {size} bytes, too few for its header")
        if length > LONGEST_HEADER:
            raise _damaged(file, f"its header would have {length:,} bytes, and may have {LONGEST_HEADER:,}")
        try:
            header = parse_json(stream.read(length))
            if not isinstance(header, dict):
                raise ValueError(f"it is a {type(header).__name__}, not an object")
            header.pop("__metadata__", None)
            tensors = {name: _parse(file, name, entry, 8 + length) for name, entry in header.items()}
        except ValueError as error:
            raise _damaged(file, f"its header is not that of a safetensors file ({error})") from None
    _check_extents(file, header, size - 8 - length)
    return tensors


def _parse(file: pathlib.Path, name: str, entry: Any, data: int) -> Stored:
    """Raises ValueError unless an entry of a header has the form that the format asks for."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("dtype"), str):
        raise ValueError(f"{shorten(name)}: {shorten(entry)} is no entry with a dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(
            f"{shorten(name)}: shape {shorten(shape)} and data_offsets {shorten(offsets)} must be lists of sizes"
        )
    begin, end = offsets
    stored = Stored(name, file, entry["dtype"], tuple(shape), data + begin)
    if stored.code in DTYPES and end - begin != math.prod(shape) * stored.dtype.itemsize:
        raise ValueError(f"{shorten(name)}: {end - begin} bytes for {stored.code}{shorten(shape)}")
    return stored


def _are_counts(values: Any) -> bool:
    """Whether a value is a list of whole numbers that can count bytes."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_extents(file: pathlib.Path, header: Mapping[str, Any], size: int) -> None:
    at = 0
    for begin, end, name in sorted((*entry["data_offsets"], name) for name, entry in header.items()):
        if begin != at or end < begin:
            raise _damaged(file, f"tensor {name} begins at byte {begin} of the data, not at {at}")
        if end > size:
            raise _damaged(file, f"it is cut short: tensor {name} ends at byte {end} of {size} bytes of data")
        at = end
    if at != size:
        raise _damaged(file, f"{size - at} bytes follow the last tensor")


def _damaged(file: pathlib.Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{file}: {reason}; download or copy the file again")


def read_tensor(stored: Stored) -> np.ndarray:
    """Its values, in the type in which they are stored."""
    return next(_pieces(stored, math.prod(stored.shape))).reshape(stored.shape)


def _pieces(stored: Stored, size: int) -> Iterator[np.ndarray]:
    count, itemsize = math.prod(stored.shape), stored.dtype.itemsize
    with stored.file.open("rb", buffering=0) as stream:
        stream.seek(stored.start)
        for begin in range(0, max(count, 1), max(size, 1)):
            raw = np.empty(min(size, count - begin) * itemsize, np.uint8)
            if _fill(stream, raw) != raw.size:
                raise _damaged(
                    stored.file, f"it is cut short: tensor {stored.name} cannot be read to its end"
                )
            yield raw.view(stored.dtype)


def _fill(stream: Any, raw: np.ndarray) -> int:
    # One call reads 2 GiB at most.
    done = 0
    while done < raw.size and (got := stream.readinto(raw[done:])):
        done += got
    return done


def equal(a: Stored, b: Stored) -> bool:
    """Whether two tensors hold the same values; reads both a piece at a time."""
    if a.shape != b.shape:
        return False
    pieces = zip(_pieces(a, _PIECE // 4), _pieces(b, _PIECE // 4), strict=True)
    return all(np.array_equal(x.astype(np.float32), y.astype(np.float32)) for x, y in pieces)


def find_tensors(folder: pathlib.Path) -> dict[str, Stored]:
    """Every tensor of a model folder: of `model.safetensors`, or of the shards that its index names.

    Raises:
      CheckpointError: no such file, only pickled ones, both, or shards and index that contradict each other.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.is_file():
        raise CheckpointError(f"{folder} has both {SINGLE} and {INDEX}; delete the one that is out of date")
    if single.is_file():
        return read_header(single)
    if index.is_file():
        return _find_sharded(folder, index)
    present = sorted(path.name for path in folder.iterdir())
    if pickled := [name for name in present if name.endswith(_PICKLED)]:
        raise CheckpointError(
            f"{folder} has its weights as a pickle only ({pickled[0]}), which can run any code and is never "
            "loaded; write safetensors in a place where you trust the file: with transformers, "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OUT, safe_serialization=True)"
        )
    raise CheckpointError(
        f"{folder} has neither {SINGLE} nor {INDEX}, only {', '.join(present[:10]) or 'nothing'}; name a "
        "folder with the weights of a model"
    )


def _find_sharded(folder: pathlib.Path, index: pathlib.Path) -> dict[str, Stored]:
    try:
        places = parse_json(index.read_bytes())
        places = places.get("weight_map") if isinstance(places, dict) else None
    except NotJSON as error:
        raise _damaged(index, f"it is not an index of shards ({error})") from None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise _damaged(
            index, "it is not an index of shards: its weight_map must give the file of each tensor"
        )
    # None of another folder, however its name is written.
    present = {file.name for file in folder.iterdir() if file.is_file()}
    tensors: dict[str, Stored] = {}
    for shard in sorted(set(places.values())):
        file = folder / shard
        first = next(name for name, place in places.items() if place == shard)
        if shard not in present:
            raise CheckpointError(
                f"{index}: tensor {first[:200]} is in {shard[:200]}, which is not in {folder}; get that file"
            )
        for name, stored in read_header(file).items():
            if name in tensors:
                raise CheckpointError(
                    f"{file}: tensor {name} is also in {tensors[name].file.name}; one of the shards is of "
                    "another save: get all of one save"
                )
            if name not in places:
                raise CheckpointError(f"{file}: tensor {name} is not in {index.name}; get all of one save")
            tensors[name] = stored
    for name, place in places.items():
        if name not in tensors or tensors[name].file.name != place:
            raise CheckpointError(
                f"{index}: tensor {name} should be in {place} but is not; get all of one save"
            )
    return tensors


def write_tensors(
    folder: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    tensors: Iterable[tuple[str, np.ndarray]],
    max_shard_size: int,
) -> None:
    """Writes `tensors`, which come in the order of `shapes`, as one file, or as shards and their index.

    Only one tensor at a time is asked for. No shard is larger than `max_shard_size` bytes of data unless a
    single tensor is.
    """
    shards = _plan(shapes, dtype.itemsize, max_shard_size)
    files = [SINGLE] if len(shards) == 1 else []
    files = files or [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    values = iter(tensors)
    for file, names in zip(files, shards, strict=True):
        with (folder / file).open("wb") as stream:
            stream.write(_header({name: shapes[name] for name in names}, dtype))
            for wanted in names:
                name, value = next(values)
                assert (name, value.shape, value.dtype) == (wanted, shapes[wanted], dtype), (name, wanted)
                stream.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    if len(files) > 1:
        total = sum(math.prod(shape) for shape in shapes.values())
        index = {
            "metadata": {"total_parameters": total, "total_size": total * dtype.itemsize},
            "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _plan(shapes: Mapping[str, tuple[int, ...]], itemsize: int, limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    at = 0
    for name, shape in shapes.items():
        end = at + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
