"""A Session against the stages' own steps and NumPy: what it accumulates, applies, saves, and refuses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxalign
from jaxalign.errors import CheckpointError, ConfigError, DataError, NonFiniteError, SessionError
from jaxalign.training.state import init_train_state

PROMPT = "who wrote this reply?"


@pytest.fixture(scope="module")
def model(runs):
    return jaxalign.load(runs / "sft")


def rows(runs, name, count=4):
    return [json.loads(line) for line in (runs / f"{name}.jsonl").read_text().splitlines()[:count]]


def datum(model, text, **values):
    ids = model.encode(text)
    return {"tokens": ids} | {name: [0.0] + [x] * (len(ids) - 1) for name, x in values.items()}


def arrays(session):
    return [np.asarray(x) for x in jax.tree.leaves(session._state)]


def assert_same(a, b):
    for x, y in zip(arrays(a), arrays(b), strict=True):
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", pytest.param("dpo", marks=pytest.mark.slow)])
def test_an_update_is_that_of_the_stage(name, runs, model):
    data = rows(runs, "sft" if name == "sft" else "pairs")
    settings = {} if name == "sft" else {"beta": 0.3}
    optimizer = jaxalign.OptimizerConfig(learning_rate=1e-3, eps=1e-3, schedule="linear", weight_decay=0.1)
    session = jaxalign.Session(model, optimizer=optimizer, num_steps=3)

    values = jaxalign.default_config(name)
    values.batch_size, values.num_steps = len(data), 3
    values.optimizer.update(dataclasses.asdict(optimizer))
    values[name].update(settings)
    config = jaxalign.parse_config(values)
    stage = config.stage
    update = stage.step(config, model.config)
    settings_of_data = jaxalign.data.DataConfig(max_length=64, row_length=128, packing=False)
    records = [jaxalign.data.Records(data, "data")]
    dataset = jaxalign.data.dataset_from_records(records, settings_of_data, model.tokenizer, stage.data)
    batch = next(jaxalign.data.eval_batches(dataset.rows, len(data)))
    frozen = {"reference": model.params} if name == "dpo" else {}
    state = init_train_state(
        jax.tree.map(jnp.copy, model.params), jaxalign.training.optimizer.make_optimizer(config.optimizer, 3)
    )
    for _ in range(2):
        got = session.forward_backward(data, name, settings)
        done = session.optim_step()
        state, metrics = update(state, batch, frozen)
        wanted = {key: float(x) for key, x in jaxalign.losses.finalize(metrics).items()}
        assert got.loss == pytest.approx(wanted["loss"], rel=1e-6)
        assert done["learning_rate"] == pytest.approx(wanted["learning_rate"], rel=1e-6)
        assert done["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-5)
    assert session.step == 2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), session.model.params, state.params
    )


@pytest.mark.slow
def test_token_losses_are_their_formulas(model):
    texts, advantages = [PROMPT, "the quick brown fox jumps"], [1.5, -0.5]
    data = [datum(model, t, logprobs=-6.0, advantages=a) for t, a in zip(texts, advantages, strict=True)]
    session = jaxalign.Session(model)
    logp = []
    for text in texts:
        ids = model.encode(text)
        logits = np.asarray(model.logits(text), np.float64)[:-1]
        each = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        logp.append(each[np.arange(len(ids) - 1), ids[1:]])
    found = session.forward(data, "importance_sampling")
    for got, wanted in zip(found.logprobs, logp, strict=True):
        assert got[0] == 0
        np.testing.assert_allclose(got[1:], wanted, atol=1e-5)
    ratios = [np.exp(x + 6.0) for x in logp]
    wanted = -sum((r * a).sum() for r, a in zip(ratios, advantages, strict=True))
    assert found.loss == pytest.approx(wanted, rel=1e-5)
    clip = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}
    clipped = sum(
        np.maximum(-r * a, -np.clip(r, 0.9, 1.1) * a).sum() for r, a in zip(ratios, advantages, strict=True)
    )
    assert session.forward(data, "ppo", clip).loss == pytest.approx(clipped, rel=1e-5)
    weighted = [datum(model, t, weights=w) for t, w in zip(texts, (1.0, 0.25), strict=True)]
    nll = -sum(x.sum() * w for x, w in zip(logp, (1.0, 0.25), strict=True))
    assert session.forward(weighted, "cross_entropy").loss == pytest.approx(nll, rel=1e-5)

    def squared(scores, batch):
        return jnp.sum(jnp.square(scores.logp) * batch.weights), {}

    squares = sum((x**2).sum() * w for x, w in zip(logp, (1.0, 0.25), strict=True))
    assert session.forward(weighted, squared).loss == pytest.approx(squares, rel=1e-5)
    assert session.step == 0


@pytest.mark.slow
def test_gradients_of_several_calls_add_up(model):
    data = [datum(model, PROMPT, weights=1.0), datum(model, "a fox asks", weights=0.5)]
    one, two = (jaxalign.Session(model) for _ in range(2))
    whole = one.forward_backward(data, "cross_entropy")
    parts = [two.forward_backward([x], "cross_entropy") for x in data]
    assert whole.loss == pytest.approx(sum(x.loss for x in parts), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), one._waiting[1], two._waiting[1]
    )
    before = jax.tree.map(np.asarray, model.params)
    norm = float(optax.tree.norm(one._waiting[1]))
    assert one.optim_step(1e-3)["grad_norm"] == pytest.approx(norm, rel=1e-5)
    jax.tree.map(np.testing.assert_array_equal, model.params, before)
    with pytest.raises(SessionError, match="no gradient has been accumulated"):
        one.optim_step(1e-3)


@pytest.mark.slow
def test_a_saved_state_goes_on_bit_for_bit(model, tmp_path):
    data = [datum(model, PROMPT, weights=1.0), datum(model, "a fox asks", weights=0.5)]

    def go_on(session):
        session.forward_backward(data[1:], "cross_entropy")
        session.optim_step(1e-2)
        samples = session.sample(PROMPT, 3, {"max_new_tokens": 5})
        session.forward_backward([s.datum(i - 1.0) for i, s in enumerate(samples)], "ppo")
        session.optim_step(1e-2)
        return samples

    one = jaxalign.Session(model)
    one.forward_backward(data, "cross_entropy")
    one.optim_step(1e-2)
    one.sample(PROMPT, 1, {"max_new_tokens": 5})
    one.forward_backward(data[:1], "cross_entropy")
    one.save_state(tmp_path / "state")
    wanted = go_on(one)
    two = jaxalign.Session(model, seed=7)
    two.load_state(tmp_path / "state")
    assert two.step == 1 and go_on(two) == wanted
    assert_same(one, two)
    one.load_state(tmp_path / "state")
    assert go_on(one) == wanted
    assert_same(one, two)
    with pytest.raises(CheckpointError, match="is not empty"):
        one.save_state(tmp_path / "state")
    with pytest.raises(CheckpointError, match="does not exist"):
        one.load_state(tmp_path / "other")
    with pytest.raises(CheckpointError, match="another model"):
        jaxalign.Session(one.model).load_state(tmp_path / "state")
    one.save_state(tmp_path / "empty")
    two.load_state(tmp_path / "empty")
    with pytest.raises(SessionError, match="no gradient"):
        two.optim_step()


@pytest.mark.slow
def test_a_session_without_a_rate_is_given_one_with_every_update(model):
    session = jaxalign.Session(model)
    session.forward_backward([datum(model, PROMPT, weights=1.0)], "cross_entropy")
    with pytest.raises(
        ConfigError, match="learning_rate is not given: name one here, or let the session begin"
    ):
        session.optim_step()
    assert session.optim_step(1e-4)["learning_rate"] == 1e-4


@pytest.mark.slow
def test_after_an_error_the_gradients_are_gone_and_nothing_else(model, tmp_path):
    good = [datum(model, PROMPT, weights=1.0)]

    def infinite(scores, batch):
        return jnp.sum(scores.logp) * jnp.inf, {}

    session = jaxalign.Session(model, optimizer=jaxalign.OptimizerConfig(learning_rate=1e-3))
    session.save_state(tmp_path / "state")
    before = arrays(session)
    session.forward_backward(good, "cross_entropy")
    with pytest.raises(DataError, match=r"data:1: token 99999 is not in the vocabulary of 336"):
        session.forward_backward([{"tokens": [1, 99999], "weights": [0, 1]}], "cross_entropy")
    for _ in range(2):
        with pytest.raises(SessionError, match=r"forward_backward failed \(DataError.*anew, or load_state"):
            session.optim_step()
    session.forward_backward(good, infinite)
    with pytest.raises(NonFiniteError, match=r"the accumulated loss is -?(inf|nan)"):
        session.optim_step()
    with pytest.raises(SessionError, match=r"optim_step failed \(NonFiniteError"):
        session.optim_step()
    for x, y in zip(before, arrays(session), strict=True):
        np.testing.assert_array_equal(x, y)
    session.load_state(tmp_path / "state")
    with pytest.raises(SessionError, match="no gradient"):
        session.optim_step()
    session.forward_backward(good, "cross_entropy")
    fresh = jaxalign.Session(model)
    fresh.forward_backward(good, "cross_entropy")
    assert session.optim_step(1e-3) == fresh.optim_step(1e-3)
    assert_same(session, fresh)


@pytest.mark.slow
def test_samples_carry_their_log_probabilities(model):
    session = jaxalign.Session(model)
    samples = session.sample(PROMPT, 3, {"max_new_tokens": 6}, seed=0)
    assert [s.text for s in samples] == model.generate(PROMPT, n=3, max_new_tokens=6)
    assert session.sample(PROMPT, 3, {"max_new_tokens": 6}, seed=0) == samples
    assert session.sample(PROMPT, 3, {"max_new_tokens": 6}) != session.sample(
        PROMPT, 3, {"max_new_tokens": 6}
    )
    found = session.forward([s.datum(1.0) for s in samples], "importance_sampling")
    for sample, logp in zip(samples, found.logprobs, strict=True):
        assert sample.prompt == model.encode(PROMPT)
        np.testing.assert_allclose(logp[len(sample.prompt) :], sample.logprobs, atol=1e-4)
        assert (sample.tokens[-1] in model.tokenizer.eos_ids) == (sample.stop_reason == "stop")
    assert found.metrics["ratio"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.slow
def test_what_cannot_be_asked_is_told(runs, model):
    session, pairs = jaxalign.Session(model), rows(runs, "pairs")
    good = datum(model, PROMPT, weights=1.0)
    long = {"tokens": [1] * 513, "weights": [0.0] + [1.0] * 512}
    for data, loss, settings, error, message in [
        (pairs, "dop", {}, ConfigError, r"stage\.dop does not exist; did you mean stage\.dpo"),
        (
            pairs,
            "dpo",
            {"bta": 0.1},
            ConfigError,
            r"config\.dpo\.bta does not exist; did you mean config\.dpo\.beta",
        ),
        (pairs, "dpo", {"precompute_reference": True}, ConfigError, "leave that option off"),
        (pairs, "grpo", {}, ConfigError, "samples by itself"),
        (pairs, "reward", {}, ConfigError, "trains a reward model, and the session has a language model"),
        (pairs[:1], "sft", {}, DataError, r"data:1: "),
        ([], "sft", {}, DataError, "there are none"),
        (pairs, "ppo", {}, DataError, "data:1: give a dict with 'tokens'"),
        ([good], "ppo", {}, DataError, "'logprobs' is missing"),
        ([good], "ppo", {"clip": 0.2}, ConfigError, r"loss_fn_config\.clip"),
        (
            [good],
            "ppo",
            {"clip_low_threshold": "0.8"},
            ConfigError,
            r"clip_low_threshold='0\.8': give a ratio",
        ),
        ([good | {"weights": [1.0]}], "cross_entropy", {}, DataError, r"weights has shape \[1\]"),
        (
            [good, long],
            "cross_entropy",
            {},
            DataError,
            "data:2: 513 tokens, and the model is made for 512; short",
        ),
        ([good | {"mask": [1.0]}], "cross_entropy", {}, DataError, "'mask' is none of"),
        ([good], lambda scores, batch: scores.logp, {}, ConfigError, r"return \(loss, metrics\)"),
        ([good], lambda scores, batch: (scores.logp, {}), {}, ConfigError, "one float32 number"),
    ]:
        with pytest.raises(error, match=message):
            session.forward_backward(data, loss, settings)
    with pytest.raises(ConfigError, match=r"sampling_params\.max_tokens does not exist"):
        session.sample(PROMPT, 1, {"max_tokens": 3})
    with pytest.raises(ConfigError, match=r"warmup=0\.1 is a part of all updates; set num_steps"):
        jaxalign.Session(model, optimizer=jaxalign.OptimizerConfig(warmup=0.1))
    half = dataclasses.replace(model, config=dataclasses.replace(model.config, dtype="float16"))
    with pytest.raises(
        ConfigError, match=r"dtype='float16' cannot train: .* load the model with dtype='bfloat16'"
    ):
        jaxalign.Session(half)
    judge = jaxalign.Session(jaxalign.load(runs / "reward"))
    assert judge.forward_backward(pairs, "reward").loss > 0
    with pytest.raises(ConfigError, match=r"learning_rate='1e-3': give a number of 0 or more"):
        judge.optim_step("1e-3")
    judge.optim_step(1e-3)
    with pytest.raises(ConfigError, match="a reward model has no log-probabilities"):
        judge.forward([good], "cross_entropy")
