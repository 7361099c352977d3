"""Device meshes: named axes over the devices of one or many processes, and of one or many slices."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxalign.errors import ConfigError
from jaxalign.fields import Checked, field

AXES = ("data", "fsdp", "expert", "context", "tensor")


def _size(default: int) -> Any:
    return field(
        default, at_least=-1, says=": every axis must be a positive number, and at most one of them -1"
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig(Checked, at="config.mesh"):
    """Sizes of the mesh axes; at most one may be -1, which takes the devices that the others leave."""

    data: int = _size(-1)  # copies of the parameters, each on its share of the batch
    fsdp: int = _size(1)  # batch split as well, parameters and optimizer state split (ZeRO-3)
    tensor: int = _size(1)  # heads, MLP width and vocabulary split
    context: int = _size(1)  # tokens of a row split; every device sees the keys of whole rows
    expert: int = _size(1)  # batch split as well, experts split
    # Which axis crosses the network between TPU slices, or hosts of GPUs, where there are several.
    slice_axis: str = field("data", choices=AXES)
    rules: tuple[str, ...] | str = ""  # changes to the sharding table: "embed=fsdp+data,act_embed=tensor"


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, ...]:
    """Resolves -1 and checks the sizes against the number of devices.

    Raises:
      ConfigError: a size is 0 or below -1, two are -1, or the product is not `num_devices`.
    """
    sizes = [getattr(config, axis) for axis in AXES]
    wanted = ", ".join(
        f"config.mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True) if size != 1
    )
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise ConfigError(f"{wanted}: every axis must be a positive number, and at most one of them -1")
    known = math.prod(size for size in sizes if size != -1)
    if num_devices % known or (-1 not in sizes and known != num_devices):
        raise ConfigError(
            f"{wanted or 'config.mesh'}: the axes ask for {'a multiple of ' if -1 in sizes else ''}{known} devices, "
            f"but there are {num_devices}; make their product {num_devices}, or set one axis to -1"
        )
    return tuple(num_devices // known if size == -1 else size for size in sizes)


def check_slices(config: MeshConfig, shape: tuple[int, ...], slices: int, platform: str) -> None:
    """Checks that slices, or hosts of GPUs, split the slice axis of a mesh.

    Args:
      shape: the sizes of all axes, as `mesh_shape` resolves them.
      platform: of the devices, as `jax.Device.platform` has it.

    Raises:
      ConfigError: they do not.
    """
    size = shape[AXES.index(config.slice_axis)]
    if size % slices:
        kind = "hosts of GPUs" if platform == "gpu" else "slices"
        raise ConfigError(
            f"config.mesh.{config.slice_axis}={size} is split over {slices} {kind}; "
            f"make it a multiple of {slices}, or name another config.mesh.slice_axis"
        )


def platform() -> str:
    """cpu, gpu or tpu: of the mesh in force, whose devices may only be described, or else of this process."""
    device: Any = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def make_mesh(
    config: MeshConfig = MeshConfig(), devices: list | None = None, *, by_process: bool = False
) -> Mesh:
    """A mesh with the axes of `AXES` over `devices` (all of them when None).

    Devices of several TPU slices, or hosts of GPUs, are arranged so that only `slice_axis` crosses between them.

    Args:
      by_process: the devices of a process are a slice, as of GPUs that are only described.

    Raises:
      ConfigError: sizes that do not fit the devices, or a size of the slice axis that the slices do not divide.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    kinds = (AxisType.Auto,) * len(AXES)
    if len(devices) == 1:
        return Mesh(np.array(devices).reshape(shape), AXES, axis_types=kinds)
    place = "process_index" if by_process else "slice_index"
    slices = len({getattr(device, place, 0) for device in devices})
    check_slices(config, shape, slices, devices[0].platform)
    across = [slices if axis == config.slice_axis else 1 for axis in AXES]
    within = [size // count for size, count in zip(shape, across, strict=True)]
    return Mesh(_arranged(within, across, devices, by_process), AXES, axis_types=kinds)


def _arranged(within: list[int], across: list[int], devices: list, by_process: bool) -> np.ndarray:
    def arrange(split: bool) -> np.ndarray:
        if math.prod(across) == 1:
            return mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=split)
        return mesh_utils.create_hybrid_device_mesh(
            within,
            across,
            devices=devices,
            process_is_granule=by_process,
            allow_split_physical_axes=split,
        )

    try:
        return arrange(split=False)
    except NotImplementedError:
        # An axis takes part of a side of the torus: its neighbours are near, though it closes to no ring.
        return arrange(split=True)
