"""What is printed, when, and with which numbers."""

import datetime
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


def _date():
    return datetime.datetime(2031, 2, 3, 4, 5, 6)


STAMP = "2031-02-03 04:05:06  "


def _console(terminal, width=60):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, _environ={})


def _run(updates, total=100, terminal=False, **options):
    """Feeds (seconds since the start, step, metrics), of an evaluation where step is negative; returns the output."""
    clock, console = _Clock(), _console(terminal, 100)
    with Progress(total, "sft", console=console, clock=clock, now=_date, **options) as progress:
        for seconds, step, metrics in updates:
            clock.now = 100.0 + seconds
            if step < 0:
                progress.evaluation(-step, metrics)
            else:
                progress.update(step, metrics)
    return console.file.getvalue()


def test_plain_lines_have_date_epoch_speed_times_and_metrics():
    more = {"epoch": 0.4251, "num_tokens": 86016.0, "perf/step_time": 0.5, "skipped_steps": 0.0}
    updates = [
        (3, 1, {"loss": 3.0}),
        (13, 21, {"loss": jnp.float32(2.51239), "kl": 0.5, "perf/tokens_per_second": 8192.0} | more),
        (33, 41, {"loss": 2.5} | more | {"skipped_steps": 2.0}),
    ]
    assert _run(updates).splitlines() == [
        STAMP + "sft  step 1/100  0:03 elapsed  loss 3",
        STAMP
        + "sft  step 21/100  epoch 0.425  86k tokens  8.19k tokens/s  0:13 elapsed  0:40 left  loss 2.512  kl 0.5",
        STAMP
        + "sft  step 41/100  epoch 0.425  86k tokens  2 steps/s  0:33 elapsed  0:44 left  loss 2.5  skipped_steps 2",
    ]


def test_of_many_metrics_those_named_are_shown():
    line = _run([(0, 1, {"loss": 3.0, "kl": 0.5, "lr": 1.0})], shown=("kl", "accuracy", "loss"))
    assert line == STAMP + "sft  step 1/100  0:00 elapsed  kl 0.5  loss 3\n"


def test_after_a_resume_the_time_left_counts_the_new_steps_and_the_elapsed_time_all():
    line = _run([(0, 9001, {}), (50, 9011, {})], total=10_000, seconds=7200.0).splitlines()[1]
    assert line == STAMP + "sft  step 9011/10000  2:00:50 elapsed  1:22:25 left"


def test_plain_lines_are_at_most_one_in_ten_seconds_plus_first_and_last():
    steps = [(t, t + 1, {}) for t in range(36)]
    printed = [int(line.split("step ")[1].split("/")[0]) for line in _run(steps, total=36).splitlines()]
    assert printed == [1, 11, 21, 31, 36]


def test_an_update_says_whether_it_was_shown():
    clock = _Clock()
    with Progress(9, "sft", console=_console(False), clock=clock) as progress:
        shown = []
        for step in range(1, 10):
            clock.now += 4.0
            shown.append(progress.update(step, {}))
    assert shown == [True, False, False, True, False, False, True, False, True]
    with Progress(9, "sft", console=_console(True)) as live:
        assert [live.update(step, {}) for step in (1, 2)] == [True, True]


def test_an_early_end_prints_the_last_update_once():
    console, clock = _console(False), _Clock()
    with pytest.raises(KeyError), Progress(100, "dpo", console=console, clock=clock, now=_date) as progress:
        for step in (1, 2, 3):
            progress.update(step, {})
        raise KeyError
    assert [line.removeprefix(STAMP) for line in console.file.getvalue().splitlines()] == [
        "dpo  step 1/100  0:00 elapsed",
        "dpo  step 3/100  0:00 elapsed",
    ]
    assert _run([(0, 100, {})]).count("\n") == 1


def test_a_terminal_gets_a_bar_and_the_last_metrics():
    updates = [(0, 1, {"loss": 3.0}), (10, 51, {"loss": 1.5, "rewards/margins": 0.25})]
    last = _run(updates, terminal=True).rsplit("sft  step", 1)[1]
    assert "51/100  0:10 elapsed  0:10 left" in last
    assert "loss 1.5  rewards/margins 0.25" in last
    assert "━" in last


EVALUATION = {
    "eval/loss": 1.25,
    "eval/rewards/margins": 0.5,
    "eval/old/loss": 1.5,
    "eval/old/rewards/margins": 0.25,
    "eval/new/loss": 1.0,
    "eval/skipped_steps": 0.0,
}


def test_an_evaluation_is_a_line_at_its_time_with_the_loss_of_every_set():
    updates = [(0, 1, {"loss": 3.0}), (1, 2, {"loss": 2.0}), (2, -2, EVALUATION), (3, 3, {})]
    lines = _run(updates, shown=("loss", "rewards/margins")).splitlines()
    said = "sft  evaluation after step 2  loss 1.25  rewards/margins 0.5  old/loss 1.5  new/loss 1"
    assert lines[1] == STAMP + said
    probed = _run([(0, -4, {"judge/score": 0.5, "judge/kl": 2.0})], shown=("loss",))
    assert probed == STAMP + "sft  evaluation after step 4  judge/score 0.5  judge/kl 2\n"


def test_a_terminal_keeps_the_last_evaluation_below_the_bar():
    updates = [(0, 1, {"loss": 3.0}), (1, -1, EVALUATION), (9, 3, {"loss": 2.0})]
    output = _run(updates, terminal=True, shown=("loss",))
    assert STAMP + "sft  evaluation after step 1  loss 1.25  old/loss 1.5  new/loss 1" in output
    assert "evaluation after step 1  loss 1.25" in output.rsplit("sft  step 3/100", 1)[1]


@pytest.mark.parametrize("terminal", [False, True])
def test_silent_prints_nothing(terminal):
    assert _run([(0, 1, {}), (20, 100, {})], terminal=terminal, mode="silent") == ""


def test_descriptions_are_not_markup():
    console = _console(False)
    with Progress(1, "[bold]ppo", console=console, now=_date) as progress:
        progress.update(1, {})
    assert console.file.getvalue() == STAMP + "[bold]ppo  step 1/1  0:00 elapsed\n"


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
