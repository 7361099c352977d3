"""Slots in which sequences are sampled: where one has ended, the next that waits takes its place.

At a step all slots write the same place of the cache, the next of a ring of N: a token is seen by its segment and its
position, not by where it lies, and a sequence has N tokens at most.

Shapes: E sequences, S slots, D parts of a batch, each with its own queue, so that no sequence moves to another device.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

IDLE = 16  # as many parts of the slots may be empty before they are filled


@flax.struct.dataclass
class Slots:
    """What each slot works on."""

    sequence: jax.Array  # int32 [S]; E: nothing
    count: jax.Array  # int32 [S]: tokens of it that have been sampled
    waiting: jax.Array  # int32 [D]: the first of each part that waits

    def next_token(self, ended: jax.Array, sequences: int) -> "Slots":
        """After a token more of each; those that have ended are empty."""
        return dataclasses.replace(
            self, sequence=jnp.where(ended, sequences, self.sequence), count=self.count + 1
        )

    def want_more(self, sequences: int) -> jax.Array:
        """Whether enough are empty, and some sequence waits for them."""
        parts = len(self.waiting)
        each = sequences // parts
        empty = (self.sequence >= sequences).reshape(parts, -1)
        enough = empty.sum(axis=1) >= max(1, empty.shape[1] // IDLE)
        left = self.waiting < jnp.arange(1, parts + 1, dtype=jnp.int32) * each
        return jnp.any(enough & left)

    def fill(self, sequences: int) -> tuple["Slots", jax.Array]:
        """With a waiting sequence in each empty slot, as far as there are any; and which slots got one, bool [S]."""
        parts = len(self.waiting)
        each = sequences // parts
        empty = (self.sequence >= sequences).reshape(parts, -1)
        taken = self.waiting[:, None] + jnp.cumsum(empty, axis=1, dtype=jnp.int32) - 1
        end = jnp.arange(1, parts + 1, dtype=jnp.int32)[:, None] * each
        filled = empty & (taken < end)
        new = Slots(
            sequence=jnp.where(filled.reshape(-1), taken.reshape(-1), self.sequence),
            count=jnp.where(filled.reshape(-1), 0, self.count),
            waiting=self.waiting + filled.sum(axis=1, dtype=jnp.int32),
        )
        return new, filled.reshape(-1)


def first_slots(sequences: int, slots: int, parts: int) -> Slots:
    """Every slot with a sequence of its part."""
    each = sequences // parts
    begin = jnp.arange(parts, dtype=jnp.int32) * each
    inside = jnp.arange(slots // parts, dtype=jnp.int32)
    return Slots(
        sequence=(begin[:, None] + inside[None]).reshape(-1),
        count=jnp.zeros(slots, jnp.int32),
        waiting=begin + slots // parts,
    )


def take_rows(x: jax.Array, rows: jax.Array, parts: int, axis: int = 0) -> jax.Array:
    """The rows int32 [S] of an array whose dimension `axis` they count, each from its own part of it."""
    x = jnp.moveaxis(x, axis, 0)
    taken = jax.vmap(lambda x, rows: jnp.take(x, rows, axis=0, mode="clip"))
    out = taken(_cut(x, parts), _inside(rows, len(x), parts))
    return jnp.moveaxis(out.reshape(len(rows), *x.shape[1:]), 0, axis)


def put_tokens(x: jax.Array, slots: Slots, values: jax.Array) -> jax.Array:
    """x [E, N] with a value [S] at the present token of the sequence of each slot."""
    parts = len(slots.waiting)
    put = jax.vmap(lambda x, rows, at, values: x.at[rows, at].set(values, mode="drop"))
    inside = _inside(slots.sequence, len(x), parts)
    # What stands in an empty slot goes nowhere, also not to the part before.
    inside = jnp.where(_cut(slots.sequence, parts) < len(x), inside, len(x))
    return put(_cut(x, parts), inside, _cut(slots.count, parts), _cut(values, parts)).reshape(x.shape)


def _cut(x: jax.Array, parts: int) -> jax.Array:
    return x.reshape(parts, -1, *x.shape[1:])


def _inside(rows: jax.Array, count: int, parts: int) -> jax.Array:
    """Where in its part each of the rows is, of `count` in all: int32 [D, S / D]."""
    return _cut(rows, parts) - jnp.arange(parts, dtype=jnp.int32)[:, None] * (count // parts)
