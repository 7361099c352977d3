"""Sequences that stand one in a row, brought together into fewer rows for a model to read, and back.

A model's work grows with the slots of its rows, full or not. Where a batch [E, T] has one sequence a row, most of them
shorter than T, they are packed into R < E rows for the forward pass, and what is read off each slot is put back where
its token stands: losses and advantages go on seeing [E, T].

Sequences that begin alike, as the completions of one prompt do, can have the tokens of that beginning stand once:
what a model computes for a token depends on what stands before it alone. Then only attention goes back to the rows of
the batch, where every sequence is whole, and everything else is computed once for all of them (as arXiv 2410.20305
does for pairs).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from jaxalign.models.config import ModelConfig
from jaxalign.parallel.sharding import constrain, laid_out, mesh_axes, shards, spec


@flax.struct.dataclass
class Layout:
    """Where the slots of a batch [E, T] lie in R rows of W slots, and where the slots of these come from.

    Slots are numbered within a shard, a part of batch and rows that lies on one device; -1 is none.
    """

    source: jax.Array  # int32 [R, W]: the slot of the batch; -1: empty
    place: jax.Array  # int32 [E, T]: the slot of the rows; -1: of padding
    segment_ids: jax.Array  # int32 [R, W]
    # Where tokens are shared: int32 [S, W, J], the slots of the batch that have each of S * W tokens after its source.
    copies: jax.Array | None = None
    # int32 [R, W]: which of these tokens a slot has; -1: one that nothing shares.
    shared: jax.Array | None = None
    shards: int = flax.struct.field(pytree_node=False, default=1)  # 0: each row is one, R = E

    def pack(self, x: jax.Array) -> jax.Array:
        """[E, T, ...] to [R, W, ...], empty slots 0. Of slots that share a token the first one is taken."""
        return self._on_own_shards(_pack, x)

    def unpack(self, x: jax.Array) -> jax.Array:
        """[R, W, ...] back to [E, T, ...], padding 0. All slots that share a token get what is said of it."""
        return self._on_own_shards(_unpack, x)

    def sum(self, x: jax.Array) -> jax.Array:
        """[E, T] to [R, W], empty slots 0. Of slots that share a token, what all of them have, added up."""
        return self._on_own_shards(_sum, x)

    def _on_own_shards(self, move: Callable[..., Any], x: jax.Array) -> jax.Array:
        mesh = jax.sharding.get_abstract_mesh()
        count, split = self.shards or x.shape[0], 1 if laid_out() else shards(mesh, "batch")
        args = (x, self.source, self.place, self.copies, self.shared)
        local = functools.partial(move, count if count % split else count // split)
        if split > 1 and count % split == 0:
            # Said outright: the compiler left to itself gathers all rows on every device.
            rows, axes = spec("batch"), set(mesh_axes("batch"))
            local = jax.shard_map(local, in_specs=rows, out_specs=rows, axis_names=axes, check_vma=False)
        out = local(*args)
        return constrain(out, "batch", "length") if x.ndim == 2 else out


def _take(count: int, x: jax.Array, slots: jax.Array) -> jax.Array:
    """Slots [A, ...] of x [B, T, *rest], both of which are cut into `count` shards: [A, ..., *rest], 0 for -1."""
    rest = x.shape[2:]
    flat, wanted = x.reshape(count, -1, *rest), jnp.maximum(slots, 0).reshape(count, -1)
    found = jax.vmap(lambda x, i: jnp.take(x, i, axis=0, mode="clip"))(flat, wanted)
    real = jnp.expand_dims(slots >= 0, tuple(range(slots.ndim, slots.ndim + len(rest))))
    return jnp.where(real, found.reshape(*slots.shape, *rest), 0)


# Nothing is added up into single slots, which would be slow, and on GPUs in any order.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unpack(count: int, x: jax.Array, source: Any, place: Any, copies: Any, shared: Any) -> jax.Array:
    return _take(count, x, place)


def _unpack_forward(count: int, x: jax.Array, *own: Any) -> tuple[jax.Array, tuple]:
    return _unpack(count, x, *own), own


def _unpack_backward(count: int, own: tuple, gradient: jax.Array) -> tuple:
    return _sum(count, gradient, *own), None, None, None, None


def _sum(count: int, x: jax.Array, source: Any, place: Any, copies: Any, shared: Any) -> jax.Array:
    out = _take(count, x, source)
    if copies is None:
        return out
    return out + _take(count, _take(count, x, copies).sum(2, dtype=x.dtype), shared)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pack(count: int, x: jax.Array, source: Any, place: Any, copies: Any, shared: Any) -> jax.Array:
    return _take(count, x, source)


def _pack_forward(count: int, x: jax.Array, *own: Any) -> tuple[jax.Array, tuple]:
    return _pack(count, x, *own), own


def _pack_backward(count: int, own: tuple, gradient: jax.Array) -> tuple:
    source, place, copies, _ = own
    if copies is not None:  # what is not taken has no part in it
        slots = jnp.arange(place.size, dtype=jnp.int32).reshape(place.shape) % (place.size // count)
        place = jnp.where(_take(count, source, place) == slots, place, -1)
    return _take(count, gradient, place), None, None, None, None


_unpack.defvjp(_unpack_forward, _unpack_backward)
_pack.defvjp(_pack_forward, _pack_backward)


def can_share(model: ModelConfig, mesh: Any) -> bool:
    """Whether tokens may stand once for several sequences.

    Not where what a token becomes depends on more than what stands before it: experts are balanced by counting tokens,
    and of "longrope" positions depend on how long the whole sequence is. Nor where an axis splits the tokens of a row.
    """
    return not model.num_experts and model.rope_scaling != "longrope" and shards(mesh, "length") == 1


class Whole(NamedTuple):
    """The rows in which attention sees sequences that share their beginnings elsewhere: of the batch."""

    layout: Layout
    positions: jax.Array  # int32 [E, T]
    segment_ids: jax.Array  # int32 [E, T]
