"""Mixture of experts: every token goes to the few experts that a router chooses; none is dropped.

Shapes: B rows, T tokens, D embedding, E experts, k experts a token, F width of an expert.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.pallas.ops.tpu.megablox import gmm

from jaxalign.models.config import ModelConfig
from jaxalign.models.frozen import weight
from jaxalign.parallel.sharding import dividing, is_one_device, mesh_axes, partitioned, shards, spec

Activation = Callable[[jax.Array], jax.Array]
Kernels = tuple[jax.Array, jax.Array, jax.Array]  # gate and up [E, D, F], down [E, F, D]

ROUTER = "router"  # the collection in which layers leave their router losses
# Tiles of the kernel: so many rows, and at most so many of the dimensions that are multiplied and of the result.
_ROWS_OF_A_TILE, _SIDE_OF_A_TILE = 512, 1024


class Kernel(nn.Module):
    """A matrix for every expert, named as a projection's is."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    std: float

    @nn.compact
    def __call__(self) -> jax.Array:
        normal = partitioned(nn.initializers.normal(self.std), self.axes)
        return self.param("kernel", normal, self.shape, jnp.float32)


class Experts(nn.Module):
    """Gated MLPs behind a softmax router (arXiv 2401.04088 §2.1), computed as one grouped product over sorted tokens.

    Sows [2] float32 into `ROUTER`: the summed load-balancing loss and router z-loss of the real tokens; see
    `router_losses`.
    """

    config: ModelConfig
    activation: Activation

    @nn.compact
    def __call__(self, x: jax.Array, segment_ids: jax.Array) -> jax.Array:
        c = self.config
        D, E, k, F = x.shape[-1], c.num_experts, c.experts_per_token, c.mlp_dim

        def kernel(name: str, shape: tuple[int, ...], axes: tuple[str, ...], std: float) -> jax.Array:
            return weight(Kernel(shape, axes, std, name=name)(), x.dtype)

        router = kernel("router", (D, E), ("embed", "expert"), c.init_std)
        gate = kernel("gate", (E, D, F), ("expert", "embed", "mlp"), c.init_std)
        up = kernel("up", (E, D, F), ("expert", "embed", "mlp"), c.init_std)
        down = kernel("down", (E, F, D), ("expert", "mlp", "embed"), c.init_std / (2 * c.num_layers) ** 0.5)

        logits = jnp.einsum("btd,de->bte", x, router).astype(jnp.float32)
        weights, chosen = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), k)
        if c.normalize_experts:
            weights = weights / weights.sum(-1, keepdims=True)
        self.sow(
            ROUTER, "losses", router_losses(logits, chosen, segment_ids), reduce_fn=jnp.add, init_fn=_zero
        )

        return split_experts(self.activation, x, weights.astype(x.dtype), chosen, (gate, up, down))


def split_experts(
    activation: Activation, x: jax.Array, weights: jax.Array, chosen: jax.Array, kernels: Kernels
) -> jax.Array:
    """`mix` with the experts of the whole mesh: x [B, T, D], weights and chosen [B, T, k] -> [B, T, D].

    Devices along the expert axis hold different experts and different rows: they gather each other's tokens, each
    applies its own experts to them, and the results are summed back to where the rows live. No token is dropped,
    and no device holds more than its experts, whose matrices are gathered along the axes that split "embed".
    """
    mesh = jax.sharding.get_abstract_mesh()
    if is_one_device() or x.shape[0] % shards(mesh, "batch"):
        return mix(activation, x, weights, chosen, kernels, 0)
    rows = spec(*dividing(mesh, x, ("batch", "length", None)))
    along = [axis for axis in mesh_axes("expert") if mesh.shape[axis] > 1]
    across = [axis for axis in mesh_axes("mlp") if mesh.shape[axis] > 1]
    gathered = [axis for axis in along if axis in mesh_axes("batch")]
    splitting = tuple(axis for axis in mesh_axes("embed") if mesh.shape[axis] > 1)

    def local(x: jax.Array, weights: jax.Array, chosen: jax.Array, kernels: Kernels) -> jax.Array:
        for axis in reversed(gathered):
            x, weights, chosen = (
                jax.lax.all_gather(a, axis, axis=0, tiled=True) for a in (x, weights, chosen)
            )
        if splitting:  # here and not by the layout asked for, so that the gradient is reduce-scattered
            kernels = tuple(
                jax.lax.all_gather(kernel, splitting, axis=at, tiled=True)
                for kernel, at in zip(kernels, (1, 1, 2), strict=True)
            )
        number = jnp.zeros((), jnp.int32)
        for axis in along:
            number = number * mesh.shape[axis] + jax.lax.axis_index(axis)
        y = mix(activation, x, weights, chosen, kernels, number * kernels[0].shape[0])
        if across:
            y = jax.lax.psum(y, across)
        for axis in gathered:
            y = jax.lax.psum_scatter(y, axis, scatter_dimension=0, tiled=True)
        rest = [axis for axis in along if axis not in gathered]
        return jax.lax.psum(y, rest) if rest else y

    into, out = spec("expert", "embed", "mlp"), spec("expert", "mlp", "embed")
    in_specs = (rows, rows, rows, (into, into, out))
    return jax.shard_map(local, in_specs=in_specs, out_specs=rows, check_vma=False)(
        x, weights, chosen, kernels
    )


def mix(
    activation: Activation,
    x: jax.Array,
    weights: jax.Array,
    chosen: jax.Array,
    kernels: Kernels,
    first: jax.Array | int,
) -> jax.Array:
    """Σ_j weights_j · expert_{chosen_j}(x) over the choices among experts first .. first + len(kernels) - 1."""
    gate, up, down = kernels
    B, T, D = x.shape
    k, held = chosen.shape[-1], gate.shape[0]
    own = chosen.reshape(-1) - first
    own = jnp.where((own >= 0) & (own < held), own, held)
    # Copies of the tokens, k each, sorted by expert: an expert's inputs lie in consecutive rows, and what belongs
    # to experts elsewhere comes last.
    order = jnp.argsort(own, stable=True)
    token = order // k
    rows = x.reshape(B * T, D)[token]
    sizes = jnp.bincount(own, length=held).astype(jnp.int32)
    inner = activation(grouped_product(rows, gate, sizes)) * grouped_product(rows, up, sizes)
    out = grouped_product(inner, down, sizes) * weights.reshape(-1)[order][:, None]
    out = jnp.where((own[order] < held)[:, None], out, 0)
    return jnp.zeros((B * T, D), x.dtype).at[token].add(out).reshape(B, T, D)


@jax.custom_vjp
def grouped_product(rows: jax.Array, matrices: jax.Array, sizes: jax.Array) -> jax.Array:
    """Rows [m, k] in consecutive groups of int32 `sizes` [g], each times its own of the matrices [g, k, n]: [m, n].

    Rows after the last group give 0. On TPUs this is the Megablox kernel (arXiv 2211.15841), as XLA's own
    `ragged_dot` multiplies every row by every matrix there.
    """
    return jax.lax.platform_dependent(rows, matrices, sizes, tpu=megablox_product, default=jax.lax.ragged_dot)


def _grouped_forward(rows: jax.Array, matrices: jax.Array, sizes: jax.Array) -> tuple[jax.Array, tuple]:
    return grouped_product(rows, matrices, sizes), (rows, matrices, sizes)


def _grouped_backward(residuals: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    def of(product: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
        def backward(rows: jax.Array, matrices: jax.Array, sizes: jax.Array, gradient: jax.Array) -> Any:
            return jax.vjp(lambda *both: product(*both, sizes), rows, matrices)[1](gradient)

        return backward

    x, weights = jax.lax.platform_dependent(
        *residuals, gradient, tpu=of(megablox_product), default=of(jax.lax.ragged_dot)
    )
    return x, weights, None


grouped_product.defvjp(_grouped_forward, _grouped_backward)


def megablox_product(
    rows: jax.Array, matrices: jax.Array, sizes: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """`grouped_product` by the kernel; `interpret` runs its code without a TPU, for tests."""
    (m, k), n = rows.shape, matrices.shape[2]
    padding = -m % _ROWS_OF_A_TILE
    # What the kernel leaves unwritten may be anything, in the backward pass too.
    inside = (jnp.arange(m + padding) < jnp.sum(sizes))[:, None]
    rows = jnp.where(inside, jnp.pad(rows, ((0, padding), (0, 0))), 0)
    tiles = (_ROWS_OF_A_TILE, min(k, _SIDE_OF_A_TILE), min(n, _SIDE_OF_A_TILE))
    out = gmm(rows, matrices, sizes, rows.dtype, tiles, interpret=interpret)
    return jnp.where(inside, out, 0)[:m]


def _zero() -> jax.Array:
    return jnp.zeros((2,), jnp.float32)


def router_losses(logits: jax.Array, chosen: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Load-balancing loss and z-loss, each summed over the real tokens: float32 [2].

    Load balancing (arXiv 2101.03961 eq. 4-6) is taken over each sequence, as in arXiv 2412.19437 eq. 17-20,
    and weighted by its tokens: E Σ_e f_e P_e with f_e the share of the sequence's choices that fell on expert
    e, times k, and P_e its mean probability. Over a whole batch it would change with the number of
    microbatches and devices. 1 token counts k when the load is even. z-loss: mean (log Σ_e exp logit_e)²
    (arXiv 2202.08906 eq. 5).

    Args:
      logits: float32 [B, T, E]; chosen: int32 [B, T, k]; segment_ids: int32 [B, T], 0 for padding.
    """
    T, E = logits.shape[1:]
    real = (segment_ids > 0).astype(jnp.float32)
    picks = jax.nn.one_hot(chosen, E, dtype=jnp.float32).sum(2)
    summed = jax.vmap(functools.partial(jax.ops.segment_sum, num_segments=T + 1))
    lengths = summed(real, segment_ids)[:, 1:]
    counts = summed(picks, segment_ids)[:, 1:]
    probabilities = summed(jax.nn.softmax(logits, axis=-1), segment_ids)[:, 1:]
    balance = E * jnp.sum(counts * probabilities, axis=-1) / jnp.maximum(lengths, 1.0)
    z = jnp.square(jax.nn.logsumexp(logits, axis=-1)) * real
    return jnp.stack((balance.sum(), z.sum()))
