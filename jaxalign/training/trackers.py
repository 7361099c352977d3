"""Experiment trackers beside the files of a run: wandb, trackio and mlflow, behind one small surface.

Each is called from a thread of its own, so that a server which does not answer costs no step any time; one that fails
is left alone after a warning, for metrics.jsonl has everything. Where runs go is said as each tracker has it:
WANDB_PROJECT, WANDB_MODE, TRACKIO_PROJECT, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, and so on.
"""

import importlib
import json
import os
import pathlib
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from jaxalign.errors import ConfigError
from jaxalign.storage import Path, read_json, write_whole

FILE_NAME = "trackers.json"  # in a run's folder: the id of the run with each tracker
PROJECT = "jaxalign"
AXIS = "train/global_step"  # the horizontal axis, by the name that transformers' Trainer gives it
SECONDS = (
    20.0  # that the end of a run waits for trackers: less than the 30 that Kubernetes gives a pod to end
)

Values = Mapping[str, float]
Samples = Sequence[Mapping[str, Any]]


class Tracker(Protocol):
    """What is asked of a tracker."""

    def log(self, step: int, values: Values) -> None: ...
    def log_samples(self, step: int, samples: Samples) -> None: ...
    def finish(self, failed: bool) -> None: ...


class WandbTracker:
    """Weights & Biases: a run of the same id goes on, `train/global_step` is the axis of all charts."""

    def __init__(self, workdir: Path, settings: Mapping[str, Any], ids: "Ids") -> None:
        self._wandb: Any = importlib.import_module("wandb")
        local = isinstance(workdir, pathlib.Path) and "WANDB_DIR" not in os.environ
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", workdir.name),
            id=ids.find("wandb", lambda: uuid.uuid4().hex[:12]),
            resume="allow",
            config=dict(settings),
            allow_val_change=True,
            settings=self._wandb.Settings(console="off"),  # the live display is no text to keep
            **({"dir": str(workdir)} if local else {}),
        )
        self._run.define_metric(AXIS)
        self._run.define_metric("*", step_metric=AXIS, step_sync=True)

    def log(self, step: int, values: Values) -> None:
        # By an axis of its own: wandb drops what comes with an earlier step, as after a kill, also what it never had.
        self._run.log({**values, AXIS: step})

    def log_samples(self, step: int, samples: Samples) -> None:
        columns, rows = _table(samples)
        self._run.log({"samples": self._wandb.Table(columns=columns, data=rows), AXIS: step})

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class TrackioTracker:
    """Hugging Face's Trackio, which knows a run by its name."""

    def __init__(self, workdir: Path, settings: Mapping[str, Any], ids: "Ids") -> None:
        self._trackio: Any = importlib.import_module("trackio")
        self._run = self._trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=ids.find("trackio", lambda: f"{workdir.name}-{uuid.uuid4().hex[:8]}"),
            resume="allow",
            config=dict(settings),
            embed=False,
        )

    def log(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)

    def log_samples(self, step: int, samples: Samples) -> None:
        pandas: Any = importlib.import_module("pandas")  # which trackio's tables are made of
        columns, rows = _table(samples)
        table = self._trackio.Table(dataframe=pandas.DataFrame(rows, columns=columns))
        self._run.log({"samples": table}, step=step)

    def finish(self, failed: bool) -> None:
        self._run.finish()


class MlflowTracker:
    """MLflow, by its client: nothing of what the process else does with MLflow is touched."""

    def __init__(self, workdir: Path, settings: Mapping[str, Any], ids: "Ids") -> None:
        self._mlflow: Any = importlib.import_module("mlflow")
        self._client = self._mlflow.MlflowClient()
        known = ids.get("mlflow")
        self._id = known or ids.find("mlflow", lambda: self._create(workdir.name))
        if known:
            self._client.update_run(self._id, status="RUNNING")
            return
        # A parameter of MLflow may have 6,000 characters, and a call 100 of them.
        make = self._mlflow.entities.Param
        params = [make(key, str(value)[:6000]) for key, value in settings.items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(self._id, params=params[start : start + 100])

    def _create(self, name: str) -> str:
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(wanted)
        experiment = found.experiment_id if found else self._client.create_experiment(wanted)
        return self._client.create_run(experiment, run_name=name).info.run_id

    def log(self, step: int, values: Values) -> None:
        now, make = int(time.time() * 1000), self._mlflow.entities.Metric
        self._client.log_batch(self._id, metrics=[make(key, x, now, step) for key, x in values.items()])

    def log_samples(self, step: int, samples: Samples) -> None:
        columns, rows = _table(samples)
        text = json.dumps({"columns": columns, "data": rows}, ensure_ascii=False)
        self._client.log_text(self._id, text, f"samples/{step}.json")

    def finish(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


TRACKERS: dict[str, Callable[..., Tracker]] = {
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
    "mlflow": MlflowTracker,
}


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError for a tracker whose package is not installed, with what installs it."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"config.trackers names {name}, which cannot be imported ({error}): pip install {name}"
            ) from None


class Ids:
    """The ids by which trackers know a run, in a file of its folder: a run that goes on is the same one there."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()

    def get(self, name: str) -> str | None:
        """The id that a tracker has given, if it has."""
        return self._read().get(name)

    def find(self, name: str, make: Callable[[], str]) -> str:
        """The same, or a new one, which is kept."""
        found = self.get(name) or make()
        with self._lock:
            write_whole(self._path, json.dumps(self._read() | {name: found}).encode())
        return found

    def _read(self) -> dict[str, str]:
        return read_json(self._path, ValueError) if self._path.is_file() else {}


class Trackers:
    """Several trackers of one run; use by process 0 alone."""

    def __init__(self, names: Sequence[str], workdir: Path, settings: Mapping[str, Any]) -> None:
        ids = Ids(workdir / FILE_NAME)
        self._workers = [_Worker(name, workdir, settings, ids) for name in names]

    def log(self, step: int, values: Values) -> None:
        """Sends metrics, by their full names; they arrive later."""
        for worker in self._workers:
            worker.send(lambda tracker: tracker.log(step, values))

    def log_samples(self, step: int, samples: Samples) -> None:
        """Sends what the model answered."""
        for worker in self._workers:
            worker.send(lambda tracker: tracker.log_samples(step, samples))

    def close(self, *, failed: bool = False) -> None:
        """Ends the run with each tracker, once all has arrived or `SECONDS` have passed."""
        for worker in self._workers:
            worker.send(None, failed=failed)
        deadline = time.monotonic() + SECONDS
        for worker in self._workers:
            worker.wait(deadline)


class _Worker:
    """One tracker and the thread that calls it."""

    def __init__(self, name: str, workdir: Path, settings: Mapping[str, Any], ids: Ids) -> None:
        self._name = name
        self._make = lambda: TRACKERS[name](workdir, settings, ids)
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        # A daemon: the end of the process waits for no server.
        self._thread = threading.Thread(target=self._work, name=f"jaxalign-{name}", daemon=True)
        self._thread.start()

    def send(self, call: Callable[[Tracker], None] | None, *, failed: bool = False) -> None:
        if self._thread.is_alive():
            self._queue.put((call, failed))

    def wait(self, deadline: float) -> None:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._warn(f"has not taken everything within {SECONDS:.0f} s")

    def _work(self) -> None:
        try:
            tracker = self._make()
            while (message := self._queue.get())[0] is not None:
                message[0](tracker)
            tracker.finish(message[1])
        except BaseException as error:  # whatever a package raises, SystemExit too, is no reason to end a run
            reason = (str(error).splitlines() or [""])[0]
            self._warn(f"failed ({type(error).__name__}: {reason})")

    def _warn(self, what: str) -> None:
        try:
            print(
                f"config.trackers: {self._name} {what}; the run is not affected, and its metrics.jsonl has all values",
                file=sys.stderr,
                flush=True,
            )
        except (OSError, ValueError):  # nobody reads any more
            pass


def _table(samples: Samples) -> tuple[list[str], list[list[Any]]]:
    columns = list(dict.fromkeys(key for sample in samples for key in sample))
    return columns, [[sample.get(column) for column in columns] for sample in samples]
