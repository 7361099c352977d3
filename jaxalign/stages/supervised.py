"""The gradient step of every stage that trains one model on given data: all but PPO."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.errors import ConfigError
from jaxalign.losses.metrics import Mean, Metrics, finalize, merge
from jaxalign.models import Params
from jaxalign.models.frozen import FrozenConfig, keep
from jaxalign.training.flops import count_work
from jaxalign.training.open import Run
from jaxalign.training.saved_model import fingerprint
from jaxalign.training.stage import Stage
from jaxalign.training.state import (
    TrainState,
    abstract_train_state,
    apply_gradients,
    gradients,
    init_train_state,
)

Totals = Callable[[Any], dict[str, jax.Array]]


def supervised_stage(
    run: Run,
    loss: Callable[..., tuple[jax.Array, Metrics]],
    totals: Totals,
    *,
    scalar: bool = False,
    frozen: dict[str, Params] | None = None,
    verify: Callable[[Params, Any, dict[str, Params]], None] | None = None,
) -> Stage:
    """A stage of one phase: batch -> loss -> gradient -> update.

    Args:
      loss: (params, batch, totals, frozen, *, model, options) -> (loss, metrics).
      totals: batch -> what the loss divides by, over the whole batch.
      scalar: train a scalar model.
      frozen: models that the loss reads and nothing changes.
      verify: truths about (params, first batch, frozen) before the first update.

    Raises:
      ConfigError: config.frozen is set, and there is no frozen model.
    """
    frozen = frozen or {}
    if not frozen and run.config.frozen != FrozenConfig():
        raise ConfigError(
            f"config.frozen is {run.config.frozen}, but this run holds no frozen model; leave it as it is by default"
        )
    digests = "-".join(f"{name}:{fingerprint(params)}" for name, params in sorted(frozen.items()))
    frozen = {name: keep(params, run.config.frozen) for name, params in frozen.items()}
    train_step = make_train_step(run, loss, totals)
    loss = functools.partial(loss, model=run.model, options=run.config.options)

    @jax.jit
    def eval_step(params: Params, batch: Any, frozen: dict[str, Params]) -> Metrics:
        value, metrics = loss(params, batch, totals(batch), frozen)
        weight = next(iter(totals(batch).values()))
        return {"loss": Mean(value * weight, weight)} | metrics

    def evaluate(state: TrainState) -> dict[str, float]:
        merged: Metrics = {}
        for batch in run.eval_batches():
            metrics = eval_step(state.params, batch, frozen)
            merged = add(merged, metrics) if merged else metrics
        return {f"eval/{name}": float(x) for name, x in finalize(merged).items()}

    abstract = abstract_train_state(run.abstract_params(scalar=scalar), run.optimizer, run.mesh)

    def init() -> TrainState:
        params = run.init_params(scalar=scalar)
        make = functools.partial(init_train_state, optimizer=run.optimizer)
        return jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(params)

    return Stage(
        run=run,
        abstract_state=abstract,
        init=init,
        phases=(("update", lambda state, batch: train_step(state, batch, frozen)),),
        evaluate=evaluate,
        params=lambda state: state.params,
        scalar=scalar,
        verify=lambda state, batch: verify(state.params, batch, frozen) if verify else None,
        fingerprint=digests,
    )


def make_train_step(run: Run, loss: Callable[..., tuple[jax.Array, Metrics]], totals: Totals) -> Any:
    """The jitted (state, batch, frozen) -> (state, metrics); arguments as for `supervised_stage`."""
    loss = functools.partial(loss, model=run.model, options=run.config.options)
    halt = run.config.on_nonfinite == "stop"

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, batch: Any, frozen: dict[str, Params]) -> tuple[TrainState, Metrics]:
        total = totals(batch)
        value, metrics, grads = gradients(
            lambda params, part: loss(params, part, total, frozen),
            state.params,
            batch,
            run.config.num_microbatches,
        )
        rate = run.schedule(state.step)
        hold = halt & (state.skipped > 0)
        state, more = apply_gradients(state, value, grads, run.optimizer, hold=hold)
        more |= count_work(batch.segment_ids, batch.positions)
        return state, metrics | more | {"learning_rate": Mean(rate, rate * 0 + 1)}

    return train_step


@jax.jit
def add(a: Metrics, b: Metrics) -> Metrics:
    """Metrics of two batches as those of both."""
    return merge(jax.tree.map(lambda x, y: jnp.stack((x, y)), a, b))
