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

FILE_NAME = "metrics.jsonl"


class MetricWriter:
    """Appends metrics to `<directory>/metrics.jsonl` and, if wanted, TensorBoard events beside it.

    One line per write: {"step": 10, "time": Unix seconds, "kind": "train", "values": {"loss": 1.25}}.
    JSON has no NaN or infinity, so these values are the strings "NaN", "Infinity" and "-Infinity";
    `read_metrics` gives floats back. Only process 0 of a multi-process run writes. Use as a context manager,
    or call `close`.
    """

    def __init__(self, directory: str | os.PathLike, *, tensorboard: bool = True) -> None:
        self.path = pathlib.Path(directory) / FILE_NAME
        self._writes = jax.process_index() == 0
        self._tensorboard = tensorboard
        self._events: SummaryWriter | None = None
        self._purge_step: int | None = None
        if self._writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(self.path)

    def write(self, step: int, values: Mapping[str, Any], kind: str = "train") -> None:
        """Writes the scalars (floats or arrays of one element) of a step; in TensorBoard as `kind/name`."""
        if not self._writes:
            return
        scalars = {name: float(value) for name, value in values.items()}
        record = {"step": int(step), "time": time.time(), "kind": kind}
        record["values"] = {name: _to_json(value) for name, value in scalars.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
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
            kept = [line for line, record in _records(self.path) if record["step"] <= step]
            partial = self.path.with_suffix(".partial")
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            partial.replace(self.path)
        self._close_events()
        self._purge_step = step + 1

    def close(self) -> None:
        """Flushes TensorBoard's events; lines of metrics.jsonl are on disk as soon as they are written."""
        self._close_events()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _event_writer(self) -> SummaryWriter:
        if self._events is None:
            self._events = SummaryWriter(
                str(self.path.parent),
                purge_step=self._purge_step,
                flush_secs=10,
                # File names hold whole seconds: a quick restart would overwrite its predecessor's file.
                filename_suffix=f".{time.time_ns()}",
            )
        return self._events

    def _close_events(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl, or of the one in a run directory, with values as floats.

    A last line without a newline is still being written and is left out. Raises DataError, naming file and
    line, for a missing file or any other line that is not a record.
    """
    path = pathlib.Path(path)
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


def _records(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
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


def _cut_torn_line(path: pathlib.Path) -> None:
    """Removes what a killed process left of its last line, so that the next line does not continue it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
