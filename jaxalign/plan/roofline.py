"""Lower bounds of a step's time: by arithmetic, by memory, and by the links between chips."""

from collections.abc import Mapping

import numpy as np
from jax.sharding import Mesh

from jaxalign.plan.chips import Chip, Topology


def axis_bandwidth(mesh: Mesh, axes: tuple[str, ...], topology: Topology) -> float:
    """Bytes a second that a chip can send along mesh axes, by all links of the torus that they use.

    Two directions in a dimension that the axes close to a ring, one in a dimension where they are a line. Between
    slices the data centre's network counts. For axes that are unknown: one link.
    """
    chip = topology.chip
    if not chip.torus:
        return chip.link
    if not set(axes) <= set(mesh.axis_names):
        return chip.link
    moved = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    group = np.asarray(mesh.devices[moved]).reshape(-1)
    if len({getattr(device, "slice_index", None) for device in group}) > 1:
        return chip.network
    coordinates = np.array([device.coords[: chip.torus] for device in group])
    links = 0
    for at, side in enumerate(topology.shape):
        reached = len(set(coordinates[:, at])) if coordinates.shape[1] > at else 1
        closed = reached == side and side % chip.ring == 0
        links += 0 if reached == 1 else 2 if closed else 1
    return chip.link * max(links, 1)


def bounds(
    chip: Chip, flops: float, hbm_bytes: float, sent: Mapping[str, float], bandwidth: Mapping[str, float]
) -> dict[str, float]:
    """Seconds of a step on one chip if nothing else took time: `compute`, `hbm`, `ici`.

    Args:
      sent: bytes a chip sends along each set of axes; different ones may run side by side, so the slowest counts.
      bandwidth: of each of those, bytes a second.
    """
    links = [sent[axes] / bandwidth[axes] for axes in sent]
    return {
        "compute": flops / chip.flops,
        "hbm": hbm_bytes / chip.hbm_bandwidth,
        "ici": max(links, default=0.0),
    }


def mfu_bound(chip: Chip, model_flops: float, seconds: Mapping[str, float]) -> float:
    """The highest model FLOP utilisation that the bounds allow, of `model_flops` a chip."""
    return model_flops / (chip.flops * max(seconds.values()))
