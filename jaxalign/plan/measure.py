"""Compiles a step for a mesh and says what it takes: memory, arithmetic, traffic, and so the least time."""

import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from jaxalign import parallel
from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig
from jaxalign.parallel.sharding import Rules
from jaxalign.plan import hlo
from jaxalign.plan.collectives import find_collectives, needless_gathers, sent_by, whole_sums
from jaxalign.plan.costs import Visible, count_bytes, count_flops, count_kernels
from jaxalign.plan.estimate import room
from jaxalign.plan.programs import gather_bytes, splitting_axes
from jaxalign.plan.roofline import axis_bandwidth, bounds, mfu_bound
from jaxalign.plan.topology import Topology
from jaxalign.training.memory import FROZEN, OPTIMIZER, PARAMETERS, Program, bytes_per_device

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# As JAX's lowering names the platforms of `Topology.platform`.
_LOWERED_FOR = {"tpu": "tpu", "gpu": "cuda"}


def measure(
    step: Program,
    model: ModelConfig,
    mesh: Mesh,
    rules: Rules,
    topology: Topology,
    lengths: tuple[tuple[int, ...], ...] = (),
) -> dict[str, Any]:
    """What `jaxalign plan` reports of one step, all numbers of one device unless they say otherwise; JSON-able.

    A step that does not fit is reported as such, with what the compiler says of it.

    Args:
      lengths: of the sequences in each of some rows that stand for all; see `costs.Visible`.

    Raises:
      ConfigError: the compiler refuses the step for another reason; names both.
    """
    begin = time.perf_counter()
    try:
        with parallel.use_mesh(mesh, rules):
            traced = step.function.trace(*step.arguments, **step.keywords)
            compiled = traced.lower(lowering_platforms=(_LOWERED_FOR[topology.platform],)).compile()
    except jax.errors.JaxRuntimeError as error:
        return _failed(step, topology, error)
    seconds = time.perf_counter() - begin
    program = hlo.parse(compiled.as_text())
    visible = Visible(model.window, sum(model.local_layers) / model.num_layers, lengths)
    flops = count_flops(program, visible=visible, unknown_trips=step.loop_trips)
    traffic = count_bytes(program, visible=visible, unknown_trips=step.loop_trips)
    collectives = find_collectives(
        program, mesh, unknown_trips=step.loop_trips, local_layers=visible.local_layers
    )
    sent = sent_by(collectives, "axes")
    bandwidth = {axes: axis_bandwidth(mesh, tuple(axes.split("+")), topology) for axes in sent}
    times = bounds(topology.chip, sum(flops.values()), traffic, sent, bandwidth)
    analysis = compiled.memory_analysis()
    memory = split_memory(step, analysis)
    over = memory["total"] - room(topology.chip, compiled=True)["fits"]
    return {
        "name": step.name,
        "fits": over <= 0,
        "over_bytes": max(0.0, over),
        "memory": memory,
        # What the compiler's own schedule holds at most, which its allocations, the temporaries, round up.
        "peak": analysis.peak_memory_in_bytes + memory["elsewhere"],
        "flops": flops,
        "model_flops": step.model_flops / mesh.size,
        "hbm_bytes": traffic,
        "kernels": count_kernels(program, visible=visible, unknown_trips=step.loop_trips),
        "sent_by_kind": sent_by(collectives, "kind"),
        "sent_by_axes": sent,
        "axes_bandwidth": bandwidth,
        "seconds": times,
        "bound_by": max(times, key=times.__getitem__),
        "mfu_bound": mfu_bound(topology.chip, step.model_flops / mesh.size, times),
        "tokens": step.tokens,
        "warnings": uncounted_flops(sum(flops.values()), step.model_flops / mesh.size)
        + needless_gathers(
            collectives,
            gather_bytes(step.parameters, model.dtype),
            passes=step.passes,
            layers=model.num_layers,
        )
        + whole_sums(collectives, splitting_axes(step.parameters)),
        "compile_seconds": seconds,
    }


def uncounted_flops(counted: float, model_flops: float) -> list[str]:
    """A warning where a program seems to do less than the model needs, which no program can."""
    if counted >= 0.95 * model_flops:
        return []
    return [
        f"{counted / 1e12:.0f} of the model's {model_flops / 1e12:.0f} TFLOP were found in the program: some of its "
        "products are of a kind that is not counted, and it takes longer than the bound by compute"
    ]


def split_memory(step: Program, analysis: Any) -> dict[str, float]:
    """Bytes of HBM on one device, from the compiler's own analysis, the arguments split by what they are.

    `batch and padding` is what is left of the arguments; `temporaries` are activations, gradients and scratch space;
    `elsewhere` what the run keeps in memory beside this program. `total` is the sum of all others.
    """
    parts = {kind: float(bytes_per_device(step.kinds.get(kind))) for kind in (PARAMETERS, OPTIMIZER, FROZEN)}
    # An argument that a program does not read is no argument of it, but lies in memory all the same.
    parts["batch and padding"] = max(0.0, analysis.argument_size_in_bytes - sum(parts.values()))
    parts["temporaries"] = float(analysis.temp_size_in_bytes)
    parts["results"] = float(analysis.output_size_in_bytes - analysis.alias_size_in_bytes)
    parts["program"] = float(analysis.generated_code_size_in_bytes)
    parts["elsewhere"] = float(bytes_per_device(step.beside))
    return parts | {"total": sum(parts.values())}


def _failed(step: Program, topology: Topology, error: Exception) -> dict[str, Any]:
    text = str(error)
    size = r"([\d.]+)([KMGT]?)"
    forms = rf"Used {size} of {size} hbm", rf"\({size}\) exceeds available HBM \({size}\)"
    needed = next((found for form in forms if (found := re.search(form, text))), None)
    if not needed:
        way_out = "; set a smaller config.model.attention_block" if "ScopedVmem" in text else ""
        raise ConfigError(
            f"{step.name}: the compiler refuses it on {topology.name}: {text.splitlines()[0][:500]}{way_out}"
        ) from error
    used, room = (float(needed[at]) * _UNITS[needed[at + 1]] for at in (1, 3))
    return {"name": step.name, "fits": False, "over_bytes": used - room, "error": text.splitlines()[0][:500]}
