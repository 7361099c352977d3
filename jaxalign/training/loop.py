"""The one loop: batches, phases, metrics, evaluation, checkpoints, resume."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxalign.data.invalid import DROPPED_FILE, write_dropped
from jaxalign.data.loader import rows_of_epochs
from jaxalign.errors import CheckpointError, ConfigError, amount
from jaxalign.models import count_params
from jaxalign.parallel import processes
from jaxalign.signals import handled, restart_signals
from jaxalign.storage import Path, write_whole
from jaxalign.training.checkpoint import CHECKPOINTS, Checkpointer
from jaxalign.training.open import TEMPLATE, Run, default_settings, describe, flat_settings, settings
from jaxalign.training.progress import Progress
from jaxalign.training.recorder import Recorder
from jaxalign.training.saved_model import MODEL, save_model
from jaxalign.training.trackers import Trackers
from jaxalign.training.trainer import Trainer
from jaxalign.training.watchdog import Watchdog
from jaxalign.training.writer import EVAL, FILE_NAME, MetricWriter, plain_name, read_metrics

SUMMARY = "summary.json"
SETTINGS = "settings.json"  # every setting of the run as it goes on now, by the names of flags

StopAt = Callable[[int, int], bool]  # (step, phase) that has just ended -> stop here?

# Settings with which a run may go on though it began with others, as it may with another config.mesh. Where files lie
# may change: what is in them is compared by fingerprints, but for held-out data, which trains nothing.
CHANGEABLE = tuple(
    f"config.{key}"
    for key in (
        *(
            "log_every",
            "log_samples",
            "trackers",
            "eval_every",
            "checkpoint_every",
            "keep_checkpoints",
            "on_nonfinite",
            "hang_timeout",
        ),
        *("num_steps", "num_epochs", "num_microbatches", "model.attention", "model.remat"),
        "frozen.offload",
        *("model.init_from", "data.train", "data.eval", "data.tokenizer", "data.chat_template"),
        "data.invalid",
    )
)

ASKED = b"\njaxalign: stopping as soon as the state is saved; a second Ctrl-C ends it at once\n"

Probe = Callable[[int, Any], dict[str, float]]  # (step, params) -> metrics


class Stopped(Exception):
    """The run was asked to stop; its state is saved and the same command goes on from there."""


def train(
    trainer: Trainer, *, stop_at: StopAt | None = None, probe: Probe | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Runs a stage to its end, from the latest checkpoint in its folder if there is one.

    Leaves in the run's folder: `checkpoints/`, `metrics.jsonl` and TensorBoard files, `model/` (what other
    stages start from) and `summary.json`.

    Args:
      stop_at: called after every phase; True saves and stops there.
      probe: measures the trained weights at every evaluation; what it returns joins the evaluation's metrics.
      quiet: show nothing.

    Returns:
      The summary: last training metrics, final evaluation, steps, seconds.

    Raises:
      Stopped: by `stop_at`, or by SIGTERM, SIGINT or SIGHUP to any of the processes, once the state is saved.
      NonFiniteError: NaN or infinity in loss or gradient, and config.on_nonfinite is "stop".
      CheckpointError: the latest checkpoint is damaged or belongs to another model, data or reference.
    """
    run = trainer.run
    config = run.config
    run.workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(config.hang_timeout))
        checkpointer = stack.enter_context(
            Checkpointer(run.workdir / CHECKPOINTS, keep=config.keep_checkpoints)
        )
        loader = run.loader()
        state, step, phase, meta = _start(trainer, checkpointer, loader)
        if step > run.steps or (step == run.steps and phase):
            raise ConfigError(
                f"{run.workdir} has done {step} steps, and {_length(run)} are asked for; ask for more, or start in "
                "another --workdir"
            )
        if jax.process_index() == 0:
            text = json.dumps(settings(config), indent=1) + "\n"
            write_whole(run.workdir / SETTINGS, text.encode())
            write_dropped(run.workdir / DROPPED_FILE, run.invalid)
        writer = stack.enter_context(_writer(run))
        writer.truncate_after(step)
        progress = stack.enter_context(
            Progress(
                run.steps,
                config.stage.name,
                shown=trainer.headlines,
                seconds=meta.get("seconds", 0.0),
                mode="silent" if quiet else "auto",
            )
        )
        asked = stack.enter_context(_signals())
        vote = processes.make_vote(run.mesh)
        recorder = Recorder(run, writer, progress, meta.get("metrics", {}), scalar=trainer.scalar)
        began = time.monotonic() - meta.get("seconds", 0.0)
        first = step
        if not quiet and jax.process_index() == 0:
            print(_introduction(trainer, step), flush=True)

        def save() -> None:
            position = step * len(trainer.phases) + phase
            if checkpointer.latest() == position:
                return
            watchdog.at(f"saving step {step}", patient=True)
            meta = describe(run) | {
                "step": step,
                "phase": phase,
                "seconds": time.monotonic() - began,
                "loader": loader.get_state(),
                "fingerprint": trainer.fingerprint,
                "metrics": recorder.metrics(),
            }
            writer.flush()  # a run that goes on from here does not write these lines again
            checkpointer.save(position, state, meta)

        def evaluate() -> dict[str, float]:
            watchdog.at(f"the evaluation after step {step}", patient=True)
            values = trainer.evaluate(state) if run.held_out is not None else {}
            return values | (probe(step, trainer.params(state)) if probe else {})

        def show_evaluation(values: dict[str, float], *, write: bool = True) -> None:
            samples = trainer.samples(state)  # by every process
            if write:
                writer.write(step, values, kind=EVAL)
                writer.write_samples(step, samples)
            progress.evaluation(step, values)

        def stop_here() -> bool:
            wanted = vote(bool(asked))  # by every process, whatever stop_at says
            return wanted or (stop_at is not None and stop_at(step, phase))

        while step < run.steps:
            # The host waits for a step after it has sent the next: two steps pass until all is compiled.
            watchdog.at(f"step {step + 1}", patient=step < first + 2)
            batch = run.put(next(loader)) if phase == 0 else None
            if step == 0 and phase == 0:
                trainer.verify(state, batch)
            recorder.begin(batch)
            while phase < len(trainer.phases):
                name, function = trainer.phases[phase]
                watchdog.at(f"step {step + 1}, {name} phase", patient=step < first + 2)
                state, metrics = function(state, batch)
                recorder.phase(name, metrics, wait=len(trainer.phases) > 1)
                phase += 1
                if phase < len(trainer.phases) and stop_here():
                    recorder.flush(state)
                    save()
                    raise Stopped(f"stopped in step {step + 1}, after its {name} phase; state saved")
            phase, step = 0, step + 1
            recorder.end(step, state)
            if config.eval_every and step % config.eval_every == 0 and step < run.steps:
                recorder.flush(state)
                show_evaluation(evaluate())
                recorder.restart_clock()
            stop = stop_here()
            if stop or (config.checkpoint_every and step % config.checkpoint_every == 0):
                recorder.flush(state)
                save()
                recorder.restart_clock()
            if stop and step < run.steps:
                raise Stopped(f"stopped after step {step}; state saved")
        recorder.flush(state)
        save()
        final = evaluate()
        if final:
            show_evaluation(final, write=jax.process_index() == 0 and not _evaluated(run.workdir, step))
        watchdog.at("writing the model", patient=True)
        _export(trainer, state)
        summary = {
            "stage": config.stage.name,
            "steps": run.steps,
            "seconds": round(time.monotonic() - began, 2),
            "train": recorder.last,
            "eval": {plain_name(name, EVAL): x for name, x in final.items()},
            "eval_sets": [name for name in run.eval_sets if name],
            "data": str(run.train.report),
        }
        if jax.process_index() == 0:
            writer.flush()
            write_whole(run.workdir / SUMMARY, json.dumps(summary, indent=1).encode())
        processes.barrier()  # what is returned to any process is there for all
        if asked and jax.process_count() == 1:  # too late for this run, but more may be meant to follow it
            raise Stopped("stopped after the last step, with the model written")
    return summary


def _writer(run: Run) -> MetricWriter:
    names, trackers = run.config.tracker_names, None
    if names and jax.process_index() == 0:
        trackers = Trackers(names, run.workdir, settings(run.config))
    return MetricWriter(run.workdir, sets=[name for name in run.eval_sets if name], trackers=trackers)


def _introduction(trainer: Trainer, step: int) -> str:
    run = trainer.run
    size = count_params(run.abstract_params(scalar=trainer.scalar))
    devices = " x ".join(f"{axis} {n}" for axis, n in run.mesh.shape.items() if n > 1) or "1 device"
    rows, batch_size = run.train.rows, run.rows_per_step
    lines = [
        f"{run.config.stage.name}: {size:,} parameters on {devices}; data: {run.train.report}; packed into "
        f"{amount(len(rows), 'row')}, {rows.efficiency:.0%} full; "
        f"{run.steps - step:,} of {amount(run.steps, 'step')} to go, {amount(batch_size, 'row')} each, "
        f"{run.epochs:.3g} epochs in all"
    ]
    if run.epochs_to_fill and (left := rows_of_epochs(rows, run.epochs_to_fill) % batch_size):
        lines.append(f"the last batch holds {amount(left, 'row')} and {batch_size - left} empty ones")
    if run.invalid:
        lines.append(
            f"{amount(len(run.invalid), 'row')} left out as invalid: see {run.workdir / DROPPED_FILE}"
        )
    packed = run.config.data.packing and rows.kind != "prompt"
    if packed and rows.efficiency < 0.8 and rows.crowded > 0.5:
        lines.append(
            f"{rows.crowded:.0%} of the rows take no more sequences, though they have room: raise "
            f"config.data.max_segments={rows.max_segments}"
        )
    return "\n".join(lines)


def _length(run: Run) -> str:
    config = run.config
    if config.num_steps:
        return f"config.num_steps={config.num_steps}"
    return f"config.num_epochs={config.num_epochs}, {run.steps} steps,"


def finished(workdir: Path) -> dict[str, Any] | None:
    """The summary of a run that has ended, or None: also where an earlier version was cut off while writing it."""
    path = workdir / SUMMARY
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except ValueError:
        return None


def _evaluated(workdir: Path, step: int) -> bool:
    # A run that was stopped between its last evaluation and its end has this line already.
    if not (workdir / FILE_NAME).is_file():
        return False
    return any(line["step"] == step and line["kind"] == EVAL for line in read_metrics(workdir))


def _start(trainer: Trainer, checkpointer: Checkpointer, loader: Any) -> tuple[Any, int, int, dict[str, Any]]:
    run = trainer.run
    latest = checkpointer.latest()
    if latest is None:
        return trainer.init(), 0, 0, {}
    state, meta = checkpointer.restore(latest, trainer.abstract_state)
    now = describe(run) | {"fingerprint": trainer.fingerprint}
    for key, what in {
        "data_fingerprint": "the training data or its tokenisation",
        "fingerprint": "a frozen model (reference or reward)",
    }.items():
        if meta[key] != now[key]:
            raise CheckpointError(
                f"{run.workdir}: {what} is not what this run began with, so it cannot go on as it would have; "
                f"restore it, or start in another --workdir"
            )
    _check_changes(trainer, meta["config"])
    loader.set_state(meta["loader"])
    return state, meta["step"], meta["phase"], meta


def _check_changes(trainer: Trainer, before: dict[str, Any]) -> None:
    """Says what a resumed run has set otherwise than it began with; refuses what would make it another run."""
    run = trainer.run
    workdir, new = run.workdir, settings(run.config)
    own = tuple(f"config.{run.config.stage.name}.{key}" for key in trainer.changeable)
    # A key that came with a later version of jaxalign was at its default; one that went says nothing any more.
    old = default_settings(run.config) | flat_settings(before)
    changes = {key: (old[key], value) for key, value in new.items() if old[key] != value}
    for key, (was, value) in changes.items():
        if key not in CHANGEABLE + own and not key.startswith("config.mesh."):
            raise CheckpointError(
                f"{workdir}: began with {key}={was!r}, and now has {value!r}; go on with the former, or start in "
                "another --workdir"
            )
        if jax.process_index() == 0:
            print(f"{workdir}: goes on with {key}={value!r} instead of {was!r}", file=sys.stderr)


def _export(trainer: Trainer, state: Any) -> None:
    run = trainer.run
    save_model(
        run.workdir / MODEL,
        trainer.params(state),
        run.model,
        run.tokenizer,
        scalar=trainer.scalar,
        meta=describe(run),
    )
    data, template = run.config.data, run.tokenizer.template
    given = data.chat_template or data.template_args or data.answer_tokens
    if given and template is not None and jax.process_index() == 0:
        write_whole(run.workdir / MODEL / TEMPLATE, template.saved().encode())


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills when the process is asked to end. A second Ctrl-C ends it at once."""
    asked: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        if len(asked) == 1:  # past Python's buffers, which may be half full; and nobody may be there to read
            with contextlib.suppress(OSError):
                os.write(2, ASKED)

    with handled([*restart_signals(), signal.SIGINT], handle):
        yield asked
