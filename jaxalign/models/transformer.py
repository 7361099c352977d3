"""The decoder-only transformer, used purely: `model.apply({"params": params}, ...)`.

Shapes: B rows, T tokens, D embedding, H heads, K key/value heads, d head dimension, F MLP width, L layers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxalign.models.attention import attention, attention_mask, rotary_angles, rotate
from jaxalign.models.cache import Cache
from jaxalign.models.config import ModelConfig
from jaxalign.parallel.sharding import constrain

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}

REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.checkpoint_dots,
    "dots_no_batch": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
}


class Norm(nn.Module):
    """RMSNorm (arXiv 1910.07467) or LayerNorm over the last dimension, computed in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale = self.param("scale", ones, x.shape[-1:], jnp.float32)
        y = x.astype(jnp.float32)
        if self.config.norm == "layer":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.config.norm_eps)
        y = y * scale[None, None, :]
        if self.config.norm == "layer":
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
            y = y + self.param("bias", zeros, x.shape[-1:], jnp.float32)[None, None, :]
        return y.astype(x.dtype)


class Projection(nn.Module):
    """A linear map between named axes: contracts the first `num_in` dimensions of its kernel."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    std: float
    num_in: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        normal = nn.with_logical_partitioning(nn.initializers.normal(self.std), self.axes)
        kernel = self.param("kernel", normal, self.shape, jnp.float32).astype(x.dtype)
        y = jax.lax.dot_general(
            x, kernel, ((tuple(range(x.ndim - self.num_in, x.ndim)), tuple(range(self.num_in))), ((), ()))
        )
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[self.num_in :])
            bias = self.param("bias", zeros, self.shape[self.num_in :], jnp.float32).astype(x.dtype)
            y = y + jax.lax.broadcast_in_dim(bias, y.shape, tuple(range(x.ndim - self.num_in, y.ndim)))
        return y


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention; writes to and reads from layer `layer` of a cache."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, context: dict[str, Any], cache: Cache | None, layer: jax.Array
    ) -> tuple[jax.Array, Cache | None]:
        c = self.config
        into = functools.partial(Projection, std=c.init_std, use_bias=c.use_bias)
        q = into((c.embed_dim, c.num_heads, c.head_dim), ("embed", "heads", "head_dim"), name="query")(x)
        k = into((c.embed_dim, c.num_kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), name="key")(x)
        v = into((c.embed_dim, c.num_kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), name="value")(
            x
        )
        if c.positions == "rope":
            q, k = rotate(q, *context["rotary"]), rotate(k, *context["rotary"])
        q = constrain(q, "batch", "length", "act_heads", None)
        k = constrain(k, "batch", "length", "act_kv_heads", None)
        v = constrain(v, "batch", "length", "act_kv_heads", None)
        if cache is not None:
            at = (layer, 0, cache.index, 0, 0)
            cache = cache.replace(
                k=jax.lax.dynamic_update_slice(cache.k, k[None], at),
                v=jax.lax.dynamic_update_slice(cache.v, v[None], at),
            )
            k = jax.lax.dynamic_index_in_dim(cache.k, layer, keepdims=False)
            v = jax.lax.dynamic_index_in_dim(cache.v, layer, keepdims=False)
        y = attention(q, k, v, context["mask"])
        out = Projection(
            (c.num_heads, c.head_dim, c.embed_dim),
            ("heads", "head_dim", "embed"),
            std=c.init_std / (2 * c.num_layers) ** 0.5,  # GPT-2: keeps the residual stream's variance level
            num_in=2,
            use_bias=c.use_bias,
            name="out",
        )
        return out(y), cache


class MLP(nn.Module):
    """Two matrices with an activation between, or three with a gate (arXiv 2002.05202)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        into = functools.partial(
            Projection, (c.embed_dim, c.mlp_dim), ("embed", "mlp"), std=c.init_std, use_bias=c.use_bias
        )
        act = ACTIVATIONS[c.activation]
        y = act(into(name="gate")(x)) * into(name="up")(x) if c.gated_mlp else act(into(name="up")(x))
        y = constrain(y, "batch", "length", "act_mlp")
        std = c.init_std / (2 * c.num_layers) ** 0.5
        return Projection((c.mlp_dim, c.embed_dim), ("mlp", "embed"), std, use_bias=c.use_bias, name="down")(
            y
        )


class Block(nn.Module):
    """One pre-norm layer. The carry is (x, cache, layer number), as `nn.scan` wants it."""

    config: ModelConfig

    @nn.compact
    def __call__(self, carry: tuple, context: dict[str, Any]) -> tuple[tuple, None]:
        x, cache, layer = carry
        y, cache = Attention(self.config, name="attention")(
            Norm(self.config, name="attention_norm")(x), context, cache, layer
        )
        x = constrain(x + y, "batch", "length", "act_embed")
        x = x + MLP(self.config, name="mlp")(Norm(self.config, name="mlp_norm")(x))
        return (constrain(x, "batch", "length", "act_embed"), cache, layer + 1), None


class Transformer(nn.Module):
    """tokens, positions, segment_ids int32 [B, T] -> (hidden [B, T, D] in the compute dtype, cache).

    Hidden states are after the last norm; `unembedding` gives the matrix that turns them into logits. With a
    cache, the T tokens are written at its index and see what it holds. Layers are scanned, their parameters
    stacked on a leading axis, so compile time does not grow with depth.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        c = self.config
        normal = nn.initializers.normal(c.init_std)
        table = nn.with_logical_partitioning(normal, ("vocab", "embed"))
        embedding = self.param("embedding", table, (c.vocab_size, c.embed_dim), jnp.float32)
        if not c.tie_embeddings:
            self.param("unembedding", table, (c.vocab_size, c.embed_dim), jnp.float32)
        # Gathering rows of a table split along D would make the compiler replicate the result: join D first.
        x = jnp.take(constrain(embedding, "vocab", None), tokens, axis=0)
        context: dict[str, Any] = {}
        if c.positions == "learned":
            places = nn.with_logical_partitioning(normal, ("position", "embed"))
            table = self.param("position_embedding", places, (c.max_length, c.embed_dim), jnp.float32)
            x = x + jnp.take(constrain(table, None, None), positions, axis=0)
        else:
            context["rotary"] = rotary_angles(positions, c.head_dim, c.rope_theta)
        x = constrain(x.astype(c.dtype), "batch", "length", "act_embed")

        k_positions, k_segments = positions, segment_ids
        if cache is not None:
            at = (0, cache.index)
            cache = cache.replace(
                positions=jax.lax.dynamic_update_slice(cache.positions, positions, at),
                segment_ids=jax.lax.dynamic_update_slice(cache.segment_ids, segment_ids, at),
            )
            k_positions, k_segments = cache.positions, cache.segment_ids
        context["mask"] = attention_mask(positions, segment_ids, k_positions, k_segments)

        block = Block
        if c.remat != "none":
            block = nn.remat(Block, policy=REMAT_POLICIES[c.remat], prevent_cse=False)
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, name="layers")
        (x, cache, _), _ = layers((x, cache, jnp.zeros((), jnp.int32)), context)
        if cache is not None:
            cache = cache.replace(index=cache.index + tokens.shape[1])
        return Norm(c, name="final_norm")(x), cache
