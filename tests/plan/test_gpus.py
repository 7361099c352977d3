"""GPUs described without one: their names and numbers, the bounds between hosts, and steps that compile for them."""

from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from jaxalign import parallel
from jaxalign.config import load_config
from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig
from jaxalign.models.flops import active_params, visible_pairs
from jaxalign.parallel.chips import CHIPS, find_chip
from jaxalign.plan import gpus
from jaxalign.plan.report import print_plan
from jaxalign.plan.roofline import axis_bandwidth, bounds
from jaxalign.plan.topology import describe_devices, parse_topology
from jaxalign.stages import default_config, parse_config
from jaxalign.training.memory import OPTIMIZER, PARAMETERS
from jaxalign.verbs.plan import run_plan

GPUS = [name for name, chip in CHIPS.items() if not chip.torus]


def tiny(**model):
    """SFT of a model whose parameters are known: 8 rows of 512 tokens, all of the mesh in fsdp."""
    config = default_config("sft")
    sizes = {"vocab_size": 1024, "embed_dim": 256, "num_kv_heads": 2, "head_dim": 128, "mlp_dim": 512}
    config.model.update(sizes | {"num_layers": 3, "dtype": "bfloat16", "tie_embeddings": False} | model)
    config.batch_size, config.mesh.data, config.mesh.fsdp = 8, 1, -1
    config.data.max_length, config.data.row_length = 256, 512
    return config


def test_every_gpu_has_what_the_compiler_asks_for():
    assert set(gpus.PROCESSORS) == set(GPUS)
    for name in GPUS:
        text = gpus.target_config(CHIPS[name])
        assert f"device_memory_size: {int(CHIPS[name].hbm)}\n" in text
        assert find_chip(gpus.PROCESSORS[name].name) is CHIPS[name]


def test_without_the_plugin_the_extra_is_named_and_the_plan_is_an_estimate(monkeypatch, capsys):
    monkeypatch.setattr(gpus, "PLUGINS", ("no_such_plugin",))
    with pytest.raises(ConfigError, match=r"pip install '\.\[plan-gpu\]'"):
        describe_devices(parse_topology("h100:8"))
    found = run_plan(parse_config(load_config("sft", "llama3_2_1b")), "h100:8")
    print_plan(found, Console(width=200))
    printed = capsys.readouterr().out
    assert not found["compiled"] and "estimated from shapes; nothing was compiled" in printed
    assert "to compile it for this GPU, without one: pip install '.[plan-gpu]'" in printed


def test_described_gpus_are_as_many_on_as_many_hosts(gpu):
    for text, count, hosts in (("a100:1", 1, 1), ("h200:8", 8, 1), ("2*h100:8", 16, 2), ("b200:4", 4, 1)):
        topology = parse_topology(text)
        devices = describe_devices(topology)
        assert len(devices) == topology.size == count
        assert len({device.process_index for device in devices}) == hosts
        assert find_chip(devices[0].device_kind) is topology.chip


def mesh_of(devices, **axes):
    sizes = {"data": 1} | axes
    shape = [sizes.get(axis, 1) for axis in parallel.AXES]
    array = np.empty(len(devices), object)
    array[:] = devices
    return SimpleNamespace(devices=array.reshape(shape), axis_names=parallel.AXES)


def test_between_hosts_a_group_has_the_network_cards_of_its_gpus():
    """Two hosts of eight: along fsdp NVLink, along data one card a GPU, along both all eight cards of a host."""
    chip, topology = CHIPS["h100"], parse_topology("2*h100:8")
    devices = [SimpleNamespace(process_index=at // 8) for at in range(16)]
    mesh = mesh_of(devices, data=2, fsdp=8)
    assert axis_bandwidth(mesh, ("fsdp",), topology) == chip.link
    assert axis_bandwidth(mesh, ("data",), topology) == chip.network
    assert axis_bandwidth(mesh, ("data", "fsdp"), topology) == 8 * chip.network < chip.link
    assert axis_bandwidth(mesh, ("?",), topology) == chip.network
    times = bounds(chip, 0, 0, {"fsdp": 9e9, "data": 1e9}, {"fsdp": chip.link, "data": chip.network})
    assert times == {"compute": 0, "hbm": 0, "nvlink": 0.02, "network": 0.02}


def test_two_devices_of_a_chip_share_its_links():
    """TPU7x: what both devices of each chip gather together crosses the links once."""
    topology = parse_topology("tpu7x:2x2x1")
    link, places = CHIPS["tpu7x"].link, [(x, y) for x in range(2) for y in range(2)]
    devices = [SimpleNamespace(coords=[x, y, 0], core_on_chip=core) for x, y in places for core in range(2)]
    assert len(devices) == topology.size
    mesh = mesh_of(devices, data=2, fsdp=2, tensor=2)
    assert axis_bandwidth(mesh, ("tensor",), topology) == 12 * link
    assert axis_bandwidth(mesh, ("fsdp",), topology) == link
    assert axis_bandwidth(mesh, ("fsdp", "tensor"), topology) == 2 * link
    assert axis_bandwidth(mesh, ("data", "fsdp", "tensor"), topology) == 2 * 2 * link


@pytest.mark.slow
def test_a_step_for_gpus_is_the_analytic_one(gpu, monkeypatch, capsys):
    """FLOPs are the model's, 9 products of attention within sequences; layers are gathered twice, tables once."""
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    found = run_plan(parse_config(tiny()), "h100:4")
    (step,) = found["steps"]
    model = ModelConfig(**found["model"])
    assert found["compiled"] and step["warnings"] == [] and model.attention == "flash"
    exact = 6 * active_params(model) * 8 * 512
    logits = 2 * 1024 * 256 * 8 * 512
    assert exact / 4 <= step["flops"]["matmul"] <= 1.01 * (exact + logits) / 4
    pairs = 8 * 2 * visible_pairs(256) / 4
    assert step["flops"]["attention"] == pytest.approx(9 * 2 * 3 * 4 * 128 * pairs, rel=1e-12)
    tables, matrices = 2 * 1024 * 256, active_params(model) - 1024 * 256
    sent = step["sent_by_kind"]
    assert sent["all-gather"] == pytest.approx(0.75 * 2 * (2 * matrices + tables), rel=0.01)
    assert sent["reduce-scatter"] == pytest.approx(0.75 * 2 * (matrices + tables), rel=0.01)
    assert sent["all-reduce"] < 0.01 * sent["all-gather"]
    memory, room = step["memory"], found["room"]
    assert memory[OPTIMIZER] == 2 * memory[PARAMETERS] + 8
    assert memory["total"] == pytest.approx(sum(v for k, v in memory.items() if k != "total"))
    assert memory["total"] / 2 < step["peak"] <= memory["total"]
    assert room["fits"] == room["pool"] == 0.75 * CHIPS["h100"].hbm
    assert set(step["seconds"]) == {"compute", "hbm", "nvlink"} and step["kernels"] > 100
    print_plan(found, Console(width=200))
    printed = capsys.readouterr().out
    assert "on h100:4 (4 GPUs: fsdp 4)" in printed and "compiled for this GPU without one" in printed


@pytest.mark.slow
def test_hosts_of_gpus_are_crossed_by_one_axis(gpu):
    """What goes between two hosts takes the network; a mesh that the hosts do not divide is refused as in a run."""
    values = tiny(attention="blockwise", num_layers=1)
    with pytest.raises(ConfigError, match=r"config\.mesh\.data=1 is split over 2 hosts of GPUs"):
        run_plan(parse_config(values), "2*a100:2")
    values.mesh.data = 2
    (step,) = run_plan(parse_config(values), "2*a100:2")["steps"]
    assert step["axes_bandwidth"]["fsdp"] == CHIPS["a100"].link
    between = {axes for axes in step["sent_by_axes"] if "data" in axes}
    slowest = max(step["sent_by_axes"][axes] / step["axes_bandwidth"][axes] for axes in between)
    assert step["seconds"]["network"] == slowest > step["seconds"]["nvlink"]
