"""Independent oracles: float64 NumPy and central finite differences."""

from collections.abc import Callable

import jax
import numpy as np


def finite_difference(
    function: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5
) -> np.ndarray:
    """Central differences of a float64 NumPy function of one array."""
    x = np.array(x, np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        here = x[index]
        x[index] = here + step
        above = function(x)
        x[index] = here - step
        below = function(x)
        x[index] = here
        gradient[index] = (above - below) / (2 * step)
    return gradient


def assert_close(actual, expected, tolerance: float = 1e-5) -> None:
    """Relative to each entry, and to the largest entry for those that cancel to nearly zero."""
    assert np.asarray(actual).dtype == np.float32
    expected = np.asarray(expected, np.float64)
    scale = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * max(scale, 1e-3))


def check_loss(loss: Callable, oracle: Callable, arrays: dict[str, np.ndarray], wrt: list[str]) -> dict:
    """Hold loss(**arrays) -> (scalar, metrics) and its gradients against oracle(**arrays) -> float.

    Returns the metrics.
    """
    float64 = {name: np.asarray(x, np.float64) for name, x in arrays.items()}

    def value(chosen, rest):
        return loss(**chosen, **rest)

    chosen = {name: arrays[name] for name in wrt}
    rest = {name: x for name, x in arrays.items() if name not in wrt}
    (actual, metrics), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(chosen, rest)
    assert_close(actual, oracle(**float64))
    for name in wrt:
        expected = finite_difference(lambda x, name=name: oracle(**{**float64, name: x}), float64[name])
        assert_close(gradients[name], expected)
    return metrics


def log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


def weighted_mean(x, weight):
    return np.sum(x * weight) / np.sum(weight)
