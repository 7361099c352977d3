"""Hugging Face checkpoints as our parameters, read tensor by tensor onto a mesh.

Each stacked leaf is allocated once, on its devices; every tensor is then read and its layer written in place. So
the host holds the result's part that lives there, one tensor, and a piece of it.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import CheckpointError
from jaxalign.models.config import ModelConfig, Params
from jaxalign.models.hf.config import architecture_of, config_from_hf, is_scalar
from jaxalign.models.hf.entry import Entry
from jaxalign.models.hf.safetensors import Stored, equal, find_tensors, read_tensor
from jaxalign.models.hf.tables import canonical_name, ignored, tensor_table
from jaxalign.storage import read_json

CONFIG = "config.json"
SIDE_NOTE = "jaxalign.json"  # what a folder that we exported has no other place for
HEAD_BIAS = "head_bias"
_TIED = ("lm_head.weight", "embed_out.weight")
_PIECE = 1 << 23  # bytes of a tensor that are copied to a device at a time

Path = tuple[str, ...]
Slots = dict[str, tuple[Entry, tuple[int, ...]]]  # tensor name -> its entry, its (layer, expert)


@dataclasses.dataclass(frozen=True)
class HFModel:
    """A Hugging Face model folder that has been looked into."""

    folder: pathlib.Path
    values: dict[str, Any]  # config.json
    architecture: str
    config: ModelConfig
    scalar: bool
    dtype: str  # in which its tensors are stored; float32 where they differ


def open_folder(folder: pathlib.Path) -> HFModel:
    """Reads config.json and the headers of the weights.

    Raises:
      ConfigError: the config is of a model that we have no switches for.
      CheckpointError: config or weights are missing, damaged or not safetensors.
    """
    values = _read_object(folder / CONFIG)
    where = str(folder / CONFIG)
    config, architecture = config_from_hf(values, where), architecture_of(values, where)
    dtypes = {str(stored.dtype) for name, stored in find_tensors(folder).items() if not ignored(name)}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    return HFModel(folder, values, architecture, config, is_scalar(architecture), dtype)


def load_folder(model: HFModel, abstract: Params) -> Params:
    """Its parameters as float32, laid out as `abstract` (of `models.abstract_params`) says; raises as `load_leaves`."""
    return _from_paths(abstract, load_leaves(model, by_path(abstract)))


def load_leaves(model: HFModel, leaves: Mapping[Path, Any]) -> dict[Path, jax.Array]:
    """Those of its parameters that `leaves` names, as float32 and laid out as it says.

    Raises:
      CheckpointError: a tensor is missing, left over, of another shape, type or length than it must be, or a
        tied output matrix is not the embedding.
    """
    stored = _canonical(model.architecture, find_tensors(model.folder))
    slots = expand(tensor_table(model.architecture, model.config, scalar=model.scalar), model.config)
    _check(model, slots, stored)
    parts: dict[Path, list[jax.Array]] = {}
    with jax.set_mesh(None):  # every write is on one device, whatever mesh is in force
        for name in sorted(slots, key=lambda name: (stored[name].file, stored[name].start)):
            entry, at = slots[name]
            if leaves.keys().isdisjoint(entry.paths):
                continue
            tensor = read_tensor(stored[name])
            if not _is_finite(tensor):
                raise CheckpointError(
                    f"{stored[name].file}: tensor {name} holds NaN or infinity, so whatever the model computes would; "
                    "download or copy the file again, or take an earlier checkpoint of whoever trained it"
                )
            for path, value in zip(entry.paths, entry.load(tensor), strict=True):
                if path in leaves:
                    parts[path] = _write(parts.get(path), leaves[path], value, at)
        if ("head", "bias") in leaves:
            bias = leaves[("head", "bias")]
            parts[("head", "bias")] = _write(None, bias, np.asarray(_head_bias(model.folder), np.float32), ())
    return {
        path: jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts[path])
        for path, leaf in leaves.items()
    }


def _is_finite(tensor: np.ndarray) -> bool:
    # A sum is not finite exactly if a number is not, or if it runs over; only then is more memory taken.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(tensor.sum(dtype=np.float32)) or np.isfinite(tensor).all())


def _canonical(architecture: str, found: Mapping[str, Stored]) -> dict[str, Stored]:
    out: dict[str, Stored] = {}
    for name, stored in found.items():
        ours = canonical_name(name, architecture)
        if ours in out:
            raise CheckpointError(
                f"{stored.file}: {name} and {out[ours].name} are the same tensor; remove one"
            )
        out[ours] = stored
    return out


def expand(table: list[Entry], config: ModelConfig) -> Slots:
    """The tensors of every layer and expert by name."""
    slots: Slots = {}
    for entry in table:
        for layer in range(config.num_layers) if "{layer}" in entry.name else [None]:
            for expert in range(config.num_experts) if "{expert}" in entry.name else [None]:
                at = tuple(i for i in (layer, expert) if i is not None)
                slots[entry.name.format(layer=layer, expert=expert)] = (entry, at)
    return slots


def _check(model: HFModel, slots: Slots, stored: Mapping[str, Stored]) -> None:
    if missing := [name for name in slots if name not in stored]:
        raise CheckpointError(
            f"{model.folder}: {_several(missing)} not in the files, but {CONFIG} says that the model has them; "
            "correct the config, or get the whole checkpoint"
        )
    embedding = next(name for name, (entry, _) in slots.items() if entry.paths[0][-1] == "embedding")
    extra = [name for name in stored if name not in slots and not ignored(name)]
    for name in [
        name for name in extra if name in _TIED and model.config.tie_embeddings and not model.scalar
    ]:
        if not equal(stored[name], stored[embedding]):
            raise CheckpointError(
                f"{stored[name].file}: {name} differs from {embedding}, but {CONFIG} says "
                "tie_word_embeddings=true; set it to false there, or remove the tensor"
            )
        extra.remove(name)
    if extra:
        raise CheckpointError(
            f"{stored[extra[0]].file}: {_several(extra)} in the files, but no part of the model that {CONFIG} "
            "describes; correct the config (biases, layers, tied embeddings?), or remove the tensors"
        )
    for name, (entry, _) in slots.items():
        if stored[name].shape != entry.shape:
            raise CheckpointError(
                f"{stored[name].file}: tensor {name} has shape {list(stored[name].shape)}, but {CONFIG} asks "
                f"for {list(entry.shape)}; correct the config, or get the file that belongs to it"
            )


def _several(names: list[str]) -> str:
    if len(names) == 1:
        return f"tensor {names[0]} is"
    return f"{len(names)} tensors ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}) are"


def _head_bias(folder: pathlib.Path) -> float:
    note = folder / SIDE_NOTE
    return _read_object(note).get(HEAD_BIAS, 0.0) if note.is_file() else 0.0


def _read_object(file: pathlib.Path) -> dict[str, Any]:
    return read_json(file, lambda reason: CheckpointError(f"{file}: is {reason}; download or copy it again"))


def _write(
    arrays: list[jax.Array] | None, leaf: jax.ShapeDtypeStruct, value: np.ndarray, at: tuple[int, ...]
) -> list[jax.Array]:
    # Device by device, so that nothing is sent which a device does not keep, and processes need not meet.
    places: Any = leaf.sharding.addressable_devices_indices_map(leaf.shape)
    if arrays is None:
        shards = {shard.device: shard.data for shard in _zeros(leaf).addressable_shards}
        arrays = [shards[device] for device in places]
    out = []
    for array, index in zip(arrays, places.values(), strict=True):
        ranges = [s.indices(n)[:2] for s, n in zip(index, leaf.shape, strict=True)]
        if all(low <= i < high for i, (low, high) in zip(at, ranges, strict=False)):
            position = [i - low for i, (low, _) in zip(at, ranges, strict=False)]
            array = _write_part(array, value[index[len(at) :]], position)
        out.append(array)
    return out


def _zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return _make_zeros(leaf.shape, leaf.dtype, leaf.sharding)()


@functools.lru_cache
def _make_zeros(shape: tuple[int, ...], dtype: Any, sharding: Any) -> Callable[[], jax.Array]:
    # Compiled, because `jnp.zeros(device=...)` takes the memory twice for a moment.
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


def _write_part(array: jax.Array, part: np.ndarray, position: list[int]) -> jax.Array:
    if part.ndim == 0 or part.nbytes <= _PIECE:
        return _put(array, part, position + [0] * part.ndim)
    rows = max(1, _PIECE * len(part) // part.nbytes)
    for start in range(0, len(part), rows):
        # The last piece begins earlier instead of being smaller: one shape, one compiled program.
        start = min(start, len(part) - rows)
        array = _put(array, part[start : start + rows], [*position, start] + [0] * (part.ndim - 1))
    return array


def _put(array: jax.Array, piece: np.ndarray, start: list[int]) -> jax.Array:
    piece = jax.device_put(np.asarray(piece, order="C"), array.device)
    # Waiting keeps the pieces that are under way from piling up on the host.
    return jax.block_until_ready(_update(array, piece, [np.int32(i) for i in start]))


@functools.partial(jax.jit, donate_argnums=0)
def _update(array: jax.Array, piece: jax.Array, start: list[jax.Array]) -> jax.Array:
    piece = piece.astype(array.dtype).reshape((1,) * (array.ndim - piece.ndim) + piece.shape)
    return jax.lax.dynamic_update_slice(array, piece, start)


def by_path(tree: Params) -> dict[Path, Any]:
    """The leaves of nested dicts by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def _from_paths(tree: Params, leaves: Mapping[Path, Any]) -> Params:
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[tuple(key.key for key in path)], tree)
