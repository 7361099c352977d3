"""The chip of a device, by the name that JAX gives it."""

import pytest

from jaxalign.parallel.chips import find_chip


@pytest.mark.parametrize(
    ("device_kind", "name", "flops"),
    [
        ("TPU v4", "v4", 275e12),
        ("TPU v5 lite", "v5e", 197e12),
        ("TPU v5e", "v5e", 197e12),
        ("TPU v5", "v5p", 459e12),
        ("TPU v5p", "v5p", 459e12),
        ("TPU v6 lite", "v6e", 918e12),
        ("TPU v6e", "v6e", 918e12),
        ("NVIDIA A100-SXM4-80GB", "a100", 312e12),
        ("NVIDIA H100 80GB HBM3", "h100", 989e12),
        ("NVIDIA H200", "h200", 989e12),
    ],
)
def test_a_device_is_found_by_how_its_name_begins(device_kind, name, flops):
    chip = find_chip(device_kind)
    assert (chip.name, chip.flops) == (name, flops)


@pytest.mark.parametrize("device_kind", ["cpu", "TPU v3", "NVIDIA L4"])
def test_a_device_that_is_not_in_the_table_has_no_chip(device_kind):
    assert find_chip(device_kind) is None
