"""Tensor tables without torch: every element of ours is in exactly one tensor, and comes back bit for bit."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig, init_params
from jaxalign.models.hf import canonical_name, ignored, tensor_table

from .hf_state import leaf_of, load_state, names_of, save_state

SIZES = {"vocab_size": 11, "embed_dim": 12, "num_heads": 4, "head_dim": 6, "mlp_dim": 10, "max_length": 9}
LLAMA = ModelConfig(**SIZES, num_layers=3, num_kv_heads=2, tie_embeddings=False)
CLASSIC = {
    "norm": "layer",
    "positions": "learned",
    "gated_mlp": False,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
}
SQUARE = ModelConfig(**{**SIZES, "head_dim": 3}, num_layers=2, **CLASSIC)
CASES = {
    "LlamaForCausalLM": LLAMA,
    "Qwen2ForCausalLM": dataclasses.replace(LLAMA, qkv_bias=True, tie_embeddings=True),
    "Qwen3ForCausalLM": dataclasses.replace(LLAMA, qk_norm="head"),
    "Gemma3ForCausalLM": dataclasses.replace(LLAMA, qk_norm="head", norm_placement="both"),
    "Olmo2ForCausalLM": dataclasses.replace(LLAMA, qk_norm="all", norm_placement="after"),
    "Phi3ForCausalLM": LLAMA,
    "MixtralForCausalLM": dataclasses.replace(LLAMA, num_experts=3),
    "Qwen3MoeForCausalLM": dataclasses.replace(LLAMA, num_experts=3, qk_norm="head"),
    "GPT2LMHeadModel": SQUARE,
    "GPTNeoXForCausalLM": dataclasses.replace(
        SQUARE, positions="rope", num_heads=2, num_kv_heads=2, head_dim=6
    ),
    "OPTForCausalLM": dataclasses.replace(SQUARE, position_offset=2),
}


def numbered(config: ModelConfig, scalar: bool = False) -> dict:
    """Parameters whose elements are all different, so that none can stand in for another."""
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config, scalar=scalar))
    start = 0

    def count(x: jax.ShapeDtypeStruct) -> np.ndarray:
        nonlocal start
        start += x.size
        return np.arange(start - x.size, start, dtype=np.float32).reshape(x.shape)

    return jax.tree.map(count, shapes)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CASES)
def test_every_element_is_in_one_tensor_and_comes_back(architecture):
    config = CASES[architecture]
    params = numbered(config)
    state = save_state(params, architecture, config)
    held = np.sort(np.concatenate([x.ravel() for x in state.values()]))
    np.testing.assert_array_equal(held, np.arange(sum(x.size for x in jax.tree.leaves(params))))
    for want, got in zip(
        *map(jax.tree.leaves, (params, load_state(state, architecture, config))), strict=True
    ):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("architecture", CASES)
def test_shapes_are_those_of_the_tensors_and_loading_makes_views(architecture):
    config = CASES[architecture]
    params = numbered(config)
    for entry in tensor_table(architecture, config):
        at = next(iter(names_of(entry, config).values()))
        tensor = np.ascontiguousarray(entry.save(*(leaf_of(params, path)[at] for path in entry.paths)))
        assert tensor.shape == entry.shape
        assert all(np.shares_memory(tensor, value) for value in entry.load(tensor))


def test_a_score_head_stands_beside_the_transformer():
    config = dataclasses.replace(LLAMA, tie_embeddings=True)
    params = numbered(config, scalar=True)
    state = save_state(params, "LlamaForSequenceClassification", config, scalar=True)
    assert state["score.weight"].shape == (1, config.embed_dim) and "lm_head.weight" not in state
    back = load_state(state, "LlamaForSequenceClassification", config, scalar=True)
    np.testing.assert_array_equal(back["head"]["kernel"], params["head"]["kernel"])
    np.testing.assert_array_equal(back["transformer"]["embedding"], params["transformer"]["embedding"])


def test_names_without_the_inner_models_prefix():
    assert canonical_name("h.0.ln_1.weight", "GPT2LMHeadModel") == "transformer.h.0.ln_1.weight"
    assert canonical_name("transformer.wte.weight", "GPT2LMHeadModel") == "transformer.wte.weight"
    assert canonical_name("decoder.layers.0.fc1.bias", "OPTForCausalLM") == "model.decoder.layers.0.fc1.bias"
    assert canonical_name("lm_head.weight", "LlamaForCausalLM") == "lm_head.weight"
    assert canonical_name("embed_out.weight", "GPTNeoXForCausalLM") == "embed_out.weight"
    assert canonical_name("score.weight", "GPT2ForSequenceClassification") == "score.weight"


def test_buffers_are_ignored_and_no_parameter_is():
    for name in (
        "model.layers.3.self_attn.rotary_emb.inv_freq",
        "h.11.attn.bias",
        "transformer.h.0.attn.masked_bias",
        "gpt_neox.layers.5.attention.bias",
        "gpt_neox.layers.5.attention.masked_bias",
        "gpt_neox.layers.5.attention.rotary_emb.inv_freq",
    ):
        assert ignored(name), name
    for architecture, config in CASES.items():
        for entry in tensor_table(architecture, config):
            assert not any(ignored(name) for name in names_of(entry, config))


def test_an_unknown_architecture_is_told_what_there_is():
    with pytest.raises(
        ConfigError, match=r"'LamaForCausalLM' is not supported: did you mean LlamaForCausalLM\?"
    ):
        tensor_table("LamaForCausalLM", LLAMA)
