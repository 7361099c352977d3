"""What the tokens of a source depend on, and the name that a store has by it."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import jaxalign
from jaxalign.data.encoder import Encoder
from jaxalign.data.files import COMPRESSIONS, kind_of
from jaxalign.data.public.recipes import locate
from jaxalign.data.records import KINDS
from jaxalign.data.sources import Records, find_files, is_table
from jaxalign.errors import DataError
from jaxalign.storage import Path, json_line, write_whole
from jaxalign.text.templates import clock

FORMAT = 1  # of the files of a store
_BLOCK = 1 << 22
# Files of the room data/ that have no say in what the tokens of a record are.
_AFTER_TOKENS = (
    *("apart", "arrays", "batch", "beam", "bins", "config", "dataset", "encode_sources", "encoded", "loader"),
    *("mismatched", "packing", "report", "sets", "store", "store_key", "stream", "worker"),
)
_LIBRARIES = ("datasets", "jinja2", "numpy", "pyarrow", "sentencepiece", "tokenizers")


@dataclass(frozen=True)
class SourceFiles:
    """The files that a source names, none of them opened."""

    name: str  # as errors call the source
    reading: Mapping[str, Any]  # how it is read: recipe, subset, split and more
    files: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(_size_and_time(file)[0] for file in self.files)


def files_of(source: str, kind: str, part: str, options: Mapping[str, Any]) -> SourceFiles | None:
    """The files of a source as `open_source` reads it; None for a name on the hub, and for what it would refuse."""
    try:
        named, served, split = locate(source, kind, part, options["split"])
        files = find_files(named.place, split)
    except DataError:  # which opening it will say
        return None
    if not files:
        return None
    reading = {
        "recipe": named.recipe,
        "subset": named.subset,
        "served": served,
        "split": split,
        **{name: value for name, value in options.items() if name != "split"},
    }
    return SourceFiles(named.place, reading, tuple(files))


def describe(
    encoder: Encoder, reading: Mapping[str, Any], contents: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """All that the tokens of a source depend on, as JSON has it.

    Args:
      contents: what says how each file is read, and its digest.
    """
    tokenizer = encoder.tokenizer
    template = encoder.template or tokenizer.template
    source = None if template is None else template.source
    about = {
        "format": FORMAT,
        "jaxalign": jaxalign.__version__,
        "code": _code(),
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        "kind": encoder.kind,
        "reading": {name: dict(x) if isinstance(x, Mapping) else x for name, x in reading.items()},
        "files": list(contents),
        "tokenizer": hashlib.sha256(tokenizer.serialized).hexdigest(),
        "special": [tokenizer.bos_id, list(tokenizer.eos_ids), dict(tokenizer.control_ids)],
        "names": [dict(tokenizer.special_tokens), sorted(tokenizer.answer_tokens), tokenizer.vocab_size],
        "template": None
        if template is None
        else [hashlib.sha256(template.source.encode()).hexdigest(), template.args, template.answer_tokens],
        # A template may write the date.
        "date": clock().date().isoformat() if source and "strftime_now" in source else None,
        "max_length": encoder.max_length,
        "overlong": encoder.overlong,
        # Only pairs and rankings lie together.
        "group_length": encoder.group_length if KINDS[encoder.kind].sequences > 1 else None,
        "learn": encoder.reading.learn,
        "control_tokens": encoder.reading.control_tokens,
    }
    return json.loads(json.dumps(about, sort_keys=True))


def key_of(about: Mapping[str, Any]) -> str:
    """The name of the store of what `describe` describes."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def hub_contents(records: Records) -> tuple[list[tuple[str, str]], int]:
    """What says the contents of a hub dataset that is in the cache of `datasets`, and its bytes; [] for all others."""
    rows: Any = records.rows if records.origin is None else records.origin
    return ([("hub", rows._fingerprint)], rows.data.nbytes) if is_table(rows) else ([], 0)


def file_contents(files: Sequence[Path], memory: Path, tell: Callable[[str], None]) -> list[tuple[str, str]]:
    """What says how each file is read, and the digest of its bytes.

    A local file is read only if its size or time is not what it was when it was last read; an object's are its digest.

    Args:
      memory: the folder that remembers what was read.
      tell: is told of files that have changed.
    """
    return [(_suffix(file), _digest(file, memory, tell)) for file in files]


def was_stored(files: Sequence[Path], memory: Path) -> bool:
    """Whether `file_contents` has read one of these before."""
    return any(_remembered(file, memory).is_file() for file in files)


def _digest(file: Path, memory: Path, tell: Callable[[str], None]) -> str:
    size, time = _size_and_time(file)
    if not isinstance(file, pathlib.Path):
        return f"{file} {size} {time}"
    record = _remembered(file, memory)
    try:
        before = json.loads(record.read_text("utf-8"))
    except (OSError, ValueError):
        before = {}
    if (before.get("size"), before.get("time")) == (size, time):
        return before["digest"]
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    found = {"path": os.path.abspath(file), "size": size, "time": time, "digest": digest.hexdigest()}
    if before and before.get("digest") != found["digest"]:
        tell(f"{file} has changed since its tokens were stored: they are made anew")
    with contextlib.suppress(OSError):  # a shared store that can only be read
        write_whole(record, json_line(found).encode())
    return found["digest"]


def _remembered(file: Path, memory: Path) -> Path:
    return memory / f"{hashlib.sha256(os.path.abspath(file).encode()).hexdigest()[:32]}.json"


def _size_and_time(file: Path) -> tuple[int, float]:
    status: Any = file.stat()
    if isinstance(file, pathlib.Path):
        return status.st_size, status.st_mtime_ns
    return status.length, status.mtime


def _suffix(file: Path) -> str:
    packed = "".join(each for each in COMPRESSIONS if file.name.lower().endswith(each))
    return kind_of(file.name) + packed


@functools.cache
def _code() -> str:
    """A digest of the code that makes tokens: a store of an earlier version is not taken for one of this."""
    digest = hashlib.sha256()
    package = pathlib.Path(jaxalign.__file__).parent
    for room in ("text", "data"):
        for file in sorted((package / room).rglob("*.py")):
            if file.stem not in _AFTER_TOKENS:
                digest.update(file.read_bytes())
    return digest.hexdigest()
