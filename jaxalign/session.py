"""A training loop of one's own, in calls: gradients are accumulated and applied, and the model is sampled from.

session = jaxalign.Session("sft", optimizer=jaxalign.OptimizerConfig(learning_rate=1e-4))
samples = session.sample("Who asks?", 16)
session.forward_backward([s.datum(advantage(s.text)) for s in samples], "importance_sampling")
session.optim_step()

The calls have the names and meanings of the Tinker API (https://tinker-docs.thinkingmachines.ai).
"""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxalign import parallel
from jaxalign.errors import CheckpointError, ConfigError, NonFiniteError, SessionError
from jaxalign.library import Model, Prompt, Sample, load
from jaxalign.losses.metrics import Metrics, finalize
from jaxalign.models import Params
from jaxalign.objectives import Loss, prepare
from jaxalign.sampling.generate import SamplingConfig
from jaxalign.sections import freeze
from jaxalign.storage import to_path
from jaxalign.training.checkpoint import Checkpointer
from jaxalign.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from jaxalign.training.saved_model import fingerprint
from jaxalign.training.state import TrainState, apply_gradients, gradients, init_train_state

ENDLESS = 2**31 - 1  # updates


@dataclasses.dataclass(frozen=True)
class Forward:
    """What a loss says of data."""

    loss: float
    metrics: dict[str, float]
    # Of token-level data: the log-probability of every token of each datum, 0 for the first one. Else empty.
    logprobs: list[np.ndarray]


class Session:
    """A model, its optimizer and the gradients that wait for an update, on the devices of the model.

    After a call of `forward_backward` or `optim_step` that raised, the accumulated gradients are gone, and `optim_step`
    refuses until `forward_backward` has accumulated anew or `load_state` went back. Parameters and optimizer are then
    as before the call that failed.
    """

    def __init__(
        self,
        model: Model | str | os.PathLike,
        *,
        optimizer: OptimizerConfig | None = None,
        num_steps: int = 0,
        seed: int = 0,
    ) -> None:
        """Begins at a model, which is also the reference of stages that have one.

        Args:
          model: as `load` returns it, or what `load` takes.
          num_steps: updates in all, for the schedule of `optimizer`; 0: the rate stays at its peak after the warm-up.
          seed: of what is sampled.

        Raises:
          ConfigError: `optimizer` has a warm-up that is a part of all updates, and num_steps is 0; or the model is
            computed in float16.
        """
        optimizer = optimizer or OptimizerConfig()
        if not num_steps and optimizer.warmup:
            raise ConfigError(
                f"config.optimizer.warmup={optimizer.warmup} is a part of all updates; set num_steps too"
            )
        self._start = model if isinstance(model, Model) else load(model)
        if self._start.config.dtype == "float16":  # as config.model.dtype
            raise ConfigError(
                "dtype='float16' cannot train: what is small of a gradient is below what it can hold, and becomes 0; "
                "load the model with dtype='bfloat16' or 'float32'"
            )
        self._optimizer = optimizer
        constant = optimizer if num_steps else dataclasses.replace(optimizer, schedule="constant")
        # Without a rate of its own, each optim_step is given one.
        rated = optimizer.learning_rate > 0
        self._schedule = make_schedule(constant, num_steps or ENDLESS) if rated else None
        self._key = jax.random.key(seed)
        self._others: dict[str, Model] = {}
        self._clear()
        with parallel.use_mesh(self._start.mesh):
            self._state = init_train_state(self._start.params, _optimizer(optimizer, 1.0))

    @property
    def model(self) -> Model:
        """The model as it is now; later updates do not change it."""
        return dataclasses.replace(self._start, params=self._state.params)

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self._state.step)

    def forward(
        self,
        data: Sequence[Mapping[str, Any]],
        loss_fn: Loss,
        loss_fn_config: Mapping[str, Any] | None = None,
    ) -> Forward:
        """Loss and metrics of data, without a gradient; arguments as for `forward_backward`."""
        with parallel.use_mesh(self._start.mesh):
            asked = prepare(self._start, self._others, data, loss_fn, loss_fn_config or {})
            value, aux = _forward(self._state.params, asked.batch, asked.frozen, objective=asked.objective)
            metrics, logp = aux
            return _report(value, metrics, logp, asked.lengths)

    def forward_backward(
        self,
        data: Sequence[Mapping[str, Any]],
        loss_fn: Loss,
        loss_fn_config: Mapping[str, Any] | None = None,
    ) -> Forward:
        """Adds the gradient of a loss of data to those that wait for `optim_step`.

        Args:
          data: rows, as those of a JSONL file, for a stage; or token-level data, see `jaxalign.tokens`.
          loss_fn: a stage or its name ("sft", "dpo"), whose loss is the mean over these data; "cross_entropy",
            "importance_sampling" or "ppo", which are sums over tokens; or a function (scores, batch) ->
            (loss, metrics) of token-level data. Define such a function once: it is compiled once for each object.
          loss_fn_config: options of the stage (`{"beta": 0.2}`), or those of the named loss.

        Raises:
          DataError: a row cannot be used. ConfigError: no such loss or option, or one that is not for these data.
        """
        with self._clearing("forward_backward"):
            asked = prepare(self._start, self._others, data, loss_fn, loss_fn_config or {})
            params, waiting = self._state.params, self._waiting
            if waiting is None:
                waiting = _nothing(params)
            waiting, value, aux = _accumulate(
                params, waiting, asked.batch, asked.frozen, objective=asked.objective
            )
            metrics, logp = aux
            report = _report(value, metrics, logp, asked.lengths)
            self._waiting, self._failure = waiting, ""
            return report

    def optim_step(self, learning_rate: float | None = None) -> dict[str, float]:
        """Applies the accumulated gradients in one update, clears them, and returns loss, grad_norm and learning_rate.

        Args:
          learning_rate: of this update; None: as the optimizer's settings say.

        Raises:
          SessionError: nothing was accumulated, or the last call failed.
          NonFiniteError: the loss or the gradient is not finite; nothing was changed.
        """
        if self._failure:
            raise SessionError(
                f"{self._failure}; call forward_backward anew, or load_state, before optim_step"
            )
        if self._waiting is None:
            raise SessionError("no gradient has been accumulated; call forward_backward before optim_step")
        if learning_rate is None and self._schedule is None:
            raise ConfigError(
                "learning_rate is not given: name one here, or let the session begin with "
                "OptimizerConfig(learning_rate=...)"
            )
        scheduled = self._schedule(self._state.step) if self._schedule else 0.0
        rate = float(jnp.asarray(scheduled)) if learning_rate is None else learning_rate
        if isinstance(rate, str) or not (rate >= 0 and math.isfinite(rate)):
            raise ConfigError(f"learning_rate={learning_rate!r}: give a number of 0 or more")
        with self._clearing("optim_step"):
            state, metrics = _apply(self._state, self._waiting, rate, config=self._optimizer)
            values = {name: float(x) for name, x in finalize(metrics).items()}
            if values.pop("skipped_steps"):
                raise NonFiniteError(
                    f"the accumulated loss is {values['loss']} and the norm of its gradient {values['grad_norm']}; "
                    "look for a learning rate that is too high, or for a log or a division in the loss"
                )
            self._state, self._waiting = state, None
            return values | {"learning_rate": rate}

    def sample(
        self,
        prompt: Prompt | Sequence[Prompt],
        num_samples: int = 1,
        sampling_params: SamplingConfig | Mapping[str, Any] | None = None,
        *,
        seed: int | None = None,
    ) -> list[Sample] | list[list[Sample]]:
        """Samples completions of a prompt from the model as it is now; of several prompts, a list for each.

        Args:
          sampling_params: a SamplingConfig, or its fields, such as {"max_new_tokens": 32, "temperature": 0.7}.
          seed: gives the same samples again; None: every call gives others.
        """
        if isinstance(sampling_params, SamplingConfig):
            sampling = sampling_params
        else:
            sampling = freeze(SamplingConfig, ConfigDict(dict(sampling_params or {})), "sampling_params")
        if seed is None:
            following, key = jax.random.split(self._key)
        else:
            following, key = self._key, jax.random.key(seed)
        found = self.model.sample(prompt, n=num_samples, key=key, sampling=sampling)
        self._key = following
        return found

    def save_weights(self, path: str | os.PathLike, *, format: str = "jaxalign") -> None:
        """Writes the model into a new folder; see `Model.save`."""
        self.model.save(path, format=format)

    def save_state(self, path: str | os.PathLike) -> None:
        """Writes parameters, optimizer, accumulated gradients and the sampling key into a new folder.

        A session that loads it goes on bit for bit.

        Raises:
          CheckpointError: the folder is not empty.
        """
        folder = to_path(path)
        if folder.exists() and any(folder.iterdir()):
            raise CheckpointError(f"{path} is not empty; save into a new folder")
        meta = {"waiting": self._waiting is not None, "start": fingerprint(self._start.params)}
        with Checkpointer(folder, keep=1) as checkpointer:
            checkpointer.save(self.step, self._arrays(self._waiting), meta)

    def load_state(self, path: str | os.PathLike) -> None:
        """Goes back to what `save_state` wrote, in a session that began at the same model with the same optimizer.

        Raises:
          CheckpointError: nothing is there, or it belongs to another model or optimizer.
        """
        if not to_path(path).is_dir():
            raise CheckpointError(f"{path} does not exist; give a folder that save_state wrote")
        with parallel.use_mesh(self._start.mesh), Checkpointer(path, keep=1) as checkpointer:
            if checkpointer.latest() is None:
                raise CheckpointError(f"{path} holds no state; give a folder that save_state wrote")
            meta = checkpointer.load_meta()
            if meta.get("start") != fingerprint(self._start.params):
                raise CheckpointError(
                    f"{path} was saved by a session that began at another model; begin at that one"
                )
            arrays = self._arrays(_nothing(self._start.params) if meta["waiting"] else None)
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arrays
            )
            found, _ = checkpointer.restore(None, abstract)
        self._clear()
        self._state, self._key, self._waiting = found["state"], found["key"], found.get("waiting")

    def _arrays(self, waiting: Any) -> dict[str, Any]:
        return {"state": self._state, "key": self._key} | ({} if waiting is None else {"waiting": waiting})

    def _clear(self, failure: str = "") -> None:
        self._waiting: tuple[jax.Array, Params] | None = None  # the sums of losses and of gradients
        self._failure = failure

    @contextlib.contextmanager
    def _clearing(self, call: str) -> Iterator[None]:
        try:
            with parallel.use_mesh(self._start.mesh):
                yield
        except BaseException as error:
            self._clear(
                f"{call} failed ({type(error).__name__}: {error}), and the accumulated gradients are gone"
            )
            raise


def _report(value: jax.Array, metrics: Metrics, logp: jax.Array | None, lengths: list[int]) -> Forward:
    rows = [] if logp is None else np.asarray(logp)
    numbers = {name: float(x) for name, x in finalize(metrics).items()}
    return Forward(float(value), numbers, [row[:n] for row, n in zip(rows, lengths, strict=True)])


@functools.partial(jax.jit, static_argnames="objective")
def _forward(params: Params, batch: Any, frozen: dict[str, Params], *, objective: Callable) -> tuple:
    return objective(params, batch, frozen)


@functools.partial(jax.jit, static_argnames="objective", donate_argnames="waiting")
def _accumulate(
    params: Params, waiting: Any, batch: Any, frozen: dict[str, Params], *, objective: Callable
) -> tuple:
    value, aux, grads = gradients(lambda p, b: objective(p, b, frozen), params, batch)
    grads = jax.tree.map(lambda x: x.astype(jnp.float32), grads)
    return jax.tree.map(jnp.add, waiting, (value, grads)), value, aux


@functools.partial(jax.jit, static_argnames="config", donate_argnames="waiting")
def _apply(
    state: TrainState, waiting: Any, rate: float, *, config: OptimizerConfig
) -> tuple[TrainState, Metrics]:
    value, grads = waiting
    return apply_gradients(state, value, grads, _optimizer(config, rate), hold=False)


@jax.jit
def _nothing(params: Params) -> tuple[jax.Array, Params]:
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    return jnp.zeros((), jnp.float32), zeros


def _optimizer(config: OptimizerConfig, rate: Any) -> optax.GradientTransformation:
    """The optimizer at a rate that the caller gives, in place of a schedule."""
    unit = dataclasses.replace(config, learning_rate=1.0, schedule="constant", warmup=0.0, warmup_steps=0)
    return optax.chain(make_optimizer(unit, ENDLESS), optax.scale(rate))
