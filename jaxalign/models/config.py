"""The one transformer's switches."""

import dataclasses
import difflib
import math

from jaxalign.errors import ConfigError

_CHOICES = {
    "norm": ("rms", "layer"),
    "positions": ("rope", "learned"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
    "dtype": ("float32", "bfloat16", "float16"),
    "remat": ("none", "full", "dots", "dots_no_batch"),
    "attention": ("xla",),
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
    mlp_dim: int = 256
    max_length: int = 512  # longest sequence; the size of the table when positions="learned"
    norm: str = "rms"
    norm_eps: float = 1e-5
    positions: str = "rope"
    rope_theta: float = 10_000.0
    activation: str = "silu"
    gated_mlp: bool = True  # activation(gate(x)) * up(x), as in SwiGLU; False: activation(up(x))
    use_bias: bool = False  # biases in attention and MLP projections
    tie_embeddings: bool = True
    dtype: str = "float32"  # computation; master weights are always float32
    remat: str = (
        "none"  # recomputed in backward: nothing; full: layers; dots, dots_no_batch: all but (weight) matmuls
    )
    attention: str = "xla"
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
        for key in ("norm_eps", "rope_theta", "init_std"):
            if not 0 < getattr(self, key) < math.inf:
                raise ConfigError(f"config.model.{key}={getattr(self, key)} must be a positive number")
        if self.num_heads % self.num_kv_heads:
            works = [str(n) for n in range(1, self.num_heads + 1) if self.num_heads % n == 0]
            raise ConfigError(
                f"config.model.num_heads={self.num_heads} is not a multiple of "
                f"config.model.num_kv_heads={self.num_kv_heads}; use one of {', '.join(works)} key/value heads"
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise ConfigError(
                f"config.model.head_dim={self.head_dim} must be even for rotary positions; "
                f"use {self.head_dim + 1}, or config.model.positions='learned'"
            )
