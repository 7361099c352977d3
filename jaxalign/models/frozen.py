"""How models that nothing changes lie in memory: a reference, a reward model.

Their matrices may be rounded to bfloat16 or int8, and those of the layers may lie in the host's memory. `weight` gives
a matrix back where it is multiplied, a layer at a time; vectors and routers stay float32 on the device.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.fields import Checked, field
from jaxalign.models.config import Params

MATRICES = ("kernel", "embedding", "unembedding", "position_embedding")


@dataclasses.dataclass(frozen=True)
class FrozenConfig(Checked, at="config.frozen"):
    """config.frozen: of the reference (DPO, PPO) and the reward model (PPO). A moving reference is of the state."""

    # int8 has a scale for every row of a matrix.
    dtype: str = field("float32", choices=("float32", "bfloat16", "int8"))
    offload: bool = False  # the layers in the host's memory, copied to the device one at a time


@flax.struct.dataclass
class Quantized:
    """A matrix [..., n] as int8 `values` times `scale` [..., 1] float32: symmetric, 127 the largest of a row."""

    values: jax.Array
    scale: jax.Array


def quantize(x: jax.Array) -> Quantized:
    """Rounds to the nearest of 255 steps a row; no entry moves by more than 1/254 of the row's largest."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
    return Quantized(jnp.round(x / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale)


def weight(x: jax.Array | Quantized, dtype: Any) -> jax.Array:
    """A parameter as it is computed with, however it lies in memory."""
    if isinstance(x, Quantized):
        return (_on_device(x.values).astype(jnp.float32) * _on_device(x.scale)).astype(dtype)
    return _on_device(x).astype(dtype)


def _on_device(x: jax.Array) -> jax.Array:
    if jax.typeof(x).memory_space != jax.memory.Space.Host:
        return x
    # As it is split: the compiler would else gather it over devices in the memory of their hosts.
    return jax.lax.optimization_barrier(jax.device_put(x, jax.memory.Space.Device))


def keep(params: Params, config: FrozenConfig) -> Params:
    """The parameters as `config` says that they lie in memory, split over devices as before."""
    if config == FrozenConfig():
        return params
    there = jax.tree.map(lambda x: x.sharding, abstract_keep(params, config))
    # In two steps: not every backend lets a program write to the host's memory.
    on_device = jax.tree.map(lambda s: s.with_memory_kind("device"), there)
    return jax.device_put(
        jax.jit(functools.partial(_reduced, config=config), out_shardings=on_device)(params), there
    )


def abstract_keep(params: Params, config: FrozenConfig) -> Params:
    """Shapes and shardings of `keep`, of arrays or of ShapeDtypeStructs."""

    def leaf(path: tuple, x: Any, reduced: Any) -> Any:
        # The tables are copied whole when they are used: away from the device they would save little.
        away = config.offload and _is_matrix(path, x) and "layers" in [entry.key for entry in path]
        kind = "pinned_host" if away else x.sharding.memory_kind
        whole = PartitionSpec(*([*x.sharding.spec, *[None] * x.ndim][: x.ndim - 1]), None)

        def lay(y: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            spec = x.sharding.spec if y.shape == x.shape else whole
            sharding = NamedSharding(x.sharding.mesh, spec, memory_kind=kind)
            return jax.ShapeDtypeStruct(y.shape, y.dtype, sharding=sharding)

        return jax.tree.map(lay, reduced)

    reduced = jax.eval_shape(functools.partial(_reduced, config=config), params)
    return jax.tree_util.tree_map_with_path(leaf, params, reduced)


def _reduced(params: Params, config: FrozenConfig) -> Params:
    def leaf(path: tuple, x: jax.Array) -> jax.Array | Quantized:
        if config.dtype == "float32" or not _is_matrix(path, x):
            return x
        return quantize(x) if config.dtype == "int8" else x.astype(jnp.bfloat16)

    return jax.tree_util.tree_map_with_path(leaf, params)


def _is_matrix(path: tuple, x: Any) -> bool:
    names = [entry.key for entry in path]
    return names[-1] in MATRICES and x.ndim > 1 and "router" not in names
