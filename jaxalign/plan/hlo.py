"""Reads the text of an optimized XLA program: computations, instructions, and how often each one runs."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "token": 0} | {
    f"{kind}{bits}": bits // 8 for kind in "suf" for bits in (8, 16, 32, 64)
}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_END = re.compile(r"^\}(, execution_thread=\S+)?$")  # not every line with a brace: attributes may hold some
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")


COLLECTIVES = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a result: its type, its shape, and whether it lies in the chip's main memory (HBM)."""

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool

    @property
    def bytes(self) -> float:
        """Without the padding of its layout."""
        return math.prod(self.shape) * (1 if self.dtype.startswith("f8") else BYTES[self.dtype])


@dataclasses.dataclass
class Instruction:
    """`name = result opcode(operands), attributes`; `inside` is what stands between the parentheses."""

    name: str
    results: list[Array]
    opcode: str
    inside: str
    attributes: str
    root: bool

    @property
    def operands(self) -> list[str]:
        """Names of the instructions that it reads."""
        return re.findall(r"%([\w.\-]+)", self.inside)

    def attribute(self, name: str) -> str | Any:
        """The value of an attribute that is one word, such as the name of a computation; None where there is none."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found and found[1]

    @property
    def op_name(self) -> str:
        """The path of JAX's names that it came from, "" when the compiler added it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, and the one that runs."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current, last = "", None, None
    for line in text.splitlines():
        if current is None:
            if header := _HEADER.match(line):
                current = computations.setdefault(header[2], {})
                entry = header[2] if header[1] else entry
        elif _END.match(line):
            current = None
        elif found := _INSTRUCTION.match(line):
            last = _instruction(found, line)
            current[last.name] = last
        elif last is not None:  # an attribute that was written over several lines
            last.attributes += line
    if not entry:
        raise ValueError("no ENTRY computation in this text: it is not an XLA program")
    return Program(computations, entry)


def _instruction(found: re.Match, line: str) -> Instruction:
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    result, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    return Instruction(
        found[2],
        arrays(result),
        rest[:opening],
        rest[opening + 1 : closing],
        rest[closing + 1 :],
        bool(found[1]),
    )


def _closing(text: str, opening: int) -> int:
    depth = 0
    for at in range(opening, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at
    return len(text)


def arrays(text: str) -> list[Array]:
    """The arrays of a result such as `f32[2,3]{1,0}`, or of a tuple of them."""
    out = []
    for dtype, shape, layout in _ARRAY.findall(text):
        if dtype in BYTES or dtype.startswith("f8"):
            # S(n) with n above 0 is a memory on the chip.
            out.append(
                Array(dtype, tuple(int(n) for n in shape.split(",") if n), not re.search(r"S\([1-9]", layout))
            )
    return out


def trips(program: Program, loop: Instruction, owner: Computation, unknown: int) -> int:
    """How often the body of a `while` runs; `unknown` where that depends on data.

    The compiler notes it, or it is found from a condition `counter < constant`, with the counter's start.
    """
    if noted := re.search(r'known_trip_count"?[:=]\{"n":"(\d+)"', loop.attributes):
        return int(noted[1])
    condition = program.computations[loop.attribute("condition")]
    test = next(x for x in condition.values() if x.root)
    if test.opcode == "fusion":
        condition = program.computations[test.attribute("calls")]
        test = next(x for x in condition.values() if x.root)
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return unknown
    counter, limit = (condition[name] for name in test.operands)
    if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
        return unknown
    start = owner.get(owner[loop.operands[0]].operands[int(counter.attribute("index"))])
    while start is not None and start.opcode == "copy":
        start = owner.get(start.operands[0])
    begin = int(start.inside) if start is not None and start.opcode == "constant" else 0
    return int(limit.inside) - begin


def schedules(
    program: Program,
    *,
    unknown_trips: int = 1,
    local_layers: float | None = None,
    name: str = "",
    times: float = 1,
) -> Iterator[tuple[Computation, float]]:
    """The entry, loop bodies, branches and calls, each with how often it runs. Fusions belong to their caller.

    Of the branches of a condition all are given: counts are then upper bounds.

    Args:
      local_layers: the share of a model's layers that have a window, where some have: the second branch of the
        attention's condition runs so often, the first in the other layers.
    """
    computation = program.computations[name or program.entry]
    yield computation, times
    for x in computation.values():
        if x.opcode == "while":
            inner = times * trips(program, x, computation, unknown_trips)
            called = [(x.attribute("body"), inner)]
        elif x.opcode == "conditional":
            listed = re.search(r"branch_computations=\{([^}]*)\}", x.attributes)
            names = listed[1].replace("%", "").split(", ") if listed else []
            names += [x.attribute(f"{kind}_computation") for kind in ("false", "true") if not listed]
            shares = [1.0] * len(names)
            if local_layers is not None and len(names) == 2 and "attention/" in x.op_name:
                shares = [1 - local_layers, local_layers]
            called = [(branch, times * share) for branch, share in zip(names, shares, strict=True)]
        elif x.opcode in ("call", "async-start"):
            called = [(x.attribute("to_apply") or x.attribute("calls"), times)]
        else:
            continue
        for inner_name, inner_times in called:
            yield from schedules(
                program,
                unknown_trips=unknown_trips,
                local_layers=local_layers,
                name=inner_name,
                times=inner_times,
            )


def with_fusions(program: Program, computation: Computation) -> Iterator[tuple[Instruction, Computation]]:
    """The instructions of a computation and of the fusions in it, each with the computation it stands in."""
    for x in computation.values():
        yield x, computation
        if x.opcode == "fusion":
            yield from with_fusions(program, program.computations[x.attribute("calls")])
