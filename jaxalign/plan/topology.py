"""TPU slices and hosts of GPUs by name, and slices described without a TPU."""

import dataclasses
import difflib
import importlib.util
import itertools
import math
import re
from typing import Any

from jax.experimental import topologies

from jaxalign.errors import ConfigError
from jaxalign.parallel.chips import CHIPS, Chip
from jaxalign.plan.gpus import describe_gpus, is_compiler_installed

# What Google Cloud calls a chip in the names of its accelerators.
_OTHER_NAMES = {"v5litepod": "v5e", "v5lite": "v5e", "v7x": "tpu7x"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """What `--topology` names: `slices` times a slice of `shape`. GPUs have no shape but (count,), a host of them."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def size(self) -> int:
        """Devices in all, as JAX counts them."""
        return self.slices * math.prod(self.shape) * self.chip.devices

    @property
    def platform(self) -> str:
        """As `jax.Device.platform` has it."""
        return "tpu" if self.chip.torus else "gpu"

    @property
    def has_compiler(self) -> bool:
        """False for GPUs without JAX's plugin for CUDA; a TPU's steps are compiled, or there is an error."""
        return self.platform == "tpu" or is_compiler_installed()


def parse_topology(text: str) -> Topology:
    """Reads "v5p:4x4x4", "2*v5e:16x16" or "2*h100:8", and Google's names of slices, such as "v5p-128" or "v6e-256".

    Raises:
      ConfigError: not of that form, no such chip, or a shape that Google Cloud does not offer; names those that exist.
    """
    found = re.fullmatch(r"(?:(\d+)\*)?(\w+)(?::(\d+(?:x\d+)*)|-(\d+))", text)
    if not found:
        raise ConfigError(
            f"--topology={text!r}: write CHIP:SHAPE, such as v5p:4x4x4, 2*v5e:16x16 for two slices, h100:8 or 2*h100:8 "
            "for two hosts; or a slice by Google's name, such as v5p-128"
        )
    slices, name = int(found[1] or 1), _OTHER_NAMES.get(found[2].lower(), found[2].lower())
    if name not in CHIPS:
        near = difflib.get_close_matches(name, CHIPS, 1, 0.0)[0]
        raise ConfigError(
            f"--topology={text!r}: no chip {found[2]!r}; did you mean {near}? All: {', '.join(CHIPS)}"
        )
    chip = CHIPS[name]
    if slices < 1:
        raise ConfigError(
            f"--topology={text!r}: {slices} {'slices' if chip.torus else 'hosts'}; write 1 or more"
        )
    if not chip.torus:
        shape = _host_of(text, chip, found[3])
    elif found[4]:
        shape = _slice_of_name(text, chip, int(found[4]))
    else:
        shape = tuple(map(int, found[3].split("x")))
        if shape not in slice_shapes(chip):
            raise ConfigError(f"--topology={text!r}: {name} has no slice of that shape; {_twin(chip, shape)}")
    return Topology(text, chip, shape, slices)


def _host_of(text: str, chip: Chip, shape: str | None) -> tuple[int]:
    """The GPUs of one host, as (count,)."""
    if not shape or not shape.isdigit() or not int(shape):
        raise ConfigError(
            f"--topology={text!r}: write {chip.name}:N for a host of N GPUs, 2*{chip.name}:N for two"
        )
    if int(shape) > chip.most:
        hosts = -(-int(shape) // chip.most)
        raise ConfigError(
            f"--topology={text!r}: a host has at most {chip.most} GPUs; write {hosts}*{chip.name}:{chip.most}"
        )
    return (int(shape),)


def _slice_of_name(text: str, chip: Chip, number: int) -> tuple[int, ...]:
    """The slice that Google gives for a number of TensorCores or chips: of all with so many the most compact one."""
    counted = "TensorCores" if chip.cores > 1 else "chips"
    shapes = [shape for shape in slice_shapes(chip) if math.prod(shape) * chip.cores == number]
    if not shapes:
        known = sorted({math.prod(shape) * chip.cores for shape in slice_shapes(chip)})
        near = [size for size in known if size < number][-2:] + [size for size in known if size > number][:2]
        raise ConfigError(
            f"--topology={text!r}: {chip.name} has no slice of {number} {counted}; near it are "
            f"{', '.join(f'{chip.name}-{size}' for size in near)}"
        )
    return min(shapes, key=sum)


def _twin(chip: Chip, shape: tuple[int, ...]) -> str:
    """What to write in place of a shape: the same one in another order, or one of those that exist."""
    same = [x for x in slice_shapes(chip) if sorted(x) == sorted(shape)]
    if same:
        return f"it is written {_written(same[0])}"
    known = ", ".join(_written(x) for x in slice_shapes(chip) if math.prod(x) <= 1024)
    return f"there are {known}" + (f", and larger ones up to {chip.most} chips" if chip.most > 1024 else "")


def _written(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def slice_shapes(chip: Chip) -> list[tuple[int, ...]]:
    """The slices of a TPU, smallest first: all multiples of four in three dimensions, or a list in two."""
    if chip.torus == 2:
        return [(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
    small = [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
    sides = range(4, 29, 4)
    large = [x for x in itertools.combinations_with_replacement(sides, 3) if math.prod(x) <= chip.most]
    return small + sorted(large, key=math.prod)


def describe_devices(topology: Topology) -> list[Any]:
    """Devices that can be compiled for and not run on.

    Raises:
      ConfigError: libtpu or JAX's plugin for CUDA, the compiler, is not installed, or cannot describe them.
    """
    if topology.platform == "gpu":
        return describe_gpus(topology.chip, topology.slices, *topology.shape)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--topology={topology.name}: compiling for TPUs needs libtpu, which runs without one; "
            f"pip install '.[plan]' in jaxalign's checkout, or pip install libtpu"
        )
    options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # Both cores of a chip as the one device that JAX shows.
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    name = f"{topology.chip.name}:{_written(topology.shape)}"
    try:
        return list(topologies.get_topology_desc(topology_name=name, platform="tpu", **options).devices)
    except Exception as error:  # libtpu's own errors have no type but JaxRuntimeError
        raise ConfigError(f"--topology={topology.name}: libtpu cannot describe it: {error}") from error
