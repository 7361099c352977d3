"""Lower bounds of a step's time: by arithmetic, by memory, and by the links between chips."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxalign.parallel.chips import Chip
from jaxalign.plan.collectives import SLICES
from jaxalign.plan.topology import Topology


def axis_bandwidth(mesh: Mesh, axes: tuple[str, ...], topology: Topology) -> float:
    """Bytes a second that a chip can send along mesh axes, by all links of the torus that they use.

    Two directions in a dimension that the axes close to a ring, one in a dimension where they are a line; of axes that
    span slices their part within one. Between slices the data centre's network counts. For axes that are unknown: one
    link.
    """
    chip = topology.chip
    if axes == (SLICES,):
        return chip.network
    if not chip.torus:
        return chip.link
    if not set(axes) <= set(mesh.axis_names):
        return chip.link
    moved = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    group = np.asarray(mesh.devices[moved]).reshape(-1)
    coordinates = np.array(
        [device.coords[: chip.torus] for device in group if _slice_of(device) == _slice_of(group[0])]
    )
    links = 0
    for at, side in enumerate(topology.shape):
        reached = len(set(coordinates[:, at])) if coordinates.shape[1] > at else 1
        closed = reached == side and side % chip.ring == 0
        links += 0 if reached == 1 else 2 if closed else 1
    return chip.link * max(links, 1)


def _slice_of(device: Any) -> int:
    return getattr(device, "slice_index", 0)


def bounds(
    chip: Chip, flops: float, hbm_bytes: float, sent: Mapping[str, float], bandwidth: Mapping[str, float]
) -> dict[str, float]:
    """Seconds of a step on one chip if nothing else took time: `compute`, `hbm`, `ici`; between slices `network`.

    Args:
      sent: bytes a chip sends along each set of axes; different ones may run side by side, so the slowest counts.
      bandwidth: of each of those, bytes a second.
    """
    times = {axes: sent[axes] / bandwidth[axes] for axes in sent}
    network = {"network": times.pop(SLICES)} if SLICES in times else {}
    return {
        "compute": flops / chip.flops,
        "hbm": hbm_bytes / chip.hbm_bandwidth,
        "ici": max(times.values(), default=0.0),
    } | network


def mfu_bound(chip: Chip, model_flops: float, seconds: Mapping[str, float]) -> float:
    """The highest model FLOP utilisation that the bounds allow, of `model_flops` a chip."""
    return model_flops / (chip.flops * max(seconds.values()))
