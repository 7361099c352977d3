"""What `jaxalign plan` does: every step of a stage compiled for a slice that is not here."""

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType
from rich.console import Console

from jaxalign import parallel
from jaxalign.errors import ConfigError
from jaxalign.models.init import count_params
from jaxalign.parallel.mesh import check_slices, mesh_shape
from jaxalign.plan.estimate import estimate, room
from jaxalign.plan.measure import measure
from jaxalign.plan.programs import full_rows, planned, rows_in_words, stage_steps
from jaxalign.plan.report import print_plan
from jaxalign.plan.search import candidates, rank
from jaxalign.plan.topology import Topology, describe_devices, parse_topology
from jaxalign.stages import parse_config
from jaxalign.storage import to_path, write_whole
from jaxalign.training.config import Config
from jaxalign.training.memory import estimate_memory
from jaxalign.verbs.requests import ConfigRequest, flag

# Of a process, before libtpu is loaded: nothing is run, so no TPU is looked for, and one that is here stays free.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRequest(ConfigRequest):
    """Compile every step of a stage for a TPU slice or for GPUs, without one: memory, time and traffic of a chip, and
    whether it fits.

    A config takes a published model as its argument, such as dpo:llama3_1_8b. Exit code 1: it does not fit.

        jaxalign plan --config=dpo:llama3_1_8b --topology=v5p:2x2x2
        jaxalign plan --config=dpo:llama3_1_8b --topology=h100:8
    """

    topology: str = flag(
        "v5p:4x4x4 or v5p-128, 2*v5e:16x16 (two slices), h100:8, 2*h100:8 (two hosts)", show="CHIP:SHAPE"
    )
    search: bool = flag("try mesh shapes, microbatches and remat policies", default=False)
    budget: int = flag("programs that --search compiles", default=6, at_least=1)
    json: str = flag("write all numbers here", default="", show="FILE")


def run(request: PlanRequest) -> int:
    """Prints the plan, and returns 1 where a step does not fit."""
    os.environ |= NO_TPU
    jax.config.update("jax_platforms", "cpu")
    # What is compiled for devices elsewhere could not be read back.
    jax.config.update("jax_enable_compilation_cache", False)
    config = parse_config(request.read())
    found = run_plan(config, request.topology, search=request.search, budget=request.budget)
    print_plan(found, Console())
    if request.json:
        write_json(found, request.json)
    return 0 if all(step["fits"] for step in found["steps"]) else 1


def run_plan(config: Config, topology: str, *, search: bool = False, budget: int = 6) -> dict[str, Any]:
    """Everything that `jaxalign plan` prints, JSON-able: of the config as it is, or of the best that a search finds.

    Raises:
      ConfigError: no such topology, no compiler for it, or sizes that do not divide by the mesh.
    """
    where = parse_topology(topology)
    look = compiled_plan if where.has_compiler else estimated_plan
    if not search:
        return look(config, where)
    config = planned(config, _described(config, where), where.platform)
    return searched(config, where, look, budget)


def compiled_plan(config: Config, topology: Topology) -> dict[str, Any]:
    """Every step compiled for the slice, or for the GPUs."""
    devices = describe_devices(topology)
    mesh = parallel.make_mesh(config.mesh, devices, by_process=topology.platform == "gpu")
    rules = parallel.parse_rules(config.mesh.rules)
    config = planned(config, mesh, topology.platform)
    model, steps = stage_steps(config, mesh, topology.platform, *_limits(topology, compiled=True))
    rows = full_rows(config)
    measured = [measure(step, model, mesh, rules, topology, rows) for step in steps]
    for step, found in zip(steps, measured, strict=True):
        if not found["fits"]:
            found["estimate"] = estimate_memory(step, model, config, mesh)
    return _head(config, topology, model, mesh, steps, compiled=True) | {"steps": measured}


def estimated_plan(config: Config, topology: Topology) -> dict[str, Any]:
    """Every step by arithmetic on shapes alone: to prune a search, and for GPUs where their compiler is not here."""
    mesh = _described(config, topology)
    check_slices(config.mesh, tuple(mesh.shape.values()), topology.slices, topology.platform)
    config = planned(config, mesh, topology.platform)
    model, steps = stage_steps(config, mesh, topology.platform, *_limits(topology, compiled=False))
    estimated = [estimate(step, model, config, mesh, topology) for step in steps]
    return _head(config, topology, model, mesh, steps, compiled=False) | {"steps": estimated}


def _limits(topology: Topology, *, compiled: bool) -> tuple[float, float]:
    """Bytes of a device that a step may fill, and FLOP that it does while its memory moves a byte."""
    chip = topology.chip
    return room(chip, compiled=compiled)["fits"], chip.intensity


def _described(config: Config, topology: Topology) -> AbstractMesh:
    kinds = (AxisType.Auto,) * len(parallel.AXES)
    return AbstractMesh(mesh_shape(config.mesh, topology.size), parallel.AXES, axis_types=kinds)


def searched(
    config: Config, topology: Topology, look: Callable[[Config, Topology], dict[str, Any]], budget: int
) -> dict[str, Any]:
    """The best of `budget` looks at the candidates that are promising by estimate; `tried` lists them all.

    Raises:
      ConfigError: none may fit by estimate, or none can be compiled.
    """
    promising = rank(candidates(config, topology), lambda candidate: estimated_plan(candidate, topology))
    tried, refused = [], ""
    for candidate in promising:
        if len(tried) == budget:
            break
        try:
            tried.append(look(candidate, topology))
        except ConfigError as error:  # a mesh that the estimate allowed and the slice does not
            print(error, flush=True)
            refused = str(error)
            continue
        print(summary_line(tried[-1]), flush=True)
    if not tried:
        raise ConfigError(
            f"--search: {topology.name} takes none of the {len(promising)} candidates; the last: {refused}"
        )
    best = max(tried, key=score)
    return best | {"tried": [{key: plan[key] for key in plan if key != "model"} for plan in tried]}


def score(plan: dict[str, Any]) -> tuple[bool, float]:
    """Fitting plans first, then by the MFU that their slowest bounds allow over all steps together."""
    return all(step["fits"] for step in plan["steps"]), overall_mfu(plan)


def overall_mfu(plan: dict[str, Any]) -> float:
    """The MFU bound of all steps one after another; 0 where one did not compile."""
    steps = plan["steps"]
    if any("seconds" not in step for step in steps):
        return 0.0
    seconds = sum(max(step["seconds"].values()) for step in steps)
    return sum(step["model_flops"] for step in steps) / (plan["chip"]["flops"] * seconds)


def summary_line(plan: dict[str, Any]) -> str:
    """A candidate of a search in one line."""
    mesh = " ".join(f"{axis}={size}" for axis, size in plan["mesh"].items() if size > 1) or "one device"
    fits = "fits" if score(plan)[0] else "does not fit"
    return (
        f"{mesh} num_microbatches={plan['num_microbatches']} remat={plan['remat']}: {fits}, "
        f"MFU at most {overall_mfu(plan):.1%}"
    )


def _head(
    config: Config, topology: Topology, model: Any, mesh: Any, steps: list, *, compiled: bool
) -> dict[str, Any]:
    return {
        "compiled": compiled,
        "stage": config.stage.name,
        "topology": topology.name,
        "chips": topology.size,
        "unit": topology.chip.unit,
        "chip": dataclasses.asdict(topology.chip),
        "room": room(topology.chip, compiled=compiled),
        "rows": rows_in_words(config),
        "mesh": {axis: int(size) for axis, size in mesh.shape.items()},
        "model": dataclasses.asdict(model),
        "parameters": count_params(steps[0].parameters),
        "remat": model.remat,
        "batch_size": config.batch_size,
        "num_microbatches": config.num_microbatches,
        "frozen": dataclasses.asdict(config.frozen),
    }


def write_json(found: dict[str, Any], path: str) -> None:
    """All numbers of a plan, or of a search."""
    write_whole(to_path(path), (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
