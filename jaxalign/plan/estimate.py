"""Memory and time of a step from shapes alone: for devices that cannot be compiled for, and to prune a search."""

import os
from typing import Any

import jax.numpy as jnp
from jax.sharding import AbstractMesh

from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig
from jaxalign.parallel.chips import Chip
from jaxalign.parallel.sharding import shards
from jaxalign.plan.collectives import SLICES
from jaxalign.plan.roofline import bounds, mfu_bound
from jaxalign.plan.topology import Topology
from jaxalign.training.config import Config
from jaxalign.training.memory import (
    ACTIVATIONS,
    CACHE,
    ELSEWHERE,
    FROZEN,
    GRADIENTS,
    OPTIMIZER,
    PARAMETERS,
    SCRATCH,
    Program,
    estimate_memory,
    weight_bytes,
)

# Of the memory there is, left free for what an estimate cannot know: scratch space, fragments, other buffers.
MARGIN = 0.1
_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"


def room(chip: Chip, *, compiled: bool = False) -> dict[str, float]:
    """Bytes of a GPU: `all`, the `pool` that JAX takes of it, and up to what a step `fits`.

    That is the pool, or less by a margin where nothing was compiled. A TPU's are all of one kind: its compiler has the
    last word.

    Raises:
      ConfigError: XLA_PYTHON_CLIENT_MEM_FRACTION is no share.
    """
    if chip.torus:
        return {"all": chip.hbm, "pool": chip.hbm, "fits": chip.hbm}
    said = os.environ.get(_FRACTION) or "0.75"
    try:
        share = float(said)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigError(f"{_FRACTION}={said} must be a share above 0 and at most 1, such as 0.9")
    pool = share * chip.hbm
    return {"all": chip.hbm, "pool": pool, "fits": pool if compiled else (1 - MARGIN) * pool}


def estimate(
    step: Program, model: ModelConfig, config: Config, mesh: AbstractMesh, topology: Topology
) -> dict[str, Any]:
    """What `measure` reports, but by arithmetic; without what only a compiler can know, and without warnings.

    Memory is `estimate_memory`'s. Traffic of the memory is that of weights, optimizer and saved activations.
    Traffic between chips is the gathers of parameters and the scatter of gradients along fsdp, the sum of a chip's part
    of the gradients along data and between slices, along tensor two all-reduces of the activations a layer and pass,
    and along context the keys and values of whole rows.
    """
    trains = OPTIMIZER in step.kinds
    parts = config.num_microbatches if trains else 1
    item = jnp.dtype(model.dtype).itemsize
    tensor, context = mesh.shape["tensor"], mesh.shape["context"]
    tokens = step.tokens / (shards(mesh, "batch") * context * parts)  # of a chip and microbatch
    weights = weight_bytes(step, model, tensor)
    known = estimate_memory(step, model, config, mesh)
    saved, cache = known[ACTIVATIONS], known[CACHE]
    # Sampling reads the parameters for every token.
    read = weights * step.loop_trips if step.loop_trips > 1 else 0.0
    memory = {kind: known[kind] for kind in (PARAMETERS, OPTIMIZER, FROZEN)}
    memory["temporaries"] = sum(known[kind] for kind in (GRADIENTS, ACTIVATIONS, CACHE, SCRATCH))
    memory["elsewhere"] = known[ELSEWHERE]
    memory["total"] = sum(memory.values())

    recomputed = trains and model.remat in ("full", "attention")
    again = 4 / 3 if recomputed else 1.0
    flops = step.model_flops / mesh.size * again
    passes = step.passes * (1.5 if recomputed else 1.0)
    traffic = weights * passes + read + 2 * memory[OPTIMIZER] + 2 * saved * parts
    traffic += cache * step.loop_trips if read else 0.0
    sent = {"fsdp": weights * (passes + (parts if trains else 0)) * _share(mesh.shape["fsdp"])}
    reduced = 2 * tokens * model.embed_dim * item * model.num_layers * 2 * _share(tensor)
    sent["tensor"] = reduced * parts * (3 if trains else 1)
    keys = 2 * model.num_kv_heads * model.head_dim / tensor * tokens * context * item * model.num_layers
    sent["context"] = keys * _share(context) * parts * (3 if trains else 1)
    across = topology.slices if config.mesh.slice_axis == "data" else 1
    data = mesh.shape["data"] // across  # within a slice
    for axis, n in ("data", data), (SLICES, topology.slices):
        sent[axis] = 2 * weights / mesh.shape["fsdp"] * _share(n) * parts if trains else 0.0
    sent = {axis: size for axis, size in sent.items() if size}
    sizes = dict(mesh.shape) | {"data": data}
    bandwidth = {
        axis: topology.chip.network if axis == SLICES else _bandwidth(topology, sizes[axis]) for axis in sent
    }
    times = bounds(topology.chip, flops, traffic, sent, bandwidth)
    over = memory["total"] - room(topology.chip)["fits"]
    return {
        "name": step.name,
        "fits": over <= 0,
        "over_bytes": max(0.0, over),
        "memory": memory,
        "flops": {"all": flops},
        "model_flops": step.model_flops / mesh.size,
        "hbm_bytes": traffic,
        "sent_by_axes": sent,
        "axes_bandwidth": bandwidth,
        "seconds": times,
        "bound_by": max(times, key=times.__getitem__),
        "mfu_bound": mfu_bound(topology.chip, step.model_flops / mesh.size, times),
        "tokens": step.tokens,
    }


def _share(n: int) -> float:
    return (n - 1) / n


def _bandwidth(topology: Topology, size: int) -> float:
    chip = topology.chip
    if not chip.torus:
        return chip.link
    # The dimensions that an axis of this size would fill, largest first, a whole one being a ring.
    links, left = 0, -(-size // chip.devices)
    for side in sorted(topology.shape, reverse=True):
        if left > 1:
            links += 2 if left >= side and side % chip.ring == 0 else 1
            left = -(-left // side)
    return chip.link * max(links, 1) * min(size, chip.devices)
