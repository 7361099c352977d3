"""What a person sees of a run: a live bar on a terminal, a line now and then in a log, a table at the end."""

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

MODES = ("auto", "live", "plain", "silent")
PLAIN_INTERVAL = 10.0  # Seconds between lines of a log.


class Progress:
    """Shows step, speed, time left and the last metrics; use as a context manager around the loop.

    Mode "live" redraws a bar in place; "plain" prints a line for the first and the last update and at most
    every 10 seconds between; "silent" prints nothing; "auto" is live on a terminal, plain elsewhere, and
    silent on every process but the first. Speed counts from the first update on, which leaves compilation and
    resumed steps out; it is in tokens when `tokens_per_step` is given. Of the metrics those named `shown` are shown, or
    all where that is empty. Raises ConfigError for another mode.
    """

    def __init__(
        self,
        total_steps: int,
        description: str,
        *,
        tokens_per_step: int | None = None,
        shown: Sequence[str] = (),
        mode: str = "auto",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
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
        self._tokens_per_step = tokens_per_step
        self._shown = shown
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self._printed_at: float | None = None
        self._pending: str | None = None  # The last line, while it is not printed.
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

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows `step` (the number of finished steps) with its metrics, floats or arrays of one element."""
        if self._mode == "silent":
            return
        now = self._clock()
        self._first = self._first or (step, now)
        head = f"{self._description}  step {step}/{self._total_steps}{self._speed(step, now)}"
        names = [name for name in self._shown if name in metrics] if self._shown else metrics
        values = [f"{name} {float(metrics[name]):.4g}" for name in names]
        if self._mode == "live":
            rows = Table.grid(expand=True)
            rows.add_row(Text(head))
            rows.add_row(ProgressBar(total=self._total_steps, completed=step))
            rows.add_row(Text("  ".join(values)))
            self._live.update(rows)
            return
        self._pending = "  ".join([head, *values])
        waited = self._printed_at is None or now - self._printed_at >= PLAIN_INTERVAL
        if waited or step >= self._total_steps:
            self._print(self._pending)
            self._printed_at, self._pending = now, None

    def _speed(self, step: int, now: float) -> str:
        first_step, first_time = self._first or (step, now)
        if step <= first_step or now <= first_time:
            return ""
        rate = (step - first_step) / (now - first_time)
        per_second = (
            f"{rate:.3g} steps/s"
            if self._tokens_per_step is None
            else f"{_short(rate * self._tokens_per_step)} tokens/s"
        )
        return f"  {per_second}  {_duration((self._total_steps - step) / rate)} left"

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


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
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
