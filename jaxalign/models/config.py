"""The one transformer's switches."""

import dataclasses
import difflib
import math
from typing import Any

from jaxalign.errors import ConfigError

Params = dict[str, Any]  # a model's parameters: nested, by the names of its modules

_CHOICES = {
    "norm": ("rms", "layer"),
    "norm_placement": ("before", "after", "both"),
    "qk_norm": ("none", "head", "all"),
    "positions": ("rope", "learned"),
    "rope_scaling": ("none", "linear", "llama3", "yarn"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
    "dtype": ("float32", "bfloat16", "float16"),
    "remat": ("none", "full", "dots", "dots_no_batch"),
    "attention": ("xla", "blockwise", "splash"),
}
_COUNTS = (
    "vocab_size",
    "num_layers",
    "embed_dim",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "mlp_dim",
    "max_length",
)
_POSITIVE = ("norm_eps", "rope_theta", "rope_factor", "init_std")
_NOT_NEGATIVE = (
    "position_offset",
    "rope_local_theta",
    "query_scale",
    "window",
    "attention_softcap",
    "final_softcap",
    "num_experts",
    "router_balance_coef",
    "router_z_coef",
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Defaults are Llama's kind at a size for tests.

    Raises:
      ConfigError: a value that is not among its choices, or sizes that do not divide.
    """

    vocab_size: int = 512
    num_layers: int = 2
    embed_dim: int = 64
    num_heads: int = 4
    num_kv_heads: int = 4  # fewer than num_heads: grouped queries (GQA); 1: one for all (MQA)
    head_dim: int = 16
    mlp_dim: int = 256  # of each expert, where there are experts
    max_length: int = 512  # longest sequence; the size of the table when positions="learned"
    # Norms
    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_offset: bool = False  # scale by 1 + weight (Gemma)
    norm_placement: str = "before"  # each sublayer, or its output "after" it (OLMo 2), or "both" (Gemma 2)
    parallel_blocks: bool = False  # attention and MLP read the same input (GPT-NeoX)
    # Positions
    positions: str = "rope"
    position_offset: int = 0  # rows of the table before that of position 0 (OPT: 2)
    rope_theta: float = 10_000.0
    rope_local_theta: float = 0.0  # of layers with a window, which are then never scaled; 0: as the others
    rope_fraction: float = 1.0  # of each head's dimensions that is rotated
    rope_scaling: str = "none"
    rope_factor: float = 1.0  # how many times the original context
    rope_original_length: int = 0  # that context in tokens (llama3, yarn)
    rope_low_frequency: float = 1.0  # llama3: fewer turns than this in the original context: slowed down
    rope_high_frequency: float = 4.0  # llama3: more turns than this: left alone
    rope_beta_fast: float = 32.0  # yarn: as rope_high_frequency
    rope_beta_slow: float = 1.0  # yarn: as rope_low_frequency
    rope_attention_factor: float = 0.0  # yarn: cos and sin are multiplied by it; 0: as the paper says
    # Attention
    qk_norm: str = (
        "none"  # RMSNorm of queries and keys: each "head" (Qwen 3), or "all" heads at once (OLMo 2)
    )
    query_scale: float = 0.0  # scores are multiplied by it; 0: head_dim ** -0.5
    attention_softcap: float = 0.0  # scores become cap * tanh(scores / cap); 0: they do not (Gemma 2)
    window: int = 0  # a token sees itself and the window - 1 before it; 0: all before it
    layer_pattern: str = ""  # "LG": local (with the window) and global layers, repeated; "": all alike
    qkv_bias: bool = False
    out_bias: bool = False
    # MLP
    activation: str = "silu"
    gated_mlp: bool = True  # activation(gate(x)) * up(x), as in SwiGLU; False: activation(up(x))
    mlp_bias: bool = False
    num_experts: int = 0  # 0: a dense MLP
    experts_per_token: int = 2
    normalize_experts: bool = True  # the chosen experts' weights sum to 1
    router_balance_coef: float = 0.0  # weight of the load-balancing loss
    router_z_coef: float = 0.0  # weight of the router z-loss
    # Embeddings
    tie_embeddings: bool = True
    scale_embedding: bool = False  # by the square root of embed_dim (Gemma)
    final_softcap: float = 0.0  # of the logits (Gemma 2)
    # How it is computed, not what it is
    dtype: str = "float32"  # computation; master weights are always float32
    remat: str = (
        "none"  # recomputed in backward: nothing; full: layers; dots, dots_no_batch: all but (weight) matmuls
    )
    attention: str = "xla"  # whole score matrices; "blockwise": some queries at a time; "splash": TPU kernel
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            value = getattr(self, key)
            if value not in choices:
                near = difflib.get_close_matches(str(value), choices, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"config.model.{key}={value!r} is not one of {', '.join(choices)}{hint}")
        for key in _COUNTS:
            if getattr(self, key) < 1:
                raise ConfigError(f"config.model.{key}={getattr(self, key)} must be at least 1")
        for key in _POSITIVE:
            if not 0 < getattr(self, key) < math.inf:
                raise ConfigError(f"config.model.{key}={getattr(self, key)} must be a positive number")
        for key in _NOT_NEGATIVE:
            if not 0 <= getattr(self, key) < math.inf:
                raise ConfigError(f"config.model.{key}={getattr(self, key)} must be 0 or more")
        if self.num_heads % self.num_kv_heads:
            works = [str(n) for n in range(1, self.num_heads + 1) if self.num_heads % n == 0]
            raise ConfigError(
                f"config.model.num_heads={self.num_heads} is not a multiple of "
                f"config.model.num_kv_heads={self.num_kv_heads}; use one of {', '.join(works)} key/value heads"
            )
        if self.positions == "rope":
            self._check_rotary()
        if set(self.layer_pattern) - set("LG") or len(self.layer_pattern) > self.num_layers:
            raise ConfigError(
                f"config.model.layer_pattern={self.layer_pattern!r}: write at most num_layers={self.num_layers} "
                "letters, L for a layer with the window and G for one without"
            )
        if "L" in self.layer_pattern and not self.window:
            raise ConfigError(
                f"config.model.layer_pattern={self.layer_pattern!r} has local layers: set config.model.window"
            )
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            raise ConfigError(
                f"config.model.experts_per_token={self.experts_per_token} must be from 1 to "
                f"config.model.num_experts={self.num_experts}"
            )
        if self.num_experts and (self.mlp_bias or not self.gated_mlp):
            raise ConfigError(
                f"config.model.num_experts={self.num_experts}: experts are gated MLPs without biases; "
                "set gated_mlp=True and mlp_bias=False"
            )

    def _check_rotary(self) -> None:
        if not 0 < self.rope_fraction <= 1:
            raise ConfigError(
                f"config.model.rope_fraction={self.rope_fraction} must be above 0 and at most 1"
            )
        if self.rotary_dim % 2 or not self.rotary_dim:
            if self.rope_fraction == 1:
                raise ConfigError(
                    f"config.model.head_dim={self.head_dim} must be even for rotary positions; "
                    f"use {self.head_dim + 1}, or config.model.positions='learned'"
                )
            raise ConfigError(
                f"config.model.rope_fraction={self.rope_fraction} rotates {self.rotary_dim} of head_dim="
                f"{self.head_dim} dimensions; it must be an even number above 0"
            )
        if self.rope_scaling in ("llama3", "yarn") and self.rope_original_length < 1:
            raise ConfigError(
                f"config.model.rope_scaling={self.rope_scaling!r} needs config.model.rope_original_length, the "
                "context before it was scaled"
            )

    @property
    def rotary_dim(self) -> int:
        """How many of a head's dimensions are rotated."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """Which layers see no further than the window."""
        pattern = self.layer_pattern or ("L" if self.window else "G")
        return tuple(pattern[i % len(pattern)] == "L" for i in range(self.num_layers))


# What says how a model is computed or trained, and not what it is.
RUNTIME_KEYS = ("dtype", "remat", "attention", "router_balance_coef", "router_z_coef")
ARCHITECTURE_KEYS = tuple(
    field.name
    for field in dataclasses.fields(ModelConfig)
    if field.name not in RUNTIME_KEYS and field.name != "vocab_size"  # which is the tokenizer's
)
