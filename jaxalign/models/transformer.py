"""The decoder-only transformer, used purely: `model.apply({"params": params}, ...)`.

Shapes: B rows, T tokens, D embedding, H heads, K key/value heads, d head dimension, F MLP width, L layers.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxalign.models.attention import (
    SAVED,
    attention,
    attention_mask,
    blockwise_attention,
    see,
)
from jaxalign.models.block_sparse import block_sparse_attention
from jaxalign.models.cache import Cache, is_unrolled
from jaxalign.models.config import ModelConfig
from jaxalign.models.embedding import TABLE, embed
from jaxalign.models.experts import ROUTER, Experts
from jaxalign.models.frozen import weight
from jaxalign.models.gpu_attention import flash_attention
from jaxalign.models.packed import Whole
from jaxalign.models.rope import rotary, rotate
from jaxalign.models.tpu_attention import splash_attention
from jaxalign.parallel.sharding import (
    constrain,
    gather_parameter,
    is_one_device,
    joins_tokens,
    partitioned,
    saved_without_gathered,
    split_by_features,
    split_rows,
)

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}

# What a kernel of attention needs for its backward pass: to compute it again is to run the kernel once more.
_ATTENTION = jax.checkpoint_policies.save_only_these_names(SAVED)
_BOTH = jax.checkpoint_policies.save_from_both_policies
REMAT_POLICIES = {
    "none": saved_without_gathered,
    "full": None,
    "attention": _ATTENTION,
    "dots": _BOTH(jax.checkpoint_policies.checkpoint_dots, _ATTENTION),
    "dots_no_batch": _BOTH(jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims, _ATTENTION),
}


class Norm(nn.Module):
    """RMSNorm (arXiv 1910.07467) or LayerNorm over the dimensions that `axes` names, computed in float32."""

    config: ModelConfig
    axes: tuple[str, ...] = ("norm",)
    rms: bool = False  # whatever the config says: queries and keys are never centred

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        over = tuple(range(x.ndim - len(self.axes), x.ndim))
        shape = x.shape[over[0] :]
        start = nn.initializers.zeros if c.norm_offset else nn.initializers.ones
        scale = self.param("scale", partitioned(start, self.axes), shape, jnp.float32)
        centred = c.norm == "layer" and not self.rms
        y = x.astype(jnp.float32)
        if centred:
            y = y - y.mean(over, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(over, keepdims=True) + c.norm_eps)
        y = y * jax.lax.broadcast_in_dim(scale + 1.0 if c.norm_offset else scale, y.shape, over)
        if centred:
            zeros = partitioned(nn.initializers.zeros, self.axes)
            bias = self.param("bias", zeros, shape, jnp.float32)
            y = y + jax.lax.broadcast_in_dim(bias, y.shape, over)
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
        normal = partitioned(nn.initializers.normal(self.std), self.axes)
        kernel = weight(self.param("kernel", normal, self.shape, jnp.float32), x.dtype)
        multiply = functools.partial(_multiply, self.num_in)
        if split_by_features(self.axes):
            y = multiply(x, gather_parameter(kernel, *self.axes))
        else:
            y = split_rows(multiply, None, self.axes)(x, kernel)
        if self.use_bias:
            zeros = partitioned(nn.initializers.zeros, self.axes[self.num_in :])
            bias = self.param("bias", zeros, self.shape[self.num_in :], jnp.float32).astype(x.dtype)
            y = y + jax.lax.broadcast_in_dim(bias, y.shape, tuple(range(2, y.ndim)))
        return y


def _multiply(num_in: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, T, inputs] by [inputs, outputs], of which each may be several dimensions, `num_in` those of the inputs."""
    places = x.shape[:2]
    if joins_tokens():
        x = x.reshape(-1, *x.shape[2:])
    first = x.ndim - num_in
    contracted = (tuple(range(first, x.ndim)), tuple(range(num_in)))
    y = jax.lax.dot_general(x, kernel, (contracted, ((), ())))
    return y.reshape(*places, *y.shape[first:])


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention; writes to and reads from layer `layer` of a cache."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: dict[str, Any],
        cache: Cache | None,
        layer: jax.Array,
        local: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None]:
        c = self.config
        into = functools.partial(Projection, std=c.init_std, use_bias=c.qkv_bias)
        q = into((c.embed_dim, c.num_heads, c.head_dim), ("embed", "heads", "head_dim"), name="query")(x)
        k = into((c.embed_dim, c.num_kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), name="key")(x)
        v = into((c.embed_dim, c.num_kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), name="value")(
            x
        )
        if c.qk_norm != "none":
            q_axes, k_axes = ("heads", "head_dim"), ("kv_heads", "head_dim")
            drop = 1 if c.qk_norm == "head" else 0
            q = Norm(c, q_axes[drop:], rms=True, name="query_norm")(q)
            k = Norm(c, k_axes[drop:], rms=True, name="key_norm")(k)
        if c.positions == "rope":
            rotary = _of_layer(context["rotary"], local)
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        q = constrain(q, "batch", "length", "act_heads", None)
        # Whole rows: where the context axis splits tokens, every device gathers the keys of its rows.
        k = constrain(k, "batch", None, "act_kv_heads", None)
        v = constrain(v, "batch", None, "act_kv_heads", None)
        if cache is not None:
            cache, k, v = cache.write(layer, k, v)
        if (layout := context["layout"]) is not None:
            q, k, v = layout.unpack(q), layout.unpack(k), layout.unpack(v)
        y = self.attend(q, k, v, context, local, cached=cache is not None)
        y = y if layout is None else layout.pack(y)
        out = Projection(
            (c.num_heads, c.head_dim, c.embed_dim),
            ("heads", "head_dim", "embed"),
            std=c.init_std / (2 * c.num_layers) ** 0.5,  # GPT-2: keeps the residual stream's variance level
            num_in=2,
            use_bias=c.out_bias,
            name="out",
        )
        return out(y), cache

    def attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        context: dict[str, Any],
        local: jax.Array | None,
        *,
        cached: bool,
    ) -> jax.Array:
        """The implementation that the config names; a cache has keys without queries, which the kernels cannot."""
        c = self.config
        settings = {"scale": c.query_scale or c.head_dim**-0.5, "softcap": c.attention_softcap}
        if c.attention == "block_sparse" and not cached:
            return block_sparse_attention(q, k, v, _of_layer(context["view"], local), **settings)
        if c.attention in ("xla", "block_sparse"):
            mask = _of_layer(context["mask"], local)
            return attention(q, k, v, mask, heads_first=cached, **settings)
        if c.attention == "flash" and not cached:
            return flash_attention(q, k, v, _of_layer(context["view"], local), **settings)
        if c.attention == "splash" and not cached:
            splash = functools.partial(splash_attention, block=c.attention_block, **settings)
            segments = context["places"][1]
            near, all_ = (functools.partial(splash, window=window) for window in (c.window, 0))
            if local is None:
                return (near if c.local_layers[0] else all_)(q, k, v, segments)
            return jax.lax.cond(local, near, all_, q, k, v, segments)
        window = c.window if c.local_layers[0] else 0
        if local is not None:
            window = jnp.where(local, c.window, jnp.iinfo(jnp.int32).max)
        places = context["places"]
        return blockwise_attention(q, k, v, *places, window=window, heads_first=cached, **settings)


class MLP(nn.Module):
    """Two matrices with an activation between, or three with a gate (arXiv 2002.05202)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        into = functools.partial(
            Projection, (c.embed_dim, c.mlp_dim), ("embed", "mlp"), std=c.init_std, use_bias=c.mlp_bias
        )
        act = ACTIVATIONS[c.activation]
        y = act(into(name="gate")(x)) * into(name="up")(x) if c.gated_mlp else act(into(name="up")(x))
        y = constrain(y, "batch", "length", "act_mlp")
        std = c.init_std / (2 * c.num_layers) ** 0.5
        return Projection((c.mlp_dim, c.embed_dim), ("mlp", "embed"), std, use_bias=c.mlp_bias, name="down")(
            y
        )


class Block(nn.Module):
    """One layer. The carry is (x, cache, layer number), as `nn.scan` wants it.

    `local` [] bool says whether this layer has a window; None where all layers are alike.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, carry: tuple, context: dict[str, Any], local: jax.Array | None) -> tuple[tuple, None]:
        c = self.config
        x, cache, layer = carry

        def before(x: jax.Array, name: str) -> jax.Array:
            return x if c.norm_placement == "after" else Norm(c, name=name)(x)

        def after(x: jax.Array, name: str) -> jax.Array:
            return x if c.norm_placement == "before" else Norm(c, name=name)(x)

        y, cache = Attention(c, name="attention")(before(x, "attention_norm"), context, cache, layer, local)
        y = constrain(x + after(y, "attention_post_norm"), "batch", "length", "act_embed")
        z = before(x if c.parallel_blocks else y, "mlp_norm")
        if c.num_experts:
            z = Experts(c, ACTIVATIONS[c.activation], name="mlp")(z, context["segment_ids"])
        else:
            z = MLP(c, name="mlp")(z)
        y = constrain(y + after(z, "mlp_post_norm"), "batch", "length", "act_embed")
        return (y, cache, layer + 1), None


def _of_layer(choices: tuple[Any, Any], local: jax.Array | None) -> Any:
    """The second of (global, local) where the layer has a window; the first where all layers are alike."""
    if local is None:
        return choices[0]
    return jax.tree.map(lambda every, near: jnp.where(local, near, every), *choices)


class Transformer(nn.Module):
    """tokens, positions, segment_ids int32 [B, T] -> (hidden [B, T, D] in the compute dtype, cache).

    Hidden states are after the last norm; `unembedding` gives the matrix that turns them into logits. With a
    cache, the T tokens are written at its index and see what it holds. Where these rows share tokens of several
    sequences, attention sees those of `whole`. Layers are scanned, their parameters stacked on a leading axis, so
    compile time does not grow with depth where `scan_layers` holds.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: Cache | None = None,
        whole: Whole | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        c = self.config
        normal = nn.initializers.normal(c.init_std)
        table = partitioned(normal, TABLE)
        embedding = self.param("embedding", table, (c.vocab_size, c.embed_dim), jnp.float32)
        if not c.tie_embeddings:
            self.param("unembedding", table, (c.vocab_size, c.embed_dim), jnp.float32)
        x = embed(embedding, TABLE, tokens, c.dtype)
        layout = None if whole is None else whole.layout
        context: dict[str, Any] = {"segment_ids": segment_ids, "layout": layout}
        kinds = (False, True) if len(set(c.local_layers)) == 2 else c.local_layers[:1]
        if c.positions == "learned":
            places = partitioned(normal, ("position", "embed"))
            table = self.param(
                "position_embedding", places, (c.position_offset + c.max_length, c.embed_dim), jnp.float32
            )
            x = x + embed(table, ("position", "embed"), positions + c.position_offset, c.dtype)
        if c.scale_embedding:
            x = x * jnp.asarray(c.embed_dim**0.5, x.dtype)
        x = constrain(x, "batch", "length", "act_embed")

        if c.positions == "rope":
            context["rotary"] = tuple(rotary(c, positions, segment_ids, local=local) for local in kinds)
        if whole is not None:
            positions, segment_ids = whole.positions, whole.segment_ids
        k_positions, k_segments = positions, segment_ids
        if cache is not None:
            at = (0, cache.index)
            cache = dataclasses.replace(
                cache,
                positions=jax.lax.dynamic_update_slice(cache.positions, positions, at),
                segment_ids=jax.lax.dynamic_update_slice(cache.segment_ids, segment_ids, at),
            )
            k_positions, k_segments = cache.positions, cache.segment_ids
        context["places"] = (positions, segment_ids, k_positions, k_segments)
        windows = [c.window if local else 0 for local in kinds]
        if c.attention in ("block_sparse", "flash") and cache is None:
            context["view"] = tuple(see(segment_ids, window) for window in windows)
        elif c.attention in ("xla", "block_sparse"):
            context["mask"] = tuple(attention_mask(*context["places"], window) for window in windows)
        local = jnp.array(c.local_layers) if len(kinds) == 2 else None

        block = Block
        if c.remat != "none" or not is_one_device():
            block = nn.remat(Block, policy=REMAT_POLICIES[c.remat], prevent_cse=False)
        # Flax's annotations have one number for all in_axes.
        scan: Any = nn.scan
        layers = scan(
            block,
            variable_axes={"params": 0, ROUTER: 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0 if len(kinds) == 2 else nn.broadcast),
            length=c.num_layers,
            unroll=c.num_layers if is_unrolled(c) else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, name="layers")
        (x, cache, _), _ = layers((x, cache, jnp.zeros((), jnp.int32)), context, local)
        if cache is not None:
            cache = dataclasses.replace(cache, index=cache.index + tokens.shape[1])
        return Norm(c, name="final_norm")(x), cache
