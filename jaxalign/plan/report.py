"""A plan as a table for the terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxalign.errors import amount
from jaxalign.parallel.chips import GIB
from jaxalign.plan.gpus import INSTALL
from jaxalign.training.memory import CACHE, FROZEN


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """What is planned, a column for each step, and warnings."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1) or "one device"
    console.print(
        f"{plan['stage']}, {_large(plan['parameters'])} parameters, on {plan['topology']} "
        f"({amount(plan['chips'], plan['unit'])}: {mesh}), remat {plan['remat']}, "
        f"{amount(plan['num_microbatches'], 'microbatch', 'microbatches')}",
        soft_wrap=True,
        highlight=False,
    )
    for line in basis_lines(plan):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    whole = [step for step in plan["steps"] if "memory" in step]
    table = Table(show_edge=False)
    table.add_column(f"of one {plan['unit']}")
    for step in whole:
        table.add_column(step["name"], justify="right")
    for label, cells in _rows(whole, plan["room"]["fits"]):
        table.add_row(label, *cells)
    if whole:
        console.print(table)
    for line in problem_lines(plan):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def basis_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """What the numbers rest on: an estimate or a compiler, the memory that JAX takes, and the rows."""
    room = plan["room"]
    pool = (
        f"of {room['all'] / GIB:.2f} GiB JAX takes {room['pool'] / GIB:.2f} "
        f"(XLA_PYTHON_CLIENT_MEM_FRACTION={room['pool'] / room['all']:g})"
    )
    if not plan["compiled"]:
        line = "estimated from shapes; nothing was compiled"
        if room["pool"] != room["fits"]:
            line += (
                f": {pool}, and a tenth of these is left free for what shapes do not show, so that a step fits up to "
                f"{room['fits'] / GIB:.2f}"
            )
        yield line
        if plan["unit"] == "GPU":
            yield f"to compile it for this GPU, without one: {INSTALL}"
    elif room["pool"] != room["all"]:
        yield f"compiled for this GPU without one, so that no kernel was tuned: {pool}"
    yield f"rows: {plan['rows']}"


def _large(count: int) -> str:
    """A number of parameters as one says it: "1.24 billion", "1.05 million", "9,000"."""
    for unit, word in ((1e9, "billion"), (1e6, "million")):
        if count >= unit:
            return f"{count / unit:.2f} {word}"
    return f"{count:,}"


def _rows(steps: list[dict[str, Any]], room: float) -> Iterator[tuple[str, list[str]]]:
    def listed(key: str, label: str, unit: float, digits: int) -> Iterator[tuple[str, list[str]]]:
        for name in dict.fromkeys(name for step in steps for name in step.get(key, ())):
            yield label.format(name), [f"{step[key].get(name, 0) / unit:.{digits}f}" for step in steps]

    yield from listed("memory", "{}, GiB", GIB, 2)
    yield f"of {room / GIB:.4g} GiB", ["fits" if step["fits"] else "DOES NOT FIT" for step in steps]
    if all("peak" in step for step in steps):
        yield "in use at most, GiB", [f"{step['peak'] / GIB:.2f}" for step in steps]
    yield from listed("flops", "TFLOP, {}", 1e12, 2)
    yield "TFLOP of the model", [f"{step['model_flops'] / 1e12:.2f}" for step in steps]
    yield "HBM traffic, GB", [f"{step['hbm_bytes'] / 1e9:.1f}" for step in steps]
    if all("kernels" in step for step in steps):
        yield "kernels started", [f"{step['kernels']:,.0f}" for step in steps]
    yield from listed("sent_by_kind", "sent by {}, GB", 1e9, 2)
    yield from listed("sent_by_axes", "sent along {}, GB", 1e9, 2)
    yield from listed("seconds", "least time by {}, s", 1, 3)
    yield "bound by", [step["bound_by"] for step in steps]
    yield "MFU at most", [f"{step['mfu_bound']:.1%}" for step in steps]
    if all("compile_seconds" in step for step in steps):
        yield "compiled in, s", [f"{step['compile_seconds']:.0f}" for step in steps]


def problem_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """What does not fit, by how much, what it is made of, and what would help; and what is gathered for nothing."""
    for step in plan["steps"]:
        if not step["fits"]:
            held = step.get("estimate", step.get("memory", {}))
            parts = ", ".join(f"{kind} {size / GIB:.1f}" for kind, size in held.items() if size > 0.05 * GIB)
            yield (
                f"PROBLEM: {step['name']} needs {step['over_bytes'] / GIB:.2f} GiB more than a {plan['unit']} of "
                f"{plan['topology']} has for it (by estimate, GiB: {parts}); try "
                f"{', '.join(remedies(plan, held))}"
            )
        for warning in step.get("warnings", ()):
            yield f"WARNING: {step['name']}: {warning}"


def remedies(plan: Mapping[str, Any], held: Mapping[str, float]) -> Iterator[str]:
    """What makes a step smaller that is not done yet.

    Args:
      held: bytes of a device by what holds them.
    """
    if plan["remat"] != "full":
        yield "config.model.remat='full'"
    rows = plan["batch_size"] // (plan["mesh"]["data"] * plan["mesh"]["fsdp"] * plan["mesh"]["expert"])
    if rows > plan["num_microbatches"]:
        yield f"config.num_microbatches={2 * plan['num_microbatches']}"
    if held.get(FROZEN):
        kinds = ("float32", "bfloat16", "int8")
        yield from (
            f"config.frozen.dtype={kind!r}" for kind in kinds[kinds.index(plan["frozen"]["dtype"]) + 1 :]
        )
        if not plan["frozen"]["offload"]:
            yield "config.frozen.offload=True"
    if held.get(CACHE):
        yield "config.mesh.rules='decode_embed=fsdp'"
    yield "a larger config.mesh.fsdp or tensor"
    yield "more chips" if plan["unit"] != "GPU" else "more GPUs"
