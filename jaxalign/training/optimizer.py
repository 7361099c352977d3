"""Learning-rate schedules, optimizers and the shardings of their states."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import ConfigError
from jaxalign.fields import Checked, field

PyTree = Any

OPTIMIZERS = ("adamw", "rmsprop", "adafactor", "lion")
SCHEDULES = ("cosine", "linear", "constant", "inverse_sqrt", "wsd")
UNDECAYED = ("scale", "bias")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked, at="config.optimizer"):
    """What `make_schedule` and `make_optimizer` need; raises ConfigError on a value that cannot work."""

    # RMSprop is not centred; Adafactor has no momentum; Lion wants a rate some 3 to 10 times lower than AdamW.
    name: str = field("adamw", choices=OPTIMIZERS)
    # The peak; 0: as published for the stage and the size of the model, see docs/defaults.md. For Adafactor it is
    # relative to the RMS of each parameter.
    learning_rate: float = field(0.0, at_least=0, says=": use a number above 0, or 0 for the published rate")
    # After the warm-up; wsd is constant, and linear at the end.
    schedule: str = field("cosine", choices=SCHEDULES)
    # Part of all steps in which the rate rises.
    warmup: float = field(
        0.0,
        at_least=0,
        below=1,
        says=": use a part of the run in [0, 1), such as 0.03",
        replaces=("warmup_steps",),
        zero_replaces=True,
    )
    # Or a number of steps, in place of a part.
    warmup_steps: int = field(
        0,
        at_least=0,
        says=": use a whole number of steps, 0 or more",
        replaces=("warmup",),
        zero_replaces=True,
    )
    # Last learning rate / peak, for cosine, linear and wsd.
    final_ratio: float = field(0.0, at_least=0, at_most=1)
    # Part of all steps in which wsd decays, at the end.
    decay_fraction: float = field(0.1, above=0, at_most=1)
    b1: float = field(0.9, at_least=0, below=1)  # AdamW and Lion.
    b2: float = field(0.95, at_least=0, below=1)  # AdamW and Lion; Lion's paper uses 0.99.
    # First moments of AdamW and Lion as they are kept: bfloat16 halves their memory and rounds them after each update.
    mu_dtype: str = field("float32", choices=("float32", "bfloat16"))
    eps: float = field(1e-8, above=0)  # AdamW and RMSprop, added outside the square root.
    decay: float = field(0.99, at_least=0, below=1)  # RMSprop's average of squares.
    momentum: float = field(0.0, at_least=0, below=1)  # RMSprop.
    weight_decay: float = field(0.0, at_least=0)  # Decoupled; none on leaves called "scale" or "bias".
    # Global gradient norm; None turns clipping off.
    clip_norm: float | None = field(1.0, above=0, says=": use a norm above 0, or None for off")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup and self.warmup_steps:
            raise ConfigError(
                f"config.optimizer.warmup={self.warmup} and warmup_steps={self.warmup_steps}: set one of them, and the "
                "other to 0"
            )


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns step (0-based count of finished updates) -> float32 learning rate.

    Warm-up is linear, peak * (step + 1) / (warmup_steps + 1), so that the first update is not lost and the
    peak is reached at step = warmup_steps, or at warmup * total_steps, rounded down. From there to
    total_steps: cosine (arXiv 1608.03983), linear, constant, inverse_sqrt (arXiv 1706.03762 §5.3) or wsd,
    which is constant and then linear over the last decay_fraction of all steps (arXiv 2404.06395). After
    total_steps the rate stays where it ended.
    Raises ConfigError when the warm-up (and the wsd decay) do not fit in total_steps.
    """
    if not config.learning_rate:
        raise ConfigError(
            "config.optimizer.learning_rate=0 is found when a run is opened, and here is none; give a number above 0"
        )
    warmup = config.warmup_steps or int(config.warmup * total_steps + 1e-9)
    peak, final = config.learning_rate, config.final_ratio
    decay_start = warmup
    if config.schedule == "wsd":
        decay_start = total_steps - round(config.decay_fraction * total_steps)
    if warmup >= total_steps or decay_start < warmup:
        key = f"warmup={config.warmup}, {warmup} steps" if config.warmup else f"warmup_steps={warmup}"
        raise ConfigError(
            f"config.optimizer.{key}: too long; give it as a part of the run (config.optimizer.warmup=0.03 and "
            f"warmup_steps=0), or, with schedule={config.schedule!r} and {total_steps} steps in all, use fewer than "
            f"{max(1, min(total_steps, decay_start + 1))}"
        )

    def ratio(step: jax.Array) -> jax.Array:
        progress = jnp.clip((step - decay_start) / max(1, total_steps - decay_start), 0.0, 1.0)
        match config.schedule:
            case "cosine":
                return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
            case "linear" | "wsd":
                return 1 - (1 - final) * progress
            case "inverse_sqrt":
                return jnp.sqrt((warmup + 1) / (jnp.clip(step, warmup, total_steps) + 1))
            case _:
                return jnp.ones_like(step)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(1.0, (step + 1) / (warmup + 1))
        return peak * warm * ratio(step)

    return schedule


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Returns clip by global norm -> direction -> decoupled weight decay -> -learning rate, all in float32.

    Gradients and parameters of another type are cast first, so moments and updates are float32; but first moments are
    kept as config.mu_dtype says.
    AdamW: arXiv 1711.05101, algorithm 2. RMSprop: Hinton's lecture 6e, with a momentum buffer, not centred.
    Lion: arXiv 2302.06675, algorithm 2. Adafactor: arXiv 1804.04235, algorithms 4 and 5, without momentum;
    its update clipping and parameter scale are taken over a leaf, hence over all layers that are stacked.
    """
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    return _in_float32(
        optax.chain(
            clip,
            _direction(config),
            optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
            optax.scale_by_learning_rate(make_schedule(config, total_steps)),
        )
    )


def decay_mask(params: PyTree) -> PyTree:
    """Marks with True the leaves that weight decay applies to: all but norm scales and biases.

    The name decides, not the rank: layers are stacked by scan, which makes a vector per layer a matrix.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in UNDECAYED, params)


def opt_state_shardings(
    optimizer: optax.GradientTransformation, abstract_params: PyTree, param_shardings: PyTree, mesh: Mesh
) -> PyTree:
    """Returns a pytree of NamedSharding with the structure of `optimizer.init(params)`.

    A leaf that has the shape of its parameter gets that parameter's sharding; counts and factored moments,
    which are small, are replicated over the mesh.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    return optax.tree_utils.tree_map_params(
        optimizer,
        lambda leaf, param, sharding: sharding if leaf.shape == param.shape else replicated,
        jax.eval_shape(optimizer.init, abstract_params),
        abstract_params,
        param_shardings,
        transform_non_params=lambda _: replicated,
    )


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
    match config.name:
        case "adamw":
            return _with_moments(optax.scale_by_adam(config.b1, config.b2, config.eps), config.mu_dtype)
        case "lion":
            return _with_moments(optax.scale_by_lion(config.b1, config.b2), config.mu_dtype)
        case "rmsprop":
            rms = optax.scale_by_rms(config.decay, config.eps, eps_in_sqrt=False)
            return optax.chain(rms, optax.trace(config.momentum)) if config.momentum else rms
        case _:
            return optax.chain(
                _of_matrices(optax.scale_by_factored_rms()),
                optax.clip_by_block_rms(1.0),
                optax.scale_by_param_block_rms(),
            )


def _of_matrices(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Shows kernels of attention, which have an axis of heads beside that of a head's dimensions, as matrices.

    Kernels of queries, keys and values [..., D, H, d] become [..., D, H d], those of outputs [..., H, d, D] become
    [..., H d, D]. Adafactor factors the two largest axes of a parameter: of three that belong to one matrix it would
    factor the wrong two, or none where d is below 128, and keep a second moment as large as the parameter.
    """

    def merge(tree: PyTree) -> PyTree:
        def leaf(path: tuple, x: jax.Array) -> jax.Array:
            names = [entry.key for entry in path[-3:]]
            if names[:1] != ["attention"] or names[-1] != "kernel" or x.ndim < 3:
                return x
            if names[1] == "out":
                return x.reshape(*x.shape[:-3], -1, x.shape[-1])
            return x.reshape(*x.shape[:-2], -1)

        return jax.tree_util.tree_map_with_path(leaf, tree)

    def init(params: PyTree) -> PyTree:
        return inner.init(merge(params))

    def update(grads: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        updates, state = inner.update(merge(grads), state, merge(params))
        return jax.tree.map(lambda u, g: u.reshape(g.shape), updates, grads), state

    out: Any = update
    return optax.GradientTransformation(init, out)


def _with_moments(inner: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """Keeps first moments in a dtype from one update to the next; they are computed in float32.

    optax's own mu_dtype also multiplies them in that dtype.
    """

    def kept(state: Any, dtype: Any) -> Any:
        return state._replace(mu=jax.tree.map(lambda x: x.astype(dtype), state.mu))

    def init(params: PyTree) -> PyTree:
        return kept(inner.init(params), dtype)

    def update(grads: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        updates, state = inner.update(grads, kept(state, jnp.float32), params)
        return updates, kept(state, dtype)

    out: Any = update
    return optax.GradientTransformation(init, out)


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    def cast(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params: PyTree) -> PyTree:
        return inner.init(cast(params))

    def update(grads: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        return inner.update(cast(grads), state, cast(params))

    out: Any = update  # optax calls it by position, and every optimizer here reads the parameters
    return optax.GradientTransformation(init, out)
