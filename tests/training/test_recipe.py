"""What a config leaves open is chosen by the stage, the model's size and the data; by value."""

import dataclasses
import pathlib

import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxalign import parallel
from jaxalign.config import load_config
from jaxalign.data.config import DataConfig
from jaxalign.data.dataset import dataset_from_records
from jaxalign.data.items import Item
from jaxalign.data.packing import Rows
from jaxalign.data.parts import Items, as_items
from jaxalign.data.sources import Records
from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig
from jaxalign.models.init import count_parameters
from jaxalign.models.presets import preset
from jaxalign.stages import NAMES, default_config, find_stage, parse_config
from jaxalign.training.recipe import Size, resolve_data, resolve_model, resolve_without_data

ROOT = pathlib.Path(__file__).parents[2]
SMALL = Size(1_000_000, fresh=False)
MODEL = ModelConfig(max_length=131_072)


def mesh(devices=1):
    kinds = (AxisType.Auto,) * len(parallel.AXES)
    sizes = dict.fromkeys(parallel.AXES, 1) | {"fsdp": devices}
    return AbstractMesh(tuple(sizes.values()), parallel.AXES, axis_types=kinds)


def config_of(stage, **changes):
    values = load_config(stage)
    for key, value in changes.items():
        values.update_from_flattened_dict({key.replace("__", "."): value})
    return parse_config(values)


def rows_of(count, length, kind="sft", row_length=0):
    """`count` records of `length` tokens, in full rows."""
    item = Item(np.zeros(length, np.int32), np.ones(length, np.float32))
    each = (row_length or length) // length
    bins = [range(i, min(i + each, count)) for i in range(0, count, each)]
    items = Items(as_items([item]).parts, np.zeros(count, int))
    return Rows(items, bins, kind, each * length, each, each, 1, (0, len(bins)), (), 0, 0)


def chosen(stage, parameters, model=MODEL, **changes):
    config, found = resolve_model(config_of(stage, **changes), model, Size(parameters, fresh=False))
    return config, found


@pytest.mark.parametrize(
    ("stage", "parameters", "rate", "source"),
    [
        ("sft", 951_424, 1e-3, "1 million"),
        ("sft", 268_098_176, 5e-5, "Gemma 3 270M"),
        ("sft", 596_049_920, 3e-5, "OLMo 2 1B"),
        ("sft", 3_075_098_624, 2e-5, "SmolLM3"),
        ("sft", 8_030_261_248, 5e-6, "Tülu 3"),
        ("sft", 70_553_706_496, 2e-6, "Tülu 3"),
        ("dpo", 596_049_920, 2.5e-6, "OLMo 2 1B"),
        ("dpo", 8_030_261_248, 5e-7, "Tülu 3"),
        ("reward", 8_030_261_248, 3e-6, "Tülu 3"),
        ("orpo", 7_241_732_096, 5e-6, "Mistral-ORPO"),
        ("kto", 8_030_261_248, 1e-6, "TRL"),
        ("ppo", 1_011_781_632, 3e-6, "2403.17031"),
        ("ppo", 70_553_706_496, 1e-7, "Tülu 3"),
        ("grpo", 7_000_000_000, 1e-6, "DeepSeekMath"),
        ("pretrain", 7_000_000_000, 1e-4, "Llemma"),
    ],
)
def test_rates_are_the_published_ones_for_the_size(stage, parameters, rate, source):
    config, found = chosen(stage, parameters)
    assert config.optimizer.learning_rate == rate
    assert f"optimizer.learning_rate={rate:g}" in found[0] and source in found[0]


def test_pretraining_from_scratch_has_rates_of_its_own():
    for parameters, rate in ((124_000_000, 6e-4), (8_030_261_248, 3e-4), (405e9, 8e-5)):
        assert find_stage("pretrain").recipe.rate(parameters, fresh=True).learning_rate == rate


@pytest.mark.parametrize("stage", NAMES)
def test_every_size_has_a_rate_and_larger_models_no_larger_one(stage):
    recipe = find_stage(stage).recipe
    for table in filter(None, (recipe.rates, recipe.fresh)):
        assert [r.up_to for r in table] == sorted({r.up_to for r in table}) and table[-1].up_to == float(
            "inf"
        )
        assert all(rate.source for rate in table)
        published = [rate.learning_rate for rate in table]
        assert max(published) == published[0]


def test_the_page_has_the_numbers_of_the_code():
    page = (ROOT / "docs/defaults.md").read_text("utf-8")
    for stage in NAMES:
        recipe = find_stage(stage).recipe
        for rate in (*recipe.rates, *recipe.fresh):
            assert f"| {rate.learning_rate:g} | {rate.source} |" in page, (stage, rate)


def test_a_number_of_ones_own_is_left_alone():
    changes = {"optimizer__learning_rate": 7e-5, "data__max_length": 300, "batch_size": 6}
    config, found = chosen("sft", 8e9, **changes)
    assert config.optimizer.learning_rate == 7e-5 and config.data.max_length == 300 and found == ()
    config, _ = resolve_data(config, rows_of(40, 50), mesh(), SMALL)
    assert config.batch_size == 6


def test_lengths_are_the_models_own_up_to_what_is_usual():
    assert chosen("sft", 1e9)[0].data.max_length == 4096
    assert chosen("dpo", 1e9)[0].data.max_length == 2048
    short, found = chosen("sft", 1e9, ModelConfig(max_length=1024))
    assert short.data.max_length == 1024 and "the model holds 1,024" in found[1]


def test_prompt_and_answer_share_what_the_model_holds():
    for most, prompt, answer in ((131_072, 1024, 1024), (512, 256, 256), (1500, 750, 750)):
        config, _ = chosen("grpo", 1e9, ModelConfig(max_length=most))
        assert (config.data.max_length, config.options.sampling.max_new_tokens) == (prompt, answer)
    config, _ = chosen("grpo", 1e9, ModelConfig(max_length=512), grpo__sampling__max_new_tokens=500)
    assert config.data.max_length == 12
    with pytest.raises(
        ConfigError, match=r"max_length=400 and config\.ppo\.sampling\.max_new_tokens=200: prompt"
    ):
        chosen(
            "ppo", 1e9, ModelConfig(max_length=512), data__max_length=400, ppo__sampling__max_new_tokens=200
        )


def test_the_critic_learns_at_the_rate_of_the_policy():
    assert chosen("ppo", 8e9)[0].options.critic_learning_rate == 3e-7
    assert chosen("ppo", 8e9, ppo__critic_learning_rate=1e-4)[0].options.critic_learning_rate == 1e-4


def test_a_stage_of_ones_own_without_rates_is_told_to_set_one():
    config = parse_config(default_config("sft"))
    stage = dataclasses.replace(config.stage, name="mine", recipe=type(config.stage.recipe)())
    with pytest.raises(
        ConfigError, match=r"learning_rate=0: stage 'mine' has no rate of its own for a model of 5"
    ):
        resolve_model(dataclasses.replace(config, stage=stage), MODEL, Size(5, fresh=False))


@pytest.mark.parametrize(
    ("stage", "count", "changes", "records"),
    [
        ("sft", 10_000, {}, 128),  # as published
        ("dpo", 42_537, {}, 128),
        ("sft", 40, {}, 4),  # 2 epochs of 40 are 20 steps of 4
        ("sft", 40, {"num_epochs": 10.0}, 20),
        ("sft", 40, {"num_steps": 500}, 40),  # no more than there are
        ("sft", 3, {}, 1),
    ],
)
def test_a_step_takes_as_published_and_fewer_where_the_data_are_few(stage, count, changes, records):
    config = config_of(stage, data__max_length=128, data__row_length=128, **changes)
    config, _ = resolve_data(config, rows_of(count, 128), mesh(), SMALL)
    assert config.batch_size == records


def test_short_records_share_rows_and_a_step_counts_records():
    """32 records fill a row: 128 of them are 4 rows."""
    config = config_of("sft", data__max_length=2048, data__row_length=2048)
    config, _ = resolve_data(config, rows_of(10_000, 64, row_length=2048), mesh(), SMALL)
    assert (config.batch_size, config.num_microbatches) == (4, 1)


def test_a_batch_can_be_split_over_the_devices():
    config = config_of("sft", data__max_length=128, data__row_length=128)
    for devices, records in ((8, 128), (96, 96), (256, 256)):
        assert resolve_data(config, rows_of(10_000, 128), mesh(devices), SMALL)[0].batch_size == records


def test_completions_are_whole_groups_and_minibatches():
    for stage, changes in (("grpo", {}), ("rloo", {}), ("ppo", {"ppo__num_minibatches": 4})):
        config = config_of(stage, data__max_length=64, data__row_length=64, **changes)
        config = resolve_model(config, MODEL, SMALL)[0]
        for count in (20, 300, 10_000):
            rows = rows_of(count, 64, "prompt")
            size = resolve_data(config, rows, mesh(2), SMALL)[0].batch_size
            assert size % getattr(config.options, "group_size", 4) == 0 and size % 2 == 0 and size <= 512
            if count == 10_000:
                assert size == 512


def test_no_more_tokens_at_once_than_a_device_takes_well():
    """128 rows of 4,096 are 32 slices of 4; on 8 devices 4 slices of 4 rows each."""
    config = config_of("sft", data__max_length=4096, data__row_length=4096)
    rows = rows_of(10_000, 4096)
    for devices, slices in ((1, 32), (8, 4), (64, 1)):
        found = resolve_data(config, rows, mesh(devices), SMALL)[0]
        assert (found.batch_size, found.num_microbatches) == (128, slices)
    given = dataclasses.replace(config, num_microbatches=2)
    assert resolve_data(given, rows, mesh(), SMALL)[0].num_microbatches == 2


def test_a_plan_takes_full_rows():
    for stage, rows, length in (
        ("sft", 32, 4096),
        ("dpo", 32, 4096),
        ("kto", 64, 4096),
        ("pretrain", 512, 8192),
    ):
        config = resolve_without_data(resolve_model(config_of(stage), MODEL, SMALL)[0], mesh(8))
        assert (config.batch_size, config.data.row_length, config.num_microbatches) == (rows, length, 1)
    config = resolve_without_data(resolve_model(config_of("ppo"), MODEL, SMALL)[0], mesh(8))
    assert (config.batch_size, config.data.max_length) == (512, 1024)


def test_parameters_are_counted_by_the_architecture():
    fields = preset("llama3_1_8b")
    assert count_parameters(ModelConfig(**fields)) == 8_030_261_248


class Letters:
    """A tokenizer of one token a letter."""

    vocab_size, pad_id, bos_id, eos_ids, template = 300, 0, None, (1,), None
    control_ids, special_tokens, answer_tokens = {}, {}, ()

    def encode(self, text):
        return [2 + ord(letter) % 250 for letter in text]

    def encode_pieces(self, pieces):
        return [self.encode(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("lengths", "row_length"),
    [
        ([30] * 40, 32),  # few short ones do not make a long row
        ([60, 100, 140] * 70, 336),  # 64 rows, as there are few
        ([60, 100, 140] * 700, 896),  # 8 of them
        ([60, 100, 140] * 70 + [1500], 1536),  # the longest, whatever the mean
        ([700, 1000, 1300] * 50, 2048),  # no longer than the longest that there could be
    ],
)
def test_rows_fit_the_data(lengths, row_length, monkeypatch):
    monkeypatch.setattr("jaxalign.data.encode.check_decodes", lambda *_: None)
    records = Records([{"text": "a" * (n - 1)} for n in lengths], "m")
    dataset = dataset_from_records([records], DataConfig(max_length=2048), Letters(), "text")
    assert dataset.rows.row_length == row_length
    if len(lengths) == 2100:
        assert dataset.rows.efficiency > 0.9


def test_prompts_have_rows_of_the_longest(monkeypatch):
    records = Records([{"prompt": "a" * n} for n in (3, 17, 9)], "m")
    dataset = dataset_from_records([records], DataConfig(max_length=512), Letters(), "prompt")
    assert dataset.rows.row_length == 17
