"""What a person sees of a run: a live display on a terminal, a line now and then in a log, a table at the end."""

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxalign.errors import ConfigError
from jaxalign.streams import shown

MODES = ("auto", "live", "plain", "silent")
PLAIN_INTERVAL = 10.0  # Seconds between lines of a log.
# What stands at the head of a line, and counts that are shown once they are not 0.
HEAD = ("epoch", "num_tokens", "perf/step_time", "perf/tokens_per_second")
FAILURES = "skipped_steps"


class Progress:
    """Shows step, epoch, speed, time and metrics; use as a context manager around the loop.

    Mode "live" redraws a bar in place, with the last step and the last evaluation below it; "plain" prints a line for
    the first and the last update and at most every 10 seconds between; in both an evaluation is a line of its own, at
    once. "silent" prints nothing; "auto" is live on a terminal, plain elsewhere, and silent on every process but the
    first. The time left follows from all steps since the start, with the evaluations and saves between them. Of the
    metrics those named `shown` are shown, or all where that is empty. Raises ConfigError for another mode.

    Args:
      seconds: that the run took before this start.
    """

    def __init__(
        self,
        total_steps: int,
        description: str,
        *,
        shown: Sequence[str] = (),
        seconds: float = 0.0,
        mode: str = "auto",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"progress mode {mode!r}: use one of {', '.join(MODES)}")
        self._console = console or Console()
        if mode == "auto":
            mode = "live" if self._console.is_terminal else "plain"
            mode = mode if jax.process_index() == 0 else "silent"
        self._mode = mode
        self._total_steps = total_steps
        self._description = description
        self._shown = shown
        self._clock, self._now = clock, now
        self._began = clock() - seconds
        self._first: tuple[int, float] | None = None
        self._printed_at: float | None = None
        self._pending: str | None = None  # The last line, while it is not printed.
        self._step: tuple[int, str, str] = (0, "", "")  # the last one, with its head and its values
        self._evaluation = ""
        self._live = Live(console=self._console, refresh_per_second=4)

    def __enter__(self) -> "Progress":
        if self._mode == "live":
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._mode == "live":
            self._live.stop()
        elif self._pending is not None:
            self._print(self._pending)

    def update(self, step: int, metrics: Mapping[str, Any]) -> bool:
        """Takes `step` (the number of finished steps) with its metrics, floats or arrays of one element.

        Returns:
          Whether it is shown: the metrics of the next update are then those of the steps after this one.
        """
        if self._mode == "silent":
            return True
        now = self._clock()
        self._first = self._first or (step, now)
        head = "  ".join(
            [f"{self._description}  step {step}/{self._total_steps}", *self._pace(step, metrics)]
        )
        values = "  ".join(self._values(metrics))
        if self._mode == "live":
            self._step = step, head, values
            self._redraw()
            return True
        self._pending = f"{head}  {values}".rstrip()
        waited = self._printed_at is None or now - self._printed_at >= PLAIN_INTERVAL
        if waited or step >= self._total_steps:
            self._print(self._pending)
            self._printed_at, self._pending = now, None
        return self._pending is None

    def evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows an evaluation after `step`: its metrics by their full names, as `eval/loss` and `eval/SET/loss`."""
        if self._mode == "silent" or not metrics:
            return
        said = f"evaluation after step {step}  {'  '.join(self._evaluated(metrics))}"
        self._print(f"{self._description}  {said}")
        if self._mode == "live":
            self._evaluation = said
            self._redraw()

    def _redraw(self) -> None:
        step, head, values = self._step
        rows = Table.grid(expand=True)
        rows.add_row(Text(head))
        rows.add_row(ProgressBar(total=self._total_steps, completed=step))
        rows.add_row(Text(values))
        if self._evaluation:
            rows.add_row(Text(self._evaluation))
        self._live.update(rows)

    def _pace(self, step: int, metrics: Mapping[str, Any]) -> list[str]:
        parts = []
        if "epoch" in metrics:
            parts.append(f"epoch {float(metrics['epoch']):.3g}")
        if metrics.get("num_tokens"):
            parts.append(f"{_short(float(metrics['num_tokens']))} tokens")
        if "perf/tokens_per_second" in metrics:
            parts.append(f"{_short(float(metrics['perf/tokens_per_second']))} tokens/s")
        elif metrics.get("perf/step_time"):
            parts.append(f"{1 / float(metrics['perf/step_time']):.3g} steps/s")
        now = self._clock()
        parts.append(f"{_duration(now - self._began)} elapsed")
        first_step, first_time = self._first or (step, now)
        if step > first_step and now > first_time:
            left = (self._total_steps - step) * (now - first_time) / (step - first_step)
            parts.append(f"{_duration(left)} left")
        return parts

    def _values(self, metrics: Mapping[str, Any]) -> list[str]:
        names = [name for name in self._shown if name in metrics] if self._shown else metrics
        return [
            f"{name} {float(metrics[name]):.4g}"
            for name in names
            if name not in HEAD and (float(metrics[name]) or not name.endswith(FAILURES))
        ]

    def _evaluated(self, metrics: Mapping[str, Any]) -> list[str]:
        """All that is shown of all sets together, and of each set the first of it."""
        plain = {name.removeprefix("eval/"): x for name, x in metrics.items()}
        together = (
            [name for name in self._shown if name in plain] or [x for x in plain if "/" not in x] or [*plain]
        )
        apart = [name for name in plain if name.endswith(f"/{together[0]}")]
        return [
            f"{name} {float(plain[name]):.4g}"
            for name in [*together, *apart]
            if float(plain[name]) or not name.endswith(FAILURES)
        ]

    def _print(self, line: str) -> None:
        stamp = self._now().strftime("%Y-%m-%d %H:%M:%S")
        self._console.print(shown(f"{stamp}  {line}"), markup=False, highlight=False, soft_wrap=True)


def summary_table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """Returns a table with a column per key, in order of first appearance; floats to 4 significant digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title)
    for column in columns:
        numeric = all(isinstance(row.get(column, 0), int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column, ""))) for column in columns))
    return table


def print_summary(
    rows: Sequence[Mapping[str, Any]], title: str | None = None, console: Console | None = None
) -> None:
    """Prints `summary_table`."""
    (console or Console()).print(summary_table(rows, title))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else shown(str(value))


def _short(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
