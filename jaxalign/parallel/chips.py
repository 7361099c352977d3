"""What accelerators can do: the one table for the MFU of a run and for plans."""

import dataclasses

from jax.sharding import Mesh

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator. FLOP/s are dense bfloat16; bandwidths are bytes a second.

    Sources: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} for peak, HBM bandwidth, torus and slices. Links: the
    bidirectional bandwidth of a chip by its 4 or 6 links and 2 directions (400, 1200 and 800 GB/s for v5e, v5p, v6e;
    v4 by the all-reduce bandwidth of a pod, 1.1 PB/s). `network`, for what crosses between slices or nodes, is a
    chip's share of its host's cards (v5e 2 x 100 Gbit/s for 8, v5p 50 Gbit/s a chip, v6e 4 x 200 for 8; v4 taken as
    v5p). `hbm` of a TPU is what its compiler lets a program use, as it says when a program is too large. GPUs:
    NVIDIA's data sheets (A100 80 GB SXM, H100 SXM, H200 SXM: NVLink as the sum of both directions, 400 Gbit/s of
    network each).
    """

    name: str
    # How `jax.Device.device_kind` begins.
    kinds: tuple[str, ...]
    flops: float
    # Bytes.
    hbm: float
    hbm_bandwidth: float
    # One direction of one interconnect link (GPU: of all NVLinks of a device).
    link: float
    network: float
    # Dimensions of the interconnect; 0: a switch.
    torus: int
    # A dimension that is a multiple of this many chips is closed to a ring.
    ring: int
    # Chips of the largest slice (GPU: of one node).
    most: int


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", ("TPU v4",), 275e12, 30.75 * GIB, 1200e9, 45e9, 6.25e9, 3, 4, 4096),
        Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 15.75 * GIB, 819e9, 50e9, 3.125e9, 2, 16, 256),
        Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95.74 * GIB, 2765e9, 100e9, 6.25e9, 3, 4, 6144),
        Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 31.25 * GIB, 1638e9, 100e9, 12.5e9, 2, 16, 256),
        Chip("a100", ("NVIDIA A100",), 312e12, 80e9, 2039e9, 300e9, 50e9, 0, 0, 8),
        Chip("h100", ("NVIDIA H100",), 989e12, 80e9, 3350e9, 450e9, 50e9, 0, 0, 8),
        Chip("h200", ("NVIDIA H200",), 989e12, 141e9, 4800e9, 450e9, 50e9, 0, 0, 8),
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
