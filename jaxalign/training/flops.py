"""Model FLOPs, for model FLOP utilisation (MFU, arXiv 2204.02311 appendix B)."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxalign.losses.metrics import Mean, Metrics
from jaxalign.models import ModelConfig

TOKENS, PAIRS = "perf/tokens", "perf/pairs"

# Dense bfloat16 peak of one device in FLOP/s, from the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(mesh: Mesh) -> float | None:
    """FLOP/s of all devices of a mesh together, or None for a kind that is not in the table (a CPU)."""
    kind = mesh.devices.flat[0].device_kind
    known = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(known, key=len)] * mesh.size if known else None


def matmul_params(config: ModelConfig) -> int:
    """Parameters that multiply every token: all but norms, biases and the input embedding."""
    heads = config.embed_dim * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    mlp = config.embed_dim * config.mlp_dim * (3 if config.gated_mlp else 2)
    return config.num_layers * (heads + mlp) + config.vocab_size * config.embed_dim


def count_work(segment_ids: jax.Array, positions: jax.Array) -> Metrics:
    """Of a packed batch, int32 [B, T]: its tokens, and the pairs of them that attention lets see each other.

    A pair is counted once (causal), within segments only: position p of a segment sees p + 1 tokens. Float32, as
    a large batch has more pairs than int32 can count. Belongs into a step's metrics, for the recorder.
    """
    real = (segment_ids > 0).astype(jnp.float32)
    one = jnp.ones((), jnp.float32)
    return {TOKENS: Mean(real.sum(), one), PAIRS: Mean(jnp.sum(real * (positions + 1)), one)}


def step_flops(config: ModelConfig, tokens: float, pairs: float) -> float:
    """FLOPs of one forward and backward pass over a batch of `tokens` and visible `pairs`; see `count_work`.

    6 a parameter and token, and 12 * L * H * d a pair. Recomputation and padding are not counted.
    """
    attention = 12 * config.num_layers * config.num_heads * config.head_dim * pairs
    return 6.0 * matmul_params(config) * tokens + attention
