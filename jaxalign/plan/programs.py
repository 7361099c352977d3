"""The jitted steps of a stage with abstract arguments: what a run would compile, without data, weights or devices."""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from jaxalign import parallel
from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig, Params
from jaxalign.models.init import count_parameters
from jaxalign.training.config import Config
from jaxalign.training.memory import Program, attention_block, choose_remat
from jaxalign.training.open import Run, count_updates
from jaxalign.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from jaxalign.training.recipe import Size, resolve_model, resolve_without_data
from jaxalign.training.saved_model import check_length, find_model

# Axes along which a parameter may be split at rest, and is not when used.
GATHERED = ("data", "fsdp", "context")


def describe_model(config: Config, platform: str) -> ModelConfig:
    """The architecture that a config names, or that of the model in config.model.init_from.

    Raises:
      ConfigError: the size of the vocabulary is not known.
    """
    if config.model.init_from:
        source = find_model(config.model.init_from, "config.model.init_from").config
        model = config.architecture(platform, saved=source)
    elif config.model.vocab_size:
        model = config.architecture(platform)
    else:
        raise ConfigError(
            "config.model.vocab_size=0: a plan opens no tokenizer; set it, or name a preset, as in "
            "--config=sft:llama3_8b"
        )
    check_length(model, config.data.max_length, f"config.data.max_length={config.data.max_length} makes")
    return model


def planned(config: Config, mesh: Mesh | AbstractMesh, platform: str = "tpu") -> Config:
    """The config with what it leaves to jaxalign filled in as for full rows; see `training.recipe`.

    Raises:
      ConfigError: see `describe_model` and `resolve_model`.
    """
    model = describe_model(config, platform)
    with parallel.use_mesh(_here(), parallel.parse_rules(config.mesh.rules)):
        size = Size(count_parameters(model), fresh=not config.model.init_from)
        return resolve_without_data(resolve_model(config, model, size)[0], mesh)


def abstract_run(config: Config, mesh: Mesh | AbstractMesh, platform: str, memory: float = 0.0) -> Run:
    """A run without data, tokenizer and weights of a `planned` config; call inside `use_mesh` of a device that is here.

    Args:
      memory: bytes of a device; 0: little.

    Raises:
      ConfigError: see `describe_model`, or a size does not divide by a mesh axis.
    """
    model = describe_model(config, platform)
    if not config.model.attention_block:
        model = dataclasses.replace(model, attention_block=attention_block(config, memory))
    steps = config.num_steps or _steps_of_no_data(config.optimizer)
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


def _steps_of_no_data(optimizer: OptimizerConfig) -> int:
    """Steps where they are counted in epochs of data that is not here: any number in which the schedule fits will do.

    They are constants of the schedule alone.
    """
    decayed = optimizer.decay_fraction if optimizer.schedule == "wsd" else 0.0
    return 1000 + (
        math.ceil(optimizer.warmup_steps / (1 - decayed)) if decayed < 1 else optimizer.warmup_steps
    )


def stage_steps(
    config: Config,
    mesh: Mesh | AbstractMesh,
    platform: str = "tpu",
    memory: float = 0.0,
    intensity: float = 0.0,
) -> tuple[ModelConfig, list[Program]]:
    """The model, and every program of the config's stage that takes time or memory.

    Args:
      memory: bytes of a device, by which `config.model.remat="auto"` is resolved; 0: it means "full".
      intensity: as for `choose_remat`.

    Raises:
      ConfigError: see `abstract_run`.
    """
    config = planned(config, mesh, platform)
    with parallel.use_mesh(_here(), parallel.parse_rules(config.mesh.rules)):
        run = abstract_run(config, mesh, platform, memory)
        steps = config.stage.programs(run)
        if memory and config.model.remat == "auto":
            remat, _ = choose_remat(config, run.model, mesh, steps, memory, intensity)
            run = dataclasses.replace(run, model=dataclasses.replace(run.model, remat=remat))
            steps = config.stage.programs(run)
        return run.model, steps


def full_rows(config: Config) -> tuple[tuple[int, ...], ...]:
    """The lengths of the sequences in the rows that a plan takes: one row, full of the longest sequences.

    Of a stage that samples the row is a prompt with what is sampled after it.
    """
    sampling = getattr(config.options, "sampling", None)
    if sampling is not None:
        return ((config.data.max_length + sampling.max_new_tokens,),)
    slots = config.data.slots(config.stage.data)
    return ((config.data.max_length,) * (slots // config.data.max_length),)


def rows_in_words(config: Config) -> str:
    """What the rows are that a plan counts with, for its reader."""
    longest, slots = config.data.max_length, config.data.slots(config.stage.data)
    if hasattr(config.options, "sampling"):
        ((whole,),) = full_rows(config)
        return f"a prompt of {longest:,} tokens and the longest answer, {whole:,} together; no data are read"
    return f"{slots:,} tokens, full of sequences of {longest:,}; no data are read"


def _here() -> Mesh:
    # Shapes are computed on a device that is here: some libraries make small arrays outright, which those of a
    # mesh that is only described cannot hold.
    return parallel.make_mesh(parallel.MeshConfig(data=1), jax.local_devices(backend="cpu")[:1])


def splitting_axes(parameters: Params) -> frozenset[str]:
    """The mesh axes that split both tokens and some parameter at rest."""
    entries = [entry for x in jax.tree.leaves(parameters) for entry in x.sharding.spec if entry]
    axes = {axis for entry in entries for axis in (entry if isinstance(entry, tuple) else (entry,))}
    return frozenset(axes.intersection(GATHERED))


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
