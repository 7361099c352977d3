"""Frequencies of stretched rotary positions are those that transformers computes from the same config.json."""

import dataclasses
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.models.hf import config_from_hf, config_to_hf
from jaxalign.models.rope import rotary, rotary_frequencies

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 65536,
    "rope_theta": 50000.0,
}
YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_factor": 1.3},
        {"mscale": 0.707, "mscale_all_dim": 1.0},
        {"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 64.0, "beta_slow": 2.0},
        {"mscale": 0.707},
        {"mscale": 0.707, "mscale_all_dim": 1.0, "attention_factor": 1.1},
        {"factor": None},
        {"factor": 0.5, "mscale": 2.0, "mscale_all_dim": 1.0},
        {"attn_factor": 1.0, "truncate": True},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")  # of transformers
def test_yarn(changes):
    pytest.importorskip("torch")  # which the functions of transformers call
    values = LLAMA | {"rope_scaling": YARN | changes}
    if changes.get("factor", 1) is None:
        del values["rope_scaling"]["factor"]
    ours = config_from_hf(values, "config.json")
    given = dict(values["rope_scaling"]) | {"rope_theta": values["rope_theta"]}
    given.setdefault("factor", None)
    theirs = transformers.LlamaConfig(
        **{k: v for k, v in LLAMA.items() if k != "rope_theta"}, rope_parameters=given
    )
    wanted, scale = ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    frequency, factor = rotary_frequencies(ours)
    np.testing.assert_allclose(frequency, wanted.numpy(), rtol=1e-5)
    assert factor == pytest.approx(scale, rel=1e-6)
    # What is written reads as the same function again, and an unchanged file stays as it is.
    assert config_to_hf(ours, "LlamaForCausalLM", values)["rope_scaling"] == values["rope_scaling"]
    again = config_from_hf(config_to_hf(ours, "LlamaForCausalLM"), "config.json")
    assert rotary_frequencies(again)[1] == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_factor": 0.8}, r"attn_factor=0\.8, not supported .* write attention_factor, or remove it"),
        ({"truncate": False}, r"truncate=False, not supported .* begins and ends at whole dimensions"),
        ({"rope_type": "dynamic"}, r"has the kind 'dynamic', which .* depend on the length of each text"),
        (
            {"rope_type": "longrope"},
            r"needs the list of numbers short_factor for the kind 'longrope'",
        ),
    ],
)
def test_what_is_not_supported_is_refused_with_a_way_out(changes, message):
    with pytest.raises(ConfigError, match=message):
        config_from_hf(LLAMA | {"rope_scaling": YARN | changes}, "config.json")


SHORT, LONG = [1.0 + i / 10 for i in range(32)], [1.5 + i for i in range(32)]
PHI3 = LLAMA | {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "original_max_position_embeddings": 4096,
    "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
}


@pytest.mark.parametrize("kind", ["longrope", "su"])
@pytest.mark.parametrize("length", [4096, 4097])
@pytest.mark.filterwarnings("ignore")
def test_longrope(kind, length):
    pytest.importorskip("torch")  # which the functions of transformers call
    values = PHI3 | {"rope_scaling": PHI3["rope_scaling"] | {"type": kind}}
    ours = config_from_hf(values, "config.json")
    inside = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "rope_theta": 50000.0}
    given = {key: x for key, x in PHI3.items() if key not in ("rope_scaling", "rope_theta")}
    theirs = transformers.Phi3Config(**given, rope_parameters=dict(inside))
    wanted, scale = ROPE_INIT_FUNCTIONS["longrope"](theirs, "cpu", seq_len=length)
    frequency, factor = rotary_frequencies(ours, long=length > 4096)
    np.testing.assert_allclose(frequency, wanted.numpy(), rtol=1e-5)
    assert factor == pytest.approx(scale, rel=1e-6) and factor > 1
    assert config_to_hf(ours, "Phi3ForCausalLM", values)["rope_scaling"] == values["rope_scaling"]
    written = config_to_hf(ours, "Phi3ForCausalLM")
    assert written["original_max_position_embeddings"] == 4096
    assert written["rope_scaling"] == {key: x for key, x in inside.items() if key != "rope_theta"}
    again = config_from_hf(written, "config.json")
    assert again == ours and hash(again) == hash(ours)


def test_a_sequence_has_the_frequencies_of_its_own_length():
    config = dataclasses.replace(config_from_hf(PHI3, "config.json"), rope_original_length=3)
    lengths = (2, 3, 4)  # in one row, and padding
    positions = np.concatenate([*map(np.arange, lengths), np.zeros(3, int)])[None].astype(np.int32)
    segments = np.repeat([1, 2, 3, 0], [*lengths, 3])[None].astype(np.int32)
    cos, _ = rotary(config, jnp.asarray(positions), jnp.asarray(segments))
    for number, length in enumerate(lengths, 1):
        frequency, scale = rotary_frequencies(config, long=length > 3)
        angles = positions[segments == number][:, None] * frequency
        np.testing.assert_allclose(
            np.asarray(cos)[segments == number][:, 0], np.cos(angles) * scale, atol=1e-5
        )


def test_longrope_needs_a_factor_for_each_pair():
    with pytest.raises(
        ConfigError, match=r"rope_short_factors has 31 factors: .* each of the 32 rotated pairs"
    ):
        config_from_hf(
            PHI3 | {"rope_scaling": PHI3["rope_scaling"] | {"short_factor": SHORT[:-1]}}, "config.json"
        )
    with pytest.raises(ConfigError, match="needs the list of numbers long_factor for the kind 'longrope'"):
        config_from_hf(PHI3 | {"rope_scaling": PHI3["rope_scaling"] | {"long_factor": 2.0}}, "config.json")


MIXTRAL = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
QWEN = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}


@pytest.mark.parametrize("family", [MIXTRAL, QWEN], ids=["mixtral", "qwen3_moe"])
def test_the_weight_of_the_load_balancing_loss_is_the_models_own(family):
    assert config_from_hf(family, "config.json").router_balance_coef == 0.001  # as transformers has it
    ours = config_from_hf(family | {"router_aux_loss_coef": 0.02}, "config.json")
    assert ours.router_balance_coef == 0.02
    assert config_to_hf(ours, family["architectures"][0])["router_aux_loss_coef"] == 0.02
