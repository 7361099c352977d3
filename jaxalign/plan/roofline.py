"""Lower bounds of a step's time: by arithmetic, by memory, and by the links between devices."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxalign.parallel.chips import Chip
from jaxalign.plan.collectives import SLICES
from jaxalign.plan.topology import Topology

# Between the two devices of a chip of TPU7x: as fast as six links of the chip, of which `Chip.link` is one half.
_WITHIN_CHIP = 12


def axis_bandwidth(mesh: Mesh, axes: tuple[str, ...], topology: Topology) -> float:
    """Bytes a second that a device can send along mesh axes, by all links of the torus that they use.

    Two directions in a dimension that the axes close to a ring, one in a dimension where they are a line; of axes that
    span slices their part within one. Between slices the data centre's network counts. For axes that are unknown: one
    link. GPUs of one host have all their NVLinks; see `_switched` for several hosts.
    """
    chip = topology.chip
    if axes == (SLICES,):
        return chip.network
    known = set(axes) <= set(mesh.axis_names)
    if not chip.torus:
        return _switched(_group(mesh, axes if known else mesh.axis_names), chip, known)
    if not known:
        return chip.link
    group = [device for device in _group(mesh, axes) if _slice_of(device) == _slice_of(mesh.devices.flat[0])]
    coordinates = np.array([device.coords[: chip.torus] for device in group])
    links = 0
    for at, side in enumerate(topology.shape):
        reached = len(set(coordinates[:, at])) if coordinates.shape[1] > at else 1
        closed = reached == side and side % chip.ring == 0
        links += 0 if reached == 1 else 2 if closed else 1
    # Devices of one chip share its links: what they gather together crosses them once.
    of_a_chip = max(Counter(map(tuple, coordinates)).values())
    if not links and of_a_chip > 1:
        return chip.link * _WITHIN_CHIP
    return chip.link * max(links, 1) * of_a_chip


def _group(mesh: Mesh, axes: tuple[str, ...]) -> list[Any]:
    moved = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    return list(np.asarray(mesh.devices[moved]).reshape(-1))


def _switched(group: list[Any], chip: Chip, known: bool) -> float:
    """Of a group of GPUs: what NVLink carries, or between hosts the network cards of the group's GPUs on one of them.

    A ring through all GPUs of a host enters and leaves it once, and several rings share what is sent.
    """
    hosts = Counter(device.process_index for device in group)
    if len(hosts) == 1:
        return chip.link
    return min(chip.link, chip.network * (min(hosts.values()) if known else 1))


def _slice_of(device: Any) -> int:
    return getattr(device, "slice_index", 0)


def bounds(
    chip: Chip, flops: float, hbm_bytes: float, sent: Mapping[str, float], bandwidth: Mapping[str, float]
) -> dict[str, float]:
    """Seconds of a step on one device if nothing else took time: `compute`, `hbm`, and `ici`, for GPUs `nvlink`.

    What goes slower than one link, between slices or hosts, is `network`.

    Args:
      sent: bytes a device sends along each set of axes; different ones may run side by side, so the slowest counts.
      bandwidth: of each of those, bytes a second.
    """
    links = "ici" if chip.torus else "nvlink"
    times = {"compute": flops / chip.flops, "hbm": hbm_bytes / chip.hbm_bandwidth, links: 0.0}
    for axes, size in sent.items():
        kind = "network" if bandwidth[axes] < chip.link else links
        times[kind] = max(times.get(kind, 0.0), size / bandwidth[axes])
    return times


def mfu_bound(chip: Chip, model_flops: float, seconds: Mapping[str, float]) -> float:
    """The highest model FLOP utilisation that the bounds allow, of `model_flops` a device."""
    return model_flops / (chip.flops * max(seconds.values()))
