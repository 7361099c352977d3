"""What is printed, when, and with which numbers."""

import io

import jax.numpy as jnp
import pytest
from rich.console import Console

from jaxalign.errors import ConfigError
from jaxalign.training.progress import Progress, print_summary


class _Clock:
    now = 100.0

    def __call__(self):
        return self.now


def _console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=60, _environ={})


def _run(updates, total=100, terminal=False, **options):
    """Feeds (seconds since the start, step, metrics) and returns what was printed."""
    clock, console = _Clock(), _console(terminal)
    with Progress(total, "sft", console=console, clock=clock, **options) as progress:
        for seconds, step, metrics in updates:
            clock.now = 100.0 + seconds
            progress.update(step, metrics)
    return console.file.getvalue()


def test_plain_lines_have_speed_time_left_and_metrics():
    updates = [(0, 1, {"loss": 3.0}), (10, 21, {"loss": jnp.float32(2.51239), "kl": 0.5})]
    lines = _run(updates, tokens_per_step=4096).splitlines()
    assert lines == [
        "sft  step 1/100  loss 3",
        "sft  step 21/100  8.19k tokens/s  0:40 left  loss 2.512  kl 0.5",
    ]
    assert _run(updates).splitlines()[1].startswith("sft  step 21/100  2 steps/s  0:40 left")


def test_of_many_metrics_those_named_are_shown():
    line = _run([(0, 1, {"loss": 3.0, "kl": 0.5, "lr": 1.0})], shown=("kl", "accuracy", "loss"))
    assert line == "sft  step 1/100  kl 0.5  loss 3\n"


def test_speed_after_a_resume_counts_only_the_new_steps():
    line = _run([(0, 9001, {}), (50, 9011, {})], total=10_000, tokens_per_step=10_000_000).splitlines()[1]
    assert line == "sft  step 9011/10000  2M tokens/s  1:22:25 left"


def test_plain_lines_are_at_most_one_in_ten_seconds_plus_first_and_last():
    steps = [(t, t + 1, {}) for t in range(36)]
    printed = [int(line.split()[2].split("/")[0]) for line in _run(steps, total=36).splitlines()]
    assert printed == [1, 11, 21, 31, 36]


def test_an_early_end_prints_the_last_update_once():
    console, clock = _console(False), _Clock()
    with pytest.raises(KeyError), Progress(100, "dpo", console=console, clock=clock) as progress:
        for step in (1, 2, 3):
            progress.update(step, {})
        raise KeyError
    assert console.file.getvalue().splitlines() == ["dpo  step 1/100", "dpo  step 3/100"]
    assert _run([(0, 100, {})]).count("\n") == 1


def test_a_terminal_gets_a_bar_and_the_last_metrics():
    updates = [(0, 1, {"loss": 3.0}), (10, 51, {"loss": 1.5, "rewards/margins": 0.25})]
    last = _run(updates, terminal=True, tokens_per_step=1).rsplit("sft  step", 1)[1]
    assert "51/100  5 tokens/s  0:10 left" in last
    assert "loss 1.5  rewards/margins 0.25" in last
    assert "━" in last


@pytest.mark.parametrize("terminal", [False, True])
def test_silent_prints_nothing(terminal):
    assert _run([(0, 1, {}), (20, 100, {})], terminal=terminal, mode="silent") == ""


def test_descriptions_are_not_markup():
    console = _console(False)
    with Progress(1, "[bold]ppo", console=console) as progress:
        progress.update(1, {})
    assert console.file.getvalue() == "[bold]ppo  step 1/1\n"


def test_another_mode_is_refused():
    with pytest.raises(ConfigError, match=r"progress mode 'loud': use one of auto, live, plain, silent"):
        Progress(1, "sft", mode="loud")


def test_summary_has_a_column_per_key_and_a_blank_where_a_row_has_none():
    console = _console(False)
    rows = [
        {"stage": "sft [x]", "loss": 1.23456, "steps": 10},
        {"stage": "dpo", "loss": 0.5, "win rate": 0.75},
    ]
    print_summary(rows, title="Results", console=console)
    lines = [[cell.strip() for cell in line.split("│")] for line in console.file.getvalue().splitlines()]
    assert lines[0] == ["Results"]
    body = [line[1:-1] for line in lines if len(line) > 3]
    assert body == [["sft [x]", "1.235", "10", ""], ["dpo", "0.5", "", "0.75"]]
    assert all(name in console.file.getvalue() for name in ("stage", "loss", "steps", "win rate"))
