"""What devices send each other in a compiled program: how much, over which mesh axes, and whether it must be."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxalign.plan.hlo import COLLECTIVES, Computation, Instruction, Program, schedules, with_fusions

SLICES = "slices"  # in place of mesh axes: between chips at the same place in different slices
SOME_LAYER = "a parameter of the layers"


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective, which runs `times` a step over groups of `group` devices along `axes` of the mesh."""

    kind: str
    axes: tuple[str, ...]  # or (SLICES,); ("?",) where the groups are along no axes of the mesh
    group: int
    payload: float  # bytes of the whole array of one group: gathered, reduced or exchanged
    times: float
    op_name: str
    of_zeros: bool = False  # an all-reduce that gathers: each device's part, written into zeros, is summed
    arrays: tuple[float, ...] = ()  # bytes of each array, where a gather is of several

    @property
    def sent(self) -> float:
        """Bytes that one device sends in a step, by the ring algorithms.

        Of n devices each sends (n - 1)/n of the array in a gather, a reduce-scatter or an exchange, twice that in an
        all-reduce, and what it holds in a permutation.
        """
        share = 1.0 if self.kind == "collective-permute" else (self.group - 1) / self.group
        return self.times * self.payload * share * (2 if self.kind == "all-reduce" else 1)


def find_collectives(
    program: Program, mesh: Mesh, *, unknown_trips: int = 1, local_layers: float | None = None
) -> list[Collective]:
    """The collectives of a program that was compiled for `mesh`; those within one device are left out.

    See `schedules` for the other arguments.
    """
    out: dict[str | int, Collective] = {}
    for computation, times in schedules(program, unknown_trips=unknown_trips, local_layers=local_layers):
        for x, owner in with_fusions(program, computation):
            kind = x.opcode.removesuffix("-start")
            if kind == "send" and (between := _between_slices(x, owner, times)):
                out[len(out)] = between
            if kind not in COLLECTIVES:
                continue
            groups = parse_groups(x.attributes, mesh.size)
            if groups.shape[1] == 1:
                continue
            operands = sum(a.bytes for name in x.operands if name in owner for a in owner[name].results)
            results = sum(a.bytes for a in x.results)
            arrays: tuple[float, ...] = ()
            if kind == "all-gather":
                payload = operands * groups.shape[1]
                joined = [a.bytes for name in x.operands if name in owner for a in owner[name].results]
                arrays = tuple(size * groups.shape[1] for size in joined) if len(joined) > 1 else ()
            elif x.opcode != kind and kind != "all-reduce":
                payload = operands  # the result of a start holds the operand, too
            else:
                payload = operands or results
            if kind == "all-reduce" and owner is not computation and _scatters(owner):
                kind = "reduce-scatter"  # the TPU compiler's form: an all-reduce and a slice, fused
            of_zeros = kind == "all-reduce" and any(
                _writes_part(program, owner[name]) for name in x.operands if name in owner
            )
            axes = axes_of(groups, mesh)
            # A collective that is cut into steps between products stands in the fusions of its start, of every step,
            # and of its end; the steps may lie in a loop, in which it goes on while other work is done.
            chain = re.search(r'chain_id="?(\d+)', x.attributes)
            key = chain[1] if chain else len(out)
            if key not in out or times < out[key].times:
                out[key] = Collective(
                    kind, axes, groups.shape[1], payload, times, x.op_name, of_zeros, arrays
                )
    return list(out.values())


def _between_slices(x: Instruction, owner: Computation, times: float) -> Collective | None:
    """What the TPU compiler leaves to the hosts' network: a send to them that names the collective and the slices."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', x.attributes)
    slices = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', x.attributes)
    if not (kind and slices):
        return None
    ends = [list(map(int, part.split(":"))) for part in slices[1].split(",")]
    count = sum(part[-1] - part[0] + 1 for part in ends)
    size = sum(a.bytes for a in owner[x.operands[0]].results)
    name = kind[1].lower().replace("_", "-")
    return Collective(name, (SLICES,), count, size * (count if name == "all-gather" else 1), times, x.op_name)


def _writes_part(program: Program, x: Instruction) -> bool:
    inner = program.computations.get(x.attribute("calls") or "", {}) if x.opcode == "fusion" else {"": x}
    return any(y.opcode == "dynamic-update-slice" for y in inner.values())


def _scatters(fusion: Mapping) -> bool:
    root = next(x for x in fusion.values() if x.root)
    last = [fusion[name] for name in root.operands] if root.opcode == "tuple" else [root]
    return any(x.opcode == "dynamic-slice" for x in last)


def parse_groups(attributes: str, size: int) -> np.ndarray:
    """The groups of a collective as [groups, devices of a group], devices counted along the flattened mesh.

    XLA writes {{0,1},{2,3}}, or [2,2]<=[4] and [2,2]<=[2,2]T(1,0) (an iota reshaped, transposed, reshaped), or
    mesh['a'=2,'b'=2] {'b'}; a permutation has source_target_pairs, each of which is a group here.

    Raises:
      ValueError: it is written in none of these ways.
    """
    if found := re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", attributes):
        return _lists(found[1])
    if found := re.search(r"replica_groups=\{(\{[\d,{} ]*\})?\}", attributes):
        return _lists(found[1]) if found[1] else np.arange(size).reshape(1, size)
    iota = r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if found := re.search(rf"replica_groups={iota}", attributes):
        return _iota(found[2], found[3]).reshape(_numbers(found[1]))
    pattern = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\[.*?\](?:T\([\d,]+\))?)\))? \{([^}]*)\}"
    if found := re.search(pattern, attributes):
        axes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", found[1])}
        ids = np.arange(size)
        if found[2]:
            order: Any = re.search(r"(?:\[[\d,]+\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?", found[2])
            ids = _iota(order[1], order[2])
        return _mesh_groups(ids, axes, found[3])
    raise ValueError(f"groups of a collective in an unknown form: {attributes[:300]}")


def _mesh_groups(ids: np.ndarray, axes: dict[str, int], chosen: str) -> np.ndarray:
    # 'a':(m)k is a part of axis a: of its index, written as (m, k, rest), the middle digit.
    sizes: list[int] = []
    last: list[int] = []
    wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
    for name, size in axes.items():
        parts = [(int(pre), int(n)) if n else (1, size) for axis, pre, n in wanted if axis == name]
        done = 1
        for pre, n in sorted(parts):
            sizes += [pre // done, n]
            last.append(len(sizes) - 1)
            done = pre * n
        sizes.append(size // done)
    first = [at for at in range(len(sizes)) if at not in last]
    cube = ids.reshape(sizes).transpose(first + last)
    return cube.reshape(-1, int(np.prod([sizes[at] for at in last])))


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _iota(shape: str, order: str | None) -> np.ndarray:
    cube = np.arange(int(np.prod(_numbers(shape)))).reshape(_numbers(shape))
    return (cube.transpose(_numbers(order)) if order else cube).reshape(-1)


def _lists(text: str) -> np.ndarray:
    return np.array([_numbers(group) for group in re.findall(r"\{([\d,]+)\}", text)])


def axes_of(groups: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes that vary within groups [G, n]; ("?",) when the groups are not exactly those of whole axes.

    A permutation's pairs need only stay on the axes.
    """
    where = np.stack(np.unravel_index(groups, mesh.devices.shape), axis=-1)
    varying = np.any(where != where[:, :1], axis=(0, 1))
    axes = tuple(name for name, moves in zip(mesh.axis_names, varying, strict=True) if moves)
    whole = int(np.prod([mesh.shape[name] for name in axes]))
    return axes if groups.shape[1] in (2, whole) else ("?",)


def sent_by(collectives: Sequence[Collective], what: str) -> dict[str, float]:
    """Bytes that a device sends, summed by `kind` or by `axes` (joined with +)."""
    out: dict[str, float] = {}
    for x in collectives:
        key = x.kind if what == "kind" else "+".join(x.axes)
        out[key] = out.get(key, 0.0) + x.sent
    return out


def needless_gathers(
    collectives: Sequence[Collective],
    parameters: Mapping[str, float],
    *,
    passes: int,
    layers: int,
    least: float = 2**20,
) -> list[str]:
    """Warnings about what is gathered more often than it is used, or need not be gathered at all.

    Args:
      parameters: bytes of each parameter, as it is computed with, on the devices of one gather; by path.
      passes: how often a step may gather one: forward and backward, for every microbatch and model.
      layers: how many are stacked in a parameter whose path begins with "layers".
      least: arrays of fewer bytes a step are left alone.
    """
    gathered: dict[str, float] = {}
    others: dict[tuple[str, str], float] = {}
    for x in collectives:
        if x.kind != "all-gather" or x.axes == ("context",):  # whose devices gather the keys of their rows
            continue
        joined = _joined_parameters(x, parameters, layers)
        for name in joined:
            gathered[name] = gathered.get(name, 0.0) + parameters[name] / layers * x.times
        name = parameter_of(x, parameters, layers)
        if name == SOME_LAYER or joined:
            continue
        if name:
            gathered[name] = gathered.get(name, 0.0) + x.payload * x.times
        else:
            key = (x.op_name or "an array without a name", "+".join(x.axes))
            others[key] = others.get(key, 0.0) + x.payload * x.times
    out = []
    summed = sum(x.payload * x.times for x in collectives if x.of_zeros)
    usual = sum(x.payload * x.times for x in collectives if x.kind == "all-gather")
    if summed > max(least, 0.1 * usual):  # the compiler does so with small ones, where it costs little
        out.append(
            f"{summed / 2**20:,.0f} MiB a step are gathered by all-reduces, which send twice as much as gathers: the "
            "compiler does so where one mesh axis lies along three dimensions of the torus; let config.mesh.data be "
            "as long as one of them"
        )
    for name, size in gathered.items():
        times = size / parameters[name]
        if size > least and times > passes * 1.01:
            out.append(f"{name} is gathered {times:.3g} times a step; {passes} would do")
    # Less than a thousandth of what parameters need is not worth a word, such as token ids.
    least = max(least, sum(gathered.values()) / 1000)
    for (name, axes), size in sorted(others.items(), key=lambda item: -item[1]):
        if size > least:
            out.append(
                f"{size / 2**20:,.0f} MiB a step that are no parameter are gathered over {axes}: {name}"
            )
    return out


def whole_sums(collectives: Sequence[Collective], axes: Set[str], *, least: float = 2**20) -> list[str]:
    """Warnings about all-reduces along axes that split parameters, where reduce-scatters would do.

    Of a gradient that is summed along such an axis a device keeps its part only. The gradients of norms and biases,
    which are on every device, and metrics are small.

    Args:
      axes: those that split some parameter at rest, and rows or tokens.
      least: sums of fewer bytes are left alone.
    """
    sums: dict[str, float] = {}
    for x in collectives:
        if x.kind == "all-reduce" and not x.of_zeros and axes & set(x.axes) and x.payload > least:
            key = "+".join(x.axes)
            sums[key] = sums.get(key, 0.0) + x.payload * x.times
    return [
        f"{size / 2**20:,.0f} MiB a step are summed by all-reduces along {names}, of which a device keeps its part "
        f"along {'+'.join(axis for axis in names.split('+') if axis in axes)}: reduce-scatters would send half as much"
        for names, size in sums.items()
    ]


def _joined_parameters(x: Collective, parameters: Mapping[str, float], layers: int) -> list[str]:
    """The parameters of a layer that one gather is of, as the compiler for GPUs joins several; [] of other gathers.

    Their names stand in one, as in layers/attention/(key/dot_general:value/dot_general).
    """
    listed = re.fullmatch(r"(.*)\(([^()]*:[^()]*)\)(.*)", x.op_name)
    if not listed:
        return []
    names = [f"{listed[1]}{part}{listed[3]}" for part in listed[2].split(":")]
    found = {parameter_of(dataclasses.replace(x, op_name=name), parameters, layers) for name in names}
    known = [name for name in found if name in parameters]
    return known if sum(parameters[name] for name in known) / layers == x.payload else []


def parameter_of(x: Collective, parameters: Mapping[str, float], layers: int) -> str:
    """The parameter that a gather is of: by the module in its name and its size, or a table by its size; "" for none.

    What the backward pass reads of layers that are not recomputed keeps no name, nor do gathers in a program for
    several slices: those of a layer's size are `SOME_LAYER`.
    """
    # An argument of the program has the name params['layers']['mlp']['up']['kernel'].
    argument = "/".join(re.findall(r"\[\\?'(\w+)\\?'\]", x.op_name))
    if argument in parameters:
        return argument
    named = []
    for path in parameters:
        module, _, leaf = path.rpartition("/")
        name = module if module and leaf else path
        if re.search(rf"(^|/){re.escape(name)}/", x.op_name):
            named.append(path)
    if named:  # a kernel and a bias have the name of one module: it is that whose size is nearest
        return min(named, key=lambda path: abs(math.log(parameters[path] / layers / max(x.payload, 1.0))))
    tables = [name for name in ("unembedding", "embedding") if name in parameters]
    if re.search(r"Transformer\)*/", x.op_name):
        tables.reverse()
    for name in tables:
        if x.payload in (parameters[name], 2 * parameters[name]):  # in the compute type, or in float32
            return name
    sizes = {size / layers for path, size in parameters.items() if path.startswith("layers/")}
    if (not x.op_name or "/while/body/" in x.op_name) and sizes.issuperset(x.arrays or (x.payload,)):
        return SOME_LAYER
    return ""
