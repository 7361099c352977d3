"""What is reported of a rollout, by hand."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import RewardError
from jaxalign.losses.metrics import finalize
from jaxalign.rewards.imports import read_form
from jaxalign.rewards.score import Rewards
from jaxalign.rl.rollout import compare_sampling, rollout_metrics, sampled_logp
from jaxalign.rl.stage import call_functions
from jaxalign.sampling.generate import Completions

# Of four completions of at most three tokens, behind two slots of prompts: the last one's row only fills up the batch.
MASK = np.float32([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
STOPPED = np.array([False, True, True, True])
LOGP = np.float32([[-1, -2, -3], [-4, -1, 9], [-2, 9, 9], [9, 9, 9]])
SCORES = np.float32([2, -1, 4, 99])


def behind_prompts(x):
    return jnp.pad(jnp.asarray(x, jnp.float32), ((0, 0), (2, 0)))


def completions(room=None):
    tokens = jnp.zeros(MASK.shape, jnp.int32)
    room = None if room is None else jnp.int32(room)
    return Completions(tokens, jnp.asarray(MASK), jnp.asarray(LOGP), jnp.asarray(STOPPED), room)


def scored(**more):
    found = {"mask": MASK, "old_logp": LOGP, **more}
    return {name: behind_prompts(x) for name, x in found.items()}


def report(*arguments, **settings):
    return {name: float(x) for name, x in finalize(rollout_metrics(*arguments, **settings)).items()}


def test_without_scores_and_a_reference():
    assert report(scored(), None, completions()) == {
        "objective/entropy": pytest.approx((6 + 5 + 2) / 3),
        "val/num_eos_tokens": 2,
        "completions/mean_length": 2,
        "completions/clipped_ratio": pytest.approx(1 / 3),
    }
    assert report(scored(), None, completions(24))["completions/slot_occupancy"] == 6 / 24


def test_scores_are_less_the_penalty_of_a_missing_end():
    plain = report(scored(), jnp.asarray(SCORES), completions())
    assert plain["objective/scores"] == pytest.approx(5 / 3) and "objective/raw_scores" not in plain
    for penalty in (0.0, 1.5):
        found = report(scored(), jnp.asarray(SCORES), completions(), penalty)
        assert found["objective/raw_scores"] == pytest.approx(5 / 3)
        assert found["objective/scores"] == pytest.approx((5 - penalty) / 3)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_divergences_are_sums_of_a_completion(estimator):
    kl, kl1 = 0.5 * MASK + 7 * (1 - MASK), np.float32([[1, -1, 2], [3, 0, 7], [-2, 7, 7], [7, 7, 7]])
    found = report(scored(kl=kl, kl1=kl1), None, completions(), kl_estimator=estimator)
    assert found["objective/kl"] == pytest.approx((1.5 + 1 + 0.5) / 3)
    assert found.get("objective/kl_k1") == (None if estimator == "k1" else pytest.approx((2 + 3 - 2) / 3))


def test_what_was_said_while_sampling_is_compared():
    np.testing.assert_array_equal(sampled_logp(completions(), behind_prompts(MASK))[:, :2], np.zeros((4, 2)))
    np.testing.assert_array_equal(sampled_logp(completions(), behind_prompts(MASK))[:, 2:], LOGP * MASK)
    apart = LOGP + np.float32([[0.5, -0.25, 0], [0, 1, 5], [0, 5, 5], [5, 5, 5]])
    entropy = np.float32([[1, 2, 3], [4, 5, 9], [6, 9, 9], [9, 9, 9]])
    found = report(
        scored() | {"old_logp": behind_prompts(apart), "entropy": behind_prompts(entropy)},
        None,
        completions(),
    )
    assert found["policy/entropy_avg"] == 21 / 6
    assert found["rollout_logp_diff"] == pytest.approx(1.75 / 6) and found["rollout_logp_diff_max"] == 1.0
    again = compare_sampling(*map(behind_prompts, (apart, LOGP, entropy, MASK)))
    assert {name: float(x) for name, x in finalize(again).items()} == {
        name: found[name] for name in ("policy/entropy_avg", "rollout_logp_diff", "rollout_logp_diff_max")
    }


def call(function, scores=None, step=0):
    """The scores of a function on the completions here, of two prompts, joined with others."""
    tokens = jnp.asarray([[5, 6, 7], [8, 2, 0], [2, 0, 0], [0, 0, 0]], jnp.int32)
    run: Any = types.SimpleNamespace(
        rows_sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
        tokenizer=types.SimpleNamespace(eos_ids=(2,), decode_answer=lambda ids: str(list(ids))),
        put=jnp.asarray,
        updates=9,
    )
    rows: Any = [{"prompt": "p", "level": 1}, {"prompt": "q", "level": 2}]
    dataset: Any = types.SimpleNamespace(record=rows.__getitem__, where=str)
    rewards = Rewards((read_form(function, "f", ""),), (1.0,))
    said, numbers = dataclasses.replace(completions(), tokens=tokens), jnp.asarray([0, 0, 1, -1], jnp.int32)
    return call_functions(rewards, scores, run, dataset, numbers, said, step=step)


def test_reward_functions_get_the_tokens_of_completions():
    """With the stop token, as TRL has them; rows that only fill up the batch are none."""
    seen: dict[str, Any] = {}

    def count(prompts, completion_ids, level, trainer_state):
        seen.update(ids=completion_ids, state=trainer_state)
        return [1000 * a + len(ids) for a, ids in zip(level, completion_ids, strict=True)]

    scores, _ = call(count, step=3)
    np.testing.assert_array_equal(scores, [1003, 1002, 2001, 0])
    assert seen["ids"] == [[5, 6, 7], [8, 2], [2]]
    assert seen["state"].global_step == 3


def test_where_no_function_applies_the_reward_model_alone_counts():
    def some(completion, level):
        return None if level == 2 else 0.5

    scores, metrics = call(some, jnp.asarray(SCORES))
    np.testing.assert_array_equal(scores, [2.5, -0.5, 4, 99])
    assert float(finalize(metrics)["rewards/f/mean"]) == 0.5
    with pytest.raises(RewardError, match="no reward function"):
        call(some)
