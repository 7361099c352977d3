"""What accelerators can do: the one table for the MFU of a run and for plans."""

import dataclasses
import os
import resource
import sys
from typing import Any

import jax
from jax.sharding import Mesh

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as JAX shows it: a device. FLOP/s are dense bfloat16; bandwidths are bytes a second.

    Sources: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} for peak, HBM bandwidth, torus and slices. Links: the
    bidirectional bandwidth of a chip by its 4 or 6 links and 2 directions (400, 1200, 800 and 1200 GB/s for v5e, v5p,
    v6e, TPU7x; v4 by the all-reduce bandwidth of a pod, 1.1 PB/s). `network`, for what crosses between slices or
    hosts, is a device's share of its host's cards (v5e 2 x 100 Gbit/s for 8, v5p 50 Gbit/s a chip, v6e 4 x 200 for 8,
    TPU7x 100 a chip; v4 taken as v5p). `hbm` of a TPU is what its compiler lets a program use, as it says when a
    program is too large. A chip of TPU7x is two devices, each with half of everything. GPUs: NVIDIA's data sheets
    (A100 80 GB SXM, H100 SXM, H200 SXM, HGX B200: NVLink as the sum of both directions; 200 Gbit/s of network each in
    a DGX A100, 400 in the others); `hbm` is what the driver reports.
    """

    name: str
    # How `jax.Device.device_kind` begins.
    kinds: tuple[str, ...]
    flops: float
    # Bytes.
    hbm: float
    hbm_bandwidth: float
    # One direction of one interconnect link (GPU: of all NVLinks of a device; TPU7x: a device's half of one).
    link: float
    network: float
    # Dimensions of the interconnect; 0: a switch.
    torus: int
    # A dimension that is a multiple of this many chips is closed to a ring.
    ring: int
    # Chips of the largest slice (GPU: of one host).
    most: int
    # TensorCores of a chip where Google's names of slices count them, as v5p-128; 1: they count chips, as v6e-256.
    cores: int = 1
    # Devices of a chip.
    devices: int = 1

    @property
    def intensity(self) -> float:
        """FLOP that it does while its memory moves a byte."""
        return self.flops / self.hbm_bandwidth

    @property
    def unit(self) -> str:
        """What one of them is called."""
        return "chip" if self.torus and self.devices == 1 else "device" if self.torus else "GPU"


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", ("TPU v4",), 275e12, 30.75 * GIB, 1200e9, 45e9, 6.25e9, 3, 4, 4096, cores=2),
        Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 15.75 * GIB, 819e9, 50e9, 3.125e9, 2, 16, 256),
        Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95.74 * GIB, 2765e9, 100e9, 6.25e9, 3, 4, 6144, cores=2),
        Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 31.25 * GIB, 1638e9, 100e9, 12.5e9, 2, 16, 256),
        Chip(
            "tpu7x",
            ("TPU7x",),
            1153.5e12,
            94.75 * GIB,
            3690e9,
            50e9,
            6.25e9,
            torus=3,
            ring=4,
            most=9216,
            cores=2,
            devices=2,
        ),
        Chip("a100", ("NVIDIA A100",), 312e12, 85_100_068_864, 2039e9, 300e9, 25e9, 0, 0, 8),
        Chip("h100", ("NVIDIA H100",), 989e12, 84_942_979_072, 3350e9, 450e9, 50e9, 0, 0, 8),
        Chip("h200", ("NVIDIA H200",), 989e12, 151_397_597_184, 4800e9, 450e9, 50e9, 0, 0, 8),
        Chip("b200", ("NVIDIA B200",), 2250e12, 191_514_411_008, 7672e9, 900e9, 50e9, 0, 0, 8),
    )
}


def find_chip(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`, such as "TPU v5 lite" or "NVIDIA H100 80GB HBM3"; None of a CPU."""
    known = [(kind, chip) for chip in CHIPS.values() for kind in chip.kinds if device_kind.startswith(kind)]
    # "TPU v5 lite" begins as "TPU v5" does, and is another chip: the longest name decides.
    return max(known, key=lambda pair: len(pair[0]))[1] if known else None


def peak_flops(mesh: Mesh) -> float | None:
    """FLOP/s of all devices of a mesh together, or None where the table does not have them (a CPU)."""
    chip = find_chip(mesh.devices.flat[0].device_kind)
    return chip.flops * mesh.size if chip else None


def memory_of(device: Any) -> float:
    """Bytes of memory of a `jax.Device` of this process; of a CPU, its share of the machine's."""
    if chip := find_chip(device.device_kind):
        return chip.hbm
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit or device.platform != "cpu":
        return float(limit or 0)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()


def peak_memory(mesh: Mesh) -> int | None:
    """The most bytes that were in use so far on one of this process's devices; None where they do not tell."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    return max((found["peak_bytes_in_use"] for found in stats if found), default=None)


def peak_host_memory() -> int:
    """The most bytes of memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
