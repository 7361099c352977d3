"""A model config that cannot work is refused with the key, the value and the way out."""

import dataclasses
import re

import pytest

from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig
from jaxalign.stages import default_config, parse_config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"norm": "rsm"}, "config.model.norm='rsm' is not one of rms, layer; did you mean 'rms'?"),
        ({"activation": "gelu_tan"}, "is not one of silu, gelu, gelu_tanh, relu; did you mean 'gelu_tanh'?"),
        ({"positions": "alibi"}, "config.model.positions='alibi' is not one of rope, learned"),
        (
            {"dtype": "bf16"},
            "config.model.dtype='bf16' is not one of float32, bfloat16, float16; did you mean",
        ),
        (
            {"remat": "all"},
            "config.model.remat='all' is not one of none, full, attention, dots, dots_no_batch",
        ),
        (
            {"attention": "flex"},
            "config.model.attention='flex' is not one of xla, blockwise, block_sparse, splash, flash",
        ),
        ({"num_layers": 0}, "config.model.num_layers=0 must be at least 1"),
        ({"vocab_size": -1}, "config.model.vocab_size=-1 must be at least 1"),
        ({"num_kv_heads": 0}, "config.model.num_kv_heads=0 must be at least 1"),
        ({"max_length": 0}, "config.model.max_length=0 must be at least 1"),
        ({"norm_eps": 0.0}, "config.model.norm_eps=0.0 must be a positive number"),
        ({"rope_theta": -1.0}, "config.model.rope_theta=-1.0 must be a positive number"),
        ({"init_std": float("nan")}, "config.model.init_std=nan must be a positive number"),
        (
            {"num_heads": 6, "num_kv_heads": 4},
            "config.model.num_heads=6 is not a multiple of config.model.num_kv_heads=4; "
            "use one of 1, 2, 3, 6 key/value heads",
        ),
        (
            {"head_dim": 7},
            "config.model.head_dim=7 must be even for rotary positions; use 8, or config.model.positions='learned'",
        ),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_refused(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        ModelConfig(**values)


def test_odd_heads_are_fine_with_learned_positions():
    assert ModelConfig(head_dim=7, positions="learned").head_dim == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_factor": 8.0},
            r"config\.model\.rope_factor=8\.0 means nothing to config\.model\.rope_scaling='none', only to linear, "
            r"llama3, yarn, longrope; set that too, or leave it out",
        ),
        (
            {"rope_scaling": "linear", "rope_factor": 8.0, "rope_beta_fast": 16.0},
            r"config\.model\.rope_beta_fast=16\.0 means nothing to config\.model\.rope_scaling='linear', only to yarn",
        ),
    ],
)
def test_what_the_scaling_of_positions_does_not_read_is_refused(changes, message):
    """A run said that positions were changed, and they were not."""
    values = default_config("sft")
    values.model.update(changes)
    config = parse_config(values)
    for saved in (None, ModelConfig()):
        with pytest.raises(ConfigError, match=message):
            config.architecture("cpu", vocab_size=512, saved=saved)
    # Of a model that is scaled already, one number may be changed.
    yarn = ModelConfig(rope_scaling="yarn", rope_factor=4.0, rope_original_length=512)
    if len(changes) == 1:
        assert config.architecture("cpu", saved=yarn) == dataclasses.replace(
            yarn, rope_factor=8.0, attention="block_sparse", scan_layers=False, remat="full"
        )
