"""Topologies by name, what is wrong with those that do not exist, and the bounds of a step's time."""

import importlib.util
import math

import pytest

from jaxalign import parallel
from jaxalign.errors import ConfigError
from jaxalign.parallel.chips import CHIPS
from jaxalign.plan.collectives import SLICES
from jaxalign.plan.roofline import axis_bandwidth, bounds, mfu_bound
from jaxalign.plan.topology import describe_devices, parse_topology, slice_shapes


@pytest.mark.parametrize(
    ("text", "devices", "slices"),
    [
        ("v5p:4x4x4", 64, 1),
        ("2*v5e:16x16", 512, 2),
        ("v4:2x2x1", 4, 1),
        ("v6e:1x1", 1, 1),
        ("h200:8", 8, 1),
        ("2*h100:8", 16, 2),
        ("tpu7x:4x4x4", 128, 1),
    ],
)
def test_names(text, devices, slices):
    topology = parse_topology(text)
    assert (topology.size, topology.slices) == (devices, slices)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("v5p-128", "v5p:4x4x4"),
        ("v5p-8", "v5p:2x2x1"),
        ("v5p-512", "v5p:4x8x8"),
        ("v4-32", "v4:2x2x4"),
        ("v5e-256", "v5e:16x16"),
        ("v5litepod-8", "v5e:2x4"),
        ("v6e-256", "v6e:16x16"),
        ("tpu7x-128", "tpu7x:4x4x4"),
        ("4*v5p-1024", "4*v5p:8x8x8"),
    ],
)
def test_names_of_google(text, name):
    """Of v4, v5p and TPU7x the number counts TensorCores, two a chip; of v5e and v6e chips."""
    found, same = parse_topology(text), parse_topology(name)
    assert (found.chip, found.shape, found.slices) == (same.chip, same.shape, same.slices)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5p/64", "write CHIP:SHAPE"),
        ("v5p-100", "no slice of 100 TensorCores; near it are v5p-32, v5p-64, v5p-128, v5p-256"),
        ("v6e-3", "no slice of 3 chips; near it are v6e-1, v6e-4, v6e-8"),
        ("v5p:8x4x4", "no slice of that shape; it is written 4x4x8"),
        ("v5q:4x4x4", "did you mean v5p"),
        ("v5e:3x3", "there are 1x1, 2x2, 2x4"),
        ("v5p:4x4", "4x4x4"),
        ("v4:4x4x2", "it is written 2x4x4"),
        ("v4:4x4x3", "there are 2x2x1"),
        ("h200-8", "write h200:N for a host of N GPUs, 2*h200:N for two"),
        ("h200:2x4", "write h200:N"),
        ("h100:16", "a host has at most 8 GPUs; write 2*h100:8"),
        ("0*h100:8", "0 hosts"),
        ("0*v5e:2x2", "0 slices"),
    ],
)
def test_what_does_not_exist_names_what_does(text, message):
    with pytest.raises(ConfigError, match=r"--topology='") as error:
        parse_topology(text)
    assert message in str(error.value)


def test_slices_are_those_of_the_largest_pod_and_no_more():
    assert max(map(math.prod, slice_shapes(CHIPS["v4"]))) == 4096
    assert (16, 16, 24) in slice_shapes(CHIPS["v5p"]) and (16, 16, 16) in slice_shapes(CHIPS["v4"])
    assert math.prod(slice_shapes(CHIPS["v5e"])[-1]) == 256


def test_without_a_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[plan\]'"):
        describe_devices(parse_topology("v5e:2x2"))


def test_devices_are_whole_chips(tpu):
    for name in ("v4:2x2x1", "v5e:1x1", "v5p-16", "2*v5e:2x2", "tpu7x:2x2x1"):
        topology = parse_topology(name)
        assert len(describe_devices(topology)) == topology.size


def mesh_of(name, **axes):
    return parallel.make_mesh(parallel.MeshConfig(data=1, **axes), describe_devices(parse_topology(name)))


def test_bandwidth_follows_the_torus(tpu):
    """A whole v5p cube is three rings of two directions; two neighbours share one link; slices share the network."""
    link = CHIPS["v5p"].link
    cube = parse_topology("v5p:4x4x4")
    assert axis_bandwidth(mesh_of("v5p:4x4x4", fsdp=64), ("fsdp",), cube) == 6 * link
    assert axis_bandwidth(mesh_of("v5p:4x4x4", fsdp=16, tensor=4), ("tensor",), cube) == 2 * link
    small = parse_topology("v5p:2x2x2")
    assert axis_bandwidth(mesh_of("v5p:2x2x2", fsdp=4, tensor=2), ("tensor",), small) == link
    assert (
        axis_bandwidth(mesh_of("v5e:2x2", fsdp=4), ("fsdp",), parse_topology("v5e:2x2"))
        == 2 * CHIPS["v5e"].link
    )
    two = parse_topology("2*v5e:2x2")
    mesh = parallel.make_mesh(parallel.MeshConfig(data=2, fsdp=4), describe_devices(two))
    assert axis_bandwidth(mesh, (SLICES,), two) == CHIPS["v5e"].network
    assert axis_bandwidth(mesh, ("fsdp",), two) == 2 * CHIPS["v5e"].link
    two = parse_topology("2*v5e:4x4")  # of data, four chips of a side and both slices, what lies within one
    halves = parallel.make_mesh(parallel.MeshConfig(data=8, fsdp=4), describe_devices(two))
    assert axis_bandwidth(halves, ("data",), two) == CHIPS["v5e"].link


def test_the_slowest_resource_bounds():
    chip = CHIPS["v5e"]
    times = bounds(chip, 197e12, 819e9 / 2, {"fsdp": 100e9, "tensor": 10e9}, {"fsdp": 50e9, "tensor": 50e9})
    assert times == {"compute": 1.0, "hbm": 0.5, "ici": 2.0}
    assert mfu_bound(chip, 197e12 * 0.75, times) == 0.375
    sent, speed = {"fsdp": 100e9, SLICES: 25e9}, {"fsdp": 50e9, SLICES: chip.network}
    assert bounds(chip, 0, 0, sent, speed) == {"compute": 0, "hbm": 0, "ici": 2.0, "network": 8.0}


def test_an_axis_may_take_a_part_of_a_side_of_the_torus(tpu):
    devices = describe_devices(parse_topology("v5p:4x4x4"))
    mesh = parallel.make_mesh(parallel.MeshConfig(data=4, fsdp=-1, tensor=2), devices)
    assert mesh.shape["fsdp"] == 8
    pairs = mesh.devices.reshape(-1, 2)
    for one, other in pairs:
        distance = [min((a - b) % 4, (b - a) % 4) for a, b in zip(one.coords, other.coords, strict=True)]
        assert sum(distance) == 1, (one.coords, other.coords)
    assert {device.id for device in mesh.devices.flat} == {device.id for device in devices}
