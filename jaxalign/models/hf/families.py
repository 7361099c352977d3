"""The Hugging Face families that the one transformer can express, and their config.json.

A family is a list of parts (see parts.py); its defaults are those of its config class in transformers, since
config.json may leave them out.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxalign.errors import ConfigError
from jaxalign.models.config import ModelConfig
from jaxalign.models.hf.parts import (
    Part,
    activation,
    biases,
    divisible_width,
    fixed,
    heads,
    key,
    only,
    window_by_pattern,
    window_everywhere,
    window_from_layer,
)
from jaxalign.models.hf.reader import Reader
from jaxalign.models.hf.rope import rope, rope_by_layer
from jaxalign.models.hf.special import gemma_activation, query_scalar, qwen_experts, same_width, softcaps

_CAUSAL, _CLASSIFIER = "ForCausalLM", "ForSequenceClassification"


@dataclasses.dataclass(frozen=True)
class Family:
    """What transformers calls a family, how its tensors are named (see tables.py), and its config.json."""

    model_type: str
    causal: str
    classifier: str
    names: str
    parts: tuple[Part, ...]

    def read(self, values: Mapping[str, Any], where: str) -> ModelConfig:
        """The fields that config.json gives; ConfigError for keys that would be ignored."""
        reader = Reader(values, where, self.model_type)
        fields: dict[str, Any] = {}
        for part in self.parts:
            fields |= part.read(reader)
        reader.only("is_causal", True)
        reader.finish()
        try:
            return ModelConfig(**fields)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The keys of `config`, which may lose what the family cannot express."""
        out: dict[str, Any] = {}
        for part in self.parts:
            out |= part.write(config)
        return out


def _family(prefix: str, model_type: str, names: str, *parts: Part, classifier: str = "") -> Family:
    return Family(model_type, prefix + _CAUSAL, (classifier or prefix) + _CLASSIFIER, names, parts)


def _sizes(
    vocab: int,
    width: int,
    mlp: int,
    layers: int,
    num_heads: int,
    kv: int | None,
    length: int,
    *,
    eps: float = 1e-6,
    tied: bool = False,
    head_size: int | None = None,
    mlp_key: str = "intermediate_size",
) -> tuple[Part, ...]:
    return (
        key("vocab_size", "vocab_size", vocab),
        key("num_hidden_layers", "num_layers", layers),
        heads(
            "hidden_size",
            "num_attention_heads",
            num_heads,
            "num_key_value_heads",
            kv,
            head_size=head_size,
            width_default=width,
        ),
        key(mlp_key, "mlp_dim", mlp),
        key("max_position_embeddings", "max_length", length),
        key("rms_norm_eps", "norm_eps", eps),
        key("initializer_range", "init_std", 0.02),
        key("tie_word_embeddings", "tie_embeddings", tied),
    )


_ATTENTION_BIAS = biases("attention_bias", False, "qkv_bias", "out_bias")
_GEMMA = fixed(norm_offset=True, scale_embedding=True)


# In the order in which `architecture_for` prefers them.
FAMILIES = (
    _family(
        "Llama",
        "llama",
        "llama",
        *_sizes(32000, 4096, 11008, 32, 32, None, 2048),
        activation("hidden_act", "silu"),
        _ATTENTION_BIAS,
        key("mlp_bias", "mlp_bias", False),
        rope(),
        divisible_width(),
    ),
    _family(
        "Mistral",
        "mistral",
        "llama",
        *_sizes(32000, 4096, 14336, 32, 32, 8, 131072),
        activation("hidden_act", "silu"),
        rope(),
        window_everywhere(4096),
    ),
    _family(
        "Qwen2",
        "qwen2",
        "llama",
        *_sizes(151936, 4096, 22016, 32, 32, 32, 32768),
        activation("hidden_act", "silu"),
        fixed(qkv_bias=True),
        rope(),
        window_from_layer(),
    ),
    _family(
        "Qwen3",
        "qwen3",
        "llama",
        *_sizes(151936, 4096, 22016, 32, 32, 32, 32768, head_size=128),
        activation("hidden_act", "silu"),
        fixed(qk_norm="head"),
        _ATTENTION_BIAS,
        rope(),
        window_from_layer(),
    ),
    _family(
        "Mixtral",
        "mixtral",
        "mixtral",
        *_sizes(32000, 4096, 14336, 32, 32, 8, 131072, eps=1e-5),
        activation("hidden_act", "silu"),
        rope(1e6),
        window_everywhere(None),
        key("num_local_experts", "num_experts", 8),
        key("num_experts_per_tok", "experts_per_token", 2),
        key("router_aux_loss_coef", "router_balance_coef", 0.001),
    ),
    _family(
        "Qwen3Moe",
        "qwen3_moe",
        "qwen3_moe",
        *_sizes(151936, 2048, 768, 24, 32, 4, 32768, mlp_key="moe_intermediate_size"),
        activation("hidden_act", "silu"),
        fixed(qk_norm="head"),
        _ATTENTION_BIAS,
        rope(),
        qwen_experts(),
        key("router_aux_loss_coef", "router_balance_coef", 0.001),
    ),
    _family(
        "Gemma",
        "gemma",
        "llama",
        *_sizes(256000, 3072, 24576, 28, 16, 16, 8192, tied=True, head_size=256),
        gemma_activation(),
        _GEMMA,
        _ATTENTION_BIAS,
        rope(),
        only("use_bidirectional_attention", False),
    ),
    _family(
        "Gemma2",
        "gemma2",
        "llama",
        *_sizes(256000, 2304, 9216, 26, 8, 4, 8192, tied=True, head_size=256),
        activation("hidden_activation", "gelu_pytorch_tanh"),
        _GEMMA,
        fixed(norm_placement="both"),
        _ATTENTION_BIAS,
        rope(),
        query_scalar(256.0),
        *softcaps(50.0, 30.0),
        window_by_pattern(4096, 2),
        only("use_bidirectional_attention", False),
        only("hidden_act", "gelu_pytorch_tanh"),
        divisible_width(),
    ),
    _family(
        "Gemma3",
        "gemma3_text",
        "llama",
        *_sizes(262208, 2304, 9216, 26, 8, 4, 131072, tied=True, head_size=256),
        activation("hidden_activation", "gelu_pytorch_tanh"),
        _GEMMA,
        fixed(norm_placement="both", qk_norm="head"),
        _ATTENTION_BIAS,
        rope_by_layer(1e6, 1e4),
        query_scalar(256.0),
        *softcaps(None, None),
        window_by_pattern(4096, 6, "sliding_window_pattern", "_sliding_window_pattern"),
        only("use_bidirectional_attention", False),
        divisible_width(),
        classifier="Gemma3Text",
    ),
    _family(
        "Olmo2",
        "olmo2",
        "llama",
        *_sizes(50304, 4096, 11008, 32, 32, None, 2048, eps=1e-5),
        activation("hidden_act", "silu"),
        fixed(norm_placement="after", qk_norm="all"),
        _ATTENTION_BIAS,
        rope(),
    ),
    _family(
        "Phi3",
        "phi3",
        "phi3",
        *_sizes(32064, 3072, 8192, 32, 32, None, 4096, eps=1e-5),
        activation("hidden_act", "silu"),
        rope(fraction_key="partial_rotary_factor", kinds=("default", "longrope"), original_outside=True),
        window_everywhere(None),
    ),
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        "GPT2ForSequenceClassification",
        "gpt2",
        (
            key("vocab_size", "vocab_size", 50257),
            key("n_layer", "num_layers", 12),
            heads("n_embd", "n_head", 12, head_dim=False, width_default=768),
            Part(
                lambda r: {"mlp_dim": r.take("n_inner", None, null=0) or 4 * r.take("n_embd", 768)},
                lambda c: {"n_inner": None if c.mlp_dim == 4 * c.embed_dim else c.mlp_dim},
            ),
            key("n_positions", "max_length", 1024),
            key("layer_norm_epsilon", "norm_eps", 1e-5),
            key("initializer_range", "init_std", 0.02),
            key("tie_word_embeddings", "tie_embeddings", True),
            activation("activation_function", "gelu_new"),
            fixed(
                norm="layer",
                positions="learned",
                gated_mlp=False,
                qkv_bias=True,
                out_bias=True,
                mlp_bias=True,
            ),
            only("scale_attn_weights", True),
            only("scale_attn_by_inverse_layer_idx", False),
            only("add_cross_attention", False),
        ),
    ),
    _family(
        "GPTNeoX",
        "gpt_neox",
        "gpt_neox",
        key("vocab_size", "vocab_size", 50432),
        key("num_hidden_layers", "num_layers", 44),
        heads("hidden_size", "num_attention_heads", 64, head_dim=False, width_default=6144),
        key("intermediate_size", "mlp_dim", 24576),
        key("max_position_embeddings", "max_length", 2048),
        key("layer_norm_eps", "norm_eps", 1e-5),
        key("initializer_range", "init_std", 0.02),
        key("tie_word_embeddings", "tie_embeddings", False),
        activation("hidden_act", "gelu"),
        key("use_parallel_residual", "parallel_blocks", True),
        fixed(norm="layer", gated_mlp=False, mlp_bias=True),
        biases("attention_bias", True, "qkv_bias", "out_bias"),
        rope(theta_key="rotary_emb_base", fraction=0.25, fraction_key="rotary_pct"),
    ),
    _family(
        "OPT",
        "opt",
        "opt",
        key("vocab_size", "vocab_size", 50272),
        key("num_hidden_layers", "num_layers", 12),
        heads("hidden_size", "num_attention_heads", 12, head_dim=False, width_default=768),
        key("ffn_dim", "mlp_dim", 3072),
        key("max_position_embeddings", "max_length", 2048),
        key("init_std", "init_std", 0.02),
        key("tie_word_embeddings", "tie_embeddings", True),
        activation("activation_function", "relu"),
        biases("enable_bias", True, "qkv_bias", "out_bias", "mlp_bias"),
        fixed(norm="layer", norm_eps=1e-5, positions="learned", position_offset=2, gated_mlp=False),
        same_width(),
        only("do_layer_norm_before", True),
        only("_remove_final_layer_norm", False),
        only("layer_norm_elementwise_affine", True),
    ),
)
