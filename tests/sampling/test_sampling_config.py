"""Sampling settings are checked, and truncation keeps exactly the tokens that its definition keeps."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.sampling import generate
from jaxalign.sampling.answers import cut_at_stop
from jaxalign.sampling.generate import SamplingConfig, gumbel_noise, truncate_logits
from jaxalign.stages.ppo import PPOConfig


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("max_new_tokens", 0, "at least 1"),
        ("temperature", -0.1, "0 (greedy) or positive"),
        ("temperature", float("nan"), "0 (greedy) or positive"),
        ("top_k", -1, "0 (off) or positive"),
        ("top_p", 0.0, "above 0 and at most 1 (off)"),
        ("top_p", 1.01, "above 0 and at most 1 (off)"),
        ("min_p", -0.1, "at least 0 (off) and below 1"),
        ("min_p", 1.0, "at least 0 (off) and below 1"),
        ("min_new_tokens", -1, "0 or more"),
        ("repetition_penalty", 0.0, "a positive number"),
    ],
)
def test_refused(key, value, wanted):
    with pytest.raises(ConfigError, match=re.escape(f"config.sampling.{key}={value} must be {wanted}")):
        SamplingConfig(**{key: value})


def test_a_least_length_above_the_longest_is_refused():
    with pytest.raises(ConfigError, match=r"sampling\.min_new_tokens=9 is above max_new_tokens=8; lower it"):
        SamplingConfig(max_new_tokens=8, min_new_tokens=9)


@pytest.mark.parametrize(
    "changes", [{"min_new_tokens": 2}, {"repetition_penalty": 1.1}, {"stop": ("a", "b")}]
)
def test_what_changes_the_distribution_is_refused_where_its_log_probabilities_count(changes):
    (name,) = changes
    with pytest.raises(
        ConfigError, match=rf"config\.ppo\.sampling uses {name}: completions would come from another"
    ):
        PPOConfig(reward="f:f", sampling=SamplingConfig(**changes))


class Letters:
    eos_ids = (0,)

    def decode_answer(self, ids):
        return "".join(chr(96 + i) for i in ids)


@pytest.mark.parametrize(
    ("stop", "ids", "wanted"),
    [
        ("", [1, 2, 3, 0], ("abc", 4, False)),
        ("z", [1, 2, 3, 0], ("abc", 4, False)),
        ("bc", [1, 2, 3, 4, 5], ("a", 3, True)),
        (("e", "d"), [1, 2, 3, 4, 5], ("abc", 4, True)),  # whichever comes first
        ("e", [1, 2, 3, 4, 5], ("abcd", 5, True)),  # with the last token
        ("a", [1, 2], ("", 1, True)),
        ("a", [], ("", 0, False)),
    ],
)
def test_a_completion_ends_before_its_first_stop_string(stop, ids, wanted):
    assert cut_at_stop(ids, Letters(), SamplingConfig(stop=stop).stops) == wanted


@pytest.mark.parametrize(
    ("least", "wanted"),
    [
        (0, ("", 2, True)),
        (1, ("", 2, True)),  # it ends with the second token
        (2, ("abc", 5, True)),
        (4, ("abc", 5, True)),
        (5, ("abcabcc", 7, False)),
    ],
)
def test_no_stop_string_ends_a_completion_before_its_least_tokens(least, wanted):
    assert cut_at_stop([1, 2, 3, 1, 2, 3, 3], Letters(), ("ab",), least) == wanted


@pytest.mark.parametrize(
    ("values", "truncated"),
    [
        ({}, False),
        ({"temperature": 0.5}, False),
        ({"top_k": 3}, True),
        ({"top_p": 0.9}, True),
        ({"min_p": 0.1}, True),
    ],
)
def test_truncated(values, truncated):
    assert SamplingConfig(**values).truncated is truncated


def supported(logits, top_k=0, top_p=1.0, min_p=0.0):
    """[V] bool in float64, one row at a time: top-k, then the nucleus of what is left, then the floor."""
    keep = np.ones(len(logits), bool)
    order = np.argsort(-logits)
    if top_k:
        keep[order[top_k:]] = False
    p = np.where(keep, np.exp(logits - logits.max()), 0.0)
    p /= p.sum()
    if top_p < 1:
        total = 0.0
        for token in order:
            keep[token] &= total < top_p
            total += p[token]
    return keep & (p >= min_p * p.max())


@pytest.mark.parametrize(
    "cut",
    [
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 400},
        {"top_p": 0.05},
        {"top_p": 0.9},
        {"min_p": 0.02},
        {"min_p": 0.5},
        {"top_k": 20, "top_p": 0.8},
        {"top_k": 20, "top_p": 0.95, "min_p": 0.1},
    ],
    ids=str,
)
def test_support_is_that_of_the_definition(cut):
    logits = np.random.default_rng(0).normal(size=(64, 200), scale=2).astype(np.float32)
    got = np.asarray(truncate_logits(logits, SamplingConfig(**cut)))
    want = np.stack([supported(row.astype(np.float64), **cut) for row in logits])
    np.testing.assert_array_equal(got, np.where(want, logits, -np.inf))
    assert want.any(-1).all()


def test_no_more_of_equal_logits_are_kept_than_the_nucleus_needs():
    logits = np.array([[2.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 3.0, 1.0]], np.float32)
    kept = np.isfinite(truncate_logits(logits, SamplingConfig(top_p=0.65)))
    np.testing.assert_array_equal(kept, [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 0]])
    for row in logits:
        for p in np.linspace(0.01, 0.99, 40):
            got = np.isfinite(truncate_logits(row[None], SamplingConfig(top_p=float(p))))[0]
            share = np.exp(np.float64(row))[got].sum() / np.exp(np.float64(row)).sum()
            smallest = np.exp(np.float64(row))[got].min() / np.exp(np.float64(row)).sum()
            assert share >= p - 1e-6 and share - smallest < p + 1e-6


def test_equal_logits_at_the_edge_of_top_k_are_kept_together():
    logits = np.array([[2.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]], np.float32)
    kept = np.isfinite(truncate_logits(logits, SamplingConfig(top_k=2)))
    np.testing.assert_array_equal(kept, [[True, True, True, False], [True] * 4])


def test_the_noise_of_sampling_is_fine_enough_for_rare_tokens():
    """A token of probability p wins where exp(-noise) is about p: there the usual noise has steps of 2^-23 = 1.2e-7."""

    def steps_off(noise):
        steps = np.exp(-np.float64(noise)) * 2**23
        rare = steps[steps < 1024]
        assert 150 < len(rare) < 400  # 2^21 draws, 1 in 8192 is so rare
        return np.abs(rare - np.round(rare)).mean()

    key = jax.random.key(0)
    noise = np.asarray(gumbel_noise(key[None], 1 << 21)[0])
    assert steps_off(noise) == pytest.approx(0.25, abs=0.04)  # anywhere between two steps
    assert steps_off(jax.random.gumbel(key, (1 << 21,))) < 0.05
    # And it is Gumbel's distribution: P(noise < x) = exp(-exp(-x)).
    for x in (-2.0, -1.0, 0.0, 1.0, 3.0, 6.0):
        p = np.exp(-np.exp(-x))
        assert (noise < x).mean() == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / noise.size) + 1e-6)


@pytest.mark.parametrize("size", [2, 3, 16, 100])
def test_every_token_of_a_vocabulary_is_drawn_and_no_other(size, monkeypatch):
    """In two choices, for which some 2 √V numbers are enough."""
    asked = []
    noise = generate.gumbel_noise
    monkeypatch.setattr(generate, "gumbel_noise", lambda keys, n: asked.append(n) or noise(keys, n))
    keys = jax.random.split(jax.random.key(size), 40 * size)
    drawn = np.asarray(generate.draw(jnp.zeros((len(keys), size)), keys))
    assert drawn.dtype == np.int32 and set(drawn.tolist()) == set(range(size))
    sure = jnp.where(jnp.arange(size)[None] == jnp.arange(size)[:, None], 0.0, -jnp.inf)
    assert generate.draw(sure, keys[:size]).tolist() == list(range(size))
    assert max(asked) <= 3 * np.sqrt(size)
