"""From the metrics of steps to log lines, and the check that they are numbers."""

import time
from typing import Any

import jax

from jaxalign.errors import NonFiniteError
from jaxalign.losses.metrics import finalize
from jaxalign.models.flops import step_flops
from jaxalign.parallel.chips import peak_flops
from jaxalign.parallel.processes import fetch_whole
from jaxalign.training.checkpoint import Checkpointer
from jaxalign.training.flops import PAIRS, TOKENS
from jaxalign.training.open import Run, describe
from jaxalign.training.progress import Progress
from jaxalign.training.writer import MetricWriter

SKIPPED = "skipped_steps"  # the metric that counts updates left out
NONFINITE = "nonfinite"  # where, in a run's folder, the state before an update that failed is saved


class Recorder:
    """Turns metrics into log lines one step late, so that the host never waits for the step just sent."""

    def __init__(
        self,
        run: Run,
        writer: MetricWriter,
        progress: Progress,
        before: dict[str, Any],
        *,
        scalar: bool = False,
    ) -> None:
        self.run, self.writer, self.progress = run, writer, progress
        # A scalar model is trained, which computes no logits.
        self.scalar = scalar
        # What the run had measured when it was saved: of the last whole step, and of the one it stopped in.
        self.last = {name: float(x) for name, x in before.get("last", {}).items()}
        self._earlier = {name: float(x) for name, x in before.get("step", {}).items()}
        self._metrics: dict[str, Any] = {}
        self._pending: tuple[int, dict, dict, dict, Any] | None = None
        self._flops = peak_flops(run.mesh)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves the time since the last step ended out of the next one's."""
        self._clock = time.monotonic()

    def metrics(self) -> dict[str, dict[str, str]]:
        """For a checkpoint: the `before` of the recorder that goes on. Strings, as JSON has no NaN."""
        step = self._earlier | finalize(jax.device_get(self._metrics))
        text = {"last": self.last, "step": step}
        return {which: {name: repr(float(x)) for name, x in values.items()} for which, values in text.items()}

    def begin(self, batch: Any) -> None:
        """Starts a step; `batch` is None when it goes on after its first phase."""
        self._metrics = {}
        self._times: dict[str, float] = {}
        self._rows = None if batch is None else batch.rows
        self._phase_clock = time.monotonic()

    def phase(self, name: str, metrics: dict[str, Any], *, wait: bool) -> None:
        """Takes the metrics of a phase of the step."""
        self._metrics |= metrics
        if wait:  # phases are timed apart, and a rollout has made the host wait anyway
            jax.block_until_ready(metrics)
            now = time.monotonic()
            self._times[f"perf/{name}_time"] = now - self._phase_clock
            self._phase_clock = now

    def end(self, step: int, state: Any) -> None:
        """Ends step number `step`, and logs the one before it; raises NonFiniteError."""
        done = self._pending
        self._pending = (step, self._metrics, self._earlier, self._times, self._rows)
        self._metrics, self._earlier = {}, {}
        if done is not None:
            self._log(*done, state)

    def flush(self, state: Any) -> None:
        """Logs the step that is still waiting."""
        if self._pending is not None:
            done, self._pending = self._pending, None
            self._log(*done, state)

    def _log(self, step: int, metrics: dict, earlier: dict, times: dict, rows: Any, state: Any) -> None:
        metrics = jax.device_get(metrics)
        # From the end of one step to the end of the next: when a step is sent says nothing of when it is done.
        now = time.monotonic()
        elapsed, self._clock = now - self._clock, now
        values = {name: float(x) for name, x in finalize(metrics).items()}
        values |= times | {"perf/step_time": elapsed}
        if TOKENS in values:  # not when the run goes on in the middle of a step: it took more than `elapsed`
            values["perf/tokens_per_second"] = values[TOKENS] / elapsed
            if self._flops:
                flops = step_flops(self.run.model, values[TOKENS], values[PAIRS], scalar=self.scalar)
                values["perf/mfu"] = flops / elapsed / self._flops
        values = {name: x for name, x in (earlier | values).items() if name not in (TOKENS, PAIRS)}
        self._check_finite(step, values, rows, state)
        self.last = values
        self.progress.update(step, values)
        if step % self.run.config.log_every == 0 or step in (1, self.run.steps):
            self.writer.write(step, values, kind="train")

    def _check_finite(self, step: int, values: dict[str, float], rows: Any, state: Any) -> None:
        # Of every model that a stage trains: critic/skipped_steps, for instance.
        skipped = max(x for name, x in values.items() if name.endswith(SKIPPED))
        if not skipped or self.run.config.on_nonfinite == "skip":
            return
        records = [] if rows is None else sorted({int(r) for r in fetch_whole(rows).ravel() if r >= 0})
        folder = self.run.workdir / NONFINITE
        with Checkpointer(folder) as saved:
            if saved.latest() != step:
                saved.save(step, state, describe(self.run) | {"rows": records})
        places = ", ".join(self.run.train.where(r) for r in records[:8]) + (
            " ..." if len(records) > 8 else ""
        )
        raise NonFiniteError(
            f"step {step}: the loss is {values.get('loss')} and the gradient norm {values.get('grad_norm')}; "
            f"the batch held rows {records} ({places or 'of an earlier rollout'}). The state before the update is "
            f"saved in {folder}. Lower config.optimizer.learning_rate, look at those rows, or set "
            f"config.on_nonfinite='skip' to leave such updates out and count them"
        )
