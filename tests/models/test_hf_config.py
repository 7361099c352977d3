"""config.json of published checkpoints, of both versions of transformers, and everything that must be refused."""

import dataclasses
import warnings

import pytest

from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig
from jaxalign.models.hf import architecture_for, config_from_hf, config_to_hf, is_scalar, same_function
from jaxalign.models.hf.families import FAMILIES
from jaxalign.models.presets import preset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import AutoConfig

COMMON = {"torch_dtype": "bfloat16", "use_cache": True, "transformers_version": "4.40.0", "bos_token_id": 1}


def hf(architecture, layers, width, heads, kv_heads, mlp, vocab, length, eps, theta, **own):
    """The keys that Llama and its relatives share, as transformers 4 writes them."""
    return {
        "architectures": [architecture],
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "max_position_embeddings": length,
        "rms_norm_eps": eps,
        "rope_theta": theta,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        **COMMON,
        **own,
    }


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LOCAL, GLOBAL = "sliding_attention", "full_attention"
PUBLISHED = {
    "llama2_7b": hf(
        "LlamaForCausalLM", 32, 4096, 32, 32, 11008, 32000, 4096, 1e-5, 1e4, rope_scaling=None, pretraining_tp=1,
        tie_word_embeddings=False,
    ),
    "llama3_1_8b": hf(
        "LlamaForCausalLM", 32, 4096, 32, 8, 14336, 128256, 131072, 1e-5, 500000.0, rope_scaling=LLAMA3,
        mlp_bias=False, attention_bias=False, eos_token_id=[128001, 128008, 128009],
    ),
    "mistral_7b": hf(
        "MistralForCausalLM", 32, 4096, 32, 8, 14336, 32000, 32768, 1e-5, 10000.0, sliding_window=4096,
    ),
    "mixtral_8x7b": hf(
        "MixtralForCausalLM", 32, 4096, 32, 8, 14336, 32000, 32768, 1e-5, 1e6, sliding_window=None,
        num_local_experts=8, num_experts_per_tok=2, output_router_logits=False, router_aux_loss_coef=0.02,
    ),
    "qwen2_5_0_5b": hf(
        "Qwen2ForCausalLM", 24, 896, 14, 2, 4864, 151936, 32768, 1e-6, 1000000.0, sliding_window=32768,
        use_sliding_window=False, max_window_layers=24, tie_word_embeddings=True, use_mrope=False,
    ),
    "qwen3_0_6b": hf(
        "Qwen3ForCausalLM", 28, 1024, 16, 8, 3072, 151936, 40960, 1e-6, 1000000, sliding_window=None,
        use_sliding_window=False, max_window_layers=28, head_dim=128, tie_word_embeddings=True,
        attention_bias=False, rope_scaling=None,
    ),
    "qwen3_30b_a3b": hf(
        "Qwen3MoeForCausalLM", 48, 2048, 32, 4, 6144, 151936, 40960, 1e-6, 1000000.0, head_dim=128,
        moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True,
        decoder_sparse_step=1, mlp_only_layers=[], use_sliding_window=False, max_window_layers=48,
        sliding_window=None, router_aux_loss_coef=0.001, output_router_logits=False,
    ),
    "gemma_2b": hf(
        "GemmaForCausalLM", 18, 2048, 8, 1, 16384, 256000, 8192, 1e-6, 10000.0, head_dim=256,
    ) | {"hidden_act": "gelu", "hidden_activation": None},
    "gemma2_27b": hf(
        "Gemma2ForCausalLM", 46, 4608, 32, 16, 36864, 256000, 8192, 1e-6, 10000.0, head_dim=128,
        hidden_activation="gelu_pytorch_tanh", attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
        query_pre_attn_scalar=144, sliding_window=4096, cache_implementation="hybrid",
    ) | {"hidden_act": "gelu_pytorch_tanh"},
    "gemma3_1b": hf(
        "Gemma3ForCausalLM", 26, 1152, 4, 1, 6912, 262144, 32768, 1e-6, 1000000, head_dim=256,
        hidden_activation="gelu_pytorch_tanh", attn_logit_softcapping=None, final_logit_softcapping=None,
        query_pre_attn_scalar=256, sliding_window=512, sliding_window_pattern=6, rope_local_base_freq=10000,
        rope_scaling=None, cache_implementation="hybrid", model_type="gemma3_text", hidden_act=None,
    ),
    "olmo2_32b": hf(
        "Olmo2ForCausalLM", 64, 5120, 40, 8, 27648, 100352, 4096, 1e-6, 500000, attention_bias=False,
        rope_scaling=None, tie_word_embeddings=False,
    ),
    "phi3_mini_4k": hf(
        "Phi3ForCausalLM", 32, 3072, 32, 32, 8192, 32064, 4096, 1e-5, 10000.0, sliding_window=2047,
        original_max_position_embeddings=4096, rope_scaling=None, attention_bias=False, embd_pdrop=0.0,
        resid_pdrop=0.0, auto_map={"AutoConfig": "configuration_phi3.Phi3Config"}, model_type="phi3",
    ),
    "smollm2_1_7b": hf(
        "LlamaForCausalLM", 24, 2048, 32, 32, 8192, 49152, 8192, 1e-5, 130000, tie_word_embeddings=True,
        rope_interleaved=False,
    ),
    "gpt2_xl": {
        "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new", "attn_pdrop": 0.1,
        "embd_pdrop": 0.1, "layer_norm_epsilon": 1e-5, "n_ctx": 1024, "n_embd": 1600, "n_head": 25,
        "n_layer": 48, "n_positions": 1024, "resid_pdrop": 0.1, "summary_type": "cls_index",
        "task_specific_params": {"text-generation": {"do_sample": True}}, "vocab_size": 50257,
    },
    "pythia_12b": {
        "architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu", "hidden_size": 5120,
        "intermediate_size": 20480, "layer_norm_eps": 1e-5, "max_position_embeddings": 2048,
        "num_attention_heads": 40, "num_hidden_layers": 36, "rotary_emb_base": 10000, "rotary_pct": 0.25,
        "tie_word_embeddings": False, "use_parallel_residual": True, "vocab_size": 50688,
    },
    "opt_125m": {
        "architectures": ["OPTForCausalLM"], "_remove_final_layer_norm": False, "activation_dropout": 0.0,
        "activation_function": "relu", "do_layer_norm_before": True, "dropout": 0.1, "ffn_dim": 3072,
        "hidden_size": 768, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
        "num_attention_heads": 12, "num_hidden_layers": 12, "prefix": "</s>", "vocab_size": 50272,
        "word_embed_proj_dim": 768, "pad_token_id": 1,
    },
}  # fmt: skip


def read(values):
    return config_from_hf(values, "m/config.json")


def changed(name, **keys):
    return PUBLISHED[name] | keys


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_the_presets(name):
    assert same_function(read(PUBLISHED[name]), ModelConfig(**preset(name)))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.causal)
def test_missing_keys_have_the_defaults_of_transformers(family):
    theirs = AutoConfig.for_model(family.model_type).to_dict()
    named = {"architectures": [family.causal]}
    assert read(named) == read(theirs | named)
    assert read({"model_type": family.model_type}) == read(named)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_transformers_5_makes_of_a_file_reads_the_same(name):
    values = PUBLISHED[name]
    model_type = next(f.model_type for f in FAMILIES if f.causal == values["architectures"][0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new = AutoConfig.for_model(**{"model_type": model_type, **values}).to_dict()
    assert "rope_theta" not in new
    assert read(new | {"architectures": values["architectures"]}) == read(values)


def test_gemma3_with_a_scaled_global_base_in_both_spellings():
    want = ModelConfig(**preset("gemma3_4b"))
    sizes = {"num_hidden_layers": 34, "hidden_size": 2560, "intermediate_size": 10240, "vocab_size": 262208}
    start = changed("gemma3_1b", **sizes, num_attention_heads=8, num_key_value_heads=4, sliding_window=1024)
    start["max_position_embeddings"] = 131072
    old = start | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    types = [GLOBAL if (i + 1) % 6 == 0 else LOCAL for i in range(34)]
    dropped = ("rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern")
    new = {key: value for key, value in start.items() if key not in dropped} | {
        "layer_types": types,
        "rope_parameters": {
            GLOBAL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000},
            LOCAL: {"rope_type": "default", "rope_theta": 10000},
        },
    }
    assert same_function(read(old), want) and read(new) == read(old)


def test_windows_of_qwen_begin_at_a_layer():
    config = read(changed("qwen2_5_0_5b", use_sliding_window=True, max_window_layers=21))
    assert config.window == 32768 and config.layer_pattern == "G" * 21 + "LLL"
    types = [LOCAL, GLOBAL] * 12
    config = read(changed("qwen2_5_0_5b", use_sliding_window=True, layer_types=types))
    assert config.layer_pattern == "LG"
    assert read(changed("mistral_7b", sliding_window=None)).window == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_unchanged_model_keeps_its_file(name):
    values = PUBLISHED[name]
    assert config_to_hf(read(values), values["architectures"][0], values) == values


def test_what_changed_is_written_anew_and_nothing_else():
    values = PUBLISHED["qwen3_0_6b"]
    longer = dataclasses.replace(read(values), max_length=8192, vocab_size=151_669)
    out = config_to_hf(longer, "Qwen3ForCausalLM", values)
    assert out == values | {"max_position_embeddings": 8192, "vocab_size": 151_669}


def test_a_stretched_context_is_written_over_either_spelling():
    for values in (
        PUBLISHED["olmo2_32b"],
        {k: v for k, v in PUBLISHED["olmo2_32b"].items() if not k.startswith("rope_")}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000}},
    ):
        config = dataclasses.replace(
            read(values), rope_scaling="yarn", rope_factor=8.0, rope_original_length=4096, max_length=32768
        )
        out = config_to_hf(config, "Olmo2ForCausalLM", values)
        assert read(out) == config and out["torch_dtype"] == "bfloat16" and "rope_parameters" not in out
        assert out["rope_scaling"] == {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
        }


def test_a_reward_model_has_one_label_and_no_unembedding():
    values = PUBLISHED["llama3_1_8b"]
    out = config_to_hf(read(values), "LlamaForSequenceClassification", values)
    assert out["architectures"] == ["LlamaForSequenceClassification"] and out["id2label"] == {"0": "reward"}
    assert is_scalar(out["architectures"][0]) and not is_scalar("LlamaForCausalLM")
    config = read(out)
    assert config == dataclasses.replace(read(values), tie_embeddings=True)
    assert config_to_hf(config, "LlamaForSequenceClassification", out) == out
    named = out | {"id2label": {"0": "score"}, "tie_word_embeddings": False}
    assert config_to_hf(read(named), "LlamaForSequenceClassification", named) == named
    with pytest.raises(ConfigError, match="has 3 labels, but a reward model gives one score"):
        read(out | {"id2label": {"0": "a", "1": "b", "2": "c"}})
    with pytest.raises(ConfigError, match="has 2 labels"):  # what transformers takes where nothing is said
        read(changed("llama3_1_8b", architectures=["LlamaForSequenceClassification"]))


def test_special_tokens_are_kept_in_another_family_and_never_another_familys_defaults():
    config = read(PUBLISHED["llama3_1_8b"])
    out = config_to_hf(config, "MistralForCausalLM", PUBLISHED["llama2_7b"])
    assert "pretraining_tp" not in out
    assert (out["bos_token_id"], out["eos_token_id"], out["pad_token_id"]) == (1, None, None)


def test_a_model_trained_here_finds_its_family():
    config = ModelConfig()
    assert architecture_for(config) == "LlamaForCausalLM"
    for keys, want in [
        ({"num_kv_heads": 1, "rope_scaling": "linear", "rope_factor": 2.0}, "LlamaForCausalLM"),
        (
            {"head_dim": 20, "num_heads": 5, "num_kv_heads": 1},
            "MistralForCausalLM",
        ),  # heads do not divide Llama's width
        ({"window": 8}, "MistralForCausalLM"),
        ({"qkv_bias": True, "window": 8, "layer_pattern": "LG"}, "Qwen2ForCausalLM"),
        ({"qk_norm": "head", "qkv_bias": True, "out_bias": True}, "Qwen3ForCausalLM"),
        ({"num_experts": 4, "normalize_experts": True}, "MixtralForCausalLM"),
        ({"num_experts": 4, "normalize_experts": False, "qk_norm": "head"}, "Qwen3MoeForCausalLM"),
        ({"rope_fraction": 0.5}, "Phi3ForCausalLM"),
    ]:
        model = dataclasses.replace(config, **keys)
        assert architecture_for(model) == want, keys
        assert same_function(read(config_to_hf(model, want)), model)


def test_a_model_that_no_family_can_express_names_its_fields():
    config = ModelConfig(norm="layer")
    with pytest.raises(
        ConfigError, match=r"no Hugging Face family .* LlamaForCausalLM.*config.model.norm='layer'"
    ):
        architecture_for(config)
    with pytest.raises(ConfigError, match=r"MistralForCausalLM cannot express config.model.norm='layer'"):
        config_to_hf(config, "MistralForCausalLM")


def test_the_same_function_in_two_ways_of_writing():
    a = ModelConfig(**preset("gemma3_1b"))
    assert same_function(a, dataclasses.replace(a, dtype="bfloat16", init_std=0.1, rope_factor=3.0))
    assert same_function(a, dataclasses.replace(a, query_scale=0.0))  # head_dim is query_pre_attn_scalar
    assert not same_function(a, dataclasses.replace(a, rope_local_theta=1e5))
    assert not same_function(a, dataclasses.replace(a, window=256))


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("llama2_7b", {"hidden_act": "mish"}, r"m/config.json: hidden_act='mish' is not one of silu"),
        ("llama2_7b", {"attention_multiplier": 0.5}, r"attention_multiplier=0.5 is not known to the family llama"),
        ("llama2_7b", {"quantization_config": {"bits": 4}}, r"quantization_config.*dequantize it"),
        ("llama2_7b", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor=0.5 is not supported"),
        ("llama2_7b", {"is_causal": False}, r"is_causal=False is not supported; models here are causal"),
        ("llama2_7b", {"rope_scaling": "linear"}, r"rope_scaling='linear' must be of type dict"),
        ("llama2_7b", {"rope_parameters": {"rope_theta": None}}, r"contradicts rope_parameters.rope_theta=None"),
        ("llama2_7b", {"vocab_size": None}, r"vocab_size=None must not be null"),
        ("llama2_7b", {"vocab_size": "32000"}, r"vocab_size='32000' must be of type int"),
        ("llama2_7b", {"num_attention_heads": 33}, r"num_attention_heads=33 does not divide hidden_size=4096"),
        ("llama2_7b", {"num_key_value_heads": 5}, r"m/config.json: config.model.num_heads=32 is not a multiple"),
        ("llama2_7b", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"'dynamic'.*depend on the length"),
        ("llama2_7b", {"rope_scaling": {"type": "linear"}}, r"rope_scaling=.* needs the number factor"),
        ("llama2_7b", {"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1.0}}, r"has mscale"),
        ("llama3_1_8b", {"rope_parameters": {"rope_theta": 1e4}}, r"contradicts rope_parameters.rope_theta"),
        ("olmo2_32b", {"clip_qkv": 8.0}, r"clip_qkv=8.0 is not known"),
        ("qwen2_5_0_5b", {"layer_types": [LOCAL] * 24}, r"layer_types has layers with a window"),
        ("qwen2_5_0_5b", {"layer_types": ["chunked_attention"] * 24}, r"must name one of sliding_attention"),
        ("qwen3_30b_a3b", {"decoder_sparse_step": 2}, r"decoder_sparse_step=2 is not supported"),
        ("qwen3_30b_a3b", {"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\] is not supported"),
        ("qwen3_30b_a3b", {"use_sliding_window": True}, r"use_sliding_window=True is not supported"),
        ("mistral_7b", {"layer_types": [LOCAL, GLOBAL] * 16}, r"layer_types=.* is not supported"),
        ("gemma_2b", {"hidden_activation": "silu"}, r"contradicts hidden_act='gelu'"),
        ("gemma_2b", {"use_bidirectional_attention": True}, r"models here are causal"),
        ("gemma3_1b", {"use_bidirectional_attention": True}, r"models here are causal"),
        ("phi3_mini_4k", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, r"numbers long_factor"),
        ("phi3_mini_4k", {"rope_scaling": {"type": "su", "long_factor": [1.0]}}, r"numbers short_factor"),
        ("gpt2_xl", {"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx=True"),
        ("gpt2_xl", {"scale_attn_weights": False}, r"scale_attn_weights=False is not supported"),
        ("gpt2_xl", {"add_cross_attention": True}, r"add_cross_attention=True is not supported"),
        ("opt_125m", {"do_layer_norm_before": False}, r"do_layer_norm_before=False is not supported"),
        ("opt_125m", {"word_embed_proj_dim": 512}, r"word_embed_proj_dim=512 is not supported"),
        ("llama2_7b", {"architectures": ["Gemma3ForConditionalGeneration"]}, r"text-only checkpoint"),
        ("llama2_7b", {"architectures": ["SmolLM3ForCausalLM"]}, r"has no positions"),
        ("llama2_7b", {"architectures": ["BloomForCausalLM"]}, r"supported are LlamaForCausalLM, Mistral.*OPT"),
        ("llama2_7b", {"architectures": None}, r"neither architectures nor model_type"),
    ],
)  # fmt: skip
def test_what_would_change_the_function_is_refused(name, keys, message):
    with pytest.raises(ConfigError, match=message):
        read(changed(name, **keys))
