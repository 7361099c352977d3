"""One small model whose next-token distributions are neither flat nor certain, and left-padded prompts for it."""

import numpy as np
import pytest
from models.oracle import random_params

from jaxalign.models import ModelConfig


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    return ModelConfig(
        vocab_size=48, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=32, max_length=128
    )


@pytest.fixture(scope="session")
def params(config):
    return random_params(config)


@pytest.fixture(scope="session")
def prompts():
    """Six prompts of 1 to 6 tokens as (tokens, positions, segment_ids) [6, 6], padded on the left."""
    width, lengths = 6, np.array([6, 1, 4, 2, 5, 3])[:, None]
    order = np.arange(width)[None] - (width - lengths)
    tokens = np.random.default_rng(5).integers(0, 48, order.shape)
    return tuple(np.where(order >= 0, x, 0).astype(np.int32) for x in (tokens, order, np.ones_like(order)))
