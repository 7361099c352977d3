"""How many numbers a layer makes of a token, and how many of them the backward pass keeps."""

from jaxalign.models.config import ModelConfig


def count_activations(model: ModelConfig, tensor: int = 1) -> tuple[float, float]:
    """Numbers a token of one layer that exist while it runs, and that are kept for the backward pass.

    Args:
      tensor: devices that heads and MLP are split over.
    """
    width = model.mlp_dim * (model.experts_per_token if model.num_experts else 1) / tensor
    heads = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim / tensor
    layer = 8 * model.embed_dim + heads + 4 * width
    products = 2 * model.embed_dim + heads + 2 * width
    attention = model.num_heads * model.head_dim / tensor
    kept = {"full": model.embed_dim, "attention": model.embed_dim + attention, "none": layer}
    return layer, kept.get(model.remat, model.embed_dim + products)
