"""Mixture of experts: every token goes to the few experts that a router chooses; none is dropped.

Shapes: B rows, T tokens, D embedding, E experts, k experts a token, F width of an expert.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxalign.models.config import ModelConfig

ROUTER = "router"  # the collection in which layers leave their router losses


class Kernel(nn.Module):
    """A matrix for every expert, named as a projection's is."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    std: float

    @nn.compact
    def __call__(self) -> jax.Array:
        normal = nn.with_logical_partitioning(nn.initializers.normal(self.std), self.axes)
        return self.param("kernel", normal, self.shape, jnp.float32)


class Experts(nn.Module):
    """Gated MLPs behind a softmax router (arXiv 2401.04088 §2.1), computed as one grouped product over sorted tokens.

    Sows [2] float32 into `ROUTER`: the summed load-balancing loss and router z-loss of the real tokens; see
    `router_losses`.
    """

    config: ModelConfig
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, segment_ids: jax.Array) -> jax.Array:
        c = self.config
        B, T, D = x.shape
        E, k, F = c.num_experts, c.experts_per_token, c.mlp_dim

        def kernel(name: str, shape: tuple[int, ...], axes: tuple[str, ...], std: float) -> jax.Array:
            return Kernel(shape, axes, std, name=name)().astype(x.dtype)

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

        # Copies of the tokens, k each, sorted by expert: the experts' inputs lie in consecutive rows.
        order = jnp.argsort(chosen.reshape(-1), stable=True)
        token = order // k
        rows = x.reshape(B * T, D)[token]
        sizes = jnp.bincount(chosen.reshape(-1), length=E).astype(jnp.int32)
        inner = self.activation(jax.lax.ragged_dot(rows, gate, sizes)) * jax.lax.ragged_dot(rows, up, sizes)
        out = jax.lax.ragged_dot(inner, down, sizes) * weights.reshape(-1)[order].astype(x.dtype)[:, None]
        return jnp.zeros((B * T, D), x.dtype).at[token].add(out).reshape(B, T, D)


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
