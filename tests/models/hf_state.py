"""Between Hugging Face tensors, by name, and our parameters, in NumPy, straight from the table."""

import itertools

import jax
import numpy as np

from jaxalign.models import ModelConfig, init_params
from jaxalign.models.hf import canonical_name, ignored, tensor_table


def names_of(entry, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that an entry stands for: name -> (layer, expert), as far as it has them."""
    counts = {"layer": config.num_layers, "expert": config.num_experts}
    axes = [axis for axis in counts if "{" + axis + "}" in entry.name]
    places = itertools.product(*(range(counts[axis]) for axis in axes))
    return {entry.name.format(**dict(zip(axes, at, strict=True))): at for at in places}


def load_state(state: dict, architecture: str, config: ModelConfig, *, scalar: bool = False) -> dict:
    """Our parameters, each element written once; fails on a tensor that is missing, left over or misshapen."""
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config, scalar=scalar))
    params = jax.tree.map(lambda x: np.full(x.shape, np.nan, np.float32), shapes)
    left = {canonical_name(name, architecture): x for name, x in state.items() if not ignored(name)}
    for entry in tensor_table(architecture, config, scalar=scalar):
        for name, at in names_of(entry, config).items():
            tensor = left.pop(name)
            assert tensor.shape == entry.shape, name
            for path, value in zip(entry.paths, entry.load(tensor), strict=True):
                leaf = leaf_of(params, path)
                assert np.isnan(leaf[at]).all(), path
                leaf[at] = value
    if scalar:
        params["head"]["bias"] = np.zeros((), np.float32)
    if config.tie_embeddings:
        left.pop("lm_head.weight", None)
    assert not left
    assert not any(np.isnan(x).any() for x in jax.tree.leaves(params))
    return params


def save_state(params: dict, architecture: str, config: ModelConfig, *, scalar: bool = False) -> dict:
    """Hugging Face tensors, by name."""
    state = {}
    for entry in tensor_table(architecture, config, scalar=scalar):
        for name, at in names_of(entry, config).items():
            values = [np.asarray(leaf_of(params, path))[at] for path in entry.paths]
            state[name] = np.ascontiguousarray(entry.save(*values))
    return state


def leaf_of(params: dict, path: tuple[str, ...]) -> np.ndarray:
    for key in path:
        params = params[key]
    return params
