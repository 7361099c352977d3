"""The jitted steps of a stage with abstract arguments: what a run would compile, without data, weights or devices."""

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from jaxalign import parallel
from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig, Params
from jaxalign.training.config import Config
from jaxalign.training.open import Run, count_updates
from jaxalign.training.optimizer import make_optimizer, make_schedule
from jaxalign.training.saved_model import check_length, find_model
from jaxalign.training.trainer import Program

# Axes along which a parameter may be split at rest, and is not when used.
GATHERED = ("data", "fsdp", "context")


def abstract_run(config: Config, mesh: Mesh | AbstractMesh, platform: str) -> Run:
    """A run without data, tokenizer and weights; call inside `use_mesh` of a device that is here.

    Raises:
      ConfigError: the size of the vocabulary is not known, or a size does not divide by a mesh axis.
    """
    if config.model.init_from:
        source = find_model(config.model.init_from, "config.model.init_from").config
        model = config.architecture(platform, saved=source)
    elif config.model.vocab_size:
        model = config.architecture(platform)
    else:
        raise ConfigError(
            "config.model.vocab_size=0: a plan opens no tokenizer; set it, or name a preset, as in "
            "configs/sft.py:llama3_8b"
        )
    check_length(model, config.data.max_length, f"config.data.max_length={config.data.max_length} makes")
    # Constants of the schedule: when the steps are counted in epochs of data that is not here, any number will do.
    steps = config.num_steps or config.optimizer.warmup_steps + 1000
    there: Any = mesh  # one that is only described serves where no array is made
    missing: Any = None
    updates = count_updates(config, steps)
    parallel.check_divides(
        there, "batch_size / config.num_microbatches", config.batch_size // config.num_microbatches
    )
    return Run(
        config=config,
        workdir=pathlib.Path(),
        mesh=there,
        model=model,
        tokenizer=missing,
        source=None,
        train=missing,
        held_out=None,
        steps=steps,
        optimizer=make_optimizer(config.optimizer, updates),
        schedule=make_schedule(config.optimizer, updates),
    )


def stage_steps(
    config: Config, mesh: Mesh | AbstractMesh, platform: str = "tpu"
) -> tuple[ModelConfig, list[Program]]:
    """The model, and every program of the config's stage that takes time or memory.

    Raises:
      ConfigError: see `abstract_run`.
    """
    # Shapes are computed on a device that is here: some libraries make small arrays outright, which those of a
    # mesh that is only described cannot hold.
    here = parallel.make_mesh(parallel.MeshConfig(data=1), jax.local_devices(backend="cpu")[:1])
    with parallel.use_mesh(here, parallel.parse_rules(config.mesh.rules)):
        run = abstract_run(config, mesh, platform)
        return run.model, config.stage.programs(run)


def bytes_per_device(tree: Any) -> int:
    """Of arrays with shardings, what one device's own memory holds of them, without the padding of its layout."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
        if x.sharding.memory_kind != "pinned_host"
    )


def gather_bytes(parameters: Params, dtype: str) -> dict[str, float]:
    """Of each parameter, by path, the bytes that one device holds once the axes that split tokens are gathered."""
    out = {}
    for path, x in jax.tree_util.tree_flatten_with_path(parameters)[0]:
        axes = [
            axis
            for entry in x.sharding.spec
            for axis in (entry if isinstance(entry, tuple) else (entry,))
            if axis
        ]
        others = math.prod(x.sharding.mesh.shape[axis] for axis in axes if axis not in GATHERED)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        out[name] = math.prod(x.shape) * jnp.dtype(dtype).itemsize / others
    return out
