"""One table from logical axis names, written beside each parameter and activation, to mesh axes."""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import ConfigError
from jaxalign.parallel.mesh import AXES, platform

Rules = Mapping[str, str | tuple[str, ...] | None]

# Parameters carry the names of their own dimensions; activations "batch", "length" and "act_*".
RULES: Rules = {
    "batch": ("data", "fsdp", "expert"),
    "length": "context",
    "act_embed": None,
    "act_heads": "tensor",
    "act_kv_heads": "tensor",
    "act_mlp": "tensor",
    "layers": None,
    "embed": "fsdp",
    "decode_embed": None,  # "embed" while sampling, which would otherwise gather every parameter for every token
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "expert": "expert",
    "norm": None,
    "position": None,
}

_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"  # of a compilation whose result the cache takes
_rules: contextvars.ContextVar[Rules] = contextvars.ContextVar("rules", default=RULES)


def spec(*names: str | None) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions have these logical names."""
    rules = _rules.get()
    return PartitionSpec(*(None if name is None else rules[name] for name in names))


def rules_in_force() -> tuple[tuple[str, Any], ...]:
    """The table as it is while tracing, to compare."""
    return tuple(sorted(_rules.get().items()))


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: Rules = RULES) -> Iterator[Mesh]:
    """Makes `mesh` and `rules` the ones that `constrain` and `spec` see while tracing.

    Numbers are of 32 bits within, and types mix as they do by default, as all of jaxalign is made for, also where a
    program around it, or the environment, has JAX do otherwise.
    """
    token = _rules.set(rules)
    try:
        with (
            jax.enable_x64(False),
            jax.numpy_dtype_promotion("standard"),
            jax.set_mesh(mesh),
            _kept_out_of_the_cache(mesh),
        ):
            yield mesh
    finally:
        _rules.reset(token)


@contextlib.contextmanager
def _kept_out_of_the_cache(mesh: Mesh) -> Iterator[None]:
    """Has JAX's compilation cache take no program of several CPU devices.

    XLA for CPUs does not keep the order of collectives in the programs that it writes there: when they are read again,
    one device may begin with another collective than the rest, and all wait for ever.
    """
    if mesh.size == 1 or mesh.devices.flat[0].platform != "cpu":
        yield
        return
    before = jax.config.values[_LEAST_SECONDS]
    jax.config.update(_LEAST_SECONDS, math.inf)
    try:
        yield
    finally:
        jax.config.update(_LEAST_SECONDS, before)


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """The rules as they are while sampling: parameters lie as "decode_embed" says."""
    rules = _rules.get()
    token = _rules.set({**rules, "embed": rules["decode_embed"]})
    try:
        yield
    finally:
        _rules.reset(token)


def parse_rules(changes: str | tuple[str, ...]) -> Rules:
    """The table with changes such as "embed=fsdp+data": a logical name and the mesh axes that split it, or none.

    Raises:
      ConfigError: not of that form, or a name or an axis that does not exist.
    """
    rules = dict(RULES)
    for change in changes.split(",") if isinstance(changes, str) else changes:
        if not change:
            continue
        name, equals, axes = change.partition("=")
        chosen = tuple(axis for axis in axes.split("+") if axis)
        if not equals or name not in RULES or set(chosen) - set(AXES) or len(set(chosen)) < len(chosen):
            raise ConfigError(
                f"config.mesh.rules={change!r}: write name=axis, name=axis+axis or name=, with a name among "
                f"{', '.join(RULES)} and axes among {', '.join(AXES)}, each once"
            )
        rules[name] = chosen or None
    return rules


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks the compiler to lay `x` out by its logical axis names; does nothing on one device or without a mesh.

    A length that the context axis does not divide, as in decoding one token, stays whole.
    """
    if laid_out():
        return x
    return jax.lax.with_sharding_constraint(x, spec(*dividing(jax.sharding.get_abstract_mesh(), x, names)))


def gather_parameter(x: jax.Array, *names: str | None) -> jax.Array:
    """A parameter whole along the axes that split rows and tokens, as it is multiplied with, by the compiler's choice.

    Said outright, since the compiler left to itself gathers some matrices once more than it needs.
    """
    if laid_out():
        return x
    tokens = mesh_axes("batch") + mesh_axes("length")
    keep = (tuple(axis for axis in mesh_axes(name) if axis not in tokens) if name else () for name in names)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*keep))


def split_by_features(names: Sequence[str]) -> bool:
    """True where an axis that splits no tokens splits a parameter with these logical names, as tensor does."""
    if laid_out():
        return False
    mesh, tokens = jax.sharding.get_abstract_mesh(), mesh_axes("batch") + mesh_axes("length")
    return any(mesh.shape[axis] > 1 for name in names for axis in mesh_axes(name) if axis not in tokens)


def saved_without_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """A rematerialisation policy that keeps everything but what layouts and gathers give, and so no whole parameter."""
    return primitive.name not in ("sharding_constraint", "all_gather")


def is_one_device() -> bool:
    """True where there is no mesh, or one of a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def joins_tokens() -> bool:
    """True where products take rows and tokens as one dimension: on CPUs, if no mesh axis splits the tokens of a row.

    A gradient that sums over both is a product then, of two dimensions a CPU's compiler writes a transposed copy of
    what it multiplies first. A TPU's compiler would copy what it keeps of a layer in the shape of that dimension.
    """
    whole = laid_out() or shards(jax.sharding.get_abstract_mesh(), "length") == 1
    return whole and platform() == "cpu"


def laid_out() -> bool:
    """True where arrays lie as they shall: without a mesh, on one device, or inside of a shard_map."""
    kinds = jax.sharding.get_abstract_mesh().axis_types
    return is_one_device() or any(kind == AxisType.Manual for kind in kinds)


def dividing(mesh: Any, x: jax.Array, names: Sequence[str | None]) -> list[str | None]:
    """The names of the dimensions of x, without that of a length which the context axis does not divide."""
    return [
        None if name == "length" and size % shards(mesh, name) else name
        for name, size in zip(names, x.shape, strict=True)
    ]


def shards(mesh: Any, name: str) -> int:
    """How many pieces a dimension with logical name `name` is split into."""
    return math.prod(mesh.shape[axis] for axis in mesh_axes(name))


def split_rows(f: Callable[..., Any], *layouts: tuple[str, ...] | None) -> Callable[..., Any]:
    """`f` run by every device on its own rows and tokens, the tensor axis left to the compiler.

    A parameter is gathered before and its gradient, which `f` may accumulate over many tokens, is summed over
    devices once, by a reduce-scatter back to how the parameter lies.

    Args:
      layouts: for each argument None where it is [B, T, ...], split over batch and length, or the logical names of
        a parameter's dimensions. All results are [B, T, ...].
    """

    def wrapped(*args: jax.Array) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        x = next(arg for arg, layout in zip(args, layouts, strict=True) if layout is None)
        names = dividing(mesh, x, ("batch", "length") + (None,) * (x.ndim - 2)) if not mesh.empty else []
        axes = {axis for name in names if name for axis in mesh_axes(name)}
        if all(mesh.shape[axis] == 1 for axis in axes) or x.shape[0] % shards(mesh, "batch"):
            return f(*args)
        rows = spec(*names[:2])

        everywhere = PartitionSpec(tuple(axis for axis in AXES if axis in axes))

        def local(*args: jax.Array) -> Any:
            return f(*(x if y is None else x[0] for x, y in zip(args, layouts, strict=True)))

        return jax.shard_map(
            local,
            in_specs=tuple(rows if y is None else everywhere for y in layouts),
            out_specs=rows,
            axis_names=axes,
            check_vma=False,
        )(*(x if y is None else _copies(x, y, everywhere[0]) for x, y in zip(args, layouts, strict=True)))

    return wrapped


def _copies(x: jax.Array, names: Sequence[str], along: tuple[str, ...]) -> jax.Array:
    """A parameter gathered along mesh axes: [n, *x.shape], a copy for each of the n devices, on that device.

    Of copies, unlike of one array that all devices hold, the gradients are summed here alone.
    """
    inner = [tuple(axis for axis in mesh_axes(name) if axis in along) for name in names]
    outer = [tuple(axis for axis in mesh_axes(name) if axis not in along) for name in names]
    # The axes that are gathered innermost, so that what one gather joins lies side by side.
    split = PartitionSpec(*(rest + axes for rest, axes in zip(outer, inner, strict=True)))

    def gather(x: jax.Array) -> jax.Array:
        for dimension, axes in enumerate(inner):
            if axes:
                x = jax.lax.all_gather(x, axes, axis=dimension, tiled=True)
        ordered: Any = _in_order(tuple(sorted(range(x.ndim), key=lambda dimension: not inner[dimension])), x)
        return ordered[None]

    return jax.shard_map(gather, in_specs=split, out_specs=PartitionSpec(along, *outer), check_vma=False)(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_order(dimensions: tuple[int, ...], x: jax.Array) -> jax.Array:
    """x with its `dimensions` in this order in memory: what is gathered lies one part behind the other.

    Left to itself the compiler for TPUs copies it into another order. The gradient is in any.
    """
    return with_layout_constraint(x, Layout(major_to_minor=dimensions))


_in_order.defvjp(
    lambda dimensions, x: (_in_order(dimensions, x), None), lambda dimensions, _, gradient: (gradient,)
)


def partitioned(initializer: Callable[..., Any], names: Sequence[str | None]) -> Callable[..., Any]:
    """An initializer whose array carries the logical names of its dimensions, for `self.param` to take off again."""
    return nn.with_logical_partitioning(initializer, tuple(names))


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """NamedShardings of a parameter tree whose leaves carry logical names (`partitioned`)."""

    def leaf(x: Any) -> NamedSharding:
        return NamedSharding(mesh, spec(*x.names) if isinstance(x, nn.Partitioned) else PartitionSpec())

    return jax.tree.map(leaf, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch split over the data axes, everything else whole."""
    return NamedSharding(mesh, spec("batch"))


def mesh_axes(name: str) -> tuple[str, ...]:
    """The mesh axes over which a dimension with logical name `name` is split."""
    axes = _rules.get()[name]
    return (axes,) if isinstance(axes, str) else axes or ()


def batch_shards(mesh: Mesh) -> int:
    """How many pieces the rows of a batch are split into."""
    return shards(mesh, "batch")


def check_divides(mesh: Mesh, key: str, value: int, name: str = "batch") -> None:
    """Checks that config `key`, the size of a dimension with logical name `name`, splits evenly over the mesh.

    Raises:
      ConfigError: it does not; the message names sizes that would.
    """
    axes = [axis for axis in mesh_axes(name) if mesh.shape[axis] > 1]
    shards = math.prod(mesh.shape[axis] for axis in axes)
    if value % shards:
        sizes = " * ".join(f"config.mesh.{axis}={mesh.shape[axis]}" for axis in axes)
        down, up = value // shards * shards, -(-value // shards) * shards
        common = math.gcd(value, shards)
        smaller = (
            f"config.mesh.{axes[0]}={common}" if len(axes) == 1 else f"mesh axes whose product is {common}"
        )
        raise ConfigError(
            f"config.{key}={value} is not divisible by {sizes}; use {f'{down} or ' if down else ''}{up}, or {smaller}"
        )


def check_apart(*names: str, mesh: Mesh | None = None) -> None:
    """Checks that no axis splits two dimensions with these logical names.

    Args:
      mesh: only of its axes of several devices; None: of all, as for dimensions of one array, in whose layout JAX takes
        each axis once, of whatever size.

    Raises:
      ConfigError: one does; the message names it and both.
    """
    taken: dict[str, str] = {}
    for name in names:
        for axis in mesh_axes(name):
            if axis in taken and (mesh is None or mesh.shape[axis] > 1):
                raise ConfigError(
                    f"config.mesh.rules: {taken[axis]} and {name} both lie along {axis}, and meet in one array; give "
                    f"one of them another axis, or none{'' if mesh is None else f', or set config.mesh.{axis}=1'}"
                )
            taken[axis] = name
