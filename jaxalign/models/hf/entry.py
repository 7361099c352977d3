"""How one Hugging Face tensor holds leaves of ours: its name, its shape, and the way there and back.

A `Layout` says only how a tensor is arranged; an `Entry` says also what it is called and whose it is.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

Arrays = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The arrangement of one tensor; `load` gives views where it can, `save` is its inverse bit for bit."""

    shape: tuple[int, ...]  # of the Hugging Face tensor
    load: Callable[[np.ndarray], Arrays]
    save: Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One Hugging Face tensor (of one layer, of one expert) and the leaves of ours that it holds."""

    name: str  # may hold {layer} and {expert}
    paths: tuple[tuple[str, ...], ...]  # ("layers", "attention", "query", "kernel"), ...: our leaves
    load: Callable[[np.ndarray], Arrays]  # the tensor -> values of those leaves, for one layer and one expert
    save: Callable[..., np.ndarray]  # those values -> the tensor
    shape: tuple[int, ...]  # of the Hugging Face tensor


def entry(name: str, layout: Layout, *paths: str) -> Entry:
    """The tensor `name` in `layout`; paths are written "layers/attention/query/kernel"."""
    return Entry(name, tuple(tuple(p.split("/")) for p in paths), layout.load, layout.save, layout.shape)


def stored(theirs: tuple[int, ...], ours: tuple[int, ...]) -> Layout:
    """The same numbers in the same order."""
    return Layout(theirs, lambda x: (x.reshape(ours),), lambda y: y.reshape(theirs))


def linear(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Layout:
    """A torch.nn.Linear's weight [out, in]; our kernels are [*inputs, *outputs]."""
    rows, columns = math.prod(outputs), math.prod(inputs)
    return Layout(
        (rows, columns),
        lambda x: (x.T.reshape(*inputs, *outputs),),
        lambda y: y.reshape(columns, rows).T,
    )


def joined(layouts: Sequence[Layout], axis: int) -> Layout:
    """Tensors of these layouts, one after another along an axis of theirs."""
    lengths = [layout.shape[axis] for layout in layouts]
    shape = list(layouts[0].shape)
    shape[axis] = sum(lengths)
    cuts = np.cumsum(lengths)[:-1]
    return Layout(
        tuple(shape),
        lambda x: tuple(
            layout.load(part)[0] for layout, part in zip(layouts, np.split(x, cuts, axis), strict=True)
        ),
        lambda *ys: np.concatenate([layout.save(y) for layout, y in zip(layouts, ys, strict=True)], axis),
    )


def interleaved(count: int, heads: int, head_dim: int, width: int) -> Layout:
    """GPT-NeoX: rows are the heads, in each head `count` projections, in each `head_dim` rows of `width` numbers.

    `width` 0 is for biases, which have no such axis.
    """
    tail = (width,) if width else ()

    def load(x: np.ndarray) -> Arrays:
        split = x.reshape(heads, count, head_dim, *tail)
        return tuple(np.moveaxis(split[:, i], -1, 0) if width else split[:, i] for i in range(count))

    def save(*ys: np.ndarray) -> np.ndarray:
        parts = [np.moveaxis(y, 0, -1) if width else y for y in ys]
        return np.stack(parts, 1).reshape(heads * count * head_dim, *tail)

    return Layout((heads * count * head_dim, *tail), load, save)
