"""Rows of tables, such as the embeddings of tokens, with gradients that stay sharded."""

import functools

import jax
import jax.numpy as jnp

from jaxalign.models.frozen import Quantized, weight
from jaxalign.parallel.sharding import split_rows

TABLE = ("vocab", "embed")  # logical names of the embedding's and the unembedding's dimensions


def embed(table: jax.Array | Quantized, names: tuple[str, str], indices: jax.Array, dtype: str) -> jax.Array:
    """table[indices] in `dtype`: a table [V, D] with logical `names`, indices int32 [B, T] -> [B, T, D].

    The gradient is summed in float32 over the tokens of a device, then over devices in `dtype`, as those of other
    parameters are. An index at or past V gives NaN.
    """
    table = weight(table, dtype)
    look = functools.partial(_rows_of, table.shape[0])
    return split_rows(look, names, None)(table, indices)


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
