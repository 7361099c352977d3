"""A stage's programs before they run: what they hold of a device's memory, and what they recompute so that it fits."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from jaxalign import parallel
from jaxalign.models import ModelConfig, Params
from jaxalign.models.activations import count_activations
from jaxalign.parallel.chips import find_chip, memory_of
from jaxalign.parallel.sharding import shards
from jaxalign.training.recipe import batch_pieces, row_slots

if TYPE_CHECKING:
    from jaxalign.training.open import Run

PARAMETERS, OPTIMIZER, FROZEN = "parameters", "optimizer state", "frozen models"
GRADIENTS, ACTIVATIONS, CACHE, SCRATCH = "gradients", "saved activations", "keys and values", "scratch space"
ELSEWHERE = "beside this program"
# What the backward pass computes again, least first.
REMAT = ("none", "dots_no_batch", "attention", "full")
# Of a device's memory, what a choice may fill by estimate, which knows nothing of the compiler's own scratch space.
FILLED = 0.8
# How often a kept number is moved, stacked over layers and sliced out again, counted twice as other traffic is there.
MOVES = 16
# Of a machine's memory, which others need as well.
KEPT_PART = 1 / 4
# From so many tokens of a sequence on, few blocks of the kernel of attention lie between two.
LONG = 4096
# The one backward kernel that large blocks have writes a part of dQ for each block of keys: not where memory is short.
LARGE = 24e9


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a stage: `function.lower(*arguments, **keywords)` inside `parallel.use_mesh`."""

    name: str
    function: Any  # jitted
    arguments: tuple
    kinds: dict[str, Any]  # PARAMETERS, OPTIMIZER and FROZEN: which trees among the arguments are what
    tokens: int  # slots of a step, packed full
    model_flops: float  # of a step over all devices: nothing recomputed, attention causal and counted once
    parameters: Params  # of which gathers are looked at
    passes: int  # how often a step may gather each parameter
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)
    beside: dict[str, Any] = dataclasses.field(default_factory=dict)  # trees in memory that are no arguments
    loop_trips: int = 1  # of a loop whose end depends on data


def bytes_per_device(tree: Any) -> int:
    """Of arrays with shardings, what one device's own memory holds of them, without the padding of its layout."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
        if x.sharding.memory_kind != "pinned_host"
    )


def estimate_memory(
    step: Program, model: ModelConfig, config: Any, mesh: AbstractMesh | Mesh
) -> dict[str, float]:
    """Bytes of one device by what holds them, by arithmetic.

    Gradients are in float32, the output matrix and its gradient gathered; of activations those that are kept and one
    layer's worth of others.
    """
    trains = OPTIMIZER in step.kinds
    parts = config.num_microbatches if trains else 1
    item = jnp.dtype(model.dtype).itemsize
    tensor, context = mesh.shape["tensor"], mesh.shape["context"]
    tokens = step.tokens / (shards(mesh, "batch") * context * parts)
    weights = weight_bytes(step, model, tensor)
    held: dict[str, float] = {
        kind: float(bytes_per_device(step.kinds.get(kind))) for kind in (PARAMETERS, OPTIMIZER, FROZEN)
    }
    layer, kept = count_activations(model, tensor)
    samples = step.loop_trips > 1
    # Sampling holds the parameters gathered, in the compute type.
    gathered = samples and not parallel.parse_rules(config.mesh.rules)["decode_embed"]
    heads = model.num_kv_heads / tensor
    return held | {
        GRADIENTS: held[PARAMETERS] + 6 * model.vocab_size * model.embed_dim / tensor if trains else 0.0,
        ACTIVATIONS: tokens * kept * model.num_layers * item if trains else 0.0,
        CACHE: 2 * tokens * model.num_layers * heads * model.head_dim * item if samples else 0.0,
        SCRATCH: (weights if gathered else 0.0) + tokens * layer * item,
        ELSEWHERE: float(bytes_per_device(step.beside)),
    }


def weight_bytes(step: Program, model: ModelConfig, tensor: int) -> float:
    """Of a model's parameters in the compute type, what a device holds once they are gathered."""
    return (
        sum(math.prod(x.shape) for x in _leaves(step.parameters)) * jnp.dtype(model.dtype).itemsize / tensor
    )


def _leaves(tree: Any) -> list:
    return [x for branch in tree.values() for x in _leaves(branch)] if isinstance(tree, dict) else [tree]


def choose_remat(
    config: Any,
    model: ModelConfig,
    mesh: AbstractMesh | Mesh,
    steps: Sequence[Program],
    memory: float,
    intensity: float = 0.0,
) -> tuple[str, float]:
    """The least recomputation with which all steps fill at most `FILLED` of a device's memory, and what they fill.

    Args:
      memory: of a device, in bytes.
      intensity: FLOP that it does while its memory moves a byte. Where that is much, products are quicker computed
        again than kept; 0: not known.

    Returns:
      One of `REMAT`, "full" where nothing fits, and bytes by estimate.
    """
    policy, held = REMAT[-1], 0.0
    tensor = mesh.shape["tensor"]
    for policy in REMAT:
        trial = dataclasses.replace(model, remat=policy)
        held = max(sum(estimate_memory(step, trial, config, mesh).values()) for step in steps)
        if held > FILLED * memory:
            continue
        if policy == "dots_no_batch":
            kept = count_activations(trial, tensor)[1] * jnp.dtype(model.dtype).itemsize
            trained = [step for step in steps if OPTIMIZER in step.kinds]
            again = min(step.model_flops / step.tokens for step in trained) / (3 * model.num_layers * tensor)
            if MOVES * kept * intensity > again:
                continue
        break
    return policy, held


def resolve_kernels(run: "Run") -> "Run":
    """A Run, with how the model is computed where the config leaves it open: `model.remat`, `model.attention_block`.

    On a CPU nothing is computed again where all that the backward pass reads of a microbatch takes at most `KEPT_PART`
    of the machine's memory, else layers; on other devices see `choose_remat`.
    """
    config, model, found = run.config, run.model, []
    device = run.mesh.local_devices[0]
    memory = memory_of(device)
    if not config.model.attention_block:
        model = dataclasses.replace(model, attention_block=attention_block(config, memory))
    if config.model.remat == "auto":
        if device.platform == "cpu":
            numbers, _ = count_activations(model, shards(run.mesh, "act_heads"))
            rows = config.batch_size / (batch_pieces(config, run.mesh) * config.num_microbatches)
            held = rows * row_slots(config) * numbers * model.num_layers * jnp.dtype(model.dtype).itemsize
            remat = "none" if held <= KEPT_PART * memory else "full"
            why = f"keeping all takes about {held / 1e9:.2g} of a device's {memory / 1e9:.3g} GB"
        else:
            chip = find_chip(device.device_kind)
            intensity = chip.intensity if chip else 0.0
            remat, held = choose_remat(config, model, run.mesh, config.stage.programs(run), memory, intensity)
            why = f"about {held / 1e9:.3g} of a device's {memory / 1e9:.3g} GB are filled"
        model = dataclasses.replace(model, remat=remat)
        found.append(f"model.remat={remat} ({why})")
    settings = dataclasses.replace(config.model, remat=model.remat, attention_block=model.attention_block)
    config = dataclasses.replace(config, model=settings)
    return dataclasses.replace(run, config=config, model=model, found=(*run.found, *found))


def attention_block(config: Any, memory: float) -> int:
    """Tokens of a block of the kernel of attention: large for long sequences; small ones skip more between short.

    Args:
      memory: of a device, in bytes.
    """
    return 1024 if config.data.max_length >= LONG and memory >= LARGE else 512
