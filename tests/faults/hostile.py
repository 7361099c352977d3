"""A surface whose cases do each of what none may, for the test of the harness."""

import ctypes
import os
import subprocess
from pathlib import Path

from jaxalign.errors import DataError
from tests.faults.fuzz.cases import Random, Surface

DEEDS = (
    "nothing",
    "refuse",
    "hang",
    "grow",
    "ask",
    "open",
    "write",
    "run",
    "exec",
    "crash",
    "raise",
    "talk",
    "nothing",
)
_made: list[int] = []


def write(rng: Random, folder: Path) -> tuple[str, Path]:
    _made.append(0)
    (folder / "mine.txt").write_text("mine")
    return "", folder


def read(given: tuple[str, Path]) -> None:
    _, folder = given
    deed = DEEDS[int(os.environ["FUZZ_FIRST"]) + len(_made) - 1]
    if deed == "refuse":
        raise DataError("no")
    if deed == "hang":
        while True:
            pass
    if deed == "grow":
        bytearray(9 << 27)  # a little more than may be, as its pages take time
    if deed == "ask":
        try:
            bytearray(1 << 40)
        except MemoryError:
            raise DataError("too much") from None
    if deed == "open":
        (folder.parent / "outside" / "secret.json").read_text()
    if deed == "write":
        (folder / ".." / "outside" / "secret.json").unlink()
    if deed == "run":
        subprocess.run(["true"])
    if deed == "exec":
        exec(compile("x = 1", "<data>", "exec"))
    if deed == "crash":
        ctypes.string_at(0)
    if deed == "raise":
        raise KeyError("x")
    if deed == "talk":
        raise DataError("x" * 30_000)
    (folder / "mine.txt").read_text()


SURFACE = Surface(1, write, read)
