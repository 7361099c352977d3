"""Checks and numerically safe pieces shared by every loss."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp

# A log-probability nearer to zero than this is rounding noise of a float32 softmax.
_SMALLEST = float(jnp.finfo(jnp.float32).eps)
_LOG_2 = 0.6931471805599453


def require_float32(**arrays: jax.Array | None) -> None:
    """Raise unless all arrays are float32 and of one shape; None is skipped.

    Raises TypeError (dtype) or ValueError (shape), both at trace time. Shapes must be equal, not merely
    broadcastable: a [B, 1] mask against [B, T] is a mistake that broadcasting would hide.
    """
    given = {name: x for name, x in arrays.items() if x is not None}
    for name, x in given.items():
        if getattr(x, "dtype", None) != jnp.float32:
            found = getattr(x, "dtype", type(x).__name__)
            raise TypeError(f"{name} is {found}; losses take float32 arrays: use {name}.astype(jnp.float32)")
    if len({x.shape for x in given.values()}) > 1:
        shapes = ", ".join(f"{name} {x.shape}" for name, x in given.items())
        raise ValueError(f"shapes differ: {shapes}; give arrays of one shape")


def is_traced(x: Any) -> bool:
    """Whether `x` is a JAX tracer, which has no value while a function is traced."""
    return isinstance(x, jax.core.Tracer)


def keep(x: jax.Array, mask: jax.Array, fill: float = 0.0) -> jax.Array:
    """`x` where `mask` is not zero, else `fill`.

    Applied to inputs before any arithmetic, so that NaN or inf in an excluded entry reaches neither value nor
    gradient (masking a result instead would give 0 * inf in the backward pass).
    """
    return jnp.where(mask != 0, x, fill)


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x <= 0, accurate at both ends.

    Two branches after Mächler 2012, "Accurately computing log(1 - exp(-|a|))". `x` above -1.2e-7 counts as
    -1.2e-7, so value and gradient are finite up to and including x = 0.
    """
    x = jnp.minimum(x, -_SMALLEST)
    near_zero = x > -_LOG_2
    near = jnp.log(-jnp.expm1(jnp.where(near_zero, x, -_LOG_2)))
    far = jnp.log1p(-jnp.exp(jnp.where(near_zero, -_LOG_2, x)))
    return jnp.where(near_zero, near, far)
