"""What a run may change of the model that it starts from: sequences longer than it was made for, more tokens."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from tiny import run, set_reward_function

from jaxalign import library
from jaxalign.data import load_tokenizer
from jaxalign.errors import ConfigError, DataError
from jaxalign.models.hf.importer import by_path
from jaxalign.parallel import make_mesh, use_mesh
from jaxalign.training.saved_model import find_model, save_model
from jaxalign.verbs.convert import ConvertRequest, convert
from jaxalign.verbs.generate import GenerateRequest, generate
from jaxalign.verbs.label import Completion, model_scorer


def load(path):
    with use_mesh(make_mesh(devices=jax.devices()[:1])) as mesh:
        return by_path(find_model(str(path), "path").load(mesh))


@pytest.fixture(scope="module")
def short(runs, tmp_path_factory):
    """The models sft and reward, as if they had been made for 20 tokens."""
    folder = tmp_path_factory.mktemp("short")
    with use_mesh(make_mesh(devices=jax.devices()[:1])) as mesh:
        for name in ("sft", "reward"):
            found = find_model(str(runs / name), "x")
            config = dataclasses.replace(found.config, max_length=20)
            parts = (folder / name / "model", found.load(mesh), config, found.tokenizer())
            save_model(*parts, scalar=found.scalar, meta={})
    return folder


def test_longer_sequences_than_the_model_was_made_for_are_refused(short, runs, tmp_path):
    start = {"model.init_from": str(short / "sft")}
    message = (
        r"config\.data\.max_length=48 makes sequences of up to 48 tokens, but the model in config\.model\.init_from "
        r"was made for 20, .* set config\.model\.max_length=48 to train and export it for that length"
    )
    with pytest.raises(ConfigError, match=message):
        run("sft", runs, tmp_path / "sft", **start)
    message = r"data\.max_length=16 and config\.ppo\.sampling\.max_new_tokens=8: prompt and completion .* the 20 tokens"
    with pytest.raises(ConfigError, match=message):
        run("ppo", runs, tmp_path / "ppo", **start | set_reward_function("reward_function"))
    # A reward model reads what the policy writes, and cannot be raised here.
    with pytest.raises(ConfigError, match=r"config\.ppo\.reward was made for 20, .*; lower that$"):
        run("ppo", runs, tmp_path / "judged", **{"ppo.reward": str(short / "reward")})
    request = GenerateRequest(
        model=str(short / "sft"),
        prompts=str(runs / "prompts.jsonl"),
        out=str(tmp_path / "out.jsonl"),
        max_new_tokens=18,
    )
    with pytest.raises(
        ConfigError, match=r"max_new_tokens=18 after .*max_length=20; make the two sum to at most that$"
    ):
        list(generate(request))
    words = "the quick brown fox jumps over a lazy dog and asks who wrote this reply"
    with pytest.raises(
        DataError, match=r"completions:1: .* tokens with its prompt, and the model is made for 20"
    ):
        library.load(short / "sft").score([words], [words])
    scorer = model_scorer(str(short / "reward"), max_length=1024, batch_size=8)

    row = Completion({"prompt": words, "completion": words}, "file:1")
    with pytest.raises(DataError, match=r"needs .* tokens and has room for 20"):
        scorer([[row]])


@pytest.mark.slow
def test_a_raised_length_is_said_trained_and_exported(short, runs, tmp_path, capsys):
    changes = {"model.init_from": str(short / "sft"), "model.max_length": 48, "num_steps": 1}
    run("sft", runs, tmp_path / "raised", **changes)
    run("sft", runs, tmp_path / "made", num_steps=1, model__init_from=str(runs / "sft"))
    raised, made = load(tmp_path / "raised"), load(tmp_path / "made")
    assert all(np.array_equal(raised[path], x) for path, x in made.items()), "the length changes no number"
    convert(ConvertRequest(str(tmp_path / "raised"), str(tmp_path / "hf"), "hf"))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["max_position_embeddings"] == 48
    with pytest.raises(ConfigError, match=r"model\.max_length=18, but the model .* has 20"):
        run("sft", runs, tmp_path / "lower", **changes | {"model.max_length": 18})


@pytest.mark.slow
def test_a_context_is_stretched_where_the_config_says_so(short, runs, tmp_path):
    scaled = {"model.rope_scaling": "yarn", "model.rope_factor": 4.0, "model.rope_original_length": 20}
    changes = {"model.init_from": str(short / "sft"), "model.max_length": 80, "num_steps": 1} | scaled
    run("sft", runs, tmp_path, **changes)
    found = find_model(str(tmp_path), "x")
    assert (found.config.rope_scaling, found.config.rope_factor, found.config.max_length) == ("yarn", 4.0, 80)
    with pytest.raises(
        ConfigError, match=r"model\.head_dim=4, but the model in config\.model\.init_from has 8"
    ):
        run("sft", runs, tmp_path / "other", **changes | {"model.head_dim": 4})


@pytest.mark.slow
def test_from_scratch_a_model_is_made_for_its_data(runs, tmp_path):
    run("pretrain", runs, tmp_path, num_steps=1, data__max_length=600, data__row_length=600)
    assert find_model(str(tmp_path), "x").config.max_length == 600
    with pytest.raises(
        ConfigError, match=r"max_length=48 makes .* the model in config\.model was made for 40"
    ):
        run("pretrain", runs, tmp_path / "set", model__max_length=40)


@pytest.fixture(scope="module")
def more_tokens(runs, tmp_path_factory):
    """The tokenizer of the tiny models with two more tokens, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("tokens")
    convert(ConvertRequest(str(runs / "sft"), str(folder / "hf"), "hf"))
    import tokenizers

    made = tokenizers.Tokenizer.from_file(str(folder / "hf" / "tokenizer.json"))
    made.add_special_tokens(["<tool>", "</tool>"])
    (folder / "new").mkdir()
    made.save(str(folder / "new" / "tokenizer.json"))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(folder / "hf" / name, folder / "new" / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_new_tokens_begin_as_the_mean_of_the_others(stage, more_tokens, runs, tmp_path):
    old = load(runs / "sft")
    V = old["embedding",].shape[0]
    changes = {"model.init_from": str(runs / "sft"), "data.tokenizer": str(more_tokens / "new")}
    with pytest.raises(
        ConfigError, match=rf"has {V + 2} pieces, but the model .* set config\.model\.vocab_size={V + 2}"
    ):
        run(stage, runs, tmp_path / "refused", **changes)
    # DPO's check before the first update holds: the reference grows with the policy.
    run(
        stage,
        runs,
        tmp_path / "run",
        **changes,
        num_steps=1,
        model__vocab_size=V + 2,
        optimizer__learning_rate=1e-12,
    )
    table = load(tmp_path / "run")["embedding",]
    np.testing.assert_allclose(table[:V], old["embedding",], rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        table[V:], [np.asarray(old["embedding",], np.float64).mean(0)] * 2, rtol=0, atol=1e-6
    )
    convert(ConvertRequest(str(tmp_path / "run"), str(tmp_path / "hf"), "hf"))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["vocab_size"] == V + 2
    assert load_tokenizer(tmp_path / "hf").special_id("</tool>") == V + 1


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "key"), [("ppo", "ppo.reward"), ("distill", "distill.teacher")])
def test_what_reads_the_policy_has_rows_for_new_tokens(stage, key, more_tokens, runs, tmp_path):
    """A reward model without gave NaN as soon as one was sampled."""
    V = load(runs / "sft")["embedding",].shape[0]
    changes = {"data.tokenizer": str(more_tokens / "new"), "model.vocab_size": V + 2}
    message = (
        rf"config\.{key}='.*' has vocab_size={V}, and no rows for all of the {V + 2} tokens of config\.data"
    )
    with pytest.raises(ConfigError, match=message):
        run(stage, runs, tmp_path / "run", **changes)
