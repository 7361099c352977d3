"""Runs with the same settings share their programs, and others do not."""

import dataclasses

import jax
import numpy as np

from jaxalign import parallel
from jaxalign.data import Batch
from jaxalign.losses.metrics import masked_mean, normalized
from jaxalign.models import ModelConfig, init_params
from jaxalign.stages import default_config, parse_config
from jaxalign.training.optimizer import make_optimizer
from jaxalign.training.programs import forget_programs, made_once, unshared
from jaxalign.training.stage import Stage
from jaxalign.training.state import init_train_state

MODEL = ModelConfig(vocab_size=8, embed_dim=8, num_heads=2, num_kv_heads=2, mlp_dim=8, max_length=8)


@made_once
def make(*settings):
    return object()


def test_equal_settings_give_the_same_thing_and_others_another():
    assert make(MODEL, 1) is make(dataclasses.replace(MODEL), 1)
    assert make(MODEL, 1) is not make(dataclasses.replace(MODEL, remat="full"), 1)
    assert make({"a": MODEL, "b": 1}) is make({"b": 1, "a": MODEL}) is not make({"a": MODEL, "b": 2})
    assert make([1]) is not make([1])  # cannot be compared
    before = make(MODEL)
    with unshared():
        assert make(MODEL) is not before
    assert make(MODEL) is before
    forget_programs()
    assert make(MODEL) is not before


def test_what_jax_does_not_look_at_belongs_to_the_settings():
    before = make(MODEL)
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    with parallel.use_mesh(mesh):
        assert make(MODEL) is before
    with parallel.use_mesh(mesh, parallel.parse_rules("embed=")):
        assert make(MODEL) is not before
    assert make(MODEL) is before


@dataclasses.dataclass(frozen=True)
class Options:
    weight: float = 1.0


def test_a_loss_is_traced_once_for_runs_with_the_same_settings():
    traced = []

    def loss(policy, batch, frozen, options, total):
        traced.append(options.weight)
        mean = masked_mean(-policy.logp * options.weight, batch.loss_mask)
        return normalized(mean, total["tokens"]), {"nll": mean}

    stage = Stage(
        "own", data="text", options=Options, loss=loss, totals=lambda b, o: {"tokens": b.loss_mask.sum()}
    )
    values = default_config(stage)
    values.optimizer.learning_rate = 0.1
    values.batch_size, values.num_microbatches, values.num_steps = 1, 1, 4
    ones = np.ones((1, 4), np.int32)
    batch = Batch(
        ones, np.arange(4, dtype=np.int32)[None], ones, np.float32([[0, 1, 1, 1]]), np.zeros((1, 1), np.int32)
    )

    def first_loss(weight: float) -> float:
        values.own.weight = weight
        config = parse_config(values)
        params = init_params(jax.random.key(0), MODEL)
        state = init_train_state(params, make_optimizer(config.optimizer, 4))
        _, metrics = stage.step(config, MODEL)(state, batch, {})
        return float(metrics["loss"].total)

    one, again, double = map(first_loss, (1.0, 1.0, 2.0))
    assert traced == [1.0, 2.0]
    assert one == again and np.isclose(double, 2 * one, rtol=1e-6)
