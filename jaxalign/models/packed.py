"""Sequences that stand one in a row, brought together into fewer rows for a model to read, and back.

A model's work grows with the slots of its rows, full or not. Where a batch [E, T] has one sequence a row, most of them
shorter than T, they are packed into R < E rows for the forward pass, and what is read off each slot is put back where
its token stands: losses and advantages go on seeing [E, T].
"""

import flax.struct
import jax
import jax.numpy as jnp

from jaxalign.parallel.sharding import constrain


@flax.struct.dataclass
class Layout:
    """Where the slots of a batch [E, T] lie in R rows, and where the slots of these come from."""

    source: jax.Array  # int32 [R, T]: the slot of the flattened batch; -1: empty
    place: jax.Array  # int32 [E, T]: the slot of the flattened rows; -1: of padding
    segment_ids: jax.Array  # int32 [R, T]

    def pack(self, x: jax.Array) -> jax.Array:
        """[E, T] to [R, T], empty slots 0."""
        return constrain(_take(x, self.source, self.place), "batch", "length")

    def unpack(self, x: jax.Array) -> jax.Array:
        """[R, T] back to [E, T], padding 0."""
        return constrain(_take(x, self.place, self.source), "batch", "length")


@jax.custom_vjp
def _take(x: jax.Array, places: jax.Array, back: jax.Array) -> jax.Array:
    found = jnp.take(x.reshape(-1), jnp.maximum(places, 0).reshape(-1), mode="clip")
    return jnp.where(places >= 0, found.reshape(places.shape), 0)


def _take_forward(x: jax.Array, places: jax.Array, back: jax.Array) -> tuple[jax.Array, tuple]:
    return _take(x, places, back), (places, back)


def _take_backward(residuals: tuple, gradient: jax.Array) -> tuple[jax.Array, None, None]:
    # No slot is taken twice, so the gradient is taken, too: sums into single slots would be slow.
    places, back = residuals
    return _take(gradient, back, places), None, None


_take.defvjp(_take_forward, _take_backward)
