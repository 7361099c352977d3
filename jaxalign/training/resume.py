"""How a run begins: afresh, from its own latest checkpoint, or with the state of another run."""

import sys
from typing import Any

import jax
import numpy as np

from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.storage import to_path
from jaxalign.training.checkpoint import Checkpointer, load_state
from jaxalign.training.open import (
    Run,
    count_updates,
    default_settings,
    describe,
    flat_settings,
    settings,
)
from jaxalign.training.optimizer import make_schedule
from jaxalign.training.saved_model import find_model
from jaxalign.training.state import restart_counts
from jaxalign.training.step_files import CHECKPOINTS
from jaxalign.training.trainer import Trainer
from jaxalign.training.workdir import LATEST, SUMMARY, finished

# Settings with which a run may go on though it began with others, as it may with another config.mesh. Where files lie
# may change: what is in them is compared by fingerprints, but for held-out data, which trains nothing.
CHANGEABLE = tuple(
    f"config.{key}"
    for key in (
        *("log_every", "log_samples", "trackers", "on_nonfinite", "alarms", "on_alarm", "hang_timeout"),
        *("checkpoint_every", "keep_checkpoints", "keep_every", "async_save"),
        *("eval_every", "eval_at_start", "eval_batch_size"),
        *("best.metric", "best.mode", "best.patience", "best.export"),
        *("num_steps", "num_epochs", "num_microbatches", "model.attention", "model.remat"),
        "model.attention_block",
        "frozen.offload",
        *("model.init_from", "data.train", "data.eval", "data.tokenizer", "data.chat_template"),
        *("data.invalid", "data.store"),
    )
)


def begin(trainer: Trainer, checkpointer: Checkpointer, loader: Any) -> tuple[Any, int, int, dict[str, Any]]:
    """The state that a run begins with, the step and the phase, and the meta of its checkpoint; sets the loader.

    Where the latest checkpoint is damaged, the run goes on from the one before.

    Raises:
      CheckpointError: every checkpoint is damaged, or gone though the run has ended, or it belongs to another run than
        this one would be.
    """
    run = trainer.run
    latest = checkpointer.newest_whole()
    if latest is None and finished(run.workdir):
        raise CheckpointError(
            f"{run.workdir}: that run has ended, and its checkpoints are gone: it would begin anew, over its history "
            f"and its model; start in another --workdir, or delete {SUMMARY} there"
        )
    if latest is None:
        return _take_over(trainer) if run.config.resume_from else trainer.init(), 0, 0, {}
    state, meta = checkpointer.restore(latest, trainer.abstract_state, verified=True)
    # A key explains more than the fingerprint that it changed.
    changes = _check_changes(trainer, meta["config"])
    now = describe(run) | {"fingerprint": trainer.fingerprint}
    for key, what in {
        "data_fingerprint": "the training data or its tokenisation",
        "fingerprint": "a frozen model (reference or reward), or what gives the rewards,",
    }.items():
        if meta[key] != now[key]:
            raise CheckpointError(
                f"{run.workdir}: {what} is not what this run began with, so it cannot go on as it would have; "
                f"restore it, or start in another --workdir"
            )
    if jax.process_index() == 0:
        for key, (was, value) in changes.items():
            print(f"{run.workdir}: goes on with {key}={value!r} instead of {was!r}", file=sys.stderr)
    _tell_other_rates(run, meta)
    loader.set_state(meta["loader"])
    return state, meta["step"], meta["phase"], meta


def _take_over(trainer: Trainer) -> Any:
    """The state of config.resume_from, at step 0: schedules and data begin anew."""
    run, key, place = trainer.run, "config.resume_from", trainer.run.config.resume_from
    name = f"{key}={place!r}"
    # The result of a run has no optimizer, but its last checkpoint has.
    found = find_model(f"{place}@{LATEST}" if (to_path(place) / CHECKPOINTS).is_dir() else place, key)
    if "phase" not in found.meta:
        raise CheckpointError(
            f"{name}: a model alone, without the state of its optimizer; name a checkpoint, such as RUN@latest, or "
            "begin with the weights by config.model.init_from"
        )
    stage = found.meta["config"]["stage"]
    if stage != run.config.stage.name:
        raise ConfigError(
            f"{name}: a state of the stage {stage}, and this is {run.config.stage.name}; config.model.init_from takes "
            "its weights alone"
        )
    try:
        state = load_state(found.place, trainer.abstract_state, fresh=trainer.fresh)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    if jax.process_index() == 0:
        print(
            f"{run.workdir}: begins with the weights and the optimizer of {found.place}, after step "
            f"{found.meta['step']}; steps, learning rates and data begin anew",
            file=sys.stderr,
        )
    return restart_counts(state)


def _tell_other_rates(run: Run, meta: dict[str, Any]) -> None:
    """Says what the learning rate does where a run goes on with another length than it was made for."""
    config, before = run.config, meta["steps"]
    done = count_updates(config, meta["step"])
    if before == run.steps or not done or jax.process_index() != 0:
        return
    former = make_schedule(config.optimizer, count_updates(config, before))
    last, unchanged, new = (
        float(np.asarray(x)) for x in (former(done - 1), former(done), run.schedule(done))
    )
    if abs(new - unchanged) > 1e-6 * max(new, unchanged):
        print(
            f"{run.workdir}: was begun for {before} steps and has {run.steps} now, over which the schedule "
            f"{config.optimizer.schedule!r} is laid anew: the learning rate, {last:.3g} in step {meta['step']}, is "
            f"{new:.3g} in the next one, where it would have been {unchanged:.3g}",
            file=sys.stderr,
        )


def _check_changes(trainer: Trainer, before: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What a resumed run has set otherwise than it began with; refuses what would make it another run."""
    run = trainer.run
    own = tuple(f"config.{run.config.stage.name}.{key}" for key in trainer.changeable)
    # A key that came with a later version of jaxalign was at its default; one that went says nothing any more.
    old, new = default_settings(run.config) | flat_settings(before), settings(run.config)
    changes = {key: (old[key], value) for key, value in new.items() if old[key] != value}
    for key, (was, value) in changes.items():
        if key not in CHANGEABLE + own and not key.startswith("config.mesh."):
            raise CheckpointError(
                f"{run.workdir}: began with {key}={was!r}, and now has {value!r}; go on with the former, or start in "
                f"another --workdir, with --config.resume_from={run.workdir} to begin with the state of this one"
            )
    return changes
