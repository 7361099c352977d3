"""A decoder in float64 NumPy, one sequence at a time, written from the papers and sharing no code with jaxalign.

Pre-norm blocks (GPT-2), RMSNorm (arXiv 1910.07467), LayerNorm (arXiv 1607.06450), RoPE (arXiv 2104.09864),
grouped queries (arXiv 2305.13245), gated MLPs (arXiv 2002.05202), GELU (arXiv 1606.08415), soft-caps and
norms on both sides (arXiv 2408.00118), windows (arXiv 2310.06825), query-key norms (arXiv 2501.00656).
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
    if config.scale_embedding:
        x = x * np.sqrt(config.embed_dim)
    if config.positions == "learned":
        x = x + params["position_embedding"][config.position_offset :][: len(tokens)]
    pattern = config.layer_pattern or ("L" if config.window else "G")
    for i in range(config.num_layers):
        layer = jax.tree.map(lambda x, i=i: x[i], params["layers"])
        local = pattern[i % len(pattern)] == "L"

        def step(name: str, x: np.ndarray, layer: dict = layer, local: bool = local) -> np.ndarray:
            if f"{name}_norm" in layer:
                x = normalise(layer[f"{name}_norm"], config, x)
            y = attend(layer[name], config, x, local) if name == "attention" else feed(layer[name], config, x)
            return normalise(layer[f"{name}_post_norm"], config, y) if f"{name}_post_norm" in layer else y

        y = x + step("attention", x)
        x = y + step("mlp", x if config.parallel_blocks else y)
    hidden = normalise(params["final_norm"], config, x)
    return hidden, logits_of(hidden, params, config)


def normalise(norm: dict, config: ModelConfig, x: np.ndarray) -> np.ndarray:
    scale = norm["scale"] + config.norm_offset
    if "bias" not in norm:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * scale
    spread = np.sqrt(x.var(-1, keepdims=True) + config.norm_eps)
    return (x - x.mean(-1, keepdims=True)) / spread * scale + norm["bias"]


def attend(layer: dict, config: ModelConfig, x: np.ndarray, local: bool) -> np.ndarray:
    H, K = config.num_heads, config.num_kv_heads
    q, k, v = (
        np.stack([linear(layer[name], x, h) for h in range(n)], 1)
        for name, n in (("query", H), ("key", K), ("value", K))
    )
    if config.qk_norm == "head":
        q, k = (normalise(layer[f"{name}_norm"], config, y) for name, y in (("query", q), ("key", k)))
    elif config.qk_norm == "all":
        q, k = (
            normalise(
                {"scale": layer[f"{name}_norm"]["scale"].ravel()}, config, y.reshape(len(x), -1)
            ).reshape(y.shape)
            for name, y in (("query", q), ("key", k))
        )
    out = np.zeros_like(x)
    for h in range(H):
        q_h, k_h, v_h = q[:, h], k[:, h // (H // K)], v[:, h // (H // K)]
        if config.positions == "rope":
            q_h, k_h = turn(q_h, config, local), turn(k_h, config, local)
        for t in range(len(x)):
            seen = slice(max(0, t + 1 - config.window) if local else 0, t + 1)
            scores = k_h[seen] @ q_h[t] * (config.query_scale or 1 / np.sqrt(config.head_dim))
            if config.attention_softcap:
                scores = config.attention_softcap * np.tanh(scores / config.attention_softcap)
            weights = np.exp(scores - scores.max())
            out[t] += (weights / weights.sum()) @ v_h[seen] @ layer["out"]["kernel"][h]
    return out + layer["out"].get("bias", 0.0)


def linear(projection: dict, x: np.ndarray, head: int) -> np.ndarray:
    y = x @ projection["kernel"][:, head]
    return y + projection["bias"][head] if "bias" in projection else y


def turn(x: np.ndarray, config: ModelConfig, local: bool) -> np.ndarray:
    """Multiplies the complex number (x[j], x[j + r/2]) at position t by exp(i t theta^(-2j/r)); r dimensions turn."""
    half = int(x.shape[-1] * config.rope_fraction) // 2
    theta = (local and config.rope_local_theta) or config.rope_theta
    frequency = theta ** (-np.arange(half) / half)
    if config.rope_scaling == "linear" and not (local and config.rope_local_theta):
        frequency = frequency / config.rope_factor
    z = (x[:, :half] + 1j * x[:, half : 2 * half]) * np.exp(1j * np.arange(len(x))[:, None] * frequency)
    return np.concatenate((z.real, z.imag, x[:, 2 * half :]), -1)


def feed(layer: dict, config: ModelConfig, x: np.ndarray) -> np.ndarray:
    if config.num_experts:
        return np.stack([route(layer, config, token) for token in x])
    return multiply(layer, config, x)


def route(layer: dict, config: ModelConfig, x: np.ndarray) -> np.ndarray:
    """One token [D] through the experts that its router likes best."""
    scores = np.exp(x @ layer["router"]["kernel"])
    scores /= scores.sum()
    best = np.argsort(-scores)[: config.experts_per_token]
    share = scores[best] / (scores[best].sum() if config.normalize_experts else 1)
    experts = [{name: {"kernel": layer[name]["kernel"][e]} for name in ("gate", "up", "down")} for e in best]
    return sum(s * multiply(expert, config, x) for s, expert in zip(share, experts, strict=True))


def multiply(layer: dict, config: ModelConfig, x: np.ndarray) -> np.ndarray:
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
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64).T
    cap = config.final_softcap
    return cap * np.tanh(logits / cap) if cap else logits
