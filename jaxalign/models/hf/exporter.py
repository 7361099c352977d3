"""Our parameters as a Hugging Face checkpoint, written tensor by tensor."""

import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import CheckpointError
from jaxalign.models.config import ModelConfig
from jaxalign.models.hf.importer import Path, Slots, expand
from jaxalign.models.hf.safetensors import write_tensors
from jaxalign.models.hf.tables import tensor_table


def write_folder(
    folder: pathlib.Path,
    leaf: Callable[[Path], jax.Array],
    config: ModelConfig,
    architecture: str,
    *,
    scalar: bool,
    dtype: str,
    max_shard_size: int,
) -> None:
    """Writes model.safetensors, or shards of at most `max_shard_size` bytes and their index.

    Args:
      leaf: the parameter at a path, such as ("layers", "mlp", "up", "kernel"). Each is asked for when its
        tensors are written, one Hugging Face tensor at a time is on the host.
      architecture: a name of config.json's `architectures`.

    Raises:
      CheckpointError: a number is too large for `dtype`.
    """
    slots = expand(tensor_table(architecture, config, scalar=scalar), config)
    shapes = {name: entry.shape for name, (entry, _) in slots.items()}
    kind = np.dtype(jnp.dtype(dtype))
    write_tensors(folder, shapes, kind, _tensors(slots, leaf, kind), max_shard_size)


def _tensors(
    slots: Slots, leaf: Callable[[Path], jax.Array], dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
    current, leaves = None, []
    for name, (entry, at) in slots.items():  # all layers of an entry follow one another
        if entry is not current:
            leaves = []  # before others are read
            current, leaves = entry, [leaf(path) for path in entry.paths]
        values = [np.asarray(_pick(x, [np.int32(i) for i in at])) for x in leaves]
        yield name, _cast(name, entry.save(*values), dtype)


@jax.jit
def _pick(x: jax.Array, at: list[jax.Array]) -> jax.Array:
    for i in at:
        x = jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
    return x


def _cast(name: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        out = value.astype(dtype)
    if dtype != value.dtype and not np.array_equal(np.isfinite(out), np.isfinite(value)):
        worst = np.abs(np.where(np.isfinite(value), value, 0)).max()
        raise CheckpointError(
            f"tensor {name} holds {worst:.6g}, too large for {dtype}; write it with --dtype=float32"
        )
    return out
