"""Presets hold their published numbers of parameters and are what transformers' own config classes say."""

import warnings

import jax
import pytest

from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig, count_params, init_params
from jaxalign.models.hf import architecture_for, config_from_hf, config_to_hf, same_function
from jaxalign.models.presets import PRESETS, preset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import AutoConfig

VISION = 416_866_032  # SigLIP in the larger Gemma 3, besides a projection and its norm


def _without_vision(total: int, width: int) -> int:
    return total - VISION - 1152 * width - 1152


# Of the model cards and safetensors headers on the hub; tied tables counted once.
PUBLISHED = {
    "llama2_7b": 6_738_415_616,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_1_8b": 8_030_261_248,
    "llama3_1_70b": 70_553_706_496,
    "llama3_1_405b": 405_853_388_800,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "mistral_7b": 7_241_732_096,
    "mixtral_8x7b": 46_702_792_704,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_7b": 7_615_616_512,
    "qwen2_5_14b": 14_770_033_664,
    "qwen2_5_32b": 32_763_876_352,
    "qwen2_5_72b": 72_706_203_648,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_235b_a22b": 235_093_634_560,
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": _without_vision(4_300_079_472, 2560),
    "gemma3_12b": _without_vision(12_187_325_040, 3840),
    "gemma3_27b": _without_vision(27_432_406_640, 5376),
    "phi3_mini_4k": 3_821_079_552,
    "olmo2_1b": 1_484_916_736,
    "olmo2_7b": 7_298_617_344,
    "olmo2_13b": 13_716_198_400,
    "olmo2_32b": 32_234_279_936,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "pythia_70m": 70_426_624,
    "pythia_160m": 162_322_944,
    "pythia_410m": 405_334_016,
    "pythia_1b": 1_011_781_632,
    "pythia_1_4b": 1_414_647_808,
    "pythia_2_8b": 2_775_208_960,
    "pythia_6_9b": 6_857_302_016,
    "pythia_12b": 11_846_072_320,
    "opt_125m": 125_239_296,
    "opt_1_3b": 1_315_758_080,
    "opt_6_7b": 6_658_473_984,
}
FAMILY = {
    "llama": "LlamaForCausalLM",
    "smollm2": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "MistralForCausalLM",  # of one shape with it; only the names of the tensors differ
    "olmo2": "Olmo2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "pythia": "GPTNeoXForCausalLM",
    "opt": "OPTForCausalLM",
}


def test_every_preset_has_a_published_count():
    assert set(PRESETS) == set(PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_number_of_parameters(name):
    config = ModelConfig(**preset(name))
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    assert count_params(shapes) == PUBLISHED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_transformers_reads_our_config_as_we_mean_it(name):
    config = ModelConfig(**preset(name))
    architecture = architecture_for(config)
    key = max((key for key in FAMILY if name.startswith(key)), key=len)
    experts = name.startswith("qwen3") and config.num_experts
    assert architecture == ("Qwen3MoeForCausalLM" if experts else FAMILY[key])
    values = config_to_hf(config, architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoConfig.for_model(**values).to_dict()
    again = config_from_hf(theirs | {"architectures": [architecture]}, "config.json")
    assert same_function(again, config)


def test_a_wrong_name_is_told_the_nearest():
    with pytest.raises(ConfigError, match=r"'llama3-8b' does not exist; did you mean 'llama3_8b'\?"):
        preset("llama3-8b")


def test_a_preset_may_be_changed_without_changing_the_next():
    preset("gpt2")["num_layers"] = 1
    assert preset("gpt2")["num_layers"] == 12
