"""Tokens to hidden states: the transformer, what is read from it, and its cache."""

from jaxalign.models.cache import Cache, init_cache
from jaxalign.models.config import ModelConfig, Params
from jaxalign.models.forward import (
    hidden_states,
    hidden_states_and_router,
    logits,
    readout,
    scalar_head,
    unembedding,
)
from jaxalign.models.init import abstract_params, add_tokens, count_params, init_head, init_params, lay_out
from jaxalign.models.logprobs import token_divergence, token_kl, token_logprobs
from jaxalign.models.scoring import Scores, score_batch, score_tokens

__all__ = [
    "Cache",
    "ModelConfig",
    "Params",
    "Scores",
    "abstract_params",
    "add_tokens",
    "count_params",
    "hidden_states",
    "hidden_states_and_router",
    "init_cache",
    "init_head",
    "init_params",
    "lay_out",
    "logits",
    "readout",
    "scalar_head",
    "score_batch",
    "score_tokens",
    "token_divergence",
    "token_kl",
    "token_logprobs",
    "unembedding",
]
