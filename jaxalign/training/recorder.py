"""From the metrics of steps to log lines, and the check that they are numbers."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from jaxalign.errors import NonFiniteError
from jaxalign.losses.metrics import Last, Mean, Metrics
from jaxalign.parallel.chips import GIB, peak_flops, peak_host_memory, peak_memory
from jaxalign.parallel.processes import fetch_whole
from jaxalign.training.checkpoint import Checkpointer
from jaxalign.training.compilations import count_compilations
from jaxalign.training.flops import FLOPS, TOKENS
from jaxalign.training.guard import Guard
from jaxalign.training.open import Run, describe
from jaxalign.training.progress import Progress
from jaxalign.training.window import Window, as_text, from_text
from jaxalign.training.writer import MetricWriter

SKIPPED = "skipped_steps"  # the metric that counts updates left out
NONFINITE = "nonfinite"  # where, in a run's folder, the state before an update that failed is saved
ALARMS = "alarms"  # the metric that counts those raised
EPOCH, NUM_TOKENS, TOTAL_FLOS = "epoch", "num_tokens", "perf/total_flos"
STEP_TIME, FIRST_STEP_TIME = "perf/step_time", "perf/first_step_time"
TOKENS_PER_SECOND, MFU = "perf/tokens_per_second", "perf/mfu"
DATA_TIME, CHECKPOINT_TIME, EVALUATE_TIME = "perf/data_time", "perf/checkpoint_time", "perf/evaluate_time"
RECOMPILES = "perf/recompiles"
HOST_MEMORY, DEVICE_MEMORY = "perf/peak_host_memory", "perf/peak_device_memory"
FIRST_STEPS = 2  # of a start, that may compile: the second gets what the first one made


class Recorder:
    """Turns metrics into log lines one step late, so that the host never waits for the step just sent.

    A line says what all steps since the line before it were like, see `Window`. What is under way is part of a
    checkpoint: a run that is killed and goes on writes the lines that it would have written.
    """

    def __init__(
        self,
        run: Run,
        writer: MetricWriter,
        progress: Progress,
        guard: Guard,
        before: dict[str, Any],
    ) -> None:
        self.run, self.writer, self.progress, self._guard = run, writer, progress, guard
        # What the run had measured when it was saved: its last line, the steps since, and the step it stopped in.
        self.last = {name: float(x) for name, x in before.get("last", {}).items()}
        self._window = Window(before.get("window"))
        self._earlier = from_text(before.get("step", {}))
        # Of the steps that have been logged: tokens that they read, and FLOPs that they had to compute.
        self._tokens, self._flos = float(before.get("tokens", 0)), float(before.get("flos", 0))
        self._shown = Window()  # since `progress` last showed something
        self._metrics: Metrics = {}
        self._done: float | None = None  # when the step was done, where the host has waited for it
        self._pending: tuple[int, Metrics, Metrics, Any, float | None] | None = None
        self._first = True
        self._steps, self._recompiles = 0, 0  # of this start
        self._flops = peak_flops(run.mesh)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves the time since the last step ended out of the next one's."""
        self._clock = time.monotonic()

    def metrics(self) -> dict[str, Any]:
        """For a checkpoint: the `before` of the recorder that goes on."""
        return {
            "last": {name: repr(x) for name, x in self.last.items()},
            "window": self._window.text(),
            "step": as_text(self._earlier | jax.device_get(self._metrics)),
            "tokens": repr(self._tokens),
            "flos": repr(self._flos),
        }

    def begin(self) -> None:
        """Starts a step, or the rest of one that goes on after its first phase."""
        self._metrics = {}
        self._times: Metrics = {}
        self._rows, self._done = None, None
        self._compiled = count_compilations()
        self._phase_clock = time.monotonic()

    def batch(self, batch: Any) -> None:
        """Takes the batch of the step, for which the loop has waited since `begin`."""
        now = time.monotonic()
        self._times[DATA_TIME] = _per(now - self._phase_clock)
        self._rows, self._phase_clock = batch.rows, now

    def phase(self, name: str, metrics: Metrics, *, wait: bool) -> None:
        """Takes the metrics of a phase of the step."""
        self._times |= {
            key: metrics[key] for key in metrics if key.startswith("perf/") and key.endswith("_time")
        }
        self._metrics |= {key: metrics[key] for key in metrics if key not in self._times}
        if wait:  # phases are timed apart, and a rollout has made the host wait anyway
            jax.block_until_ready(metrics)
            now = time.monotonic()
            self._times[f"perf/{name}_time"] = _per(now - self._phase_clock)
            self._phase_clock = self._done = now

    def end(self, step: int, state: Any) -> None:
        """Ends step number `step`, and logs the one before it; raises NonFiniteError."""
        done = self._pending
        self._steps += 1
        if self._steps > FIRST_STEPS:
            self._recompiles += count_compilations() - self._compiled
        self._times[RECOMPILES] = Last(self._recompiles)
        self._pending = (step, self._earlier | self._metrics, self._times, self._rows, self._done)
        self._metrics, self._earlier = {}, {}
        if done is not None:
            self._log(*done, state)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around a save between two steps: takes the time that the loop waits for it."""
        began = time.monotonic()
        yield
        self._window.add({CHECKPOINT_TIME: _per(time.monotonic() - began)})

    def flush(self, state: Any) -> None:
        """Logs the step that is still waiting."""
        if self._pending is not None:
            done, self._pending = self._pending, None
            self._log(*done, state)

    def _log(
        self, step: int, metrics: Metrics, times: Metrics, rows: Any, done: float | None, state: Any
    ) -> None:
        metrics = jax.device_get(metrics)
        # From the end of one step to the end of the next: when a step is sent says nothing of when it is done, unless
        # the host has waited for its phases.
        now = time.monotonic() if done is None else done
        elapsed, self._clock = now - self._clock, now
        tokens: Any = metrics.pop(TOKENS, None)
        computed: list[Any] = [metrics.pop(name) for name in list(metrics) if name.startswith(FLOPS)]
        # The first step after a start compiles, or goes on in its middle: its times are those of no other.
        metrics |= {FIRST_STEP_TIME: _per(elapsed)} if self._first else times | {STEP_TIME: _per(elapsed)}
        flops = sum(float(x.total / x.weight) for x in computed)
        self._flos += flops
        if tokens is not None:
            number = float(tokens.total / tokens.weight)
            self._tokens += number
            if not self._first:
                metrics[TOKENS_PER_SECOND] = _per(number, elapsed)
            if not self._first and self._flops:
                metrics[MFU] = _per(flops / self._flops, elapsed)
        self._first = False
        self._check_finite(step, metrics, rows, state)
        epoch = self.run.epochs_after(step)
        totals = {NUM_TOKENS: self._tokens, TOTAL_FLOS: self._flos} | (
            {} if epoch is None else {EPOCH: epoch}
        )
        self._window.add(metrics)
        self._shown.add(metrics)
        self._guard.look(step, _values(metrics))
        if self.progress.update(step, totals | self._shown.values()):
            self._shown.clear()
        if step % self.run.config.log_every == 0 or step in (1, self.run.steps):
            raised = {ALARMS: self._guard.alarms.raised} if self._guard.alarms else {}
            self.last = totals | self._window.values() | self._memory() | raised
            self._window.clear()
            self.writer.write(step, self.last, kind="train")

    def _memory(self) -> dict[str, float]:
        device = peak_memory(self.run.mesh)
        found = {HOST_MEMORY: peak_host_memory() / GIB}
        return found if device is None else found | {DEVICE_MEMORY: device / GIB}

    def _check_finite(self, step: int, metrics: Metrics, rows: Any, state: Any) -> None:
        # Of every model that a stage trains: critic/skipped_steps, for instance.
        skipped = max(float(x[0]) for name, x in metrics.items() if name.endswith(SKIPPED))
        if not skipped or self.run.config.on_nonfinite == "skip":
            return
        values = _values(metrics)
        records = [] if rows is None else sorted({int(r) for r in fetch_whole(rows).ravel() if r >= 0})
        places = ", ".join(self.run.train.where(r) for r in records[:8]) + (
            " ..." if len(records) > 8 else ""
        )
        found = (
            f"step {step}: the loss is {values.get('loss')} and the gradient norm {values.get('grad_norm')}; "
            f"the batch held rows {records} ({places or 'of an earlier rollout'})"
        )
        if self.run.config.on_nonfinite == "rollback":
            self._guard.nonfinite(found)
            return
        folder = self.run.workdir / NONFINITE
        with Checkpointer(folder) as saved:
            if saved.latest() != step:
                saved.save(step, state, describe(self.run) | {"rows": records})
        raise NonFiniteError(
            f"{found}. The state before the update is saved in {folder}. Lower config.optimizer.learning_rate, look at "
            "those rows, or set config.on_nonfinite='skip' to leave such updates out and count them"
        )


def _values(metrics: Metrics) -> dict[str, float]:
    """The numbers of a single step."""
    one = Window()
    one.add(metrics)
    return one.values()


def _per(amount: float, of: float = 1.0) -> Mean:
    """An amount for so much of something else, such as tokens for seconds, that adds up over steps."""
    return Mean(amount, of)
