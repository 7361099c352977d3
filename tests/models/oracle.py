"""A decoder in float64 NumPy, one sequence at a time, written from the papers and sharing no code with jaxalign.

Pre-norm blocks (GPT-2), RMSNorm (arXiv 1910.07467), LayerNorm (arXiv 1607.06450), RoPE (arXiv 2104.09864),
grouped queries (arXiv 2305.13245), gated MLPs (arXiv 2002.05202), GELU (arXiv 1606.08415).
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erf

from jaxalign.models import ModelConfig, init_params


def random_params(config: ModelConfig, seed: int = 0) -> dict:
    """Parameters in which no bias is 0 and no scale 1, so that each one matters to the output."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, x: jax.ShapeDtypeStruct) -> jax.Array:
        mean, std = {"scale": (1.0, 0.1), "bias": (0.0, 0.1)}.get(path[-1].key, (0.0, 0.25))
        return jnp.asarray(rng.normal(mean, std, x.shape), x.dtype)

    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def decode(params: dict, config: ModelConfig, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states [T, D] and logits [T, V] of one sequence of token ids [T]."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = params["embedding"][tokens]
    if config.positions == "learned":
        x = x + params["position_embedding"][: len(tokens)]
    for i in range(config.num_layers):
        layer = jax.tree.map(lambda x, i=i: x[i], params["layers"])
        x = x + attend(layer["attention"], config, normalise(layer["attention_norm"], config, x))
        x = x + feed(layer["mlp"], config, normalise(layer["mlp_norm"], config, x))
    hidden = normalise(params["final_norm"], config, x)
    head = params["embedding" if config.tie_embeddings else "unembedding"]
    return hidden, hidden @ head.T


def normalise(norm: dict, config: ModelConfig, x: np.ndarray) -> np.ndarray:
    if config.norm == "rms":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * norm["scale"]
    spread = np.sqrt(x.var(-1, keepdims=True) + config.norm_eps)
    return (x - x.mean(-1, keepdims=True)) / spread * norm["scale"] + norm["bias"]


def attend(layer: dict, config: ModelConfig, x: np.ndarray) -> np.ndarray:
    group = config.num_heads // config.num_kv_heads
    out = np.zeros_like(x)
    for h in range(config.num_heads):
        q = linear(layer["query"], x, h)
        k, v = linear(layer["key"], x, h // group), linear(layer["value"], x, h // group)
        if config.positions == "rope":
            q, k = turn(q, config.rope_theta), turn(k, config.rope_theta)
        for t in range(len(x)):
            scores = k[: t + 1] @ q[t] / np.sqrt(config.head_dim)
            weights = np.exp(scores - scores.max())
            out[t] += (weights / weights.sum()) @ v[: t + 1] @ layer["out"]["kernel"][h]
    return out + layer["out"].get("bias", 0.0)


def linear(projection: dict, x: np.ndarray, head: int) -> np.ndarray:
    y = x @ projection["kernel"][:, head]
    return y + projection["bias"][head] if "bias" in projection else y


def turn(x: np.ndarray, theta: float) -> np.ndarray:
    """Multiplies the complex number (x[j], x[j + d/2]) at position t by exp(i t theta^(-2j/d))."""
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate((z.real, z.imag), -1)


def feed(layer: dict, config: ModelConfig, x: np.ndarray) -> np.ndarray:
    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ layer[name]["kernel"] + layer[name].get("bias", 0.0)

    act = {
        "silu": lambda x: x / (1 + np.exp(-x)),
        "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
        "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
        "relu": lambda x: np.maximum(x, 0),
    }[config.activation]
    inner = act(dense("gate", x)) * dense("up", x) if config.gated_mlp else act(dense("up", x))
    return dense("down", inner)


def logits_of(hidden, params: dict, config: ModelConfig) -> np.ndarray:
    """Float64 logits from hidden states, as the last step of `decode`."""
    head = params["embedding" if config.tie_embeddings else "unembedding"]
    return np.asarray(hidden, np.float64) @ np.asarray(head, np.float64).T
