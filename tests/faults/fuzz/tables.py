"""Tables of Parquet and Arrow, sound and damaged."""

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.faults.fuzz.cases import STRANGE_TEXTS, WORDS, Random, Surface, chance, damaged
from tests.faults.fuzz.readers import read

_TYPES = ("text", "number", "list", "struct", "bytes", "bool")


# A table of 120 rows of ten megabytes each, which takes some kilobytes on the disk.
_LARGE = """
import sys, pyarrow, pyarrow.parquet
some = pyarrow.array(["x" * 10_000_000] * 4)
table = pyarrow.table({"text": pyarrow.chunked_array([some] * 30)})
pyarrow.parquet.write_table(table, sys.argv[1], compression="zstd")
"""


_large: list[bytes] = []


def write(rng: Random, folder: Path) -> str:
    import pyarrow
    import pyarrow.parquet

    if chance(rng, 0.03):
        (folder / "data.parquet").write_bytes(_large[0])
        return str(folder / "data.parquet")
    rows = rng.choice((0, 1, 1, 3, 3, 50))
    columns = {
        rng.choice(("text", "prompt", "a.b", "", "messages")): _column(rng, rows)
        for _ in range(rng.randrange(1, 4))
    }
    table = pyarrow.table(columns)
    file, suffix = io.BytesIO(), rng.choice((".parquet", ".parquet", ".arrow"))
    if suffix == ".parquet":
        pyarrow.parquet.write_table(table, file, compression=rng.choice(("snappy", "zstd", "none")))
    else:
        with pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    data = file.getvalue()
    if chance(rng, 0.6):
        data = damaged(rng, data)
    path = folder / f"data{suffix}"
    path.write_bytes(data)
    return str(path)


def _column(rng: Random, rows: int) -> list[Any]:
    kind = rng.choice(_TYPES)
    made: dict[str, Any] = {
        "text": lambda: rng.choice([text for text in (*WORDS, *STRANGE_TEXTS) if text.isprintable()]),
        "number": lambda: rng.choice((1.5, float("nan"), -1.0)),
        "list": lambda: [rng.choice(WORDS)] * rng.randrange(3),
        "struct": lambda: {"role": rng.choice(WORDS), "content": rng.choice(WORDS)},
        "bytes": lambda: rng.choice((b"", b"\xff\x00", b"abc")),
        "bool": lambda: chance(rng, 0.5),
    }
    return [None if chance(rng, 0.2) else made[kind]() for _ in range(rows)]


def prepare() -> None:
    import datasets
    import datasets.config

    # The cache of `datasets` is no place of the case's: it stands for the user's own.
    datasets.config.HF_DATASETS_CACHE = (
        tempfile.mkdtemp(dir=os.environ["TMPDIR"]) if "TMPDIR" in os.environ else ""
    )
    datasets.disable_progress_bars()
    import jaxalign.data.sources  # noqa: F401

    # In a process of its own, whose memory is not counted.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "large.parquet"
        subprocess.run([sys.executable, "-c", _LARGE, str(file)], check=True)
        _large.append(file.read_bytes())


SURFACE = Surface(0.6, write, read, prepare)
