"""Mesh sizes are resolved or refused; the table of axes gives each parameter its place."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxalign.errors import ConfigError
from jaxalign.parallel import (
    AXES,
    RULES,
    MeshConfig,
    batch_sharding,
    batch_shards,
    check_divides,
    constrain,
    make_mesh,
    parse_rules,
    spec,
    use_mesh,
)
from jaxalign.parallel.mesh import mesh_shape


@pytest.mark.parametrize(
    ("sizes", "devices", "shape"),
    [
        ((-1, 1, 1), 1, (1, 1, 1)),
        ((-1, 1, 1), 8, (8, 1, 1)),
        ((-1, 2, 2), 8, (2, 2, 2)),
        ((2, -1, 4), 8, (2, 1, 4)),
        ((1, 2, -1), 6, (1, 2, 3)),
        ((2, 2, 2), 8, (2, 2, 2)),
    ],
)
def test_shape(sizes, devices, shape):
    found = dict(zip(AXES, mesh_shape(MeshConfig(*sizes), devices), strict=True))
    assert found == dict(zip(("data", "fsdp", "tensor"), shape, strict=True)) | {"context": 1, "expert": 1}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            (-1, -1, 1),
            "config.mesh.data=-1, config.mesh.fsdp=-1: every axis must be a positive number, and at most one of "
            "them -1",
        ),
        (
            (0, 1, 1),
            "config.mesh.data=0: every axis must be a positive",
        ),
        (
            (-2, 1, 1),
            "config.mesh.data=-2: every axis must be a positive",
        ),
        (
            (2, 2, 1),
            "the axes ask for 4 devices, but there are 8; make their product 8, or set one axis to -1",
        ),
        ((-1, 3, 1), "the axes ask for a multiple of 3 devices, but there are 8"),
        ((16, 1, 1), "the axes ask for 16 devices, but there are 8"),
    ],
)
def test_shape_refused(sizes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        mesh_shape(MeshConfig(*sizes), 8)


def test_mesh_holds_the_devices_in_order_with_automatic_axes():
    mesh = make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "expert": 1, "context": 1, "tensor": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 5
    assert set(mesh.devices.flat) == set(jax.devices())
    two = make_mesh(MeshConfig(), jax.devices()[3:5])
    assert list(two.devices.flat) == jax.devices()[3:5]
    assert list(make_mesh(MeshConfig(), jax.devices()[5:6]).devices.flat) == jax.devices()[5:6]


def test_spec_reads_the_table_in_force():
    assert spec("batch", "length", "act_heads", None) == P(
        ("data", "fsdp", "expert"), "context", "tensor", None
    )
    with use_mesh(make_mesh(), {**RULES, "length": "tensor"}):
        assert spec("batch", "length") == P(("data", "fsdp", "expert"), "tensor")
    assert spec("batch", "length") == P(("data", "fsdp", "expert"), "context")


def test_table_is_restored_after_an_error():
    with pytest.raises(RuntimeError, match="stop"), use_mesh(make_mesh(), {**RULES, "length": "tensor"}):
        raise RuntimeError("stop")
    assert spec("length") == P("context")
    assert jax.sharding.get_abstract_mesh().empty


def test_constrain_lays_out_on_a_mesh_and_is_nothing_without():
    x = jax.numpy.arange(32.0).reshape(8, 4)
    assert constrain(x, "batch", None) is x
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        y = jax.jit(lambda x: constrain(x * 1, "batch", "act_mlp"))(x)
    assert y.sharding.is_equivalent_to(NamedSharding(y.sharding.mesh, P(("data", "fsdp"), "tensor")), 2)
    assert {shard.data.shape for shard in y.addressable_shards} == {(2, 2)}


def test_rules_are_changed_by_name():
    rules = parse_rules("embed=fsdp+data,act_embed=tensor,length=")
    changed = {name: axes for name, axes in rules.items() if axes != RULES[name]}
    assert changed == {"embed": ("fsdp", "data"), "act_embed": ("tensor",), "length": None}
    assert parse_rules("") == parse_rules(()) == dict(RULES)


@pytest.mark.parametrize("change", ["embd=fsdp", "embed=fspd", "embed", "embed=fsdp+fsdp"])
def test_rules_that_do_not_exist_are_refused(change):
    with pytest.raises(ConfigError, match=re.escape(f"config.mesh.rules='{change}': write name=axis")):
        parse_rules(f"mlp=tensor,{change}")


def test_a_length_that_does_not_divide_stays_whole():
    with use_mesh(make_mesh(MeshConfig(data=2, context=4))):
        split = jax.jit(lambda x: constrain(x * 1, "batch", "length"))
        assert split(jax.numpy.ones((2, 8))).sharding.shard_shape((2, 8)) == (1, 2)
        assert split(jax.numpy.ones((2, 1))).sharding.shard_shape((2, 1)) == (1, 1)


def test_batches_are_split_over_data_and_fsdp():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert batch_shards(mesh) == 4
    assert batch_sharding(mesh).shard_shape((8, 6)) == (2, 6)
    assert batch_shards(make_mesh(MeshConfig(tensor=8, data=1))) == 1


@pytest.mark.parametrize(
    ("sizes", "value", "message"),
    [
        (
            (2, 2, 2),
            6,
            "config.train.batch_size=6 is not divisible by config.mesh.data=2 * config.mesh.fsdp=2; "
            "use 4 or 8, or mesh axes whose product is 2",
        ),
        (
            (8, 1, 1),
            4,
            "config.train.batch_size=4 is not divisible by config.mesh.data=8; use 8, or config.mesh.data=4",
        ),
    ],
)
def test_batch_that_does_not_divide(sizes, value, message):
    mesh = make_mesh(MeshConfig(*sizes))
    check_divides(mesh, "train.batch_size", 8)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_divides(mesh, "train.batch_size", value)


def test_programs_of_several_cpu_devices_are_kept_out_of_the_compilation_cache():
    """Read again, they could make their devices wait for each other for ever."""
    cache = pathlib.Path(jax.config.values["jax_compilation_cache_dir"])
    least = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[least]
    jax.config.update(least, 0.0)
    try:
        for count in (8, 1):
            with use_mesh(make_mesh(devices=jax.devices()[:count])) as mesh:
                x = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, P(("data", "fsdp"))))

                def add_up_of_this_test(x):
                    return jax.lax.with_sharding_constraint(x * jnp.sum(x), P())

                jax.jit(add_up_of_this_test)(x)
            assert len(list(cache.glob("jit_add_up_of_this_test-*-cache"))) == (1 if count == 1 else 0)
        assert jax.config.values[least] == 0.0
    finally:
        jax.config.update(least, before)
