"""The FLOP count of a model: what a step must compute, whatever the program that computes it.

The MFU of a run and the plan of one divide by the same number.
"""

from typing import Any, NamedTuple

from jaxalign.models.config import ModelConfig


def active_params(config: ModelConfig, *, scalar: bool = False) -> int:
    """Parameters that multiply each token: all weight matrices but the input embedding's lookup.

    Of the experts those that a token is sent to, and the router. The head is the matrix of the logits, tied or not,
    or the vector of a `scalar` model, which computes no logits. Norms and biases are left out.
    """
    attention = config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    mlp = config.mlp_dim * (3 if config.gated_mlp else 2)
    if config.num_experts:
        mlp = mlp * config.experts_per_token + config.num_experts
    head = 1 if scalar else config.vocab_size
    return config.embed_dim * (config.num_layers * (attention + mlp) + head)


class Work(NamedTuple):
    """What a pass reads, numbers of Python or of JAX: tokens, and pairs of one and another that it may see.

    Each pair is counted once, the token and itself included: `pairs` of layers that see everything before a token,
    `near` of layers with a window. `logits` are the tokens for which the head is computed.
    """

    tokens: Any
    pairs: Any
    near: Any
    logits: Any

    def times(self, count: float) -> "Work":
        """The work of so many passes."""
        return Work(*(x * count for x in self))


def visible_pairs(length: int, window: int = 0) -> float:
    """Pairs of a token and one that it may see, in a sequence: each counted once."""
    near = min(window or length, length)
    return near * (near + 1) / 2 + (length - near) * near


def full_work(config: ModelConfig, count: int, length: int) -> Work:
    """The work of `count` sequences of `length` tokens."""
    pairs, near = (count * visible_pairs(length, window) for window in (0, config.window))
    return Work(count * length, pairs, near, count * length)


def step_flops(config: ModelConfig, work: Work, *, scalar: bool = False, passes: float = 3) -> Any:
    """FLOPs of passes over tokens (arXiv 2204.02311 appendix B).

    A pass takes 2 for each parameter and token, and 4 H d for each layer and pair that it lets see each other: the
    pair's score and its share of the result, over H heads of d dimensions. Recomputation and padding are not counted.

    Args:
      scalar: the model gives one number a token instead of logits.
      passes: 1 forward, 2 more backward.
    """
    local = sum(config.local_layers)
    pairs = (config.num_layers - local) * work.pairs + local * work.near
    attention = config.num_heads * config.head_dim * pairs
    head = config.embed_dim * (1 if scalar else config.vocab_size)
    matrices = float(active_params(config, scalar=scalar) - head) * work.tokens
    matrices += float(head) * (work.tokens if scalar else work.logits)
    return passes * (2.0 * matrices + 4.0 * attention)


def sampling_flops(config: ModelConfig, prompts: Work, whole: Work, count: Any, samples: int) -> Any:
    """FLOPs of sampling completions.

    A prompt is read once for all its completions, and only what follows its last token needs logits.

    Args:
      prompts: the work of reading each prompt once, with all its logits. whole: of reading each completion after its
        prompt.
      count: prompts.
      samples: completions of each.
    """
    read = step_flops(config, whole, passes=1) + (1 - samples) * step_flops(config, prompts, passes=1)
    return read - 2.0 * config.vocab_size * config.embed_dim * (prompts.tokens - count)
