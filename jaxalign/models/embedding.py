"""Rows of tables, such as the embeddings of tokens, where the tables lie in parts on many devices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.models.frozen import Quantized, weight
from jaxalign.parallel.sharding import dividing, laid_out, mesh_axes, shards, spec

TABLE = ("vocab", "embed")  # logical names of the embedding's and the unembedding's dimensions


def embed(table: jax.Array | Quantized, names: tuple[str, str], indices: jax.Array, dtype: str) -> jax.Array:
    """table[indices] in `dtype`: a table [V, D] with logical `names`, indices int32 [B, T] -> [B, T, D].

    No device holds the whole table: each looks up its part of D for the tokens of all, and they exchange what they
    found. The gradient is summed in float32 over those tokens, and in `dtype` over devices that hold the same part. An
    index at or past V gives NaN.
    """
    table = weight(table, dtype)
    if laid_out():
        return _rows_of(table.shape[0], table, indices)
    mesh = jax.sharding.get_abstract_mesh()
    placed = dividing(mesh, indices, ("batch", "length"))
    rows, columns = (tuple(axis for axis in mesh_axes(name) if mesh.shape[axis] > 1) for name in names)
    along = [mesh_axes(name) if name else () for name in placed]
    whole = set(columns).issubset(along[0] + along[1]) and not set(rows).intersection(along[0] + along[1])
    if not whole or indices.shape[0] % shards(mesh, "batch"):
        return _rows_of(table.shape[0], table, indices)
    look = functools.partial(_look_up, size=table.shape[0], along=along, rows=rows, columns=columns)
    tokens = spec(*placed)
    return jax.shard_map(look, in_specs=(spec(*names), tokens), out_specs=tokens, check_vma=False)(
        table, indices
    )


def _look_up(
    part: jax.Array,
    indices: jax.Array,
    *,
    size: int,
    along: list[tuple[str, ...]],
    rows: tuple[str, ...],
    columns: tuple[str, ...],
) -> jax.Array:
    """What one device does for `embed`: its part of the table, its own indices [b, t] -> its rows [b, t, D].

    Args:
      size: V.
      along: the mesh axes that split indices by rows and by tokens.
      rows, columns: those that split the table.
    """
    every = indices
    found: Any
    for dimension, axes in enumerate(along):
        exchanged = tuple(axis for axis in axes if axis in columns)
        if exchanged:
            every = jax.lax.all_gather(every, exchanged, axis=dimension, tiled=True)
    if rows:
        own = every - jax.lax.axis_index(rows) * part.shape[0]
        here = (own >= 0) & (own < part.shape[0])
        found = _rows_of(part.shape[0], part, jnp.where(here, own, part.shape[0]))
        found = jax.lax.psum(jnp.where(here[..., None], found, 0), rows)
        found = jnp.where((every < size)[..., None], found, jnp.nan)
    else:
        found = _rows_of(part.shape[0], part, every)
    for axis in reversed(columns):  # the last one splits D within the parts of those before
        found = jax.lax.all_to_all(found, axis, 0 if axis in along[0] else 1, 2, tiled=True)
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows_of(size: int, table: jax.Array, indices: jax.Array) -> jax.Array:
    return jnp.take(table, indices, axis=0)


def _forward(size: int, table: jax.Array, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _rows_of(size, table, indices), indices


def _backward(size: int, indices: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    summed = jnp.zeros((size, gradient.shape[-1]), jnp.float32)
    summed = summed.at[indices].add(gradient.astype(jnp.float32), mode="drop")
    return summed.astype(gradient.dtype), None


_rows_of.defvjp(_forward, _backward)
