"""The one transformer's switches."""

import dataclasses
from typing import Any

from jaxalign.errors import ConfigError
from jaxalign.fields import Checked, field

Params = dict[str, Any]  # a model's parameters: nested, by the names of its modules

REMATS = ("none", "full", "attention", "dots", "dots_no_batch")
ATTENTION = ("xla", "blockwise", "block_sparse", "splash", "flash")
# Of "flash": what Triton's products take, and what the shared memory of an A100 holds.
FLASH_HEAD_DIMS = (16, 32, 64, 128, 256)
# Ten times and more what any published model has: a number beyond is a slip, or a file that was damaged, and would take
# hours and all memory before anything else could tell.
MOST_TOKENS, MOST_LAYERS, MOST_WIDE = 2**24, 2**12, 2**22
MOST_POSITIONS, MOST_EXPERTS = 2**30, 2**14
MOST_EXPERTS_IN_ALL = 2**19  # of all layers
# At most so many layers are compiled one by one on a CPU: it takes longer with every layer.
FEW_LAYERS = 12


@dataclasses.dataclass(frozen=True)
class ModelConfig(Checked, at="config.model"):
    """A decoder-only transformer. Defaults are Llama's kind at a size for tests.

    Raises:
      ConfigError: a value that is not among its choices, or sizes that do not divide.
    """

    vocab_size: int = field(512, at_least=1, at_most=MOST_TOKENS)
    num_layers: int = field(2, at_least=1, at_most=MOST_LAYERS)  # blocks of attention and MLP
    embed_dim: int = field(64, at_least=1, at_most=MOST_WIDE)  # width of the residual stream
    num_heads: int = field(4, at_least=1, at_most=MOST_WIDE)  # of queries
    # Fewer than num_heads: grouped queries (GQA); 1: one for all (MQA).
    num_kv_heads: int = field(4, at_least=1, at_most=MOST_WIDE)
    head_dim: int = field(16, at_least=1, at_most=MOST_WIDE)  # of a query, key or value
    mlp_dim: int = field(256, at_least=1, at_most=MOST_WIDE)  # of each expert, where there are experts
    # Longest sequence; the size of the table when positions="learned".
    max_length: int = field(512, at_least=1, at_most=MOST_POSITIONS)
    # --- Norms ---
    norm: str = field("rms", choices=("rms", "layer"))  # RMSNorm, or LayerNorm with a bias
    norm_eps: float = field(1e-5, above=0)  # added to the mean square or the variance
    norm_offset: bool = False  # scale by 1 + weight (Gemma)
    # "before" each sublayer, its output "after" it (OLMo 2), or "both" (Gemma 2).
    norm_placement: str = field("before", choices=("before", "after", "both"))
    parallel_blocks: bool = False  # attention and MLP read the same input (GPT-NeoX)
    # --- Positions ---
    positions: str = field("rope", choices=("rope", "learned"))  # rotary, or a table that is trained
    position_offset: int = field(
        0, at_least=0, at_most=MOST_POSITIONS
    )  # rows of the table before that of position 0 (OPT: 2)
    rope_theta: float = field(10_000.0, above=0)  # base of the wavelengths
    # Of layers with a window, which are then never scaled; 0: as the others.
    rope_local_theta: float = field(0.0, at_least=0)
    rope_fraction: float = field(1.0, above=0, at_most=1)  # of each head's dimensions that is rotated
    # How wavelengths are stretched for a context longer than the original.
    rope_scaling: str = field("none", choices=("none", "linear", "llama3", "yarn", "longrope"))
    rope_factor: float = field(1.0, above=0)  # how many times the original context
    rope_original_length: int = field(
        0, at_least=0, at_most=MOST_POSITIONS
    )  # that context in tokens (llama3, yarn, longrope)
    # llama3: fewer turns than this in the original context: slowed down.
    rope_low_frequency: float = field(1.0, above=0)
    rope_high_frequency: float = field(4.0, above=0)  # llama3: more turns than this: left alone
    rope_beta_fast: float = field(32.0, above=0)  # yarn: as rope_high_frequency
    rope_beta_slow: float = field(1.0, above=0)  # yarn: as rope_low_frequency
    # yarn, longrope: cos and sin are multiplied by it; 0: as the paper says.
    rope_attention_factor: float = field(0.0, at_least=0)
    # longrope: what each frequency is divided by, in sequences of at most the original context.
    rope_short_factors: tuple[float, ...] = ()
    rope_long_factors: tuple[float, ...] = ()  # longrope: the same, in longer ones
    # --- Attention ---
    # RMSNorm of queries and keys: each "head" (Qwen 3), or "all" heads at once (OLMo 2).
    qk_norm: str = field("none", choices=("none", "head", "all"))
    query_scale: float = field(0.0, at_least=0)  # scores are multiplied by it; 0: head_dim ** -0.5
    # Scores become cap * tanh(scores / cap); 0: they do not (Gemma 2).
    attention_softcap: float = field(0.0, at_least=0)
    window: int = field(
        0, at_least=0, at_most=2**31 - 1
    )  # a token sees itself and the window - 1 before it; 0: all before it
    layer_pattern: str = ""  # "LG": local (with the window) and global layers, repeated; "": all alike
    qkv_bias: bool = False  # of the projections to queries, keys and values
    out_bias: bool = False  # of the projection out of attention
    # --- MLP ---
    # Of the gate, or of the only product where there is none.
    activation: str = field("silu", choices=("silu", "gelu", "gelu_tanh", "relu"))
    gated_mlp: bool = True  # activation(gate(x)) * up(x), as in SwiGLU; False: activation(up(x))
    mlp_bias: bool = False  # of all its projections
    num_experts: int = field(0, at_least=0, at_most=MOST_EXPERTS)  # 0: a dense MLP
    experts_per_token: int = field(2, at_least=1, at_most=MOST_EXPERTS)  # experts that each token is sent to
    normalize_experts: bool = True  # the chosen experts' weights sum to 1
    router_balance_coef: float = field(0.0, at_least=0)  # weight of the load-balancing loss
    router_z_coef: float = field(0.0, at_least=0)  # weight of the router z-loss
    # --- Embeddings ---
    tie_embeddings: bool = True  # one matrix for the tokens read and the logits
    scale_embedding: bool = False  # by the square root of embed_dim (Gemma)
    final_softcap: float = field(0.0, at_least=0)  # of the logits (Gemma 2)
    # --- How it is computed, not what it is ---
    # Computation; master weights are always float32.
    dtype: str = field("float32", choices=("float32", "bfloat16", "float16"))
    # Recomputed in backward: nothing; full: layers; attention: all but what the kernel of attention gives; dots,
    # dots_no_batch: all but that and (weight) matmuls.
    remat: str = field("none", choices=REMATS)
    # "xla": whole score matrices; "blockwise": some queries at a time; "block_sparse": only blocks of scores in which
    # a token sees another, made for CPUs; "splash": TPU kernel; "flash": GPU kernel.
    attention: str = field("xla", choices=ATTENTION)
    # Tokens of a block of splash, at most: 512 skips most of packed rows; from 1,024 on its backward pass is one kernel
    # of fewer products, for sequences of thousands of tokens.
    attention_block: int = field(512, at_least=128)
    # One program for all layers, run in a loop; False: each compiled by itself, where one device keeps all that the
    # backward pass needs.
    scan_layers: bool = True
    init_std: float = field(0.02, above=0)  # of new weights

    def __post_init__(self) -> None:
        for name in ("rope_short_factors", "rope_long_factors"):  # JSON has them as lists, which have no hash
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()
        if self.num_heads % self.num_kv_heads:
            works = [str(n) for n in range(1, self.num_heads + 1) if self.num_heads % n == 0]
            raise ConfigError(
                f"config.model.num_heads={self.num_heads} is not a multiple of "
                f"config.model.num_kv_heads={self.num_kv_heads}; use one of {', '.join(works)} key/value heads"
            )
        if self.attention == "flash" and self.head_dim not in FLASH_HEAD_DIMS:
            raise ConfigError(
                f"config.model.attention='flash' cannot do config.model.head_dim={self.head_dim}, only "
                f"{', '.join(map(str, FLASH_HEAD_DIMS))}; use 'auto' or 'blockwise'"
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
        if self.num_experts * self.num_layers > MOST_EXPERTS_IN_ALL:
            raise ConfigError(
                f"config.model.num_experts={self.num_experts} in each of num_layers={self.num_layers} layers are more "
                f"than {MOST_EXPERTS_IN_ALL:,} in all; lower one of the two"
            )
        if self.num_experts and (self.mlp_bias or not self.gated_mlp):
            raise ConfigError(
                f"config.model.num_experts={self.num_experts}: experts are gated MLPs without biases; "
                "set gated_mlp=True and mlp_bias=False"
            )

    def _check_rotary(self) -> None:
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
        if self.rope_scaling == "longrope":
            for name in ("rope_short_factors", "rope_long_factors"):
                factors = getattr(self, name)
                if len(factors) != self.rotary_dim // 2 or not all(factor > 0 for factor in factors):
                    raise ConfigError(
                        f"config.model.{name} has {len(factors)} factors: rope_scaling='longrope' needs one above 0 "
                        f"for each of the {self.rotary_dim // 2} rotated pairs of a head"
                    )
        if self.rope_scaling in ("llama3", "yarn", "longrope") and self.rope_original_length < 1:
            raise ConfigError(
                f"config.model.rope_scaling={self.rope_scaling!r} needs config.model.rope_original_length, the "
                "context before it was scaled"
            )
        for kind, low, high in (
            ("llama3", "rope_low_frequency", "rope_high_frequency"),
            ("yarn", "rope_beta_slow", "rope_beta_fast"),
        ):
            if self.rope_scaling == kind and not getattr(self, low) < getattr(self, high):
                raise ConfigError(
                    f"config.model.{low}={getattr(self, low)} must be below config.model.{high}={getattr(self, high)}"
                )

    @property
    def rotary_dim(self) -> int:
        """How many of a head's dimensions are rotated."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def sampling_limit(self) -> tuple[str, int]:
        """The field that limits the tokens of a prompt and what is sampled after it, and how many these may be.

        Of "longrope" it is the original context: past it a sequence has other frequencies from its first token on, and
        what the cache holds would have to be read again.
        """
        name = "rope_original_length" if self.rope_scaling == "longrope" else "max_length"
        return name, min(self.max_length, getattr(self, name))

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """Which layers see no further than the window."""
        pattern = self.layer_pattern or ("L" if self.window else "G")
        return tuple(pattern[i % len(pattern)] == "L" for i in range(self.num_layers))


def best_on(platform: str, num_layers: int, head_dim: int) -> dict[str, Any]:
    """What `config.model` leaves to the platform, a `jax.Device.platform`: `attention` and `scan_layers`."""
    on_gpu = "flash" if head_dim in FLASH_HEAD_DIMS else "blockwise"
    kernels = {"tpu": "splash", "gpu": on_gpu, "cuda": on_gpu, "rocm": "blockwise", "cpu": "block_sparse"}
    few = platform == "cpu" and num_layers <= FEW_LAYERS
    return {"attention": kernels.get(platform, "xla"), "scan_layers": not few}


# What says how a model is computed or trained, and not what it is.
RUNTIME_KEYS = (
    *("dtype", "remat", "attention", "attention_block", "scan_layers"),
    *("router_balance_coef", "router_z_coef"),
)
# With which a model of rotary positions reads longer sequences than it was made for.
SCALING_KEYS = tuple(
    field.name
    for field in dataclasses.fields(ModelConfig)
    if field.name.startswith("rope_") and field.name not in ("rope_local_theta", "rope_fraction")
)
# Which of them each kind of scaling reads.
SCALING_FIELDS = {
    "none": (),
    "linear": ("rope_factor",),
    "llama3": ("rope_factor", "rope_original_length", "rope_low_frequency", "rope_high_frequency"),
    "yarn": (
        "rope_factor",
        "rope_original_length",
        "rope_beta_fast",
        "rope_beta_slow",
        "rope_attention_factor",
    ),
    "longrope": (
        "rope_factor",
        "rope_original_length",
        "rope_attention_factor",
        "rope_short_factors",
        "rope_long_factors",
    ),
}
ARCHITECTURE_KEYS = tuple(
    field.name
    for field in dataclasses.fields(ModelConfig)
    if field.name not in RUNTIME_KEYS and field.name != "vocab_size"  # which is the tokenizer's
)
