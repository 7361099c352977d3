"""The history of a run: metrics.jsonl and TensorBoard scalars."""

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
from tensorboardX import SummaryWriter

from jaxalign.errors import DataError
from jaxalign.storage import Lines, Path, temporary_folder, to_path

FILE_NAME = "metrics.jsonl"


class MetricWriter:
    """Appends metrics to `<directory>/metrics.jsonl` and, if wanted, TensorBoard events beside it.

    One line per write: {"step": 10, "time": Unix seconds, "kind": "train", "values": {"loss": 1.25}}.
    On an object store both are written anew once a minute and by `flush`. JSON has no NaN or infinity, so these values
    are the strings "NaN", "Infinity" and "-Infinity"; `read_metrics` gives floats back. Only process 0 of a
    multi-process run writes. Use as a context manager, or call `close`.
    """

    def __init__(self, directory: str | os.PathLike, *, tensorboard: bool = True) -> None:
        self.path = to_path(directory) / FILE_NAME
        self._writes = jax.process_index() == 0
        self._tensorboard = tensorboard
        self._events: SummaryWriter | None = None
        self._purge_step: int | None = None
        self._uploaded: dict[str, int] = {}  # bytes of the event files on an object store
        if self._writes:
            self._lines = Lines(self.path)
            local = isinstance(self.path, pathlib.Path)
            self._events_folder = self.path.parent if local else temporary_folder()

    def write(self, step: int, values: Mapping[str, Any], kind: str = "train") -> None:
        """Writes the scalars (floats or arrays of one element) of a step; in TensorBoard as `kind/name`."""
        if not self._writes:
            return
        scalars = {name: float(value) for name, value in values.items()}
        record = {"step": int(step), "time": time.time(), "kind": kind}
        record["values"] = {name: _to_json(value) for name, value in scalars.items()}
        self._lines.append(json.dumps(record, allow_nan=False))
        if self._lines.due:
            self.flush()
        if self._tensorboard:
            for name, value in scalars.items():
                self._event_writer().add_scalar(f"{kind}/{name}", value, step)

    def truncate_after(self, step: int) -> None:
        """Removes what was written for later steps; call it on resuming from the checkpoint of `step`.

        TensorBoard files are append-only: a marker makes TensorBoard hide the later steps.
        """
        if not self._writes:
            return
        if self.path.exists():
            self._lines.replace(line for line, record in _records(self.path) if record["step"] <= step)
        self._close_events()
        self._purge_step = step + 1

    def flush(self) -> None:
        """Makes sure that all that was written is in the directory; on a local disk, lines are at once."""
        if not self._writes:
            return
        self._lines.flush()
        if self._events is not None:
            self._events.flush()
        if self._events_folder != self.path.parent:
            self._upload_events()

    def close(self) -> None:
        """Flushes; TensorBoard's events too."""
        self._close_events()
        self.flush()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _event_writer(self) -> SummaryWriter:
        if self._events is None:
            self._events = SummaryWriter(
                str(self._events_folder),
                purge_step=self._purge_step,
                flush_secs=10,
                # File names hold whole seconds: a quick restart would overwrite its predecessor's file.
                filename_suffix=f".{time.time_ns()}",
            )
        return self._events

    def _upload_events(self) -> None:
        for file in self._events_folder.iterdir():
            data = file.read_bytes()
            if self._uploaded.get(file.name) != len(data):
                (self.path.parent / file.name).write_bytes(data)
                self._uploaded[file.name] = len(data)

    def _close_events(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl, or of the one in a run directory, with values as floats.

    A last line without a newline is still being written and is left out. Raises DataError, naming file and
    line, for a missing file or any other line that is not a record.
    """
    path = to_path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.exists():
        raise DataError(f"{path}: no such file; give a run directory or the {FILE_NAME} in it")
    return [
        record | {"values": {name: float(value) for name, value in record["values"].items()}}
        for _, record in _records(path)
    ]


def _to_json(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    complete_lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    records = []
    for number, line in enumerate(complete_lines, start=1):
        try:
            record = json.loads(line)
            if not record.keys() >= {"step", "time", "kind", "values"}:
                raise ValueError("keys are missing")
        except (ValueError, AttributeError) as error:
            raise DataError(
                f"{path}:{number}: {line[:80]!r} is not a metrics record ({error}); delete it"
            ) from error
        records.append((line, record))
    return records
