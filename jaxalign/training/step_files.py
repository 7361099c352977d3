"""What lies in the folder of a step, where it is found, and whether it is as it was written; see checkpoint.py."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxalign import checksums
from jaxalign.errors import CheckpointError
from jaxalign.parallel import processes
from jaxalign.storage import is_remote, read_json, sync, to_path, write_whole

CHECKPOINTS = "checkpoints"  # Where, inside a run directory, the steps lie.
FORMAT = 2  # of a step, in its meta; 1, where none is named: without checksums
FILES = "files.json"
META = "metadata"  # the file in meta/
CHECKSUMS = "checksums"  # in a record: whether the arrays have some
_DIGEST = "sha256"


class DamagedError(CheckpointError):
    """A checkpoint is there, but not as it was written; `fault` says what, without a way out."""

    def __init__(self, fault: str, way_out: str) -> None:
        super().__init__(f"{fault}. {way_out}")
        self.fault = fault


class ListedArrays(ocp.PyTreeCheckpointHandler):
    """Orbax's handler, which also lists its files, so that a missing, short or changed one is named before reading."""

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        sizes = {str(file.relative_to(directory)): file.stat().length for file in _walk(directory)}
        write_whole(to_path(directory) / FILES, json.dumps(sizes, indent=0).encode())
        checksums.write_sums(to_path(directory), [*sizes, FILES])


class SyncedMeta(ocp.JsonCheckpointHandler):
    """Orbax's handler, whose file is on the disk before the step has its name."""

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        sync(to_path(directory) / META)


def _walk(directory: epath.Path) -> Iterator[epath.Path]:
    for child in directory.iterdir():
        if child.is_dir():
            yield from _walk(child)
        else:
            yield child


def absolute(given: epath.PathLike) -> Any:
    """The path as Orbax takes it; epath alone would put the current folder before gs://."""
    path = to_path(given)
    return path if is_remote(path) else epath.Path(path.absolute())


def find_steps(directory: epath.Path) -> list[int]:
    """The steps in a directory, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(directory))


def find_step(given: epath.PathLike) -> Any:
    """The directory of a step: itself, or of a run directory or its `checkpoints` the latest in it.

    Raises:
      CheckpointError: there is none.
    """
    path = absolute(given)
    if (path / "arrays").is_dir() or (path / "meta").is_dir():
        return path
    for directory in (path, path / CHECKPOINTS):
        if steps := find_steps(directory):
            return directory / str(steps[-1])
    base = path
    while not base.is_dir() and base != base.parent:
        base = base.parent
    present = ", ".join(sorted(child.name for child in base.iterdir())[:10]) or "nothing"
    raise CheckpointError(
        f"no checkpoint in {path}: looked for a step (a directory with a number for a name) in it and in its "
        f"{CHECKPOINTS}/; {base} contains {present}"
    )


def damaged(path: epath.Path, reason: str) -> DamagedError:
    """What to raise for a step with a fault, naming what there is instead of it."""
    others = [step for step in find_steps(path.parent) if str(step) != path.name]
    way_out = f"then step {others[-1]} is used" if others else f"no other step is in {path.parent}"
    return DamagedError(f"{path} is half-written or damaged: {reason[:500]}", f"Delete it; {way_out}")


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record as JSON has it, with its format and a digest of all that it says."""
    record = json.loads(json.dumps(record | {"format": FORMAT}))  # where keys are numbers, they become texts
    return record | {_DIGEST: checksums.digest_of(record)}


def read_record(path: epath.Path) -> dict[str, Any]:
    """What the meta of a step says, and the sizes of its files compared.

    Raises:
      DamagedError: something is missing or not as it was written.
      CheckpointError: a later version of jaxalign wrote it.
    """
    record = _read_meta(path)
    version = record.get("format", 1)
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(
            f"{path} is of format {version}, and this version of jaxalign reads up to {FORMAT}; use the one that "
            "wrote it"
        )
    digest = record.pop(_DIGEST, None)
    # The first format had none; where there is one, it counts, whatever has become of the number.
    if (version != 1 or digest is not None) and digest != checksums.digest_of(record):
        raise damaged(path, f"meta/{META} is not what was written (its SHA-256 is another)")
    for name, size in _read_object(path, f"arrays/{FILES}").items():
        file = path / "arrays" / name
        if not file.exists():
            raise damaged(path, f"arrays/{name} is missing")
        if (found := file.stat().length) != size:
            raise damaged(path, f"arrays/{name} has {found} of {size} bytes")
    return record


def _read_meta(path: epath.Path) -> dict[str, Any]:
    record = _read_object(path, f"meta/{META}")
    if not all(isinstance(record.get(part), dict) for part in ("meta", "arrays")):
        raise damaged(path, f"meta/{META} does not hold the objects meta and arrays")
    return record


def _read_object(path: epath.Path, name: str) -> dict[str, Any]:
    return read_json(path / name, lambda reason: damaged(path, f"{name} is {reason}"))


def verified_record(path: epath.Path) -> dict[str, Any]:
    """`read_record`, once the files of all arrays have been read and their checksums compared.

    Each process reads some of the files; what one of them finds is raised in all.
    """
    record = read_record(path)
    if not record.get(CHECKSUMS):
        return record
    folder, reason = to_path(path) / "arrays", ""
    try:
        names = sorted(checksums.read_sums(folder))
        if not names:
            raise checksums.Mismatch(f"{checksums.SUMS} is missing")
        if names != sorted([FILES, *_read_object(path, f"arrays/{FILES}")]):
            raise checksums.Mismatch(f"{checksums.SUMS} is not the list of the files that are there")
        own = set(names[jax.process_index() :: jax.process_count()])
        checksums.check_sums(folder, own.__contains__)
    except checksums.Mismatch as error:
        reason = str(error)
    found = [text for text in processes.gather_texts(reason) if text]
    if found:
        raise damaged(path, f"arrays/{found[0]}")
    return record


def saved_metas(directory: epath.PathLike) -> dict[int, dict[str, Any]]:
    """The metas of all steps in a directory, oldest first, by the names of the steps; no array is looked at.

    A step that is being removed meanwhile, by the run that goes on there, is left out.
    """
    found = {}
    for step in find_steps(absolute(directory)):
        with contextlib.suppress(CheckpointError):
            found[step] = _read_meta(absolute(directory) / str(step))["meta"]
    return found
