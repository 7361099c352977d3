"""Tokens to hidden states: the transformer, its scalar head and its cache."""

from jaxalign.models.cache import Cache, init_cache
from jaxalign.models.config import ModelConfig, Params
from jaxalign.models.params import (
    abstract_params,
    count_params,
    hidden_states,
    init_head,
    init_params,
    lay_out,
    routed_hidden_states,
    scalar_head,
    unembedding,
)

__all__ = [
    "Cache",
    "ModelConfig",
    "Params",
    "abstract_params",
    "count_params",
    "hidden_states",
    "init_cache",
    "init_head",
    "init_params",
    "lay_out",
    "routed_hidden_states",
    "scalar_head",
    "unembedding",
]
