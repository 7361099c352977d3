"""One table from logical axis names, written beside each parameter and activation, to mesh axes."""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import ConfigError

Rules = Mapping[str, str | tuple[str, ...] | None]

# Parameters carry the names of their own dimensions; activations "batch", "length" and "act_*".
RULES: Rules = {
    "batch": ("data", "fsdp"),
    "length": None,
    "act_embed": None,
    "act_heads": "tensor",
    "act_kv_heads": "tensor",
    "act_mlp": "tensor",
    "layers": None,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "expert": None,
    "norm": None,
    "position": None,
}

_rules: contextvars.ContextVar[Rules] = contextvars.ContextVar("rules", default=RULES)


def spec(*names: str | None) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions have these logical names."""
    rules = _rules.get()
    return PartitionSpec(*(None if name is None else rules[name] for name in names))


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: Rules = RULES) -> Iterator[Mesh]:
    """Makes `mesh` and `rules` the ones that `constrain` and `spec` see while tracing."""
    token = _rules.set(rules)
    try:
        with jax.set_mesh(mesh):
            yield mesh
    finally:
        _rules.reset(token)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks the compiler to lay `x` out by its logical axis names; does nothing on one device or without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*names))


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """NamedShardings of a parameter tree whose leaves carry logical names (`nn.with_logical_partitioning`)."""

    def leaf(x: Any) -> NamedSharding:
        return NamedSharding(mesh, spec(*x.names) if isinstance(x, nn.Partitioned) else PartitionSpec())

    return jax.tree.map(leaf, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch split over the data axes, everything else whole."""
    return NamedSharding(mesh, spec("batch"))


def _mesh_axes(name: str) -> tuple[str, ...]:
    axes = _rules.get()[name]
    return (axes,) if isinstance(axes, str) else axes or ()


def batch_shards(mesh: Mesh) -> int:
    """How many pieces the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in _mesh_axes("batch"))


def check_divides(mesh: Mesh, key: str, value: int, name: str = "batch") -> None:
    """Checks that config `key`, the size of a dimension with logical name `name`, splits evenly over the mesh.

    Raises:
      ConfigError: it does not; the message names sizes that would.
    """
    axes = [axis for axis in _mesh_axes(name) if mesh.shape[axis] > 1]
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
