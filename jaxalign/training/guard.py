"""What a run does about alarms and about numbers that are not finite: say so, end, or go back and leave batches out."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax

from jaxalign.errors import AlarmError, ConfigError
from jaxalign.streams import say
from jaxalign.training.alarms import Alarms, parse_alarms
from jaxalign.training.checkpoint import Checkpointer
from jaxalign.training.config import Config
from jaxalign.training.state import TrainState
from jaxalign.training.step_files import saved_metas
from jaxalign.training.trainer import Trainer

MOST = 3  # times that a run goes back to one checkpoint


class Guard:
    """Keeps the alarms of a run, and answers them.

    Going back takes the weights and the optimizer of the newest checkpoint among those of every
    config.checkpoint_every-th step before, which the checkpointer keeps, so that a run which was killed and started
    again goes back to the same one. Steps, schedules and data go on: the updates since are left out, as if they had
    been skipped.
    """

    def __init__(self, trainer: Trainer, checkpointer: Checkpointer, before: dict[str, Any]) -> None:
        config = trainer.run.config
        own: str | None = config.alarms
        alarms = parse_alarms(config.stage.alarms if own is None else own)
        self.alarms = Alarms(alarms, before.get("alarms"), asked=own is not None)
        self._back = {int(step): times for step, times in before.get("back", {}).items()}
        self._trainer, self._checkpointer = trainer, checkpointer
        self._config = config
        if self.goes_back:
            checkpointer.planned = config.checkpoint_every * len(trainer.phases)
        self._told: list[str] = []
        self._nonfinite = False

    @property
    def goes_back(self) -> bool:
        """Whether the run may need a checkpoint, the first one at its start."""
        return "rollback" in (self._config.on_alarm, self._config.on_nonfinite)

    @property
    def is_going_back(self) -> bool:
        """Whether `answer` will leave out the updates up to now."""
        return self._nonfinite or bool(self._told and self._config.on_alarm == "rollback")

    def state(self) -> dict[str, Any]:
        """For the meta of a checkpoint."""
        return {"alarms": self.alarms.state(), "back": self._back}

    def look(self, step: int, values: dict[str, float]) -> None:
        """Takes the numbers of a step, or of an evaluation after it; see `Alarms.look`."""
        if self.alarms:
            self._told += self.alarms.look(step, values)

    def nonfinite(self, message: str) -> None:
        """Takes note of an update that was left out, with config.on_nonfinite='rollback'."""
        self._told.append(message)
        self._nonfinite = True

    def answer(self, state: Any, step: int, *, ended: bool = False) -> Any:
        """Does what the config says about all that was found since the last call; returns the state to go on with.

        Args:
          step: the one that `state` is after.
          ended: the last checkpoint is made, so that all that can be done is to say so.

        Raises:
          AlarmError: the config says to stop, or the run has gone back to one checkpoint too often.
        """
        told, back = self._told, self.is_going_back
        self._told, self._nonfinite = [], False
        if ended:
            _say(told, "alarm")
        if ended or not told:
            return state
        if back:
            return self._go_back(told, state, step)
        if self._config.on_alarm == "stop":
            raise AlarmError(
                f"{'; '.join(told)}. The checkpoints are those before; the same command stops here again: go on with "
                "--config.on_alarm=warn, or =rollback to leave out the batches since the last checkpoint"
            )
        _say(told, "alarm")
        return state

    def _go_back(self, told: Sequence[str], state: Any, step: int) -> Any:
        place = self._last_planned(step * len(self._trainer.phases))
        self._back[place] = self._back.get(place, 0) + 1
        since = place // len(self._trainer.phases)
        if self._back[place] > MOST:
            raise AlarmError(
                f"{'; '.join(told)}. The run has gone back to the checkpoint of step {since} {MOST} times; lower "
                "config.optimizer.learning_rate, or look at the data"
            )
        found, _ = self._checkpointer.restore(place, self._trainer.abstract_state)
        _say(told, f"back to step {since}; the updates of steps {since + 1} to {step} are left out")
        return _with_counts(found, state)

    def _last_planned(self, position: int) -> int:
        self._checkpointer.wait()
        steps = list(saved_metas(self._checkpointer.directory))
        # One of this very position has what is to be left out: the run was stopped in the evaluation after it.
        planned = [step for step in steps if step % self._checkpointer.planned == 0 and step < position]
        return max(planned or steps)


def check_guard(config: Config) -> None:
    """Raises ConfigError where a run is to go back and makes no checkpoints."""
    for key in ("on_alarm", "on_nonfinite"):
        if getattr(config, key) == "rollback" and not config.checkpoint_every:
            raise ConfigError(
                f"config.{key}='rollback' goes back to checkpoints: set config.checkpoint_every to the most steps that "
                "you want to lose"
            )


def _with_counts(found: Any, now: Any) -> Any:
    """The state of a checkpoint whose schedules are where they are now."""

    def keep(old: Any, new: Any) -> Any:
        return dataclasses.replace(old, step=new.step) if isinstance(old, TrainState) else old

    return jax.tree.map(keep, found, now, is_leaf=lambda x: isinstance(x, TrainState))


def _say(told: Sequence[str], what: str) -> None:
    if told and jax.process_index() == 0:
        say("\n".join(f"{line}: {what}" for line in told), sys.stderr)
