"""The first lines of a run: what will be trained on what and how long, what was found for it, and what looks wrong."""

import math
from typing import Any

import numpy as np

from jaxalign.data.invalid import DROPPED_FILE
from jaxalign.data.loader import rows_of_epochs
from jaxalign.data.records import KINDS
from jaxalign.errors import amount
from jaxalign.models import count_params
from jaxalign.parallel.sharding import shards
from jaxalign.training.open import Run, count_updates, default_settings, settings
from jaxalign.training.recipe import LEAST_STEPS

FULL = 0.8  # of a row: below it a fifth of all computing is for nothing


def introduce(run: Run, step: int, *, scalar: bool) -> list[str]:
    """What to say before step `step` + 1.

    Args:
      scalar: the trained model is a reward model.
    """
    if step >= run.steps:
        return [f"{run.workdir}: all of its {amount(run.steps, 'step')} are done; nothing is trained"]
    size = count_params(run.abstract_params(scalar=scalar))
    devices = " x ".join(f"{axis} {n}" for axis, n in run.mesh.shape.items() if n > 1) or "1 device"
    rows, batch_size, config = run.train.rows, run.rows_per_step, run.config
    lines = [
        f"{config.stage.name}: {size:,} parameters on {devices}; data: {_first_window(run)}{run.train.report}; packed "
        f"into {amount(len(rows), 'row')} of {rows.row_length:,} tokens, {rows.efficiency:.0%} full{_shared(run)}",
        f"{_ahead(run, step)}{_epochs(run)}; a step is {_step(run)}; the learning rate {_rate(run, step)}",
        _programs(run),
    ]
    lines += run.model_changes
    if own := _own_settings(config):
        lines.append(f"config.{config.stage.name}: {own}; the rest as in docs/config.md")
    if run.found:
        lines.append("chosen where the config leaves it open: " + ", ".join(run.found))
    if run.epochs_to_fill and (left := rows_of_epochs(rows, run.epochs_to_fill) % batch_size):
        lines.append(f"the last batch holds {amount(left, 'row')} and {batch_size - left} empty ones")
    if run.invalid:
        where = run.workdir / DROPPED_FILE
        lines.append(f"{amount(len(run.invalid), 'row')} left out as invalid: see {where}")
    return lines + [f"warning: {line}" for line in warnings(run)]


def _first_window(run: Run) -> str:
    return "" if run.train.stream is None else "the first window of a stream: "


def _epochs(run: Run) -> str:
    return "" if run.train.stream is not None else f" = {run.epochs:.3g} epochs in all"


def _ahead(run: Run, step: int) -> str:
    of = f"{run.steps - step:,} of {amount(run.steps, 'step')} to go"
    return f"goes on after step {step:,}: {of}" if step else of


def _own_settings(config: Any) -> str:
    """What a stage's own settings are that are not at their defaults: a file of configs may have set them."""
    section = f"config.{config.stage.name}."
    usual, values = default_settings(config), settings(config)
    return ", ".join(
        f"{key.removeprefix(section)}={value}"
        for key, value in values.items()
        if key.startswith(section) and value != usual.get(key)
    )


def _step(run: Run) -> str:
    rows, config = run.train.rows, run.config
    tokens = rows.tokens / len(rows) * run.rows_per_step
    sampling = getattr(config.options, "sampling", None)
    if sampling is not None:
        return (
            f"{config.batch_size:,} completions of {amount(run.rows_per_step, 'prompt')}, of at most "
            f"{sampling.max_new_tokens:,} tokens each"
        )
    slots = run.rows_per_step * rows.row_length
    return f"{amount(run.rows_per_step, 'row')}, about {tokens:,.0f} tokens in {slots:,} slots"


def _shared(run: Run) -> str:
    rows = run.train.rows
    if not rows.shared:
        return ""
    return f"; {rows.shared / rows.tokens:.0%} of the tokens, of prompts that a record has more than once, stand once"


def _programs(run: Run) -> str:
    """Shapes are those of full batches, also of the last one: most programs are compiled once."""
    names = [program.name for program in run.config.stage.programs(run)]
    evaluation = "" if run.held_out is None else ", and more for the first evaluation"
    most = run.config.stage.shapes(run.config.options)
    later = f"for other numbers of rows some again, at most {most} times each" if most > 1 else "none"
    compiled = f"{amount(len(names), 'program')} ({', '.join(names)}){evaluation}"
    return f"the first step compiles {compiled}; later ones {later}"


def _rate(run: Run, step: int) -> str:
    optimizer = run.config.optimizer
    warmup = optimizer.warmup_steps or int(optimizer.warmup * run.updates + 1e-9)
    of = "update" if run.updates != run.steps else "step"
    rise = f"rises for {amount(warmup, of)} to" if warmup else "begins at"
    done = count_updates(run.config, step)
    now = f", now {float(np.asarray(run.schedule(done))):.3g}" if done else ""
    return f"{rise} {optimizer.learning_rate:g}, {optimizer.schedule}{now}"


def warnings(run: Run) -> list[str]:
    """What is no error, and seldom meant; each with a way out."""
    rows, config, found = run.train.rows, run.config, []
    if config.data.packing and not KINDS[rows.kind].one_per_row and rows.efficiency < FULL:
        empty = f"rows are {rows.efficiency:.0%} full"
        if rows.crowded > 0.5:
            found.append(
                f"{empty}: {rows.crowded:.0%} of the rows take no more sequences, though they have room: raise "
                f"config.data.max_segments={rows.max_segments}"
            )
        elif len(rows) > 1:
            found.append(
                f"{empty}: records of {_mean(run):,.0f} tokens on average leave gaps in rows of {rows.row_length:,}; "
                f"set config.data.row_length={2 * rows.row_length} and half of config.batch_size={config.batch_size}"
            )
    found += _whole_rows(run)
    if run.steps == 1 and not config.num_steps:
        found.append(
            f"config.num_epochs={config.num_epochs:g} is a single step, as a batch holds all rows: set a smaller "
            f"config.batch_size than {config.batch_size}, or 0 to have it chosen, or more epochs"
        )
    elif run.steps < LEAST_STEPS:
        few = f"only {amount(run.steps, 'step')}, each of which is a large part of the run"
        if config.num_steps:
            found.append(f"{few}: set config.num_steps={LEAST_STEPS}")
        else:
            epochs = math.ceil(config.num_epochs * LEAST_STEPS / run.steps)
            smaller = max(1, run.rows_per_step * run.steps // LEAST_STEPS) * (
                config.batch_size // run.rows_per_step
            )
            less = f"config.batch_size={smaller} in place of {config.batch_size} or "
            way_out = less if smaller < config.batch_size else ""
            found.append(f"{few}: set {way_out}config.num_epochs={epochs}")
    return found


def _whole_rows(run: Run) -> list[str]:
    """That the context axis splits no row, where their length is no multiple of it."""
    parts, rows, config = shards(run.mesh, "length"), run.train.rows, run.config
    sampling = getattr(config.options, "sampling", None)
    new = 0 if sampling is None else sampling.max_new_tokens
    over = (rows.slots + new) % parts
    if not over:
        return []
    key, better = "data.row_length", rows.slots + parts - over
    if new:
        key, better = (
            f"{config.stage.name}.sampling.max_new_tokens",
            new + (parts if new <= over else 0) - over,
        )
    return [
        f"rows of {rows.slots + new:,} tokens cannot be split over config.mesh.context={parts}, and every device "
        f"computes whole ones: set config.{key}={better}"
    ]


def _mean(run: Run) -> float:
    return run.train.rows.tokens / len(run.train.rows.items)
