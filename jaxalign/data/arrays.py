"""Arrays in one file, mapped into memory when it is opened: what the parts of a token store are written as.

    magic, 8 bytes | length of the head, uint64 | head, JSON | arrays, each from a multiple of 64 bytes on | checksum

An array whose values are all the same is written once. The checksum, BLAKE2b, is of all that stands before it.
"""

import hashlib
import json
import math
import mmap
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxalign.strict_json import parse_json

MAGIC = b"JXARRAY1"
_ALIGNED = 64
_SUM = 16  # bytes of a checksum
_BLOCK = 1 << 24
_DTYPE = re.compile(r"[<>|=][biuf]\d{1,2}")  # as NumPy writes the types of numbers


class Damaged(Exception):
    """A file of arrays is cut short or was changed; the message says how."""


def write_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Writes arrays and a JSON-able dict under another name, and renames the file once it is whole and on the disk.

    Raises:
      OSError: the disk takes no more; nothing is left of the file.
    """
    entries, placed, offset = {}, [], 0
    for name, array in arrays.items():
        array = np.ascontiguousarray(array)
        same = array.ndim == 1 and len(array) > 1 and bool((array == array[0]).all())
        if array.dtype.kind == "f" and not same:  # a NaN differs from itself
            same = array.ndim == 1 and len(array) > 1 and bool(np.isnan(array).all())
        written = array[:1] if same else array
        entries[name] = [array.dtype.str, array.shape, offset, same]
        placed.append((offset, written))
        offset += -(-written.nbytes // _ALIGNED) * _ALIGNED
    head = json.dumps({"arrays": entries, "about": about, "bytes": offset}, separators=(",", ":")).encode()
    head += b" " * (-(len(MAGIC) + 8 + len(head)) % _ALIGNED)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    digest = hashlib.blake2b(digest_size=_SUM)
    try:
        with partial.open("wb") as file:

            def put(data: Any) -> None:
                file.write(data)
                digest.update(data)

            put(MAGIC + len(head).to_bytes(8, "little") + head)
            at = 0
            for offset, array in placed:
                put(b"\0" * (offset - at))
                put(array.reshape(-1).view(np.uint8).data)
                at = offset + array.nbytes
            put(b"\0" * (-at % _ALIGNED))
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_arrays(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file, read-only and mapped, and the dict beside them. The checksum is not looked at.

    Raises:
      Damaged: it is missing, of another size than its head says, or no such file.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            mapped: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except FileNotFoundError:
        raise Damaged("it is missing") from None
    start = len(MAGIC) + 8
    if size < start or mapped[: len(MAGIC)] != MAGIC:
        raise Damaged("it does not begin as such a file")
    length = int.from_bytes(mapped[len(MAGIC) : start], "little")
    try:
        head = parse_json(bytes(mapped[start : start + length]))
        wanted = start + length + head["bytes"] + _SUM
        arrays = {name: _view(mapped, start + length, *entry) for name, entry in head["arrays"].items()}
        about = head["about"]
    # Whatever form a head has that was not written here, it is none.
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise Damaged("its head cannot be read") from None
    if size != wanted:
        raise Damaged(f"it has {size:,} bytes, not {wanted:,}")
    return arrays, about


def _view(mapped: Any, start: int, dtype: str, shape: list[int], offset: int, same: bool) -> np.ndarray:
    if not all(type(size) is int and size >= 0 for size in shape) or not _DTYPE.fullmatch(dtype):
        raise ValueError("no shape, or no type of numbers")
    count = 1 if same else math.prod(shape)
    array = np.frombuffer(mapped, np.dtype(dtype), count, start + offset)
    return np.broadcast_to(array, shape) if same else array.reshape(shape)


def release(array: np.ndarray) -> None:
    """Takes the pages of the file that an array is mapped from out of this process; they come back when read."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def checksum_of(path: pathlib.Path) -> str:
    """The checksum that a file ends with, in hexadecimal."""
    with path.open("rb") as file:
        file.seek(-_SUM, os.SEEK_END)
        return file.read(_SUM).hex()


def check_sum(path: pathlib.Path) -> None:
    """Reads a whole file.

    Raises:
      Damaged: its checksum is another one, so that a bit of it has changed.
    """
    digest, left = hashlib.blake2b(digest_size=_SUM), path.stat().st_size - _SUM
    with path.open("rb") as file:
        for block in _blocks(file, left):
            digest.update(block)
        if file.read(_SUM) != digest.digest():
            raise Damaged("its checksum is wrong")


def _blocks(file: Any, left: int) -> Iterator[bytes]:
    while left > 0 and (block := file.read(min(_BLOCK, left))):
        left -= len(block)
        yield block
