"""Published architectures by name, for config files: `config.model.update(preset("llama3_8b"))`.

Sizes are those of the released checkpoints; tests/models/test_hf_presets.py holds each to its published number of
parameters.
"""

import difflib
from typing import Any

from jaxalign.errors import ConfigError

Fields = dict[str, Any]


def preset(name: str) -> Fields:
    """Fields of ModelConfig; all others keep their defaults.

    Raises:
      ConfigError: no such name; says which is nearest.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1, 0.0)
        raise ConfigError(
            f"model preset {name!r} does not exist; did you mean {near[0]!r}? All: {', '.join(PRESETS)}"
        )
    return dict(PRESETS[name])


def _sizes(layers: int, width: int, heads: int, kv_heads: int, mlp: int, head_dim: int = 0) -> Fields:
    return {
        "num_layers": layers,
        "embed_dim": width,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim or width // heads,
        "mlp_dim": mlp,
    }


def _llama(
    *sizes: int, vocab: int, length: int, theta: float = 1e4, tied: bool = False, **other: Any
) -> Fields:
    return {
        **_sizes(*sizes),
        "vocab_size": vocab,
        "max_length": length,
        "rope_theta": theta,
        "tie_embeddings": tied,
        **other,
    }


def _llama3(*sizes: int) -> Fields:
    return _llama(*sizes, vocab=128_256, length=8192, theta=5e5)


def _llama3_1(*sizes: int, factor: float = 8.0, tied: bool = False) -> Fields:
    return _llama(
        *sizes,
        vocab=128_256,
        length=131_072,
        theta=5e5,
        tied=tied,
        rope_scaling="llama3",
        rope_factor=factor,
        rope_original_length=8192,
    )


def _qwen2_5(*sizes: int, small: bool = False, eps: float = 1e-6) -> Fields:
    vocab, length = (151_936, 32_768) if small else (152_064, 131_072)
    return _llama(*sizes, vocab=vocab, length=length, theta=1e6, tied=small, qkv_bias=True, norm_eps=eps)


def _qwen3(*sizes: int, tied: bool = False, **other: Any) -> Fields:
    own = {"norm_eps": 1e-6, "qk_norm": "head", **other}
    return _llama(*sizes, vocab=151_936, length=40_960, theta=1e6, tied=tied, **own)


def _experts(count: int, per_token: int) -> Fields:
    return {"num_experts": count, "experts_per_token": per_token}


_GEMMA = {"norm_eps": 1e-6, "norm_offset": True, "scale_embedding": True, "activation": "gelu_tanh"}


def _gemma(*sizes: int, vocab: int = 256_000, length: int = 8192, **other: Any) -> Fields:
    return _llama(*sizes, vocab=vocab, length=length, tied=True, **_GEMMA, **other)


def _gemma2(*sizes: int, scalar: int = 256) -> Fields:
    return _gemma(
        *sizes,
        norm_placement="both",
        query_scale=scalar**-0.5,
        attention_softcap=50.0,
        final_softcap=30.0,
        window=4096,
        layer_pattern="LG",
    )


def _gemma3(*sizes: int, large: bool = True, scalar: int = 256) -> Fields:
    scaled = {"rope_scaling": "linear", "rope_factor": 8.0} if large else {}
    return _gemma(
        *sizes,
        vocab=262_208 if large else 262_144,
        length=131_072 if large else 32_768,
        theta=1e6,
        rope_local_theta=1e4,
        **scaled,
        norm_placement="both",
        qk_norm="head",
        query_scale=scalar**-0.5,
        window=1024 if large else 512,
        layer_pattern="LLLLLG",
    )


def _olmo2(*sizes: int) -> Fields:
    own = {"norm_eps": 1e-6, "norm_placement": "after", "qk_norm": "all"}
    return _llama(*sizes, vocab=100_352, length=4096, theta=5e5, **own)


def _smollm2(*sizes: int, theta: float = 1e5) -> Fields:
    return _llama(*sizes, vocab=49_152, length=8192, theta=theta, tied=True)


def _classic(layers: int, width: int, heads: int, vocab: int, length: int, **other: Any) -> Fields:
    """LayerNorm, biases, and an MLP four times as wide, as before 2022."""
    return {
        **_sizes(layers, width, heads, heads, 4 * width),
        "vocab_size": vocab,
        "max_length": length,
        "norm": "layer",
        "gated_mlp": False,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        **other,
    }


def _gpt2(layers: int, width: int, heads: int) -> Fields:
    return _classic(layers, width, heads, 50_257, 1024, positions="learned", activation="gelu_tanh")


def _pythia(layers: int, width: int, heads: int, vocab: int = 50_304) -> Fields:
    own = {"parallel_blocks": True, "rope_fraction": 0.25, "activation": "gelu", "tie_embeddings": False}
    return _classic(layers, width, heads, vocab, 2048, **own)


def _opt(layers: int, width: int, heads: int) -> Fields:
    own = {"positions": "learned", "position_offset": 2, "activation": "relu"}
    return _classic(layers, width, heads, 50_272, 2048, **own)


PRESETS: dict[str, Fields] = {
    # layers, width, heads, key/value heads, MLP width[, head dimension]
    "llama2_7b": _llama(32, 4096, 32, 32, 11_008, vocab=32_000, length=4096),
    "llama3_8b": _llama3(32, 4096, 32, 8, 14_336),
    "llama3_70b": _llama3(80, 8192, 64, 8, 28_672),
    "llama3_1_8b": _llama3_1(32, 4096, 32, 8, 14_336),
    "llama3_1_70b": _llama3_1(80, 8192, 64, 8, 28_672),
    "llama3_1_405b": _llama3_1(126, 16_384, 128, 8, 53_248),
    "llama3_2_1b": _llama3_1(16, 2048, 32, 8, 8192, factor=32.0, tied=True),
    "llama3_2_3b": _llama3_1(28, 3072, 24, 8, 8192, factor=32.0, tied=True),
    "mistral_7b": _llama(32, 4096, 32, 8, 14_336, vocab=32_000, length=32_768, window=4096),
    "mixtral_8x7b": _llama(32, 4096, 32, 8, 14_336, vocab=32_000, length=32_768, theta=1e6, **_experts(8, 2)),
    "qwen2_5_0_5b": _qwen2_5(24, 896, 14, 2, 4864, small=True),
    "qwen2_5_1_5b": _qwen2_5(28, 1536, 12, 2, 8960, small=True),
    "qwen2_5_3b": _qwen2_5(36, 2048, 16, 2, 11_008, small=True),
    "qwen2_5_7b": _qwen2_5(28, 3584, 28, 4, 18_944),
    "qwen2_5_14b": _qwen2_5(48, 5120, 40, 8, 13_824, eps=1e-5),
    "qwen2_5_32b": _qwen2_5(64, 5120, 40, 8, 27_648, eps=1e-5),
    "qwen2_5_72b": _qwen2_5(80, 8192, 64, 8, 29_568, eps=1e-5),
    "qwen3_0_6b": _qwen3(28, 1024, 16, 8, 3072, 128, tied=True),
    "qwen3_1_7b": _qwen3(28, 2048, 16, 8, 6144, 128, tied=True),
    "qwen3_4b": _qwen3(36, 2560, 32, 8, 9728, 128, tied=True),
    "qwen3_8b": _qwen3(36, 4096, 32, 8, 12_288, 128),
    "qwen3_14b": _qwen3(40, 5120, 40, 8, 17_408, 128),
    "qwen3_32b": _qwen3(64, 5120, 64, 8, 25_600, 128),
    "qwen3_30b_a3b": _qwen3(48, 2048, 32, 4, 768, 128, **_experts(128, 8)),
    "qwen3_235b_a22b": _qwen3(94, 4096, 64, 4, 1536, 128, **_experts(128, 8)),
    "gemma_2b": _gemma(18, 2048, 8, 1, 16_384, 256),
    "gemma_7b": _gemma(28, 3072, 16, 16, 24_576, 256),
    "gemma2_2b": _gemma2(26, 2304, 8, 4, 9216, 256),
    "gemma2_9b": _gemma2(42, 3584, 16, 8, 14_336, 256),
    "gemma2_27b": _gemma2(46, 4608, 32, 16, 36_864, 128, scalar=144),
    "gemma3_270m": _gemma3(18, 640, 4, 1, 2048, 256, large=False),
    "gemma3_1b": _gemma3(26, 1152, 4, 1, 6912, 256, large=False),
    "gemma3_4b": _gemma3(34, 2560, 8, 4, 10_240, 256),
    "gemma3_12b": _gemma3(48, 3840, 16, 8, 15_360, 256),
    "gemma3_27b": _gemma3(62, 5376, 32, 16, 21_504, 128, scalar=168),
    "phi3_mini_4k": _llama(32, 3072, 32, 32, 8192, vocab=32_064, length=4096, window=2047),
    "olmo2_1b": _olmo2(16, 2048, 16, 16, 8192),
    "olmo2_7b": _olmo2(32, 4096, 32, 32, 11_008),
    "olmo2_13b": _olmo2(40, 5120, 40, 40, 13_824),
    "olmo2_32b": _olmo2(64, 5120, 40, 8, 27_648),
    "smollm2_135m": _smollm2(30, 576, 9, 3, 1536),
    "smollm2_360m": _smollm2(32, 960, 15, 5, 2560),
    "smollm2_1_7b": _smollm2(24, 2048, 32, 32, 8192, theta=130_000.0),
    "gpt2": _gpt2(12, 768, 12),
    "gpt2_medium": _gpt2(24, 1024, 16),
    "gpt2_large": _gpt2(36, 1280, 20),
    "gpt2_xl": _gpt2(48, 1600, 25),
    "pythia_70m": _pythia(6, 512, 8),
    "pythia_160m": _pythia(12, 768, 12),
    "pythia_410m": _pythia(24, 1024, 16),
    "pythia_1b": _pythia(16, 2048, 8),
    "pythia_1_4b": _pythia(24, 2048, 16),
    "pythia_2_8b": _pythia(32, 2560, 32),
    "pythia_6_9b": _pythia(32, 4096, 32, vocab=50_432),
    "pythia_12b": _pythia(36, 5120, 40, vocab=50_688),
    "opt_125m": _opt(12, 768, 12),
    "opt_1_3b": _opt(24, 2048, 32),
    "opt_6_7b": _opt(32, 4096, 32),
}
