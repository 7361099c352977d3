"""GPUs described without one, for XLA's compiler of CUDA programs."""

import dataclasses
import importlib.util
from typing import Any

from jax.experimental import topologies

from jaxalign.errors import ConfigError
from jaxalign.parallel.chips import Chip

PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
INSTALL = "pip install '.[plan-gpu]' in jaxalign's checkout, or pip install 'jax[cuda12-local]'"


@dataclasses.dataclass(frozen=True)
class Processor:
    """What the compiler asks about a GPU, beside what `Chip` has of it.

    Sources: the CUDA C++ programming guide's table of compute capabilities and NVIDIA's white papers; OpenXLA describes
    the same GPUs to its own tools in xla/backends/gpu/target_config/specs.
    """

    name: str
    # Compute capability.
    major: int
    # Streaming multiprocessors, and float32 units of each.
    cores: int
    units: int
    # Bytes of shared memory, of one multiprocessor and the most that a block may ask for.
    shared: int
    shared_most: int
    # Bytes.
    l2_cache: int
    clock_ghz: float


PROCESSORS = {
    "a100": Processor("NVIDIA A100-SXM4-80GB", 8, 108, 64, 167_936, 166_912, 40 * 2**20, 1.41),
    "h100": Processor("NVIDIA H100 80GB HBM3", 9, 132, 128, 233_472, 232_448, 50 * 2**20, 1.98),
    "h200": Processor("NVIDIA H200", 9, 132, 128, 233_472, 232_448, 50 * 2**20, 1.98),
    "b200": Processor("NVIDIA B200", 10, 148, 128, 233_472, 232_448, 132_644_864, 1.965),
}


def is_compiler_installed() -> bool:
    """Whether JAX's plugin for CUDA, in which the compiler is, can be imported. It needs no GPU and no CUDA."""
    return any(importlib.util.find_spec(name) for name in PLUGINS)


def target_config(chip: Chip) -> str:
    """A GPU as XLA's `GpuTargetConfigProto`, in text form."""
    gpu = PROCESSORS[chip.name]
    # From compute capability 9 on instructions of one generation only, such as wgmma, are used.
    own = " feature_extension: ACCELERATED_FEATURES" if gpu.major >= 9 else ""
    device: dict[str, Any] = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "shared_memory_per_block": 48 * 2**10,
        "shared_memory_per_core": gpu.shared,
        "shared_memory_per_block_optin": gpu.shared_most,
        "core_count": gpu.cores,
        "fpus_per_core": gpu.units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "memory_bandwidth": int(chip.hbm_bandwidth),
        "l2_cache_size": gpu.l2_cache,
        "clock_rate_ghz": gpu.clock_ghz,
        "device_memory_size": int(chip.hbm),
    }
    fields = "\n".join(f"  {key}: {value}" for key, value in device.items())
    return (
        f"gpu_device_info {{\n{fields}\n  cuda_compute_capability {{ major: {gpu.major}{own} }}\n}}\n"
        f'platform_name: "CUDA"\ndnn_version_info {{ major: 9 minor: 10 }}\ndevice_description_str: "{gpu.name}"\n'
    )


def describe_gpus(chip: Chip, hosts: int, count: int) -> list[Any]:
    """`hosts` times `count` GPUs that can be compiled for and not run on; those of a host are one slice.

    Raises:
      ConfigError: the compiler is not installed, or does not know such a GPU.
    """
    name = f"--topology={f'{hosts}*' if hosts > 1 else ''}{chip.name}:{count}"
    if not is_compiler_installed():
        raise ConfigError(
            f"{name}: compiling for GPUs needs JAX's plugin for CUDA, which runs without one; {INSTALL}"
        )
    try:
        found = topologies.get_topology_desc(
            "", platform="cuda", target_config=target_config(chip), topology=f"{hosts}x1x{count}"
        )
    except Exception as error:  # the plugin's own errors have no type but JaxRuntimeError
        raise ConfigError(f"{name}: JAX's plugin for CUDA cannot describe it: {error}") from error
    return list(found.devices)
