"""Parts of the loop that need no model: gradient slices, updates that are held, FLOPs, signals."""

import dataclasses
import os
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign import parallel, signals
from jaxalign.losses.metrics import Mean, finalize
from jaxalign.models import ModelConfig, count_params, init_params
from jaxalign.models.flops import active_params, step_flops
from jaxalign.parallel.chips import peak_flops
from jaxalign.training import loop
from jaxalign.training.config import ModelSettings, resolve_architecture
from jaxalign.training.flops import count_work
from jaxalign.training.open import local_rows
from jaxalign.training.optimizer import OPTIMIZERS, OptimizerConfig, make_optimizer, make_schedule
from jaxalign.training.saved_model import fingerprint
from jaxalign.training.state import (
    apply_gradients,
    gradients,
    init_train_state,
    make_update,
    moving_average,
)

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


def square(params, x):
    loss = jnp.sum((x @ params["w"]) ** 2) / 8
    return loss, {"rows": Mean(jnp.float32(len(x)), jnp.float32(1))}


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_slices_add_up_to_the_gradient_by_hand(parts):
    w = np.float32([1, -2, 0.5])
    loss, metrics, grads = gradients(square, {"w": jnp.asarray(w)}, jnp.asarray(X), parts)
    assert loss == pytest.approx(((X @ w) ** 2).sum() / 8, rel=1e-5)
    np.testing.assert_allclose(grads["w"], 2 * X.T @ (X @ w) / 8, rtol=1e-5)
    assert finalize(metrics)["rows"] == 8 / parts


def test_an_update_that_is_not_finite_or_held_changes_only_the_counts():
    optimizer = optax.adam(0.1)
    state = init_train_state({"w": jnp.ones(2)}, optimizer)
    good, bad = {"w": jnp.ones(2)}, {"w": jnp.float32([1, jnp.inf])}
    for loss, grads, hold, skipped in ((1.0, bad, False, 1), (jnp.nan, good, False, 1), (1.0, good, True, 0)):
        new, metrics = apply_gradients(state, jnp.float32(loss), grads, optimizer, hold=hold)
        assert (int(new.step), int(new.skipped)) == (1, skipped)
        assert float(finalize(metrics)["skipped_steps"]) == skipped
        for a, b in zip(
            jax.tree.leaves((new.params, new.opt_state)),
            jax.tree.leaves((state.params, state.opt_state)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    new, metrics = apply_gradients(state, jnp.float32(1), good, optimizer, hold=False)
    np.testing.assert_allclose(new.params["w"], 0.9, rtol=1e-5)
    assert float(finalize(metrics)["grad_norm"]) == pytest.approx(np.sqrt(2))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_update_has_its_turn_in_the_schedule_and_the_log_says_what_is_applied(name):
    """Gradients a, NaN, c: the third update is the optimizer's second one, at the rate of step three, as logged."""
    config = OptimizerConfig(
        name=name, learning_rate=0.1, schedule="linear", clip_norm=None, weight_decay=0.1
    )
    optimizer, schedule = make_optimizer(config, 4), make_schedule(config, 4)
    unit = make_optimizer(dataclasses.replace(config, learning_rate=1.0, schedule="constant"), 4)

    def objective(params, batch, total, context):
        return jnp.sum(params["w"] * batch), {}

    update = make_update(objective, lambda *_: {}, optimizer, schedule, halt=False)
    w = jnp.float32([[0.3, -2.0], [1.0, 0.5]])
    state, logged = init_train_state({"w": w}, optimizer), []
    for factor in (1.0, jnp.nan, -0.5):
        state, metrics = update(state, jnp.float32([[1, 2], [3, -4]]) * factor)
        logged.append(float(finalize(metrics)["learning_rate"]))
    np.testing.assert_allclose(logged, [0.1, 0.075, 0.05], rtol=1e-6)
    params, memory = {"w": jnp.float32([[0.3, -2.0], [1.0, 0.5]])}, None
    memory = unit.init(params)
    for factor, rate in ((1.0, 0.1), (-0.5, 0.05)):
        step, memory = unit.update({"w": jnp.float32([[1, 2], [3, -4]]) * factor}, memory, params)
        params = {"w": params["w"] + rate * step["w"]}
    np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-5)
    assert (int(state.step), int(state.skipped)) == (3, 1)


def test_moving_average_by_hand():
    average = moving_average({"a": jnp.float32([1, 2])}, {"a": jnp.float32([3, 6])}, 0.75)
    np.testing.assert_allclose(average["a"], [1.5, 3.0])


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"gated_mlp": False, "tie_embeddings": False, "num_kv_heads": 2}])
def test_flops_count_every_weight_matrix_and_every_visible_pair_once(changes):
    config = ModelConfig(
        vocab_size=50,
        num_layers=3,
        embed_dim=16,
        num_heads=4,
        head_dim=4,
        mlp_dim=24,
        **({"num_kv_heads": 4} | changes),
    )
    params = init_params(jax.random.key(0), config)
    norms = (2 * config.num_layers + 1) * config.embed_dim
    lookup = 0 if config.tie_embeddings else config.vocab_size * config.embed_dim
    assert active_params(config) == count_params(params) - norms - lookup
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 0, 0, 0, 0, 0]])
    positions = np.array([[0, 1, 2, 0, 1, 0], [0, 0, 0, 0, 0, 0]])
    pairs = 6 + 3 + 1
    work = count_work(config, segments, positions)
    assert tuple(map(float, work)) == (6, pairs, pairs, 6)
    assert step_flops(config, work) == 6 * active_params(config) * 6 + 12 * 3 * 4 * 4 * pairs


def test_peak_flops_of_an_unknown_device_is_none():
    assert peak_flops(parallel.make_mesh()) is None


def test_a_fingerprint_is_of_the_bits_and_not_of_the_mesh():
    params = {"a": jnp.arange(16.0).reshape(8, 2), "b": jnp.ones(3)}
    mesh = parallel.make_mesh()
    split = jax.device_put(
        params, {"a": parallel.batch_sharding(mesh), "b": jax.sharding.NamedSharding(mesh, jax.P())}
    )
    assert fingerprint(split) == fingerprint(params)
    swapped = params | {"a": params["a"].at[:2].set(params["a"][:2][::-1])}
    nudged = params | {"a": params["a"].at[0, 0].set(1e-30)}
    assert len({fingerprint(p) for p in (params, swapped, nudged)}) == 3


def test_local_rows_are_all_rows_of_one_process():
    mesh = parallel.make_mesh(parallel.MeshConfig(data=2, fsdp=2, tensor=2))
    with parallel.use_mesh(mesh):
        x = jax.device_put(jnp.asarray(X), parallel.batch_sharding(mesh))
    np.testing.assert_array_equal(local_rows(x), X)


def test_a_saved_architecture_is_kept_and_computed_as_asked():
    saved = ModelSettings(num_layers=4, embed_dim=32, dtype="bfloat16").architecture(300, "cpu")
    resolved = resolve_architecture(
        ModelSettings(dtype="float32", remat="full").architecture(300, "cpu"), saved
    )
    assert (resolved.num_layers, resolved.embed_dim, resolved.dtype, resolved.remat) == (
        4,
        32,
        "float32",
        "full",
    )


def test_the_first_signal_is_kept_for_the_loop_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with loop._signals() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_outside_the_loop_the_handlers_are_those_of_the_command_line(monkeypatch):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    left = []
    monkeypatch.setattr(signals.os, "_exit", left.append)
    with signals.leaving_at_once("train"):
        with loop._signals() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [signal.SIGTERM] and left == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert left == [75]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == before


def test_a_hangup_is_kept_too_unless_it_was_ignored_from_the_start():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with loop._signals() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
        assert asked == [signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with signals.leaving_at_once("train"), loop._signals() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
        assert asked == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_is_named_and_not_called_ctrl_c(capfd):
    for number, said in (
        (signal.SIGINT, "jaxalign: stopping as soon as the state is saved; a second Ctrl-C ends it at once"),
        (
            signal.SIGTERM,
            "jaxalign: stopping as soon as the state is saved, as SIGTERM asks; a Ctrl-C ends it at once",
        ),
    ):
        with loop._signals():
            os.kill(os.getpid(), number)
        assert capfd.readouterr().err == f"\n{said}\n"


def test_a_signal_is_kept_though_nobody_reads_what_it_says(monkeypatch, capfd):
    with loop._signals() as asked:
        os.kill(os.getpid(), signal.SIGINT)
    assert asked == [signal.SIGINT] and "stopping as soon as the state is saved" in capfd.readouterr().err

    def closed(*_):
        raise BrokenPipeError

    monkeypatch.setattr(loop.os, "write", closed)
    with loop._signals() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked == [signal.SIGINT]


@pytest.mark.parametrize("text", ['{"steps": 6, "sec', "[]", '{"steps": 6}', '{"steps": 5, "seconds": 2.5}'])
def test_a_damaged_summary_says_nothing_of_an_earlier_end(tmp_path, text):
    run = types.SimpleNamespace(workdir=tmp_path)
    assert loop._finished_in(run, 6) is None
    (tmp_path / "summary.json").write_text('{"steps": 6, "seconds": 2.5}')
    assert loop._finished_in(run, 6) == 2.5
    (tmp_path / "summary.json").write_text(text)
    assert loop._finished_in(run, 6) is None
