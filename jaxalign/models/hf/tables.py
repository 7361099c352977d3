"""Which tensor of a Hugging Face checkpoint holds which of our parameters.

Shapes: D embedding, H heads, K key/value heads, d head dimension, F MLP width, E experts, V vocabulary.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from jaxalign.models.config import ModelConfig
from jaxalign.models.hf.config import family_of
from jaxalign.models.hf.entry import Entry, Layout, entry, interleaved, joined, linear, stored

Shape = tuple[int, ...]

# Buffers of old checkpoints: rotary frequencies, and the causal masks of GPT-2 and GPT-NeoX.
_BUFFERS = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|(h\.\d+\.attn|layers\.\d+\.attention)\.(bias|masked_bias))$"
)
# What `from_pretrained` adds to names of checkpoints that were saved without a head.
_PREFIXES = {"gpt2": "transformer.", "gpt_neox": "gpt_neox."}
_HEADS = ("lm_head.", "embed_out.", "score.")


def tensor_table(architecture: str, config: ModelConfig, *, scalar: bool = False) -> list[Entry]:
    """Every tensor of a checkpoint once, by its name in files; a tied lm_head is not among them.

    Args:
      scalar: of a model with a score head, {"transformer": ..., "head": ...}. Its head's bias has no tensor,
        nor has an unembedding of its own.

    Raises:
      ConfigError: the architecture is unknown.
    """
    names = family_of(architecture).names
    entries = list(_TABLES[names](config))
    if scalar:
        inside = [dataclasses.replace(e, paths=tuple(("transformer", *p) for p in e.paths)) for e in entries]
        row = stored((1, config.embed_dim), (config.embed_dim,))
        return [*inside, entry("score.weight", row, "head/kernel")]
    if not config.tie_embeddings:
        name = "embed_out.weight" if names == "gpt_neox" else "lm_head.weight"
        entries.append(entry(name, _matrix(config.vocab_size, config.embed_dim), "unembedding"))
    return entries


def canonical_name(name: str, architecture: str) -> str:
    """The table's name of a tensor that a file calls `name`: some leave out the prefix of the inner model."""
    prefix = _PREFIXES.get(family_of(architecture).names, "model.")
    return name if name.startswith((prefix, *_HEADS)) else prefix + name


def ignored(name: str) -> bool:
    """Whether a tensor is a buffer that old checkpoints carry, which holds no parameter."""
    return _BUFFERS.search(name) is not None


def _norm(name: str, config: ModelConfig, path: str) -> Iterator[Entry]:
    vector = stored((config.embed_dim,), (config.embed_dim,))
    yield entry(f"{name}.weight", vector, f"{path}/scale")
    if config.norm == "layer":
        yield entry(f"{name}.bias", vector, f"{path}/bias")


def _matrix(rows: int, columns: int) -> Layout:
    return stored((rows, columns), (rows, columns))


def _dense(name: str, inputs: Shape, outputs: Shape, path: str, bias: bool) -> Iterator[Entry]:
    yield entry(f"{name}.weight", linear(inputs, outputs), f"{path}/kernel")
    if bias:
        yield entry(f"{name}.bias", stored((math.prod(outputs),), outputs), f"{path}/bias")


def _projections(config: ModelConfig) -> dict[str, tuple[Shape, Shape]]:
    """Inputs and outputs of the four projections of attention."""
    width, head = (config.embed_dim,), config.head_dim
    kv = (config.num_kv_heads, head)
    return {
        "query": (width, (config.num_heads, head)),
        "key": (width, kv),
        "value": (width, kv),
        "out": ((config.num_heads, head), width),
    }


# By placement: names of the norms before and after attention, before and after the MLP.
_LLAMA_NORMS = {
    "before": {"input": "attention_norm", "post_attention": "mlp_norm"},
    "after": {"post_attention": "attention_post_norm", "post_feedforward": "mlp_post_norm"},
    "both": {
        "input": "attention_norm",
        "post_attention": "attention_post_norm",
        "pre_feedforward": "mlp_norm",
        "post_feedforward": "mlp_post_norm",
    },
}
_EXPERTS = {  # name of the block; of its gate, up and down projections
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
}


def _llama(config: ModelConfig, *, merged: bool = False, experts: str = "") -> Iterator[Entry]:
    """Llama and those that keep its names; `merged`: Phi-3, with one tensor for query, key and value."""
    c, at = config, "model.layers.{layer}"
    width, inner = (c.embed_dim,), (c.mlp_dim,)
    yield entry("model.embed_tokens.weight", _matrix(c.vocab_size, c.embed_dim), "embedding")
    yield from _norm("model.norm", c, "final_norm")
    for theirs, ours in _LLAMA_NORMS[c.norm_placement].items():
        yield from _norm(f"{at}.{theirs}_layernorm", c, f"layers/{ours}")
    attention = _projections(c)
    if merged:
        layout = joined([linear(*attention[name]) for name in ("query", "key", "value")], 0)
        paths = [f"layers/attention/{name}/kernel" for name in ("query", "key", "value")]
        yield entry(f"{at}.self_attn.qkv_proj.weight", layout, *paths)
    else:
        for name in ("query", "key", "value"):
            path = f"layers/attention/{name}"
            yield from _dense(f"{at}.self_attn.{name[0]}_proj", *attention[name], path, c.qkv_bias)
    yield from _dense(f"{at}.self_attn.o_proj", *attention["out"], "layers/attention/out", c.out_bias)
    if c.qk_norm != "none":
        for name in ("query", "key"):
            heads = attention[name][1] if c.qk_norm == "all" else (c.head_dim,)
            layout = stored((math.prod(heads),), heads)
            yield entry(
                f"{at}.self_attn.{name[0]}_norm.weight", layout, f"layers/attention/{name}_norm/scale"
            )
    if experts:
        block, names = _EXPERTS[experts]
        router = linear(width, (c.num_experts,))
        yield entry(f"{at}.{block}.gate.weight", router, "layers/mlp/router/kernel")
        for theirs, ours in zip(names, ("gate", "up", "down"), strict=True):
            layout = linear(inner, width) if ours == "down" else linear(width, inner)
            name = f"{at}.{block}.experts.{{expert}}.{theirs}.weight"
            yield entry(name, layout, f"layers/mlp/{ours}/kernel")
        return
    if merged:
        layout = joined([linear(width, inner)] * 2, 0)
        paths = ("layers/mlp/gate/kernel", "layers/mlp/up/kernel")
        yield entry(f"{at}.mlp.gate_up_proj.weight", layout, *paths)
    else:
        for name in ("gate", "up"):
            yield from _dense(f"{at}.mlp.{name}_proj", width, inner, f"layers/mlp/{name}", c.mlp_bias)
    yield from _dense(f"{at}.mlp.down_proj", inner, width, "layers/mlp/down", c.mlp_bias)


def _gpt2(config: ModelConfig) -> Iterator[Entry]:
    """Kernels lie as ours do, [in, out]; query, key and value are one tensor."""
    c, at = config, "transformer.h.{layer}"
    D, F = c.embed_dim, c.mlp_dim
    yield entry("transformer.wte.weight", _matrix(c.vocab_size, D), "embedding")
    yield entry("transformer.wpe.weight", _matrix(c.max_length, D), "position_embedding")
    yield from _norm("transformer.ln_f", c, "final_norm")
    yield from _norm(f"{at}.ln_1", c, "layers/attention_norm")
    yield from _norm(f"{at}.ln_2", c, "layers/mlp_norm")
    heads = (c.num_heads, c.head_dim)
    paths = [f"layers/attention/{name}" for name in ("query", "key", "value")]
    weight = joined([stored((D, D), (D, *heads))] * 3, 1)
    bias = joined([stored((D,), heads)] * 3, 0)
    yield entry(f"{at}.attn.c_attn.weight", weight, *(f"{path}/kernel" for path in paths))
    yield entry(f"{at}.attn.c_attn.bias", bias, *(f"{path}/bias" for path in paths))
    for name, path, kernel in (
        ("attn.c_proj", "layers/attention/out", stored((D, D), (*heads, D))),
        ("mlp.c_fc", "layers/mlp/up", _matrix(D, F)),
        ("mlp.c_proj", "layers/mlp/down", _matrix(F, D)),
    ):
        out = kernel.shape[1]
        yield entry(f"{at}.{name}.weight", kernel, f"{path}/kernel")
        yield entry(f"{at}.{name}.bias", stored((out,), (out,)), f"{path}/bias")


def _gpt_neox(config: ModelConfig) -> Iterator[Entry]:
    c, at = config, "gpt_neox.layers.{layer}"
    width, inner = (c.embed_dim,), (c.mlp_dim,)
    yield entry("gpt_neox.embed_in.weight", _matrix(c.vocab_size, c.embed_dim), "embedding")
    yield from _norm("gpt_neox.final_layer_norm", c, "final_norm")
    yield from _norm(f"{at}.input_layernorm", c, "layers/attention_norm")
    yield from _norm(f"{at}.post_attention_layernorm", c, "layers/mlp_norm")
    paths = [f"layers/attention/{name}" for name in ("query", "key", "value")]
    name = f"{at}.attention.query_key_value"
    weight = interleaved(3, c.num_heads, c.head_dim, c.embed_dim)
    yield entry(f"{name}.weight", weight, *(f"{path}/kernel" for path in paths))
    if c.qkv_bias:
        bias = interleaved(3, c.num_heads, c.head_dim, 0)
        yield entry(f"{name}.bias", bias, *(f"{path}/bias" for path in paths))
    out = _projections(c)["out"]
    yield from _dense(f"{at}.attention.dense", *out, "layers/attention/out", c.out_bias)
    yield from _dense(f"{at}.mlp.dense_h_to_4h", width, inner, "layers/mlp/up", c.mlp_bias)
    yield from _dense(f"{at}.mlp.dense_4h_to_h", inner, width, "layers/mlp/down", c.mlp_bias)


def _opt(config: ModelConfig) -> Iterator[Entry]:
    c, at = config, "model.decoder.layers.{layer}"
    width, inner = (c.embed_dim,), (c.mlp_dim,)
    yield entry("model.decoder.embed_tokens.weight", _matrix(c.vocab_size, c.embed_dim), "embedding")
    rows = c.position_offset + c.max_length
    yield entry("model.decoder.embed_positions.weight", _matrix(rows, c.embed_dim), "position_embedding")
    yield from _norm("model.decoder.final_layer_norm", c, "final_norm")
    yield from _norm(f"{at}.self_attn_layer_norm", c, "layers/attention_norm")
    yield from _norm(f"{at}.final_layer_norm", c, "layers/mlp_norm")
    for ours, sides in _projections(c).items():
        bias = c.out_bias if ours == "out" else c.qkv_bias
        name = "out_proj" if ours == "out" else f"{ours[0]}_proj"
        yield from _dense(f"{at}.self_attn.{name}", *sides, f"layers/attention/{ours}", bias)
    yield from _dense(f"{at}.fc1", width, inner, "layers/mlp/up", c.mlp_bias)
    yield from _dense(f"{at}.fc2", inner, width, "layers/mlp/down", c.mlp_bias)


_TABLES = {
    "llama": _llama,
    "phi3": functools.partial(_llama, merged=True),
    "mixtral": functools.partial(_llama, experts="mixtral"),
    "qwen3_moe": functools.partial(_llama, experts="qwen3_moe"),
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
}
