"""Whether what lies on disk is what was written: a run, one of its checkpoints, its model, or an exported folder."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxalign.checksums import SUMS, VARIABLE, Mismatch, check_sums, enabled
from jaxalign.errors import CheckpointError, ConfigError, amount
from jaxalign.storage import Path, is_remote, read_json, to_path
from jaxalign.training.checkpoint import load_meta
from jaxalign.training.recipe import SETTINGS
from jaxalign.training.step_files import CHECKPOINTS, CHECKSUMS, absolute, find_steps, verified_record
from jaxalign.training.workdir import MODEL, SUMMARY, TOKENIZER
from jaxalign.training.writer import FILE_NAME, RECORD, SAMPLE, SAMPLES, compare_lines, parse_record


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found of one part of a place."""

    part: str  # its path in the place
    fault: str = ""  # what is wrong; empty: it is whole
    note: str = ""  # how it is known to be


def verify(place: str) -> list[Finding]:
    """Reads all of a place whose files have checksums, and all JSON; nothing is changed.

    Args:
      place: a run, its checkpoints or its model, one step of these, or a folder that `convert` wrote.

    Raises:
      ConfigError: there is nothing of the kind, or the environment says that no checksums are computed.
    """
    if not enabled():
        raise ConfigError(f"{VARIABLE} is off, and nothing can be compared; leave it out of the environment")
    folder = to_path(place)
    if not folder.is_dir():
        raise ConfigError(f"{place}: no such folder; name a run, a checkpoint or an exported model")
    findings = [*_steps_at(folder, ""), *_sums_at(folder, "")]
    for name in (CHECKPOINTS, MODEL, TOKENIZER):
        if (folder / name).is_file():
            findings.append(Finding(name, fault="a file, where a folder should be"))
        elif (folder / name).is_dir():
            findings += [*_steps_at(folder / name, f"{name}/"), *_sums_at(folder / name, f"{name}/")]
    written = _written_lines(folder, findings)
    looks: dict[str, Callable[[Path], str]] = {
        SETTINGS: _object,
        SUMMARY: _object,
        FILE_NAME: lambda file: _lines(file, written.get(FILE_NAME), _metrics),
        SAMPLES: lambda file: _lines(file, written.get(SAMPLES), _samples),
    }
    for name, look in looks.items():
        if (folder / name).is_dir():
            findings.append(Finding(name, fault="a folder, where a file should be"))
        elif (folder / name).is_file() or written.get(name, {}).get("lines"):
            findings.append(_finding(name, lambda look=look, name=name: look(folder / name)))
    if not findings:
        raise ConfigError(
            f"{place}: neither checkpoints nor a list of checksums ({SUMS}) is there; name a run, a checkpoint or an "
            "exported model"
        )
    return findings


def _finding(part: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(part, note=look())
    except (Mismatch, CheckpointError) as error:
        return Finding(part, fault=getattr(error, "fault", str(error)))


def _steps_at(folder: Path, prefix: str) -> Iterator[Finding]:
    if (folder / "arrays").is_dir() or (folder / "meta").is_dir():
        yield _finding(prefix or ".", lambda: _step(folder))
        return
    for step in find_steps(absolute(folder)):
        yield _finding(f"{prefix}{step}", lambda step=step: _step(folder / str(step)))


def _step(path: Path) -> str:
    record: dict[str, Any] = verified_record(absolute(path))
    if record.get(CHECKSUMS):
        return "checksums agree"
    return "sizes agree; the store checks the rest" if is_remote(path) else "sizes agree; it has no checksums"


def _sums_at(folder: Path, prefix: str) -> Iterator[Finding]:
    if (folder / SUMS).is_file():
        yield _finding(f"{prefix}{SUMS}", lambda: f"{amount(check_sums(folder), 'file')} as listed")


def _written_lines(folder: Path, findings: list[Finding]) -> dict[str, Any]:
    """What the newest whole checkpoint says of the files that grow by lines."""
    whole = [each.part for each in findings if each.part.startswith(f"{CHECKPOINTS}/") and not each.fault]
    steps = [int(part.rpartition("/")[2]) for part in whole if part.rpartition("/")[2].isdigit()]
    return load_meta(folder / CHECKPOINTS / str(max(steps))).get("writer", {}) if steps else {}


def _object(file: Path) -> str:
    return amount(len(read_json(file, lambda reason: CheckpointError(f"it is {reason}"))), "entry", "entries")


def _lines(file: Path, written: dict[str, Any] | None, look: Callable[[Path], str]) -> str:
    """What is said of a file of rows whose first lines are those that the newest whole checkpoint knows."""
    note = look(file) if file.is_file() else ""
    if fault := compare_lines(file, written):
        raise Mismatch(fault)
    return note


def _metrics(file: Path) -> str:
    """Steps come in their order, and no line of one kind twice."""
    seen: set[tuple[Any, ...]] = set()
    last = 0
    for number, row in _rows(file, RECORD, "metrics"):
        step, kind = row["step"], row["kind"]
        if step < last:
            raise Mismatch(f"line {number} is of step {step}, after one of step {last}")
        if (step, kind) in seen:
            raise Mismatch(f"line {number} is the second of step {step} and kind {kind!r}")
        seen.add((step, kind))
        last = step
    return amount(len(seen), "line")


def _samples(file: Path) -> str:
    return amount(sum(1 for _ in _rows(file, SAMPLE, "samples")), "line")


def _rows(file: Path, keys: Sequence[str], what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a file with their numbers, as a run that goes on reads them."""
    *lines, torn = file.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, torn] if torn else lines, 1):
        try:
            yield number, parse_record(line, keys)
        except ValueError:
            raise Mismatch(f"line {number} is no row of {what}") from None
