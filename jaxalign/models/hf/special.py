"""Parts (see parts.py) that only one line of families has: Gemma's, Qwen's experts, OPT's width."""

import math
from typing import Any

from jaxalign.models.config import ModelConfig
from jaxalign.models.hf.parts import Part, activation, activation_of, optional
from jaxalign.models.hf.reader import Reader


def gemma_activation() -> Part:
    """The first Gemma's files say "gelu" and mean the tanh approximation, as transformers reads them."""

    def read(r: Reader) -> dict[str, Any]:
        keys = [name for name in ("hidden_act", "hidden_activation") if r.take(name, None, null="")]
        found = {activation_of(r, name, "").replace("gelu_tanh", "gelu") for name in keys}
        if len(found) > 1:
            raise r.error(
                "hidden_activation", f"contradicts hidden_act={r.taken('hidden_act')!r}; remove one"
            )
        return {"activation": (found or {"gelu"}).pop().replace("gelu", "gelu_tanh")}

    def write(c: ModelConfig) -> dict[str, Any]:
        name = activation("hidden_act", "gelu_pytorch_tanh").write(c)["hidden_act"]
        return {"hidden_act": name, "hidden_activation": name}

    return Part(read, write)


def query_scalar(default: float) -> Part:
    """Queries are divided by the square root of `query_pre_attn_scalar`."""

    def read(r: Reader) -> dict[str, Any]:
        scalar = r.take("query_pre_attn_scalar", default)
        if not 0 < scalar < math.inf:
            raise r.error("query_pre_attn_scalar", "must be a positive number")
        return {"query_scale": scalar**-0.5}

    def write(c: ModelConfig) -> dict[str, Any]:
        scalar = c.query_scale**-2 if c.query_scale else float(c.head_dim)
        return {
            "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-9 * scalar else scalar
        }

    return Part(read, write)


def softcaps(attention: float | None, final: float | None) -> tuple[Part, ...]:
    """Gemma 2's caps of attention scores and of logits; null: none."""
    return (
        optional("attn_logit_softcapping", "attention_softcap", attention),
        optional("final_logit_softcapping", "final_softcap", final),
    )


def qwen_experts() -> Part:
    """All layers sparse and without a window: the keys of dense layers and windows then have no effect."""

    def read(r: Reader) -> dict[str, Any]:
        r.only("decoder_sparse_step", 1)
        r.only("mlp_only_layers", [])
        r.only("use_sliding_window", False)
        for name in ("intermediate_size", "max_window_layers", "sliding_window"):
            r.take(name, None, null=0)
        new_name = r.take("num_local_experts", 128)
        return {
            "num_experts": r.take("num_experts", new_name),
            "experts_per_token": r.take("num_experts_per_tok", 8),
            "normalize_experts": r.take("norm_topk_prob", False),
        }

    def write(c: ModelConfig) -> dict[str, Any]:
        return {
            "num_experts": c.num_experts,
            "num_experts_per_tok": c.experts_per_token,
            "norm_topk_prob": c.normalize_experts,
        }

    return Part(read, write)


def same_width() -> Part:
    """OPT 350m projects its embeddings to another width, and has its norms elsewhere."""

    def read(r: Reader) -> dict[str, Any]:
        r.only("word_embed_proj_dim", r.taken("hidden_size"))
        return {}

    return Part(read, lambda c: {})
