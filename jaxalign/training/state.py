"""What one optimizer owns, and the gradient step that every stage shares."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.losses.metrics import Last, Max, Mean, Metrics, merge
from jaxalign.training.optimizer import opt_state_shardings

Batch = Any
LossFn = Callable[[Any, Batch], tuple[jax.Array, Metrics]]
Objective = Callable[[Any, Batch, Any, Any], tuple[jax.Array, Metrics]]  # (params, batch, total, context)
Update = Callable[..., tuple["TrainState", Metrics]]


@flax.struct.dataclass
class TrainState:
    """Parameters and what their optimizer remembers."""

    step: (
        jax.Array
    )  # int32: updates that have had their turn, the skipped ones too; the schedule counts these
    skipped: jax.Array  # int32: updates not applied because the loss or the gradient was not finite
    params: Any
    opt_state: Any


def init_train_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state around `params`."""
    # Two arrays: an update that donates the state may not be given one of them twice.
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(step=step, skipped=skipped, params=params, opt_state=optimizer.init(params))


def gradients(
    loss_fn: LossFn, params: Any, batch: Batch, num_microbatches: int = 1
) -> tuple[jax.Array, Metrics, Any]:
    """Loss, metrics and gradient of `batch`, computed in `num_microbatches` slices of its rows.

    `loss_fn` must divide by totals of the whole batch (the losses' `normalizer`), so that slices add up to it.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if num_microbatches == 1:
        (loss, metrics), grads = grad_fn(params, batch)
        return loss, metrics, grads

    def body(carry: tuple, part: Batch) -> tuple[tuple, Metrics]:
        # Whole before they are added: the TPU compiler fails where it moves a sum over devices past the addition.
        (loss, metrics), grads = jax.lax.optimization_barrier(grad_fn(params, part))
        return (carry[0] + loss, jax.tree.map(jnp.add, carry[1], grads)), metrics

    zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
    (loss, grads), stacked = jax.lax.scan(body, zeros, slices(batch, num_microbatches))
    return loss, merge(stacked), grads


def slices(batch: Batch, count: int) -> Batch:
    """A batch [B, ...] cut into microbatches [count, B / count, ...], for `jax.lax.scan`.

    Slice m takes rows m, m + count, m + 2 count, ...: each device then slices its own rows.
    """
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch)


def make_update(
    objective: Objective,
    totals: Callable[[Any, Batch, Any], Any],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    num_microbatches: int = 1,
    halt: bool = True,
    measure: Callable[[Batch], Metrics] | None = None,
) -> Update:
    """The jitted (state, batch, context, failed) -> (state, metrics): one update; donates the state.

    Args:
      objective: (params, batch, total, context) -> (loss, metrics); the context is what it reads and does not learn.
      totals: (params, batch, context) -> what the objective divides by, over the whole batch.
      halt: hold everything after the first update that was not finite, or when `failed` counts one elsewhere.
      measure: further metrics of a whole batch.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def update(
        state: TrainState, batch: Batch, context: Any = None, failed: jax.Array | int = 0
    ) -> tuple[TrainState, Metrics]:
        context = {} if context is None else context
        total = totals(state.params, batch, context)
        value, metrics, grads = gradients(
            lambda params, part: objective(params, part, total, context),
            state.params,
            batch,
            num_microbatches,
        )
        rate: Any = schedule(state.step)
        hold = halt & (state.skipped + failed > 0)
        state, more = apply_gradients(state, value, grads, optimizer, hold=hold)
        more |= measure(batch) if measure else {}
        return state, metrics | more | {"learning_rate": Last(rate)}

    return update


def apply_gradients(
    state: TrainState,
    loss: jax.Array,
    grads: Any,
    optimizer: optax.GradientTransformation,
    *,
    hold: jax.Array | bool,
) -> tuple[TrainState, Metrics]:
    """One optimizer update, left out when the loss or the gradient is not finite, or when `hold` is True.

    A run that stops at such a step holds everything after it: the loop learns of it a step later, and must
    find the parameters that produced it.
    """
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    apply = finite & jnp.logical_not(hold)
    before = _schedule_at(state.step, state.opt_state)
    updates, opt_state = optimizer.update(grads, before, state.params)
    params = optax.apply_updates(state.params, updates)
    keep = lambda new, old: jnp.where(apply, new, old)  # noqa: E731
    new = TrainState(
        step=state.step + 1,
        skipped=state.skipped + ~finite,
        params=jax.tree.map(keep, params, state.params),
        opt_state=jax.tree.map(keep, opt_state, state.opt_state),
    )
    one = jnp.ones((), jnp.float32)
    skipped = Max(new.skipped.astype(jnp.float32))
    return new, {"loss": Mean(loss, one), "grad_norm": Mean(norm, one), "skipped_steps": skipped}


def _schedule_at(step: jax.Array, opt_state: Any) -> Any:
    """The state of an optimizer with its schedule at `step`; its own count leaves out updates that were skipped."""

    def is_schedule(x: Any) -> bool:
        return isinstance(x, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda x: x._replace(count=step) if is_schedule(x) else x, opt_state, is_leaf=is_schedule
    )


def restart_counts(state: Any) -> Any:
    """A state, with every TrainState in it at step 0: schedules begin anew, the optimizers' moments stay."""

    def restart(x: Any) -> Any:
        if not isinstance(x, TrainState):
            return x
        return dataclasses.replace(x, step=x.step * 0, skipped=x.skipped * 0)

    return jax.tree.map(restart, state, is_leaf=lambda x: isinstance(x, TrainState))


def moving_average(average: Any, params: Any, decay: float | jax.Array) -> Any:
    """decay * average + (1 - decay) * params, leaf by leaf."""
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def abstract_train_state(
    abstract_params: Any, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The ShapeDtypeStructs, with shardings, of the state around parameters that have them."""
    shapes = jax.eval_shape(lambda params: init_train_state(params, optimizer), abstract_params)
    param_shardings = jax.tree.map(lambda x: x.sharding, abstract_params)
    whole: Any = NamedSharding(mesh, PartitionSpec())
    shardings = TrainState(
        step=whole,
        skipped=whole,
        params=param_shardings,
        opt_state=opt_state_shardings(optimizer, abstract_params, param_shardings, mesh),
    )
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def make_state(
    params: Any, optimizer: optax.GradientTransformation, abstract: TrainState, *, donate: bool = False
) -> TrainState:
    """`init_train_state`, laid out as `abstract` says.

    Args:
      donate: nothing else needs `params`, whose memory becomes the state's.
    """
    make = functools.partial(init_train_state, optimizer=optimizer)
    layout = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(make, out_shardings=layout, donate_argnums=(0,) if donate else ())(params)
