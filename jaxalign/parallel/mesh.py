"""Device meshes: named axes over the devices of one or many processes."""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxalign.errors import ConfigError

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; at most one may be -1, which takes the devices that the others leave."""

    data: int = -1  # copies of the parameters, each on its share of the batch
    fsdp: int = 1  # batch split as well, parameters and optimizer state split (ZeRO-3)
    tensor: int = 1  # heads, MLP width and vocabulary split


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, ...]:
    """Resolves -1 and checks the sizes against the number of devices.

    Raises:
      ConfigError: a size is 0 or below -1, two are -1, or the product is not `num_devices`.
    """
    sizes = [getattr(config, axis) for axis in AXES]
    wanted = ", ".join(f"config.mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise ConfigError(f"{wanted}: every axis must be a positive number, and at most one of them -1")
    known = math.prod(size for size in sizes if size != -1)
    if num_devices % known or (-1 not in sizes and known != num_devices):
        raise ConfigError(
            f"{wanted}: the axes ask for {'a multiple of ' if -1 in sizes else ''}{known} devices, "
            f"but there are {num_devices}; make their product {num_devices}, or set one axis to -1"
        )
    return tuple(num_devices // known if size == -1 else size for size in sizes)


def make_mesh(config: MeshConfig = MeshConfig(), devices: list | None = None) -> Mesh:
    """A mesh with the axes `data, fsdp, tensor` over `devices` (all of them when None)."""
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    if len(devices) == 1:
        return Mesh(np.array(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
