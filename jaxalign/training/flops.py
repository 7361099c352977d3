"""Model FLOPs, for model FLOP utilisation (MFU, arXiv 2204.02311 appendix B)."""

import numpy as np
from jax.sharding import Mesh

from jaxalign.models import ModelConfig

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


def step_flops(config: ModelConfig, segment_ids: np.ndarray) -> float:
    """FLOPs of one forward and backward pass over a packed batch, int32 [B, T].

    6 a parameter and token, and 12 * L * H * d for every pair of tokens that attention lets see each other,
    counted once (causal), within segments only. Recomputation and padding are not counted.
    """
    tokens = np.count_nonzero(segment_ids)
    seen = 0
    for row in segment_ids:
        lengths = np.bincount(row[row > 0])
        seen += int(np.sum(lengths * (lengths + 1) // 2))
    attention = 12 * config.num_layers * config.num_heads * config.head_dim * seen
    return 6.0 * matmul_params(config) * tokens + attention
