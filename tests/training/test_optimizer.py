"""Optimizers against float64 NumPy written from their papers; schedules against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxalign.errors import ConfigError
from jaxalign.training.optimizer import (
    OptimizerConfig,
    decay_mask,
    make_optimizer,
    make_schedule,
    opt_state_shardings,
)

LR = 0.01


def _grads(step):
    rng = np.random.default_rng(100 + step)
    return {"dense": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=(4,))}}


def _run(config, steps=3, dtype=jnp.float32):
    """Returns (parameters before, updates of each step) as float64, with parameters moving between steps."""
    optimizer = make_optimizer(config, total_steps=10)
    rng = np.random.default_rng(0)
    params = {"dense": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=(4,))}}
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    start, updates, state = params, [], optimizer.init(params)
    for step in range(steps):
        grads = jax.tree.map(lambda x: jnp.asarray(x, dtype), _grads(step))
        update, state = jax.jit(optimizer.update)(grads, state, params)
        params = optax.apply_updates(params, update)
        updates.append(update)
    return start, updates, state


def _check_against(config, direction):
    """Compares updates with -lr * (direction + weight_decay * p); direction(g, memory, t) is the paper's."""
    start, updates, _ = _run(config)
    for leaf, decayed in (("kernel", True), ("bias", False)):
        p = np.asarray(start["dense"][leaf], np.float64)
        memory = {"m": np.zeros_like(p), "v": np.zeros_like(p), "buffer": np.zeros_like(p)}
        for step, update in enumerate(updates):
            g = np.float64(np.float32(_grads(step)["dense"][leaf]))
            expected = -LR * (direction(g, memory, step + 1) + decayed * config.weight_decay * p)
            np.testing.assert_allclose(update["dense"][leaf], expected, rtol=2e-5, atol=1e-8)
            p = p + expected


def _config(name, **changes):
    return OptimizerConfig(
        **{"name": name, "learning_rate": LR, "schedule": "constant", "clip_norm": None, **changes}
    )


def test_adamw_follows_its_paper():
    def direction(g, memory, t):
        memory["m"] = 0.9 * memory["m"] + 0.1 * g
        memory["v"] = 0.95 * memory["v"] + 0.05 * g**2
        return memory["m"] / (1 - 0.9**t) / (np.sqrt(memory["v"] / (1 - 0.95**t)) + 1e-3)

    _check_against(_config("adamw", weight_decay=0.1, eps=1e-3), direction)


def test_first_moments_may_be_kept_in_bfloat16():
    def rounded(x):
        return np.float64(np.asarray(x, jnp.bfloat16))

    def adam(g, memory, t):
        moment = 0.9 * memory["m"] + 0.1 * g
        memory["v"] = 0.95 * memory["v"] + 0.05 * g**2
        memory["m"] = rounded(moment)
        return moment / (1 - 0.9**t) / (np.sqrt(memory["v"] / (1 - 0.95**t)) + 1e-3)

    _check_against(_config("adamw", mu_dtype="bfloat16", weight_decay=0.1, eps=1e-3), adam)
    for name in ("adamw", "lion"):
        state = _run(_config(name, mu_dtype="bfloat16"))[2]
        kinds = {str(x.dtype) for x in jax.tree.leaves(optax.tree_utils.tree_get(state, "mu"))}
        assert kinds == {"bfloat16"}


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_rmsprop_follows_its_lecture(momentum):
    def direction(g, memory, t):
        memory["v"] = 0.8 * memory["v"] + 0.2 * g**2
        memory["buffer"] = momentum * memory["buffer"] + g / (np.sqrt(memory["v"]) + 1e-3)
        return memory["buffer"]

    _check_against(_config("rmsprop", decay=0.8, eps=1e-3, momentum=momentum, weight_decay=0.2), direction)


def test_lion_follows_its_paper():
    def direction(g, memory, t):
        sign = np.sign(0.9 * memory["m"] + 0.1 * g)
        memory["m"] = 0.99 * memory["m"] + 0.01 * g
        return sign

    _check_against(_config("lion", b2=0.99, weight_decay=0.3), direction)


@pytest.mark.slow
def test_adafactor_equals_optax():
    params = {"kernel": jax.random.normal(jax.random.key(0), (128, 256)), "bias": jnp.ones(4)}
    ours, theirs = make_optimizer(_config("adafactor"), 10), optax.adafactor(LR)
    state, their_state = ours.init(params), theirs.init(params)
    for step in range(3):
        grads = jax.tree.map(lambda p, s=step: jnp.cos(p * (s + 1)), params)
        update, state = ours.update(grads, state, params)
        expected, their_state = theirs.update(grads, their_state, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), update, expected)
        params = optax.apply_updates(params, update)


@pytest.mark.slow
def test_adafactor_factors_each_kernel_of_attention_as_a_matrix():
    """As if heads and their dimensions were one axis, layer by layer; nothing as large as a kernel is kept."""
    L, D, H, d = 2, 128, 4, 32
    shapes = {"query": (L, D, H, d), "out": (L, H, d, D)}
    rng = np.random.default_rng(0)
    params = {name: {"kernel": jnp.float32(rng.normal(size=shape))} for name, shape in shapes.items()}
    params = {"layers": {"attention": params}}
    grads = jax.tree.map(lambda p: jnp.cos(3 * p), params)
    optimizer = make_optimizer(_config("adafactor"), 10)
    state = optimizer.init(params)
    assert max(x.size for x in jax.tree.leaves(state)) == L * D
    update, state = optimizer.update(grads, state, params)
    for name in shapes:
        g = np.float64(grads["layers"]["attention"][name]["kernel"])
        p = np.float64(params["layers"]["attention"][name]["kernel"])
        shape = (L, D, H * d) if name == "query" else (L, H * d, D)
        square = np.square(g.reshape(shape)) + 1e-30
        rows, columns = (
            square.mean(2),
            square.mean(1),
        )  # after one step, the averages are of this gradient alone
        second = rows[:, :, None] * columns[:, None, :] / rows.mean(1)[:, None, None]
        direction = (g.reshape(shape) / np.sqrt(second)).reshape(g.shape)
        direction /= max(1.0, np.sqrt(np.square(direction).mean()))  # algorithm 4: clipped at an RMS of 1
        wanted = -LR * direction * max(np.sqrt(np.square(p).mean()), 1e-3)
        np.testing.assert_allclose(
            update["layers"]["attention"][name]["kernel"], wanted, rtol=2e-4, atol=1e-7
        )


def test_global_norm_is_clipped_over_all_leaves():
    norm = np.sqrt(sum(np.sum(np.float64(np.float32(g)) ** 2) for g in jax.tree.leaves(_grads(0))))
    free, clipped = (_run(_config("lion", clip_norm=c), steps=1)[2] for c in (None, 0.5))
    ratio = jax.tree.map(lambda a, b: a / b, free[1].mu, clipped[1].mu)
    jax.tree.map(lambda r: np.testing.assert_allclose(r, norm / 0.5, rtol=1e-5), ratio)
    loose = _run(_config("lion", clip_norm=100.0), steps=1)[2]
    jax.tree.map(np.testing.assert_array_equal, free[1].mu, loose[1].mu)


def test_bfloat16_parameters_have_float32_moments_and_updates():
    _, updates, state = _run(_config("adamw"), dtype=jnp.bfloat16)
    floats = [x for x in jax.tree.leaves((updates, state)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}


def test_decay_mask_goes_by_name_where_layers_are_stacked():
    params = {"embed": {"embedding": 0}, "layers": {"norm": {"scale": 0}, "mlp": {"kernel": 0, "bias": 0}}}
    assert decay_mask(params) == {
        "embed": {"embedding": True},
        "layers": {"norm": {"scale": False}, "mlp": {"kernel": True, "bias": False}},
    }


def test_schedules_at_key_steps():
    def values(schedule, steps, **changes):
        config = OptimizerConfig(learning_rate=2.0, schedule=schedule, **changes)
        rates = [make_schedule(config, total_steps=104)(s) for s in steps]
        assert all(r.dtype == jnp.float32 for r in rates)
        return np.array(rates, np.float64)

    steps = [0, 1, 4, 29, 54, 104, 500]
    warm = {"warmup_steps": 4, "final_ratio": 0.1}
    cosine = [0.1 + 0.9 * (1 + np.cos(np.pi * x)) / 2 for x in (0, 0.25, 0.5, 1, 1)]
    np.testing.assert_allclose(values("cosine", steps, **warm), 2 * np.array([0.2, 0.4, *cosine]), rtol=1e-6)
    linear = [0.2, 0.4, 1.0, 0.775, 0.55, 0.1, 0.1]
    np.testing.assert_allclose(values("linear", steps, **warm), 2 * np.array(linear), rtol=1e-6)
    np.testing.assert_allclose(
        values("constant", steps, **warm), 2 * np.array([0.2, 0.4, 1, 1, 1, 1, 1]), rtol=1e-6
    )
    roots = [0.2, 0.4, *np.sqrt(5 / np.array([5, 30, 55, 105, 105]))]
    np.testing.assert_allclose(values("inverse_sqrt", steps, **warm), 2 * np.array(roots), rtol=1e-6)
    wsd = values("wsd", [0, 4, 78, 91, 104, 500], decay_fraction=0.25, **warm)
    np.testing.assert_allclose(wsd, 2 * np.array([0.2, 1, 1, 0.55, 0.1, 0.1]), rtol=1e-6)
    np.testing.assert_allclose(values("cosine", [0]), 2.0)


def test_update_uses_the_schedule_of_its_step():
    config = _config("lion", schedule="linear", warmup_steps=1)
    _, updates, _ = _run(config)
    schedule = make_schedule(config, total_steps=10)
    for step, update in enumerate(updates):
        np.testing.assert_allclose(np.abs(update["dense"]["kernel"]), schedule(step), rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "lion", "adafactor"])
def test_state_shardings_follow_the_parameters(name):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    specs = {"layers": {"kernel": P(None, "fsdp", "tensor"), "scale": P(None, "tensor")}}
    params = {"layers": {"kernel": jnp.ones((2, 128, 256)), "scale": jnp.ones((2, 8))}}
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    optimizer = make_optimizer(_config(name, momentum=0.9), total_steps=10)
    result = opt_state_shardings(optimizer, jax.eval_shape(lambda: params), shardings, mesh)

    state = jax.jit(optimizer.init, out_shardings=result)(jax.device_put(params, shardings))
    assert jax.tree.structure(state) == jax.tree.structure(result)
    by_shape = {(2, 128, 256): P(None, "fsdp", "tensor"), (2, 8): P(None, "tensor")}
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.spec == by_shape.get(leaf.shape, P())
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    copies = {"adamw": 2, "rmsprop": 2, "lion": 1, "adafactor": 0}
    assert shapes.count((2, 128, 256)) == copies[name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adam"}, r"config\.optimizer\.name='adam'.*adamw, rmsprop.*did you mean 'adamw'"),
        ({"schedule": "cosin"}, r"config\.optimizer\.schedule='cosin'.*did you mean 'cosine'"),
        ({"learning_rate": -0.1}, r"config\.optimizer\.learning_rate=-0\.1: use a number above 0, or 0 for"),
        ({"learning_rate": float("inf")}, r"config\.optimizer\.learning_rate=inf"),
        ({"warmup_steps": 0.1}, r"config\.optimizer\.warmup_steps=0\.1: use a whole number"),
        ({"warmup_steps": -1}, r"config\.optimizer\.warmup_steps=-1"),
        ({"final_ratio": 1.5}, r"config\.optimizer\.final_ratio=1\.5"),
        ({"decay_fraction": 0.0}, r"config\.optimizer\.decay_fraction=0\.0"),
        ({"b2": 1.0}, r"config\.optimizer\.b2=1\.0"),
        ({"momentum": -0.1}, r"config\.optimizer\.momentum=-0\.1"),
        ({"eps": 0.0}, r"config\.optimizer\.eps=0\.0"),
        ({"weight_decay": -0.1}, r"config\.optimizer\.weight_decay=-0\.1"),
        ({"clip_norm": 0.0}, r"config\.optimizer\.clip_norm=0\.0.*None for off"),
    ],
)
def test_bad_values_name_the_key_and_the_way_out(changes, message):
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "limit"),
    [({"warmup_steps": 10}, 10), ({"schedule": "wsd", "warmup_steps": 9, "decay_fraction": 0.5}, 6)],
)
def test_warmup_must_leave_room(changes, limit):
    with pytest.raises(ConfigError, match=rf"warmup_steps.*10 steps in all, use fewer than {limit}$"):
        make_schedule(OptimizerConfig(learning_rate=1e-3, **changes), total_steps=10)


def test_a_rate_that_is_not_found_yet_is_no_rate():
    with pytest.raises(ConfigError, match=r"learning_rate=0 is found when a run is opened, and here is none"):
        make_schedule(OptimizerConfig(), total_steps=10)
