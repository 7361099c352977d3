"""One table from logical axis names, written beside each parameter and activation, to mesh axes."""

import contextlib
import contextvars
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


def batch_shards(mesh: Mesh) -> int:
    """How many pieces the rows of a batch are split into."""
    axes = _rules.get()["batch"]
    size = 1
    for axis in (axes,) if isinstance(axes, str) else axes or ():
        size *= mesh.shape[axis]
    return size


def check_divides(mesh: Mesh, key: str, value: int) -> None:
    """Raises ConfigError unless `value` rows can be split evenly over the mesh."""
    shards = batch_shards(mesh)
    if value % shards:
        sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
        up, down = -(-value // shards) * shards, value // shards * shards
        raise ConfigError(
            f"config.{key}={value} is not divisible by the {shards} batch shards of the mesh ({sizes}); "
            f"use {f'{down} or ' if down else ''}{up}, or a smaller config.mesh.data"
        )
