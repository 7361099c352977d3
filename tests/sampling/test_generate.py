"""generate() against full forward passes without a cache."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.oracle import logits_of, random_params
from scipy.stats import chisquare

from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig, abstract_params, hidden_states
from jaxalign.models.scoring import score_tokens
from jaxalign.parallel import MeshConfig, batch_sharding, make_mesh, parse_rules, use_mesh
from jaxalign.sampling.generate import SamplingConfig, adjust_logits, first_seen, generate, join

KEY = jax.random.key(11)
forward = jax.jit(hidden_states, static_argnames="config")
score = jax.jit(score_tokens, static_argnames=("config", "temperature"))


def sample(params, config, prompts, stop_ids=(), rows=None, key=KEY, **settings):
    sampling = SamplingConfig(**settings)
    return generate(params, config, *prompts, key, sampling=sampling, stop_ids=stop_ids, rows=rows)


@pytest.mark.slow
def test_greedy_is_the_argmax_of_the_full_forward_at_every_step(config, params, prompts):
    N, P = 64, prompts[0].shape[1]
    out = sample(params, config, prompts, max_new_tokens=N, temperature=0.0)
    hidden, _ = forward(params, config, *join(*prompts, out)[:3])
    logits = logits_of(hidden, params, config)[:, P - 1 : -1]
    best = np.sort(logits, -1)
    assert (best[..., -1] - best[..., -2]).min() > 1e-4, "a tie: choose another seed for the test's model"
    np.testing.assert_array_equal(out.tokens, logits.argmax(-1))
    assert len(np.unique(out.tokens)) > 8, "the model repeats itself: the comparison would be weak"
    np.testing.assert_array_equal(out.mask, np.ones((len(out.tokens), N)))
    assert not out.stopped.any()
    largest = logits.max(-1, keepdims=True)
    untempered = -np.log(np.exp(logits - largest).sum(-1))  # log-probability of the likeliest token
    np.testing.assert_allclose(out.logp, untempered, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 2])
def test_penalty_and_least_length_choose_as_by_hand(config, params, prompts, samples):
    """Greedy: the argmax of the full forward's logits after CTRL's penalty, at first without stop tokens."""
    P, N, stops, penalty, least = prompts[0].shape[1], 12, tuple(range(0, 48, 4)), 1.7, 5
    sampling = SamplingConfig(
        max_new_tokens=N, temperature=0.0, repetition_penalty=penalty, min_new_tokens=least
    )
    out = generate(params, config, *prompts, KEY, sampling=sampling, stop_ids=stops, samples=samples)
    tokens, positions, segments, mask = join(*(np.repeat(x, samples, 0) for x in prompts), out)
    logits = logits_of(forward(params, config, tokens, positions, segments)[0], params, config)
    for row in range(len(tokens)):
        seen = {int(t) for t, live in zip(tokens[row, :P], segments[row, :P], strict=True) if live}
        for i in range(int(mask[row].sum())):
            x = np.array(logits[row, P - 1 + i], np.float64)
            known = sorted(seen)
            x[known] = np.where(x[known] > 0, x[known] / penalty, x[known] * penalty)
            if i < least:
                x[list(stops)] = -np.inf
            assert x.argmax() == tokens[row, P + i]
            seen.add(int(tokens[row, P + i]))
        assert mask[row].sum() > least
    plain = sample(params, config, prompts, stop_ids=stops, max_new_tokens=N, temperature=0.0)
    assert (np.asarray(plain.mask).sum(1) <= least).any(), "nothing would have stopped before"
    # What is reported is the model's own distribution.
    scored = score(params, config, tokens, positions, segments, temperature=1.0)
    np.testing.assert_allclose(np.asarray(scored.logp * mask)[:, P:], out.logp, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of transformers and torch
def test_logits_are_adjusted_as_in_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    logits, ids = rng.normal(0, 3, (3, 20)).astype(np.float32), rng.integers(0, 20, (3, 7))
    sampling = SamplingConfig(repetition_penalty=1.3, min_new_tokens=4)
    for number in (3, 4):
        wanted = torch.tensor(logits)
        for process in (
            transformers.RepetitionPenaltyLogitsProcessor(1.3),
            transformers.MinNewTokensLengthLogitsProcessor(7 - number, 4, [2, 5]),
        ):
            wanted = process(torch.tensor(ids), wanted)
        seen = first_seen(ModelConfig(vocab_size=20), sampling, jnp.asarray(ids), jnp.ones((3, 7), jnp.int32))
        got = adjust_logits(jnp.asarray(logits), sampling, number, (2, 5), seen)
        np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-6)


CUT = {"temperature": 0.7, "top_k": 9, "top_p": 0.95, "min_p": 0.01}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"temperature": 0.7}, CUT], ids=str)
def test_reported_logp_is_the_score_of_the_joined_sequence(config, params, prompts, settings):
    P = prompts[0].shape[1]
    out = sample(params, config, prompts, stop_ids=(3, 7), max_new_tokens=32, **settings)
    tokens, positions, segments, mask = join(*prompts, out)
    scored = score(params, config, tokens, positions, segments, temperature=settings["temperature"])
    np.testing.assert_allclose(np.asarray(scored.logp * mask)[:, P:], out.logp, rtol=1e-5, atol=1e-5)
    assert 0 < mask.sum() < mask[:, P:].size, "rows should differ in length for this test to mean something"


@pytest.mark.slow
def test_join_lays_prompt_and_completion_side_by_side(config, params, prompts):
    out = sample(params, config, prompts, stop_ids=(3, 7), max_new_tokens=32)
    assert out.stopped.any()
    tokens, positions, segments, mask = map(np.asarray, join(*prompts, out))
    for row in range(len(tokens)):
        prompt, answer = prompts[2][row] > 0, np.asarray(out.mask[row]) > 0
        held = np.concatenate((prompt, answer))
        want = np.concatenate((prompts[0][row][prompt], out.tokens[row][answer]))
        np.testing.assert_array_equal(tokens[row][held], want)
        np.testing.assert_array_equal(positions[row][held], np.arange(held.sum()))
        np.testing.assert_array_equal(segments[row], held)
        np.testing.assert_array_equal(mask[row], np.concatenate((np.zeros(len(prompt)), answer)))


@pytest.mark.slow
def test_stop_ids_end_a_completion_and_belong_to_it(config, params, prompts):
    free = sample(params, config, prompts, max_new_tokens=32)
    stops = (3,)
    out = sample(params, config, prompts, stop_ids=stops, max_new_tokens=32)
    for row, tokens in enumerate(np.asarray(free.tokens)):
        ends = np.flatnonzero(np.isin(tokens, stops))
        length = ends[0] + 1 if len(ends) else 32
        np.testing.assert_array_equal(out.tokens[row], np.where(np.arange(32) < length, tokens, 0))
        np.testing.assert_array_equal(out.mask[row], np.arange(32) < length)
        np.testing.assert_allclose(out.logp[row, :length], free.logp[row, :length], rtol=1e-5, atol=1e-5)
        assert not np.any(out.logp[row, length:])
        assert out.stopped[row] == bool(len(ends))
    assert 0 < out.stopped.sum() < len(out.stopped)


def test_decoding_ends_when_every_row_has_stopped(config, params, prompts, monkeypatch):
    free = np.asarray(sample(params, config, prompts, max_new_tokens=32).tokens)
    stops = tuple(range(0, 48, 3))
    longest = max(np.flatnonzero(np.isin(row, stops))[0] + 1 for row in free)
    assert 1 < longest < 30
    calls = []

    def counted(*args):
        jax.debug.callback(lambda: calls.append(None))
        return hidden_states(*args)

    monkeypatch.setattr("jaxalign.sampling.generate.hidden_states", counted)
    out = sample(params, config, prompts, stop_ids=stops, max_new_tokens=31)  # not compiled before
    jax.effects_barrier()
    assert np.asarray(out.stopped).all() and out.mask.sum(-1).max() == longest
    assert len(calls) == 1 + longest  # the prompt, then one a token
    assert int(out.places) == longest * len(free)


def test_empty_rows_sample_nothing_and_delay_no_one(config, params, prompts):
    filled = sample(params, config, prompts, stop_ids=(3, 7), max_new_tokens=32)
    empty = tuple(x.copy() for x in prompts)
    for x in empty:
        x[4] = 0
    out = sample(params, config, empty, stop_ids=(3, 7), max_new_tokens=32)
    others = [0, 1, 2, 3, 5]
    np.testing.assert_array_equal(out.tokens[jnp.array(others)], filled.tokens[jnp.array(others)])
    assert (
        not np.any(out.tokens[4]) and not np.any(out.mask[4]) and not np.any(out.logp[4]) and out.stopped[4]
    )


@pytest.mark.slow
def test_a_prompt_is_completed_alike_in_any_batch(config, params, prompts):
    settings = {"stop_ids": (3, 7), "max_new_tokens": 32, **CUT}
    together = sample(params, config, prompts, **settings)
    for row in (1, 3):
        kept = prompts[2][row] > 0
        alone = tuple(x[row : row + 1, kept] for x in prompts)
        out = sample(params, config, alone, rows=jnp.array([row], jnp.int32), **settings)
        np.testing.assert_array_equal(out.tokens[0], together.tokens[row])
        np.testing.assert_array_equal(out.mask[0], together.mask[row])
        np.testing.assert_allclose(out.logp[0], together.logp[row], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_several_samples_from_one_reading_are_those_of_repeated_prompts(config, params, prompts):
    sampling = SamplingConfig(max_new_tokens=16)
    once = generate(params, config, *prompts, KEY, sampling=sampling, stop_ids=(3, 7), samples=3)
    repeated = [jnp.repeat(x, 3, axis=0) for x in prompts]
    each = generate(params, config, *repeated, KEY, sampling=sampling, stop_ids=(3, 7))
    np.testing.assert_array_equal(once.tokens, each.tokens)
    np.testing.assert_array_equal(once.mask, each.mask)
    np.testing.assert_allclose(once.logp, each.logp, rtol=1e-5, atol=1e-5)
    first = np.asarray(once.tokens).reshape(-1, 3, 16)
    assert (first[:, 0] != first[:, 1]).any(), "the samples of a prompt should differ"


def test_row_numbers_and_the_key_decide_the_samples(config, params, prompts):
    same = tuple(np.repeat(x[:1], 6, 0) for x in prompts)
    out = sample(params, config, same, max_new_tokens=32)
    assert len(np.unique(out.tokens, axis=0)) == 6
    order = jnp.array([3, 3, 0, 5, 1, 2], jnp.int32)
    np.testing.assert_array_equal(
        sample(params, config, same, rows=order, max_new_tokens=32).tokens, out.tokens[order]
    )
    other = sample(params, config, same, key=jax.random.key(12), max_new_tokens=32)
    assert not np.any(np.all(np.asarray(other.tokens) == np.asarray(out.tokens), axis=1))


TINY = ModelConfig(
    vocab_size=7, num_layers=1, embed_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=16
)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"temperature": 0.6}, {"temperature": 1.5, "top_k": 4}], ids=str)
def test_pairs_of_tokens_are_drawn_with_the_probabilities_of_the_model(settings):
    """The joint frequency of two tokens in a row shows the noise independent between rows and between steps."""
    params, count, V = random_params(TINY, seed=1), 8192, TINY.vocab_size
    prompt = tuple(np.full((count, 1), value, np.int32) for value in (2, 0, 1))
    drawn = np.asarray(sample(params, TINY, prompt, max_new_tokens=2, **settings).tokens)
    tokens = np.stack((np.full(V, 2), np.arange(V)), 1).astype(np.int32)
    positions = np.repeat([[0, 1]], V, 0).astype(np.int32)
    hidden, _ = forward(params, TINY, tokens, positions, np.ones_like(tokens))

    logits = logits_of(hidden, params, TINY) / settings["temperature"]
    if k := settings.get("top_k"):
        logits = np.where(logits < np.sort(logits, -1)[..., -k, None], -np.inf, logits)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    expected = count * (p[0, 0][:, None] * p[:, 1]).ravel()
    seen = np.bincount(drawn[:, 0] * V + drawn[:, 1], minlength=V * V)
    assert not seen[expected == 0].any()
    rare = expected < 5  # the chi-square approximation wants five a cell: the rare ones share one
    seen, expected = (np.append(x[~rare], x[rare].sum()) for x in (seen, expected))
    kept = expected > 0
    assert kept.sum() > 9
    assert chisquare(seen[kept], expected[kept]).pvalue > 1e-3


# One axis may split the vocabulary's tables and the rows of a batch.
@pytest.mark.slow
@pytest.mark.parametrize(("rules", "new"), [("", 16), ("vocab=fsdp,embed=", 15)])  # programs of their own
def test_eight_devices_sample_what_one_does(rules, new, config, params, prompts):
    prompts = tuple(np.concatenate((x, x[:2])) for x in prompts)
    run = functools.partial(sample, stop_ids=(3, 7), max_new_tokens=new, temperature=0.9, top_p=0.95)
    want = run(params, config, prompts)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with use_mesh(mesh, parse_rules(rules)):
        layout = jax.tree.map(lambda x: x.sharding, abstract_params(config, mesh))
        got = run(jax.device_put(params, layout), config, jax.device_put(prompts, batch_sharding(mesh)))
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_array_equal(got.mask, want.mask)
    np.testing.assert_array_equal(got.stopped, want.stopped)
    np.testing.assert_allclose(got.logp, want.logp, rtol=1e-5, atol=1e-5)


def test_requests_that_cannot_work_are_refused(config, params, prompts):
    message = "stop id 48 is not in the vocabulary of config.model.vocab_size=48; use ids from 0 to 47"
    with pytest.raises(ConfigError, match=re.escape(message)):
        sample(params, config, prompts, stop_ids=(3, 48))
    short = ModelConfig(positions="learned", max_length=16)
    message = (
        "config.sampling.max_new_tokens=11 after 6 prompt slots needs 17 positions, "
        "but the model has config.model.max_length=16; make the two sum to at most that"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        sample(random_params(short), short, prompts, max_new_tokens=11)
