"""The operation that is named is the first one that gives a NaN, whatever encloses it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxalign.errors import NonFiniteError
from jaxalign.training.debug import name_first_nan, nans_are_errors


class Rooted(nn.Module):
    """A layer with a root that a negative number breaks."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="up")(jnp.sqrt(x)) * 2


def _named(function, *arguments):
    with nans_are_errors(True), pytest.raises(NonFiniteError) as caught:
        name_first_nan(jax.jit(function), *arguments)
    return str(caught.value)


def _looped(x):
    """A NaN in the third turn of a loop, within a branch."""

    def turn(carry, row):
        return jax.lax.cond(row > 2, lambda c: jnp.log(c - 10), lambda c: c + 1, carry), row

    return jax.lax.scan(turn, x, jnp.arange(4.0))[0]


def _counted(x):
    return jax.lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, jnp.arccos(s[1] * 3)), (0, x))[1]


@pytest.mark.parametrize(
    ("function", "arguments", "operation"),
    [
        (lambda x: jnp.where(x > 0, x, jnp.nan).sum() + jnp.log(-x).sum(), (jnp.ones(3),), "log"),
        (lambda x: x * 1e38 * 10 - x * 1e38 * 10, (jnp.ones(2),), "sub"),
        (_looped, (jnp.float32(1),), "log"),
        (_counted, (jnp.float32(0.3),), "acos"),
        # The root of 0 is 0, its derivative infinite, and 0 times that is none.
        (jax.grad(lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0).sum()), (jnp.zeros(2),), "mul"),
        (jax.checkpoint(lambda x: jnp.log(-x)), (jnp.ones(1),), "log"),
    ],
)
def test_the_first_operation_is_named_with_its_line(function, arguments, operation):
    message = _named(function, *arguments)
    assert message.startswith(f"the first operation that gives a NaN is {operation}"), message
    assert "test_debug.py:" in message


def test_the_module_is_named():
    layer = Rooted()
    params = layer.init(jax.random.key(0), jnp.ones((1, 4)))
    message = _named(lambda p, x: layer.apply(p, x), params, -jnp.ones((1, 4)))
    assert "is sqrt of the module Rooted, at " in message


def test_without_a_nan_it_is_the_function_itself():
    with nans_are_errors(True):
        assert name_first_nan(jax.jit(lambda x: x + 1), jnp.float32(1)) == 2
