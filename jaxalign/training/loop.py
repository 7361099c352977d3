"""The one loop: batches, phases, metrics, evaluation, checkpoints, resume."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from jaxalign.data.invalid import DROPPED_FILE, write_dropped
from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.parallel import processes
from jaxalign.signals import handled, restart_signals
from jaxalign.storage import Path, write_whole
from jaxalign.streams import say
from jaxalign.training.checkpoint import Checkpointer, load_params
from jaxalign.training.debug import name_first_nan, nans_are_errors
from jaxalign.training.guard import Guard, check_guard
from jaxalign.training.introduction import introduce
from jaxalign.training.open import Run, describe, settings
from jaxalign.training.profile import Profiler, Steps
from jaxalign.training.progress import Progress
from jaxalign.training.recipe import SETTINGS
from jaxalign.training.recorder import EVALUATE_TIME, Recorder
from jaxalign.training.resume import begin
from jaxalign.training.saved_model import save_model, save_tokenizer
from jaxalign.training.selection import Selection
from jaxalign.training.step_files import CHECKPOINTS
from jaxalign.training.trackers import Trackers
from jaxalign.training.trainer import Trainer
from jaxalign.training.watchdog import Watchdog
from jaxalign.training.workdir import MODEL, SUMMARY, TOKENIZER, finished
from jaxalign.training.writer import EVAL, FILE_NAME, MetricWriter, plain_name, read_metrics

StopAt = Callable[[int, int], bool]  # (step, phase) that has just ended -> stop here?

ASKED = "\njaxalign: stopping as soon as the state is saved{by}; {more} Ctrl-C ends it at once\n"

Probe = Callable[[int, Any], dict[str, float]]  # (step, params) -> metrics


class Stopped(Exception):
    """The run was asked to stop; its state is saved, and the same command goes on, unless the run is `finished`."""

    def __init__(self, message: str, *, finished: bool = False) -> None:
        super().__init__(message)
        self.finished = finished


def train(
    trainer: Trainer,
    *,
    stop_at: StopAt | None = None,
    probe: Probe | None = None,
    profile: Steps | None = None,
    debug_nans: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Runs a stage to its end, from the latest checkpoint in its folder if there is one.

    Leaves in the run's folder: `checkpoints/`, `metrics.jsonl` and TensorBoard files, `model/` (what other
    stages start from) and `summary.json`.

    With config.async_save a thread writes the checkpoints while training goes on. An evaluation, the model and every
    end wait until it is done.

    Args:
      stop_at: called after every phase; True saves and stops there.
      probe: measures the trained weights at every evaluation; what it returns joins the evaluation's metrics.
      profile: the steps to trace, into `profile/`.
      debug_nans: look at the results of every phase, and name the first operation that gives a NaN; slow.
      quiet: show nothing.

    Returns:
      The summary: last training metrics, the evaluation of what is in `model/`, steps, seconds; with
      config.best.metric the best step and its value.

    Raises:
      Stopped: by `stop_at`, or by SIGTERM, SIGINT or SIGHUP to any of the processes, once the state is saved.
      NonFiniteError: NaN or infinity in loss or gradient, and config.on_nonfinite is "stop".
      AlarmError: see `training.guard`.
      CheckpointError: the latest checkpoint is damaged or belongs to another model, data or reference; or one
        could not be written.
      ConfigError: `profile` is not within the steps to be done.
    """
    run = trainer.run
    config = run.config
    run.workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(config.hang_timeout))
        phases = len(trainer.phases)
        checkpointer = stack.enter_context(
            Checkpointer(
                run.workdir / CHECKPOINTS,
                keep=config.keep_checkpoints,
                keep_every=config.keep_every * phases,
                async_save=config.async_save,
            )
        )
        loader = run.loader()
        selection = Selection(config.best, "" if run.held_out is None else run.held_out.fingerprint)
        _check_evaluations(run, probe)
        check_guard(config)
        stack.enter_context(nans_are_errors(debug_nans))
        state, step, phase, meta = begin(trainer, checkpointer, loader)
        if "selection" in meta:
            selection.restore(meta["selection"])
            checkpointer.best = selection.position
            if selection.on_other_data(meta["selection"]) and jax.process_index() == 0:
                say(
                    f"{run.workdir}: the held-out data are not those of before; evaluations before and after are not "
                    "to be compared, and the best one is sought anew",
                    sys.stderr,
                )
        if step > run.steps or (step == run.steps and phase):
            raise ConfigError(
                f"{run.workdir} has done {step} steps, and {_length(run)} are asked for; ask for more, or start in "
                "another --workdir"
            )
        if profile is not None:
            profile.check(step, run.steps)
        if jax.process_index() == 0:
            text = json.dumps(settings(config), indent=1) + "\n"
            write_whole(run.workdir / SETTINGS, text.encode())
            write_dropped(run.workdir / DROPPED_FILE, run.invalid)
            save_tokenizer(run.workdir / TOKENIZER, run.tokenizer, own_template=run.own_template)
        writer = stack.enter_context(_writer(run))
        writer.truncate_after(step, meta.get("writer"))
        progress = stack.enter_context(
            Progress(
                run.steps,
                config.stage.name,
                shown=trainer.headlines,
                seconds=meta.get("seconds", 0.0),
                mode="silent" if quiet else "auto",
            )
        )
        profiler = stack.enter_context(Profiler(profile, run.workdir))
        asked = stack.enter_context(_signals())
        vote = processes.make_vote(run.mesh)
        guard = Guard(trainer, checkpointer, meta.get("guard", {}))
        recorder = Recorder(run, writer, progress, guard, meta.get("metrics", {}))
        began = time.monotonic() - meta.get("seconds", 0.0)
        first = step
        call = name_first_nan if debug_nans else _call
        if not quiet and jax.process_index() == 0:
            say("\n".join(introduce(run, step, scalar=trainer.scalar)))

        def save(*, anew: bool = False) -> None:
            position = step * phases + phase
            if checkpointer.newest == position and not anew:
                return
            if checkpointer.newest == position:
                checkpointer.remove(position)
            watchdog.at(f"saving step {step}", patient=True)
            writer.flush()  # a run that goes on from here does not write these lines again
            meta = describe(run) | {
                "step": step,
                "phase": phase,
                "seconds": time.monotonic() - began,
                "loader": loader.get_state(),
                "fingerprint": trainer.fingerprint,
                "metrics": recorder.metrics(),
                "selection": selection.state(),
                "guard": guard.state(),
                "writer": writer.state(),
            }
            with recorder.saving(), jax.profiler.TraceAnnotation("checkpoint"):
                checkpointer.save(position, state, meta)

        def finish_saving() -> None:
            watchdog.at(f"writing the checkpoint of step {step}", patient=True)
            checkpointer.wait()

        def settle() -> None:
            """Logs the step that is under way, and answers what it raises."""
            recorder.flush(state)
            heed()

        def heed() -> None:
            nonlocal state
            before = state
            state = guard.answer(state, step)
            if state is not before:  # a run that is killed now would else find other numbers when it goes on
                save(anew=True)

        def stop(where: str) -> NoReturn:
            settle()
            save()
            finish_saving()
            raise Stopped(f"stopped {where}; state saved")

        def go_on() -> bool:
            watchdog.at(f"the evaluation after step {step}", patient=True)
            if vote(bool(asked)):
                stop(f"in the evaluation after step {step}")
            return True

        def evaluate() -> dict[str, float]:
            finish_saving()
            watchdog.at(f"the evaluation after step {step}", patient=True)
            evaluation_began = time.monotonic()
            with jax.profiler.TraceAnnotation("evaluation"):
                values = trainer.evaluate(state, go_on) if run.held_out is not None else {}
                values |= probe(step, trainer.params(state)) if probe else {}
                samples = trainer.samples(state)  # by every process
            # Once for each step, whatever was stopped or killed since.
            if values and (step > first or not _evaluated(run.workdir, step)):
                took = {EVALUATE_TIME: time.monotonic() - evaluation_began}
                writer.write_samples(step, samples)
                writer.write(step, values | took, kind=EVAL)  # last: it stands for both
            if values:
                progress.evaluation(step, values)
                guard.look(step, values)
            # After the line: a run that goes on from what is saved here does not evaluate again.
            left_out = step < run.steps and guard.is_going_back
            better = selection.take(step, step * phases, values, left_out=left_out)
            if step < run.steps:
                heed()
            else:
                guard.answer(state, step, ended=True)
            if better:
                checkpointer.best = selection.position
                save()
            return values

        def evaluation_due() -> bool:
            every = config.eval_every
            due = step % every == 0 if step and every else not step and config.eval_at_start
            return due and phase == 0 and step < run.steps and selection.evaluated != step

        def evaluate_on_the_way() -> None:
            settle()
            evaluate()
            recorder.restart_clock()

        def stop_here() -> bool:
            wanted = vote(bool(asked))  # by every process, whatever stop_at says
            return wanted or (stop_at is not None and stop_at(step, phase))

        if guard.goes_back and checkpointer.newest is None:
            save()
        if evaluation_due():  # at the start; or the run stopped in an evaluation
            evaluate_on_the_way()
        elif config.best.metric and selection.best is None and not probe:
            # A name that is wrong is told now, not after hours: one batch says what there is.
            config.best.pick(trainer.evaluate(state, iter((True, False)).__next__))
        while step < run.steps and not selection.exhausted:
            checkpointer.check()
            if profiler.begins(step + 1):
                settle()
                profiler.start(state)
                recorder.restart_clock()
            # The host waits for a step after it has sent the next: two steps pass until all is compiled.
            watchdog.at(f"step {step + 1}", patient=step < first + 2)
            with jax.profiler.StepTraceAnnotation("step", step_num=step + 1):
                recorder.begin()
                batch = None
                if phase == 0:
                    with jax.profiler.TraceAnnotation("data"):
                        batch = run.put(next(loader))
                    recorder.batch(batch)
                    if step == 0:
                        trainer.verify(state, batch)
                while phase < phases:
                    name, function = trainer.phases[phase]
                    watchdog.at(f"step {step + 1}, {name} phase", patient=step < first + 2)
                    with jax.profiler.TraceAnnotation(name):
                        state, metrics = call(function, state, batch)
                        recorder.phase(name, metrics, wait=phases > 1)
                    phase += 1
                    if phase < phases and stop_here():
                        stop(f"in step {step + 1}, after its {name} phase")
                phase, step = 0, step + 1
                recorder.end(step, state)
            # What is found of a step then leaves out no other one, and a stop changes nothing of that.
            if guard.goes_back:
                settle()
            else:
                heed()
            if profiler.ends(step):
                settle()
                profiler.stop(state)
                recorder.restart_clock()
            if evaluation_due():
                evaluate_on_the_way()
            asked_to_stop = stop_here()
            if asked_to_stop and step < run.steps:
                stop(f"after step {step}")
            if asked_to_stop or _checkpoint_due(config, step):
                settle()
                save()
                recorder.restart_clock()
        settle()
        save()
        # A run that has just ended for want of a better evaluation has made its last one.
        final = selection.last if selection.evaluated == step and selection.last is not None else evaluate()
        if selection.exhausted and step < run.steps:
            _tell_early_end(run, selection, step)
        finish_saving()  # the best one may have been the last
        watchdog.at("writing the model", patient=True)
        best = selection.best if config.best.export else None
        _export(trainer, trainer.params(state) if best is None else _load_best(trainer, best["position"]))
        # A finished run that is started again has taken no longer for that.
        summary = {
            "stage": config.stage.name,
            "steps": step,
            "seconds": _finished_in(run, step) or round(time.monotonic() - began, 2),
            "train": recorder.last,
            "eval": {
                plain_name(name, EVAL): x for name, x in (final if best is None else best["values"]).items()
            },
            "eval_sets": [name for name in run.eval_sets if name],
            "data": str(run.train.report),
        } | selection.summary()
        if jax.process_index() == 0:
            writer.flush()
            write_whole(run.workdir / SUMMARY, json.dumps(summary, indent=1).encode())
        processes.barrier()  # what is returned to any process is there for all
        if asked and jax.process_count() == 1:  # too late for this run, but more may be meant to follow it
            raise Stopped("stopped after the last step, with the model written", finished=True)
    return summary


def _call(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


def _writer(run: Run) -> MetricWriter:
    names, trackers = run.config.tracker_names, None
    if names and jax.process_index() == 0:
        trackers = Trackers(names, run.workdir, settings(run.config))
    return MetricWriter(run.workdir, sets=[name for name in run.eval_sets if name], trackers=trackers)


def _check_evaluations(run: Run, probe: Probe | None) -> None:
    """Raises ConfigError where evaluations are counted on and there is nothing to evaluate on."""
    config = run.config
    if run.held_out is not None or probe:
        return
    if config.best.metric or config.eval_at_start:
        key = f"best.metric={config.best.metric!r}" if config.best.metric else "eval_at_start=True"
        raise ConfigError(f"config.{key} needs held-out data: name them in config.data.eval")


def _checkpoint_due(config: Any, step: int) -> bool:
    return any(every and step % every == 0 for every in (config.checkpoint_every, config.keep_every))


def _tell_early_end(run: Run, selection: Selection, step: int) -> None:
    best = selection.best
    if jax.process_index() == 0:
        found = f"{best['value']:.6g} after step {best['step']}" if best else "a number at all"
        print(
            f"{run.workdir}: ends after step {step} of {run.steps}: in {selection.waited} evaluations "
            f"{selection.config.metric} was not better than {found}; with a larger config.best.patience the same "
            "command goes on",
            file=sys.stderr,
        )


def _load_best(trainer: Trainer, position: int) -> Any:
    run = trainer.run
    try:
        return load_params(
            run.workdir / CHECKPOINTS / str(position),
            run.abstract_params(scalar=trainer.scalar),
            where=run.config.stage.weights(run.config.options),
        )
    except CheckpointError as error:
        raise CheckpointError(
            f"{getattr(error, 'fault', error)}. It is the best checkpoint, which config.best.export=True exports: put "
            "it back from a copy, or go on with --config.best.export=False to export the last one"
        ) from error


def _length(run: Run) -> str:
    config = run.config
    if config.num_steps:
        return f"config.num_steps={config.num_steps}"
    return f"config.num_epochs={config.num_epochs}, {run.steps} steps,"


def _finished_in(run: Run, step: int) -> float | None:
    """The seconds that a run took which had ended with this step before; None: it had not."""
    before = finished(run.workdir) or {}
    return before.get("seconds") if before.get("steps") == step else None


def _evaluated(workdir: Path, step: int) -> bool:
    # A run that was stopped between its last evaluation and its end has this line already.
    if not (workdir / FILE_NAME).is_file():
        return False
    return any(line["step"] == step and line["kind"] == EVAL for line in read_metrics(workdir))


def _export(trainer: Trainer, params: Any) -> None:
    run = trainer.run
    save_model(
        run.workdir / MODEL,
        params,
        run.model,
        run.tokenizer,
        scalar=trainer.scalar,
        meta=describe(run),
        own_template=run.own_template,
    )


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
                by = "" if number == signal.SIGINT else f", as {signal.Signals(number).name} asks"
                os.write(2, ASKED.format(by=by, more="a second" if not by else "a").encode())

    with handled([*restart_signals(), signal.SIGINT], handle):
        yield asked
