"""How many numbers a layer makes of a token, and how many of them the backward pass keeps."""

import functools
import math

import jax
import jax.numpy as jnp

from jaxalign.models.config import ModelConfig
from jaxalign.models.transformer import ACTIVATIONS


def count_activations(model: ModelConfig, tensor: int = 1) -> tuple[float, float]:
    """Numbers a token of one layer that exist while it runs, and that are kept for the backward pass.

    Both in numbers of the compute type.

    Args:
      tensor: devices that heads and MLP are split over.
    """
    width = model.mlp_dim * (model.experts_per_token if model.num_experts else 1) / tensor
    queries, keys = (n * model.head_dim / tensor for n in (model.num_heads, model.num_kv_heads))
    heads = 2 * (queries + keys)
    layer = 8 * model.embed_dim + heads + 4 * width
    match model.remat:
        case "none":
            kept = _all(model, queries, keys, width)
        case "full":
            kept = model.embed_dim
        case "attention":
            kept = model.embed_dim + queries
        case _:  # products
            kept = 3 * model.embed_dim + heads + 2 * width
    return layer, kept


def _all(model: ModelConfig, queries: float, keys: float, width: float) -> float:
    """What derivatives read of a token of one layer where nothing is computed again, as JAX keeps it.

    Half of it is of norms, which are computed in float32: of each, four arrays.

    Args:
      queries, keys, width: numbers that a device has of a token's queries, keys and MLP.
    """
    of_norms = 4 * model.embed_dim * (4 if model.norm_placement == "both" else 2)
    if model.qk_norm != "none":
        of_norms += 4 * (queries + keys)
    # The input of each product of queries, keys, values and the MLP; what attention reads and makes.
    inputs = (5 if model.gated_mlp else 4) * model.embed_dim + 3 * queries + 2 * keys
    of_mlp = width * (_of_activation(model.activation, model.dtype) + (3 if model.gated_mlp else 1))
    return of_norms * 4 / jnp.dtype(model.dtype).itemsize + inputs + of_mlp


@functools.cache
def _of_activation(name: str, dtype: str) -> float:
    """What the derivative of an activation reads of each number that it is given, in a loop over layers."""

    def layers(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda carry, each: (carry, ACTIVATIONS[name](each)), None, x)[1]

    x = jax.ShapeDtypeStruct((2, 8), jnp.dtype(dtype))
    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(layers, x)[1], x))
    size = sum(math.prod(each.shape) * each.dtype.itemsize for each in kept if each.shape == x.shape)
    return size / (math.prod(x.shape) * x.dtype.itemsize)
