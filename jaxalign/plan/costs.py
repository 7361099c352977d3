"""FLOPs and bytes of a compiled program, with what stands in loops counted as often as it runs.

XLA's own `cost_analysis` counts the body of a loop once, and a Pallas kernel not at all.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from jaxalign.models.flops import visible_pairs
from jaxalign.plan.hlo import COLLECTIVES, Array, Computation, Instruction, Program, schedules, with_fusions

# Matrix products of T x T x d that each kernel of attention does: scores and output forward; backward the scores again,
# dP and dQ in one kernel, and the scores again, dP, dV and dK in another, or dQ as well where there is only that one.
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4, "bwd": 5}
# Kernels, by how their names begin, that leave out blocks of keys none of which is of a query's segment.
SKIPPING: tuple[str, ...] = ("flash_attention", "splash_mha", "splash_mqa")
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "iota",
    "partition-id",
    "replica-id",
}


@dataclasses.dataclass(frozen=True)
class Visible:
    """What a program's text does not say of its attention: which pairs of tokens its kernels have to compute.

    `local` is the share of layers with the `window`; `rows` are the lengths of the sequences in each of some rows that
    stand for all, none for rows of one sequence.
    """

    window: int = 0
    local: float = 0.0
    rows: tuple[tuple[int, ...], ...] = ()

    @property
    def local_layers(self) -> float | None:
        """As `schedules` takes it: None where all layers are alike."""
        return self.local if 0 < self.local < 1 else None

    def pairs(self, length: int, *, near: float, skips: bool) -> float:
        """Pairs of a row of `length` tokens, a share `near` of it in layers with the window.

        Args:
          skips: only pairs within a sequence are computed; else the row is one. What no sequence fills is one more.
        """
        rows = self.rows if skips and self.rows else ((),)
        total = 0.0
        for lengths in rows:
            known = [min(n, length) for n in lengths] + [max(0, length - sum(lengths))]
            far, close = (sum(visible_pairs(n, window) for n in known) for window in (0, self.window))
            total += (1 - near) * far + near * close
        return total / len(rows)


def count_flops(
    program: Program, *, visible: Visible = Visible(), unknown_trips: int = 1
) -> dict[str, float]:
    """FLOPs that one device does: `matmul` in products of matrices, `attention` in attention's kernels.

    A multiplication and an addition are two; all else (norms, softmax, the optimizer) is not counted: it is bound by
    memory. Attention is counted causal, a pair of tokens once.
    """
    total = {"matmul": 0.0, "attention": 0.0}
    walk = schedules(program, unknown_trips=unknown_trips, local_layers=visible.local_layers)
    for computation, times in walk:
        for x, owner in with_fusions(program, computation):
            if x.opcode == "dot":
                total["matmul"] += times * dot_flops(x, owner)
            elif x.opcode == "convolution":
                total["matmul"] += times * convolution_flops(x, owner)
            elif x.opcode == "custom-call":
                total["attention"] += times * attention_flops(x, owner, visible)
                total["matmul"] += times * (grouped_flops(x, owner) + blas_flops(x, owner))
    return total


def dot_flops(x: Instruction, owner: Computation) -> float:
    """2 * (size of the result) * (size of the contracted dimensions)."""
    left = owner[x.operands[0]].results[0].shape
    listed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", x.attributes)
    contracted = [int(n) for n in listed[1].split(",") if n] if listed else []
    return 2.0 * math.prod(x.results[0].shape) * math.prod(left[n] for n in contracted)


def convolution_flops(x: Instruction, owner: Computation) -> float:
    """2 * output features * input features * the places where kernel and input meet.

    The TPU compiler writes products of matrices as convolutions whose padding lets each output meet one place of
    the kernel: places in the padding, or between dilated elements, are not counted.
    """
    left, kernel, out = (
        shape for shape in (*(owner[n].results[0].shape for n in x.operands[:2]), x.results[0].shape)
    )
    labels: Any = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.attributes)
    window = _window(x.attributes)
    left_labels, kernel_labels, out_labels = labels[1], labels[2], labels[3]
    batch, features = out[out_labels.index("b")], out[out_labels.index("f")]
    inputs = kernel[kernel_labels.index("i")]  # already divided by feature_group_count
    counted = re.search(r"batch_group_count=(\d+)", x.attributes)
    groups = int(counted[1]) if counted else 1
    meeting = 1
    for at, digit in enumerate(sorted(c for c in out_labels if c.isdigit())):
        sizes = (
            left[left_labels.index(digit)],
            kernel[kernel_labels.index(digit)],
            out[out_labels.index(digit)],
        )
        meeting *= _meetings(*sizes, window, at)
    return 2.0 * batch * features * inputs * meeting / groups


def _window(attributes: str) -> dict[str, list]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in found[1].split()) if found else {}
    out: dict[str, list] = {
        "pad": [tuple(map(int, p.split("_"))) for p in fields.get("pad", "").split("x") if p]
    }
    for key in ("stride", "lhs_dilate", "rhs_dilate"):
        out[key] = [int(n) for n in fields.get(key, "").split("x") if n]
    return out


def _meetings(size: int, kernel: int, out: int, window: dict[str, list], at: int) -> int:
    def of(key: str, default: int) -> int:
        return window[key][at] if window[key] else default

    low = window["pad"][at][0] if window["pad"] else 0
    stride, spread, reach = of("stride", 1), of("lhs_dilate", 1), of("rhs_dilate", 1)
    last = (size - 1) * spread
    count = 0
    for k in range(kernel):
        first = k * reach - low  # where this place of the kernel meets the input for output 0
        if spread == 1:
            begin, end = max(0, -(first // stride)), min(out - 1, (last - first) // stride)
            count += max(0, end - begin + 1)
        else:
            count += sum(
                0 <= first + o * stride <= last and (first + o * stride) % spread == 0 for o in range(out)
            )
    return count


def attention_flops(x: Instruction, owner: Computation, visible: Visible) -> float:
    """Of a kernel of attention, by its operands: splash attention's q [B, H, T, d] and k [B, K, S, d], of which the TPU
    compiler leaves B out if it is 1, or those of `models.gpu_attention`, [B, T, ...] and [B, S, ...]; 0 of other calls.
    """
    kernel = re.search(r'\bname = "(\w+)"', x.attributes) if "gpu.triton" in x.attributes else None
    name = kernel[1] if kernel else ""
    if "tpu_custom_call" in x.attributes:
        # Where it runs row by row, the instruction has the name of the loop's body.
        whole = re.search(r"/(splash_\w+)/(?:.*/)?pallas_call$", x.op_name)
        name = whole[1] if whole else x.name
    found = re.match(r"(splash_m[hq]a|flash_attention)_(fwd|dq|dkv)", name)
    if not found:
        return 0.0
    operands = [owner[operand].results[0] for operand in x.operands]
    q, k = [operand.shape for operand in operands if operand.dtype in ("bf16", "f16", "f32")][:2]
    S = k[1] if kernel else k[-2]
    part = found[2]
    if part == "dkv" and any(len(array.shape) > len(q) for array in x.results):
        part = "bwd"  # it also gives dQ, a part for each block of keys
    # The branch that the kernel stands in says whether it is of layers with the window, where not all are alike.
    branch = re.search(r"attention/.*\bbranch_([01])_fun", x.op_name)
    near = float(branch[1]) if branch and visible.local_layers is not None else visible.local
    pairs = visible.pairs(S, near=near, skips=name.startswith(SKIPPING))
    # With the context axis a device has T of the S queries; over all devices the pairs are those of S x S.
    return 2.0 * _PRODUCTS[part] * math.prod(q) * pairs / S


def blas_flops(x: Instruction, owner: Computation) -> float:
    """Of a product that XLA for GPUs leaves to cuBLAS; 0 of other calls."""
    if not re.search(r'custom_call_target="__cublas\$(gemm|lt\$matmul)', x.attributes):
        return 0.0
    listed = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', x.attributes)
    left = owner[x.operands[0]].results[0].shape
    contracted = json.loads(listed[1]) if listed else []
    return 2.0 * math.prod(x.results[0].shape) * math.prod(left[int(n)] for n in contracted)


def grouped_flops(x: Instruction, owner: Computation) -> float:
    """Of the product of experts and of the gradient of their matrices [g, k, n], over m rows; 0 of other calls.

    The compiler leaves g out where it is 1.
    """
    if not re.search(r"(^|_)t?gmm\b|(^|_)t?gmm_", x.name) or "tpu_custom_call" not in x.attributes:
        return 0.0
    operands = [owner[name].results[0] for name in x.operands]
    first, second = [operand.shape for operand in operands if operand.dtype in ("bf16", "f16", "f32")][:2]
    if "tgmm" in x.name:  # [k, m] and [m, n] -> [g, k, n]
        return 2.0 * math.prod(first) * second[-1]
    return 2.0 * math.prod(first) * x.results[0].shape[-1]  # [m, k] and [g, k, n] -> [m, n]


def count_bytes(program: Program, *, visible: Visible = Visible(), unknown_trips: int = 1) -> float:
    """Bytes that one device moves to and from its main memory: what each kernel reads and writes there.

    An approximation: operands and results of every fusion, product, copy and collective, by their sizes without
    padding. A slice of a larger array, such as one layer of stacked parameters, counts as the slice.
    """
    walk = _kernels(program, unknown_trips, visible)
    return sum(times * _instruction_bytes(program, x, owner) for x, owner, times in walk)


def count_kernels(program: Program, *, visible: Visible = Visible(), unknown_trips: int = 1) -> float:
    """How many kernels, copies and collectives a step starts, each of which takes a GPU some microseconds."""
    return sum(times for _, _, times in _kernels(program, unknown_trips, visible))


def _kernels(
    program: Program, unknown_trips: int, visible: Visible
) -> Iterator[tuple[Instruction, Computation, float]]:
    """Every instruction that is work, with the computation it stands in and how often it runs."""
    walk = schedules(program, unknown_trips=unknown_trips, local_layers=visible.local_layers)
    for computation, times in walk:
        for x in computation.values():
            if x.opcode in _FREE or x.opcode.endswith("-done") or 'AllocateBuffer"' in x.attributes:
                continue
            yield x, computation, times


def _hbm(arrays: list[Array]) -> float:
    return sum(x.bytes for x in arrays if x.in_hbm)


def _instruction_bytes(program: Program, x: Instruction, owner: Computation) -> float:
    operands = [owner[name] for name in x.operands if name in owner]
    if x.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * _hbm(x.results)
    if x.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * _hbm(operands[1 if x.opcode == "dynamic-update-slice" else -1].results)
    if x.opcode != "fusion":
        read, written = sum(_hbm(operand.results) for operand in operands), _hbm(x.results)
        if x.opcode.endswith("-start") and x.opcode != "all-reduce-start":
            written = max(0.0, written - read)  # the result of a start holds the operands, too
        return read + written
    inner = program.computations[x.attribute("calls")]
    parameters = {int(p.inside): p for p in inner.values() if p.opcode == "parameter"}
    if "AsyncCollective" in "".join(y.attributes for y in inner.values() if y.opcode == "custom-call"):
        return 0.0  # a collective in steps: what it moves is counted by `collectives`
    read = sum(
        _read(program, parameters[i], operand.results[0], inner)
        for i, operand in enumerate(operands)
        if i in parameters and operand.results
    )
    root = next(y for y in inner.values() if y.root)
    roots = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    return read + sum(_written(r, result, inner) for r, result in zip(roots, x.results, strict=False))


def _read(program: Program, parameter: Instruction, operand: Array, inner: Computation) -> float:
    """Bytes of an array in HBM that a fusion reads, which is less than the array where it only slices it."""
    if not operand.in_hbm:
        return 0.0
    parts = 0.0
    for y in _users(parameter.name, inner):
        if (y.root and y.opcode == "tuple") or _sends(y):
            continue  # the buffer of a collective that goes on in this fusion passes through it
        if y.opcode in ("dynamic-slice", "gather"):
            parts += sum(r.bytes for r in y.results)
        elif y.opcode == "fusion":
            nested = program.computations[y.attribute("calls")]
            inside = {int(p.inside): p for p in nested.values() if p.opcode == "parameter"}
            at = y.operands.index(parameter.name) if parameter.name in y.operands else None
            parts += operand.bytes if at is None else _read(program, inside[at], operand, nested)
        elif not (y.opcode == "dynamic-update-slice" and y.operands[0] == parameter.name):
            return operand.bytes
    return min(operand.bytes, parts)


def _sends(x: Instruction) -> bool:
    return x.opcode.removesuffix("-start") in COLLECTIVES


def _users(name: str, inner: Computation) -> list[Instruction]:
    out = []
    for y in inner.values():
        if name in y.operands:
            out += _users(y.name, inner) if y.opcode == "bitcast" else [y]
    return out


def _written(root: Instruction, result: Array, inner: Computation) -> float:
    if not result.in_hbm:
        return 0.0
    while root.opcode == "bitcast":
        root = inner[root.operands[0]]
    if root.opcode == "parameter" or _sends(root):
        return 0.0
    if root.opcode == "dynamic-update-slice":
        return inner[root.operands[1]].results[0].bytes
    return result.bytes
