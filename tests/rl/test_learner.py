"""Minibatches of a rollout, and what several updates report together, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import StepZeroError
from jaxalign.losses.metrics import Max, Mean, finalize
from jaxalign.models import ModelConfig
from jaxalign.rl import learner
from jaxalign.rl.learner import merge_ragged, minibatch_rows
from jaxalign.training.flops import FLOPS


def mean(total, weight):
    return Mean(jnp.float32(total), jnp.float32(weight))


def test_every_pass_has_every_row_once_in_an_order_of_its_own():
    rows = minibatch_rows(jax.random.key(0), 12, 3, 4)
    assert rows.shape == (12, 3)
    passes = rows.reshape(3, 12)
    assert (np.sort(passes) == np.arange(12)).all() and len({tuple(each) for each in passes}) == 3
    np.testing.assert_array_equal(minibatch_rows(jax.random.key(0), 12, 3, 4), rows)
    # Passes before do not change with those that follow, and other keys shuffle otherwise.
    np.testing.assert_array_equal(minibatch_rows(jax.random.key(0), 12, 1, 2).ravel(), passes[0])
    assert not (minibatch_rows(jax.random.key(1), 12, 3, 4) == rows).all()


def test_metrics_of_several_updates_are_merged_where_they_are():
    seen = [
        {"a": mean(6, 3), "most": Max(jnp.float32(2)), f"{FLOPS}/policy": mean(5, 1)},
        {"a": mean(1, 1), "b": mean(4, 2), f"{FLOPS}/policy": mean(7, 1)},
        {"b": mean(2, 4), "most": Max(jnp.float32(-1))},
    ]
    found = {name: float(x) for name, x in finalize(merge_ragged(seen)).items()}
    assert found == {"a": 7 / 4, "b": 1.0, "most": 2.0, f"{FLOPS}/policy": 12.0}


def test_the_variance_of_ratios_is_over_all_tokens():
    ratios = np.array([1.0, 1.5, 0.5, 2.0])
    seen = [
        {"val/ratio": mean(part.sum(), len(part)), "val/ratio_sq": mean((part**2).sum(), len(part))}
        for part in (ratios[:1], ratios[1:])
    ]
    found = {name: float(x) for name, x in finalize(merge_ragged(seen)).items()}
    assert found == {"val/ratio": ratios.mean(), "policy/ratio_var": pytest.approx(ratios.var())}


FLOAT32, BFLOAT16 = ModelConfig(dtype="float32"), ModelConfig(dtype="bfloat16")


@pytest.mark.parametrize(
    ("check", "metrics", "held", "refused"),
    [
        (learner._verify_values, lambda x: {"val/clipfrac_avg": mean(x, 1)}, (0.0, 0.049), (0.001, 0.06)),
        (
            learner._verify_ratio,
            lambda x: {"val/ratio": mean(2, 2), "val/ratio_sq": mean(2 - 2 * x, 2)},
            (0.9e-4, 0.049),
            (1.2e-4, 0.051),
        ),
        (
            learner._verify_ratio,
            lambda x: {"val/ratio": mean(2 + 2 * x, 2), "val/ratio_sq": mean(2, 2)},
            (0.9e-4, 0.049),
            (1.2e-4, 0.051),
        ),
        (
            learner._verify_sampling,
            lambda x: {"rollout_logp_diff": mean(2 * x, 2)},
            (0.049, 0.19),
            (0.051, 0.21),
        ),
    ],
)
def test_before_the_first_update_rounding_is_allowed_and_no_more(check, metrics, held, refused):
    for model, good, bad in zip((FLOAT32, BFLOAT16), held, refused, strict=True):
        check(metrics(good), model)
        with pytest.raises(StepZeroError, match="before the"):
            check(metrics(bad), model)


@pytest.mark.parametrize("check", [learner._verify_ratio, learner._verify_sampling])
def test_of_empty_rows_nothing_is_asked(check):
    for metrics in (
        {},
        {"val/ratio": mean(0, 0), "val/ratio_sq": mean(0, 0), "rollout_logp_diff": mean(0, 0)},
    ):
        check(metrics, FLOAT32)
