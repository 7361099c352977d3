"""Models as objects: what they say agrees with the training path, and they survive being saved."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from tiny import assert_same_bits, final_state, run

import jaxalign
from jaxalign.errors import ConfigError, DataError

PROMPT, ANSWER = "who wrote this reply?", "the quick fox"


@pytest.fixture(scope="module")
def model(runs):
    return jaxalign.load(runs / "sft")


@pytest.fixture(scope="module")
def judge(runs):
    return jaxalign.load(runs / "reward")


def test_scores_are_the_sums_of_logits_by_hand(model):
    ids = [*model.encode(PROMPT), *model.tokenizer.encode(ANSWER), model.tokenizer.eos_ids[0]]
    logits = np.asarray(model.logits(ids), np.float64)
    assert logits.shape == (len(ids), model.config.vocab_size)
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    start = len(model.encode(PROMPT))
    wanted = sum(logp[t - 1, ids[t]] for t in range(start, len(ids)))
    assert model.score([PROMPT], [ANSWER])[0] == pytest.approx(wanted, rel=1e-5)
    np.testing.assert_array_equal(model.logits(PROMPT), model.logits(model.encode(PROMPT)))


@pytest.mark.slow
def test_greedy_text_is_that_of_the_largest_logits(model):
    ids = model.encode(PROMPT)
    for _ in range(6):
        ids.append(int(np.argmax(model.logits(ids)[-1])))
        if ids[-1] in model.tokenizer.eos_ids:
            break
    said = [i for i in ids[len(model.encode(PROMPT)) :] if i not in model.tokenizer.eos_ids]
    assert model.generate(PROMPT, temperature=0, max_new_tokens=6) == [model.tokenizer.decode(said)]


@pytest.mark.slow
def test_completions_depend_on_prompt_number_and_seed_alone(model):
    prompts = [PROMPT, "a fox asks"]
    many = model.generate(prompts, n=3, max_new_tokens=5)
    assert [len(texts) for texts in many] == [3, 3]
    assert model.generate(prompts, n=3, max_new_tokens=5, batch_size=2) == many
    assert model.generate(PROMPT, n=3, max_new_tokens=5) == many[0]
    assert model.generate(prompts, n=3, max_new_tokens=5, seed=1) != many
    assert model.generate([]) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "value"), [("jax_enable_x64", True), ("jax_numpy_dtype_promotion", "strict")]
)
def test_a_program_that_has_jax_compute_otherwise_gets_the_same_numbers(
    setting, value, model, runs, tmp_path
):
    """GRPO samples, scores and trains."""

    def numbers(workdir):
        texts = model.generate(PROMPT, n=3, max_new_tokens=5)
        changes = {"grpo__reward": "tiny:reward_function", "num_steps": 2}
        run("grpo", runs, tmp_path / workdir, **changes)
        return texts, model.score([PROMPT], [ANSWER]), final_state(tmp_path / workdir)

    texts, scores, state = numbers("as it is")
    before = jax.config.values[setting]
    jax.config.update(setting, value)
    try:
        same_texts, same_scores, same_state = numbers("otherwise")
        assert jax.config.values[setting] == value != before
    finally:
        jax.config.update(setting, before)
    assert same_texts == texts and same_scores.tobytes() == scores.tobytes()
    assert_same_bits(same_state, state)


@pytest.mark.slow
def test_scores_do_not_depend_on_what_else_is_scored(model, judge):
    prompts, answers = [PROMPT, "who?", [{"role": "user", "content": "who?"}]], [ANSWER, "a dog", "a dog"]
    for scorer in (model, judge):
        together = scorer.score(prompts, answers)
        alone = [scorer.score([p], [a])[0] for p, a in zip(prompts, answers, strict=True)]
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            scorer.score(prompts, answers, batch_size=2), together, rtol=1e-5, atol=1e-5
        )
    assert model.score([], []).shape == (0,)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["jaxalign", "hf"])
def test_a_saved_model_is_the_same_model(form, model, judge, tmp_path):
    for name, one in (("model", model), ("judge", judge)):
        one.save(tmp_path / name, format=form)
        again = jaxalign.load(tmp_path / name)
        assert again.scalar == one.scalar
        jax.tree.map(np.testing.assert_array_equal, again.params, one.params)
        np.testing.assert_allclose(again.score([PROMPT], [ANSWER]), one.score([PROMPT], [ANSWER]), rtol=1e-6)


def test_other_parameters_make_another_model(model):
    halved = dataclasses.replace(model, params=jax.tree.map(lambda x: x * 0.5, model.params))
    assert halved.score([PROMPT], [ANSWER])[0] != model.score([PROMPT], [ANSWER])[0]


def test_what_cannot_be_asked_is_told(model, judge, tmp_path):
    for ask in (lambda: judge.logits(PROMPT), lambda: judge.generate(PROMPT)):
        with pytest.raises(ConfigError, match="a reward model has no"):
            ask()
    with pytest.raises(DataError, match=r"completions:2: completion is empty"):
        model.score([PROMPT, PROMPT], [ANSWER, " "])
    for asked, said in (
        ((PROMPT, [ANSWER]), "prompts='who wrote"),
        (([PROMPT], ANSWER), "completions='the quick"),
    ):
        with pytest.raises(ConfigError, match=rf"^{said}.*' is one text; write a list, \['"):
            model.score(*asked)
    with pytest.raises(DataError, match=re.escape("prompts:1: prompt is empty")):
        model.generate([" "])
    size, longest = model.config.vocab_size, model.config.max_length
    for ids, message in (
        ([1, -1], f"text: token -1 is not in the vocabulary of {size}"),
        ([1, size], f"text: token {size} is not in the vocabulary of {size}"),
        ([1] * (longest + 1), f"text: {longest + 1} tokens, and the model is made for {longest}; shorten it"),
    ):
        with pytest.raises(DataError, match=re.escape(message)):
            model.logits(ids)
    with pytest.raises(ConfigError, match="format='onnx' is not one of jaxalign, hf"):
        model.save(tmp_path / "x", format="onnx")
    with pytest.raises(ConfigError, match="n=0"):
        model.generate(PROMPT, n=0)


def test_rooms_are_there_by_name():
    assert callable(jaxalign.losses.dpo_loss) and jaxalign.default_config("dpo").dpo.beta == 0.1
    assert {"load", "train", "losses"} <= set(dir(jaxalign))
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        jaxalign.lod  # noqa: B018
