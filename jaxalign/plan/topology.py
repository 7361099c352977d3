"""TPU slices and nodes of GPUs by name, and slices described without a TPU."""

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


@dataclasses.dataclass(frozen=True)
class Topology:
    """What `--topology` names: `slices` times a slice of `shape`. GPUs have no shape but (count,)."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def size(self) -> int:
        """Chips in all."""
        return self.slices * math.prod(self.shape)


def parse_topology(text: str) -> Topology:
    """Reads "v5p:4x4x4", "2*v5e:16x16" or "h200:8".

    Raises:
      ConfigError: not of that form, no such chip, or a shape that Google Cloud does not offer; names those that exist.
    """
    found = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", text)
    if not found:
        raise ConfigError(
            f"--topology={text!r}: write CHIP:SHAPE, such as v5p:4x4x4, 2*v5e:16x16 for two slices, or h200:8"
        )
    slices, name, shape = int(found[1] or 1), found[2], tuple(map(int, found[3].split("x")))
    if name not in CHIPS:
        near = difflib.get_close_matches(name, CHIPS, 1, 0.0)[0]
        raise ConfigError(
            f"--topology={text!r}: no chip {name!r}; did you mean {near}? All: {', '.join(CHIPS)}"
        )
    chip = CHIPS[name]
    if slices < 1:
        raise ConfigError(f"--topology={text!r}: {slices} slices; write 1 or more")
    if chip.torus and shape not in slice_shapes(chip):
        known = ", ".join("x".join(map(str, x)) for x in slice_shapes(chip) if math.prod(x) <= 1024)
        raise ConfigError(
            f"--topology={text!r}: {name} has no slice of that shape; there are {known}{_more(chip)}"
        )
    if not chip.torus and (len(shape) != 1 or slices > 1 or not shape[0]):
        raise ConfigError(f"--topology={text!r}: write {name}:N for N devices")
    return Topology(text, chip, shape, slices)


def _more(chip: Chip) -> str:
    return f", and larger ones up to {chip.most} chips" if chip.most > 1024 else ""


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
      ConfigError: libtpu, the compiler, is not installed, or cannot describe this slice.
    """
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
    name = topology.name.split("*")[-1]
    try:
        return list(topologies.get_topology_desc(topology_name=name, platform="tpu", **options).devices)
    except Exception as error:  # libtpu's own errors have no type but JaxRuntimeError
        raise ConfigError(f"--topology={topology.name}: libtpu cannot describe it: {error}") from error
