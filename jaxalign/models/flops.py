"""The FLOP count of a model: what a step must compute, whatever the program that computes it.

The MFU of a run and the plan of one divide by the same number.
"""

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


def step_flops(
    config: ModelConfig, tokens: float, pairs: float, *, scalar: bool = False, passes: float = 3
) -> float:
    """FLOPs over `tokens` that see each other in `pairs` (arXiv 2204.02311 appendix B).

    A pass takes 2 for each parameter and token, and 4 L H d for each pair: its score and its share of the result,
    over L layers of H heads of d dimensions. Recomputation and padding are not counted, nor is it taken off where a
    layer's window hides a pair.

    Args:
      pairs: of a token and one that it may see, itself included; each counted once.
      scalar: the model gives one number a token instead of logits.
      passes: 1 forward, 2 more backward.
    """
    attention = config.num_layers * config.num_heads * config.head_dim * pairs
    return passes * (2.0 * active_params(config, scalar=scalar) * tokens + 4 * attention)
