"""Parameters as plain nested dicts: initialisation, shapes and shardings."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.models.config import ModelConfig, Params
from jaxalign.models.frozen import MATRICES
from jaxalign.models.transformer import Transformer
from jaxalign.parallel.sharding import check_apart, check_divides, constrain, param_shardings

# The config key that sets the size of each logical axis which a mesh may split.
_SIZES = {
    "embed": "embed_dim",
    "vocab": "vocab_size",
    "heads": "num_heads",
    "kv_heads": "num_kv_heads",
    "mlp": "mlp_dim",
    "expert": "num_experts",
    "layers": "num_layers",
    "head_dim": "head_dim",
    "norm": "embed_dim",
    "position": "max_length",
}
# The logical axes of what a layer computes, and of its keys and values.
_ACTIVATIONS = (
    *(("batch", "length", name) for name in ("act_embed", "act_heads", "act_mlp")),
    ("batch", "act_kv_heads"),
)


def _init_boxed(key: jax.Array, config: ModelConfig) -> Params:
    one = jnp.zeros((1, 1), jnp.int32)
    variables: Any = Transformer(config).init(key, one, one, one)
    return variables["params"]


def _plain(config: ModelConfig) -> ModelConfig:
    """The config of the same parameters, which do not depend on how attention is computed and what is kept of it."""
    return dataclasses.replace(config, attention="xla", remat="none", scan_layers=True)


@functools.lru_cache(maxsize=64)
def _trace_shapes(config: ModelConfig) -> Params:
    boxed = jax.eval_shape(lambda: _init_boxed(jax.random.key(0), config))
    # Without the layout that the mesh in force gave them.
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), boxed)


def _shapes(config: ModelConfig) -> Params:
    """Shapes and axis names of all parameters, traced once for all configs of the same."""
    return _trace_shapes(_plain(config))


# Compiled once for a config: flax traces and runs a whole forward pass otherwise, each time anew.
@functools.partial(jax.jit, static_argnums=1)
def _init(key: jax.Array, config: ModelConfig) -> Params:
    return nn.unbox(_init_boxed(key, config))


def init_params(
    key: jax.Array, config: ModelConfig, *, scalar: bool = False, zero_head: bool = False
) -> Params:
    """Fresh float32 parameters of a language model, or with `scalar` of a reward or value model.

    The latter are {"transformer": ..., "head": {"kernel" [D], "bias" []}}. The head is normal with standard
    deviation 1/sqrt(D + 1) (Stiennon et al., arXiv 2009.01325), or zero, so that first values are 0.
    """
    params = _init(key, _plain(config))
    if not scalar:
        return params
    return {"transformer": params, "head": init_head(jax.random.fold_in(key, 1), config, zero=zero_head)}


def init_head(key: jax.Array, config: ModelConfig, *, zero: bool = False) -> Params:
    """A fresh scalar head; see `init_params`."""
    std = 0.0 if zero else 1 / math.sqrt(config.embed_dim + 1)
    return {"kernel": std * jax.random.normal(key, (config.embed_dim,)), "bias": jnp.zeros(())}


def abstract_params(config: ModelConfig, mesh: Mesh, *, scalar: bool = False) -> Params:
    """ShapeDtypeStructs with the shardings that the rules in force give each parameter on `mesh`.

    Raises:
      ConfigError: a size of the model does not divide by the mesh axis that splits it, or config.mesh.rules put two
        dimensions of a parameter or of what is computed, or experts and the tokens that they share, on one axis.
    """
    for name, key in _SIZES.items():
        size = getattr(config, key)
        # Rotary positions have no table; that of others has some rows before that of position 0.
        if name == "position":
            size = size + config.position_offset if config.positions == "learned" else 0
        check_divides(mesh, f"model.{key}", size, name)
    boxed = _shapes(config)
    for box in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)):
        check_apart(*box.names)
        check_apart(*("decode_embed" if name == "embed" else name for name in box.names))
    for names in _ACTIVATIONS:
        check_apart(*names)
    if (
        config.num_experts
    ):  # `split_experts` sums over the axes of "mlp", and of "expert" where these split no rows
        check_apart("mlp", "batch", "length", mesh=mesh)
        check_apart("expert", "length", mesh=mesh)
    shardings = param_shardings(boxed, mesh)
    shapes = nn.unbox(boxed)
    if scalar:
        whole = NamedSharding(mesh, PartitionSpec())
        shapes = {"transformer": shapes, "head": jax.eval_shape(lambda: init_head(jax.random.key(0), config))}
        shardings = {"transformer": shardings, "head": {"kernel": whole, "bias": whole}}
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def lay_out(params: Params, config: ModelConfig) -> Params:
    """Inside jit, the parameters as the rules in force split them, matrices in the compute dtype.

    Done once before a loop that reads them at every turn, this gathers and converts them once.
    """
    boxed = _shapes(config)

    def leaf(path: tuple, x: jax.Array, box: nn.Partitioned) -> jax.Array:
        # Norms multiply by their scales in float32; every other parameter is converted where it is used.
        with jax.named_scope("/".join(entry.key for entry in path)):  # for who reads the compiled program
            return constrain(x.astype(config.dtype) if path[-1].key in MATRICES else x, *box.names)

    return jax.tree_util.tree_map_with_path(leaf, params, boxed)


def add_tokens(params: Params, abstract: Params) -> Params:
    """Parameters with rows for more tokens, as `abstract` has them: a new row is the mean of all that there were.

    So a new token is as likely as a usual one and read as an average of them, where a row of zeros or noise would be
    far from all others (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models").
    """

    def grow(x: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        if x.shape == like.shape:
            return x
        rows = jnp.broadcast_to(x.mean(axis=0, keepdims=True), (like.shape[0] - x.shape[0], x.shape[1]))
        return jnp.concatenate((x, rows))

    layout = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(lambda params: jax.tree.map(grow, params, abstract), out_shardings=layout)(params)


def count_parameters(config: ModelConfig) -> int:
    """Number of parameters of a language model of this architecture."""
    return count_params(_shapes(config))


def count_params(params: Params) -> int:
    """Number of parameters, of arrays or of ShapeDtypeStructs."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))
