"""The history of a run: metrics.jsonl, samples.jsonl, TensorBoard, and the trackers that the config names."""

import hashlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxalign.errors import DataError, amount
from jaxalign.imports import hidden
from jaxalign.storage import Lines, Path, temporary_folder, to_path
from jaxalign.streams import say
from jaxalign.training.trackers import Trackers

with hidden("torch"):  # it would be loaded where it is installed, for seconds, and never used
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

FILE_NAME = "metrics.jsonl"
RECORD = ("step", "time", "kind", "values")  # what every line of it has
SAMPLES = "samples.jsonl"
SAMPLE = ("step",)  # what every line of that has
TENSORBOARD = "tensorboard"
EVAL = "eval"


class MetricWriter:
    """Appends metrics to `<directory>/metrics.jsonl` and to TensorBoard files and trackers, if wanted.

    One line per write: {"step": 10, "time": Unix seconds, "kind": "train", "values": {"loss": 1.25}}. The full name of
    a metric is kind/name; `eval/loss` may be given in full, and what has no kind of its own keeps its name.
    TensorBoard draws into one chart what has one tag, so `train/loss` and `eval/loss` are both `loss`, in the runs
    tensorboard/train and tensorboard/eval; each of several evaluation sets is a run, too: tensorboard/eval/SET.
    On an object store files are written anew once a minute and by `flush`. JSON has no NaN or infinity, so these values
    are the strings "NaN", "Infinity" and "-Infinity"; `read_metrics` gives floats back. Only process 0 of a
    multi-process run writes. Use as a context manager, or call `close`.

    Args:
      sets: the names of evaluation sets: `eval/SET/loss` is the loss on one of several.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        tensorboard: bool = True,
        sets: Sequence[str] = (),
        trackers: Trackers | None = None,
    ) -> None:
        self.path = to_path(directory) / FILE_NAME
        self._writes = jax.process_index() == 0
        self._begun_at: int | None = None  # the step that a run goes on from
        self._sets = tuple(sets)
        self._trackers = trackers
        self._events = TensorBoard(self.path.parent / TENSORBOARD) if self._writes and tensorboard else None
        if self._writes:
            self._lines = Lines(self.path)
            self._samples = Lines(self.path.parent / SAMPLES)

    def write(self, step: int, values: Mapping[str, Any], kind: str = "train") -> None:
        """Writes the scalars (floats or arrays of one element) of a step."""
        if not self._writes:
            return
        scalars = {plain_name(name, kind): float(value) for name, value in values.items()}
        record = {"step": int(step), "time": time.time(), "kind": kind}
        record["values"] = {name: json_number(value) for name, value in scalars.items()}
        self._lines.append(json.dumps(record, allow_nan=False))
        if self._lines.due or self._samples.due:
            self.flush()
        if self._events is not None:
            runs: dict[str, dict[str, float]] = {}
            for name, value in scalars.items():
                part, _, rest = name.partition("/")
                own = kind == EVAL and part in self._sets
                runs.setdefault(f"{kind}/{part}" if own else kind, {})[rest if own else name] = value
            for run, tags in runs.items():
                self._events.add(
                    run, step, [Summary.Value(tag=tag, simple_value=x) for tag, x in tags.items()]
                )
        if self._trackers is not None:
            self._trackers.log(int(step), {f"{kind}/{name}": value for name, value in scalars.items()})

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Writes what the model answered at a step: a line each, in samples.jsonl, and TensorBoard's text.

        Call it before `write` writes the evaluation of that step, which stands for both: a run that is ended between
        the two evaluates again, and these samples take the place of those.
        """
        if not self._writes or not samples:
            return
        if step == self._begun_at:
            _keep_until(step - 1, self._samples, SAMPLE)
        self._samples.append(
            *(json.dumps({"step": int(step)} | dict(sample), ensure_ascii=False) for sample in samples)
        )
        if self._events is not None:
            self._events.add(EVAL, step, summary.text("samples", _markdown(samples)).value)
        if self._trackers is not None:
            self._trackers.log_samples(int(step), samples)

    def state(self) -> dict[str, dict[str, Any]]:
        """By the name of each file its number of lines and their SHA-256, as `compare_lines` takes them."""
        if not self._writes:
            return {}
        files = (self._lines, self._samples)
        return {lines.path.name: {"lines": len(lines), "sha256": lines.digest()} for lines in files}

    def truncate_after(self, step: int, state: Mapping[str, Any] | None = None) -> None:
        """Removes what was written for later steps; call it on resuming from the checkpoint of `step`.

        TensorBoard files are append-only: a marker makes TensorBoard hide the later steps. What was cut off, is
        missing or was changed is told on standard error.

        Args:
          state: as it was when the checkpoint was saved.

        Raises:
          DataError: a line is not one of metrics, or of samples.
        """
        if not self._writes:
            return
        self._begun_at = step
        for lines, keys in ((self._lines, RECORD), (self._samples, SAMPLE)):
            if lines.torn:
                say(f"{lines.path}: its last line was cut off and is removed, {lines.torn} bytes", sys.stderr)
            _keep_until(step, lines, keys)
            if fault := compare_lines(lines.path, (state or {}).get(lines.path.name)):
                say(f"{lines.path}: {fault}", sys.stderr)
        if self._events is not None:
            self._events.hide_after(step)

    def flush(self) -> None:
        """Makes sure that all that was written is in the directory; on a local disk, it is at once."""
        if not self._writes:
            return
        self._samples.flush()  # first: see `write_samples`
        self._lines.flush()
        if self._events is not None:
            self._events.flush()

    def close(self, *, failed: bool = False) -> None:
        """Flushes, and ends the run with its trackers."""
        if self._events is not None:
            self._events.close()
        self.flush()
        if self._trackers is not None:
            self._trackers.close(failed=failed)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(failed=kind is not None)


class TensorBoard:
    """Event files, one for each run below a folder, written without a thread: what a killed process wrote is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._local = folder if isinstance(folder, pathlib.Path) else temporary_folder()
        self._writers: dict[str, EventsWriter] = {}
        self._hidden: int | None = None
        self._uploaded: dict[str, int] = {}  # bytes of the files on an object store

    def add(self, run: str, step: int, values: Sequence[Any]) -> None:
        """Writes the values of a summary for a step of a run."""
        writer = self._writer(run)
        writer.write_event(Event(wall_time=time.time(), step=int(step), summary=Summary(value=values)))
        writer.flush()

    def hide_after(self, step: int) -> None:
        """Has TensorBoard leave out what all files up to now hold of later steps."""
        self.close()
        self._writers, self._hidden = {}, step + 1
        if self._local.is_dir():
            for file in sorted(self._local.rglob("events.*")):
                self._writer(file.parent.relative_to(self._local).as_posix())

    def flush(self) -> None:
        """Uploads what has grown, where the folder is on an object store."""
        for file in self._local.rglob("events.*") if self._local != self._folder else ():
            name, data = file.relative_to(self._local).as_posix(), file.read_bytes()
            if self._uploaded.get(name) != len(data):
                target = self._folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
                self._uploaded[name] = len(data)

    def close(self) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _writer(self, run: str) -> EventsWriter:
        if run not in self._writers:
            (self._local / run).mkdir(parents=True, exist_ok=True)
            # File names hold whole seconds: a quick restart would overwrite its predecessor's file.
            self._writers[run] = EventsWriter(str(self._local / run / "events"), f".{time.time_ns()}")
            if self._hidden is not None:
                start = SessionLog(status=SessionLog.START)
                self._writers[run].write_event(
                    Event(wall_time=time.time(), step=self._hidden, session_log=start)
                )
                self._writers[run].flush()
        return self._writers[run]


def plain_name(name: str, kind: str) -> str:
    """The name of a metric within a line of its kind."""
    return name.removeprefix(f"{kind}/") if kind == EVAL else name


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl, or of the one in a run directory, with values as floats.

    Names are those within their kind, also where an earlier version wrote `eval/loss` into a line of kind "eval". A
    last line without a newline is still being written and is left out. Raises DataError, naming file and line, for a
    missing file or any other line that is not a record.
    """
    path = to_path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.exists():
        raise DataError(f"{path}: no such file; give a run directory or the {FILE_NAME} in it")
    return [
        record
        | {
            "values": {
                plain_name(name, record["kind"]): float(value) for name, value in record["values"].items()
            }
        }
        for _, record in _records(path, RECORD)
    ]


def compare_lines(path: Path, written: Mapping[str, Any] | None) -> str:
    """What is wrong with the first lines of a file, of which `MetricWriter.state` was written down; empty: nothing."""
    if written is None:
        return ""
    count = written["lines"]
    lines = path.read_bytes().split(b"\n")[:-1][:count] if path.exists() else []
    if len(lines) < count:
        return f"{count - len(lines)} of its first {amount(count, 'line')} are missing, and what they said is lost"
    if hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest() != written["sha256"]:
        return f"its first {amount(count, 'line')} are not as they were written; what they say is not to be trusted"
    return ""


def _markdown(samples: Sequence[Mapping[str, Any]]) -> str:
    """Samples as TensorBoard's text page shows them: what was written, character by character."""
    blocks = []
    for number, sample in enumerate(samples, 1):
        lines = [f"#### {number}"]
        for name, value in sample.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            # An indented block is taken as it is, whatever marks of Markdown the text has.
            lines += ["", f"**{name}**", "", *(f"    {line}" for line in text.split("\n"))]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def json_number(value: float) -> float | str:
    """A number as JSON can hold it: what is not finite becomes text, which `float` reads."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _keep_until(step: int, lines: Lines, keys: Sequence[str]) -> None:
    lines.flush()
    if lines.path.exists():
        lines.replace(line for line, record in _records(lines.path, keys) if record["step"] <= step)


def parse_record(line: bytes, keys: Sequence[str]) -> dict[str, Any]:
    """The record of a line of a file, of which `keys` are wanted.

    Raises:
      ValueError: it is none; says why.
    """
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(record, dict) or not record.keys() >= set(keys):
        raise ValueError("keys are missing")
    if type(record["step"]) is not int:
        raise ValueError("step is no whole number")
    if "kind" in keys and not isinstance(record["kind"], str):
        raise ValueError("kind is no name")
    if "values" in keys:
        try:
            {name: float(value) for name, value in record["values"].items()}
        except (AttributeError, TypeError, ValueError, OverflowError):
            raise ValueError("values are no numbers by name") from None
    return record


def _records(path: Path, keys: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    complete_lines = path.read_bytes().split(b"\n")[:-1]
    records = []
    for number, line in enumerate(complete_lines, start=1):
        try:
            records.append((line.decode(), parse_record(line, keys)))
        except ValueError as error:
            shown = line[:80].decode(errors="backslashreplace")
            raise DataError(
                f"{path}:{number}: {shown!r} is not a metrics record ({error}); delete it"
            ) from error
    return records
