"""The jitted steps of a stage with abstract arguments: what a run would compile, without data, weights or devices."""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from jaxalign import parallel
from jaxalign.data import Batch, PairBatch, PromptBatch
from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig, Params
from jaxalign.models.flops import step_flops
from jaxalign.models.frozen import abstract_keep
from jaxalign.sampling.generate import Completions, generate
from jaxalign.stages import dpo, orpo, pairs, ppo, ppo_update, pretrain, reward
from jaxalign.stages.rollout import Rollout
from jaxalign.stages.supervised import make_train_step
from jaxalign.training.config import Config
from jaxalign.training.open import Run, count_updates
from jaxalign.training.optimizer import make_optimizer, make_schedule
from jaxalign.training.saved_model import find_model, resolve_architecture
from jaxalign.training.state import abstract_train_state

# Axes along which a parameter may be split at rest, and is not when used.
GATHERED = ("data", "fsdp", "context")
PARAMETERS, OPTIMIZER, FROZEN = "parameters", "optimizer state", "frozen models"


@dataclasses.dataclass(frozen=True)
class Step:
    """One program of a stage: `function.lower(*arguments)` inside `parallel.use_mesh`."""

    name: str
    function: Any  # jitted
    arguments: tuple
    keywords: dict[str, Any]
    kinds: dict[str, Any]  # PARAMETERS, OPTIMIZER and FROZEN: which trees among the arguments are what
    beside: dict[str, Any]  # trees that lie in memory meanwhile and are not arguments
    tokens: int  # slots of a step, packed full
    model_flops: float  # of a step over all devices: nothing recomputed, attention causal and counted once
    parameters: Params  # of which gathers are looked at
    passes: int  # how often a step may gather each parameter
    loop_trips: int = 1  # of a loop whose end depends on data


def abstract_run(config: Config, mesh: Mesh | AbstractMesh, platform: str) -> Run:
    """A run without data, tokenizer and weights; call inside `use_mesh` of a device that is here.

    Raises:
      ConfigError: the size of the vocabulary is not known, or a size does not divide by a mesh axis.
    """
    if config.model.init_from:
        source = find_model(config.model.init_from, "config.model.init_from").config
        model = resolve_architecture(config.model.architecture(source.vocab_size, platform), source)
    elif config.model.vocab_size:
        model = config.model.architecture(0, platform)
    else:
        raise ConfigError(
            "config.model.vocab_size=0: a plan opens no tokenizer; set it, or name a preset, as in "
            "configs/sft.py:llama3_8b"
        )
    # Constants of the schedule: when the steps are counted in epochs of data that is not here, any number will do.
    steps = config.num_steps or config.optimizer.warmup_steps + 1000
    updates = count_updates(config, steps)
    parallel.check_divides(
        mesh, "batch_size / config.num_microbatches", config.batch_size // config.num_microbatches
    )
    return Run(
        config=config,
        workdir=pathlib.Path(),
        mesh=mesh,
        model=model,
        tokenizer=None,
        source=None,
        train=None,
        held_out=None,
        steps=steps,
        optimizer=make_optimizer(config.optimizer, updates),
        schedule=make_schedule(config.optimizer, updates),
    )


def stage_steps(
    config: Config, mesh: Mesh | AbstractMesh, platform: str = "tpu"
) -> tuple[ModelConfig, list[Step]]:
    """The model, and every program of the config's stage that takes time or memory.

    Raises:
      ConfigError: see `abstract_run`.
    """
    # Shapes are computed on a device that is here: some libraries make small arrays outright, which those of a
    # mesh that is only described cannot hold.
    here = parallel.make_mesh(parallel.MeshConfig(data=1), jax.local_devices(backend="cpu")[:1])
    with parallel.use_mesh(here, parallel.parse_rules(config.mesh.rules)):
        run = abstract_run(config, mesh, platform)
        return run.model, ppo_steps(run) if config.stage == "ppo" else [train_step(run)]


def _rows(run: Run, *shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=run.rows_sharding)


def abstract_batch(run: Run) -> Batch | PairBatch:
    """The batch of a stage's step: [batch_size, row_length], max_segments sequences a row."""
    data, B = run.config.data, run.config.batch_size
    T, S = (
        data.row_length,
        data.segments if data.packing else 1 + (run.config.stage not in ("pretrain", "sft")),
    )
    row = _rows(run, B, T)
    shared = {
        "tokens": row,
        "positions": row,
        "segment_ids": row,
        "loss_mask": _rows(run, B, T, dtype=jnp.float32),
    }
    shared["rows"] = _rows(run, B, S)
    if run.config.stage in ("pretrain", "sft"):
        return Batch(**shared)
    pair, weight = _rows(run, B, S // 2), _rows(run, B, S // 2, dtype=jnp.float32)
    return PairBatch(
        **shared,
        chosen=pair,
        rejected=pair,
        weight=weight,
        margin=weight,
        ref_logp=_rows(run, B, S, dtype=jnp.float32),
    )


def sequence_pairs(config: Config) -> float:
    """Pairs of tokens that see each other in a full batch: rows of sequences as long as data.max_length allows."""
    length = min(config.data.max_length, config.data.row_length)
    return config.batch_size * config.data.row_length * (length + 1) / 2


def train_step(run: Run) -> Step:
    """The one step of every stage but PPO."""
    config, frozen = run.config, {}
    scalar = config.stage == "reward"
    params = run.abstract_params(scalar=scalar)
    state = abstract_train_state(params, run.optimizer, run.mesh)
    loss, totals = {
        "pretrain": (pretrain.loss, pretrain.totals),
        "sft": (pretrain.loss, pretrain.totals),
        "reward": (reward.loss, pairs.totals),
        "dpo": (dpo.loss, pairs.totals),
        "orpo": (orpo.loss, lambda batch: orpo.totals(batch, config.options)),
    }[config.stage]
    if config.stage == "dpo" and not (config.options.reference_free or config.options.precompute_reference):
        frozen["reference"] = abstract_keep(params, config.frozen)
    tokens = config.batch_size * config.data.row_length
    flops = step_flops(run.model, tokens, sequence_pairs(config), scalar=scalar)
    return Step(
        name="update",
        function=make_train_step(run, loss, totals),
        arguments=(state, abstract_batch(run), frozen),
        keywords={},
        kinds={PARAMETERS: state.params, OPTIMIZER: state.opt_state, FROZEN: frozen},
        beside={},
        tokens=tokens,
        model_flops=flops * (1 + len(frozen) / 3),  # the reference runs forward only
        parameters=params["transformer"] if scalar else params,
        passes=config.num_microbatches * (2 + len(frozen)),
    )


def ppo_steps(run: Run) -> list[Step]:
    """Sampling, scoring and the two updates of PPO; a policy, a critic, a reference and a reward model like it."""
    config, options, model = run.config, run.config.options, run.model
    micro = config.num_microbatches
    E, P, N = config.batch_size, config.data.max_length, options.sampling.max_new_tokens
    run.check_divides(
        "batch_size / (config.ppo.num_minibatches * config.num_microbatches)",
        E,
        options.num_minibatches * micro,
    )
    part = E // options.num_minibatches
    params, scalar = run.abstract_params(), run.abstract_params(scalar=True)
    optimizer, schedule = run.optimizer, run.schedule
    policy = abstract_train_state(params, optimizer, run.mesh)
    critic = abstract_train_state(scalar, optimizer, run.mesh)
    reference = abstract_keep(params, config.frozen)
    judge = abstract_keep(scalar, config.frozen) if options.reward_model else None
    frozen = {"reference": None if options.reference_rate else reference, "reward": judge}
    # A moving reference and averaged weights are further copies in the state.
    copies = [params] * (bool(options.reference_rate) + bool(options.average_decay))
    whole = jax.ShapeDtypeStruct((), jnp.int32, sharding=run.replicated)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=run.replicated)
    prompts = PromptBatch(*([_rows(run, E, P)] * 3), _rows(run, E))
    done = Completions(
        _rows(run, E, N),
        *([_rows(run, E, N, dtype=jnp.float32)] * 2),
        stopped=_rows(run, E, dtype=jnp.bool_),
    )

    def work(model: ModelConfig, rows: int, scalar: bool, passes: float) -> float:
        tokens, pairs = rows * (P + N), rows * (P + N) * (P + N + 1) / 2
        return step_flops(model, tokens, pairs, scalar=scalar, passes=passes)

    def step(name: str, function: Any, arguments: tuple, flops: float, **other: Any) -> Step:
        settings = {"keywords": {}, "tokens": E * (P + N), "parameters": params, "passes": 1} | other
        return Step(name=name, function=function, arguments=arguments, model_flops=flops, **settings)

    # Of the prompt and of the sampled tokens all but the last one the logits are needed: one row of each prompt.
    sampled = work(model, E, False, 1) - 2.0 * model.vocab_size * model.embed_dim * E * (P - 1)
    judged = work(model, E, False, 2) + work(model, E, True, 1 + bool(judge))
    return [
        step(
            "rollout",
            generate,
            (params, model, prompts.tokens, prompts.positions, prompts.segment_ids, key),
            sampled,
            keywords={"sampling": options.sampling, "stop_ids": (0,)},
            kinds={PARAMETERS: params},
            beside={"policy": policy.opt_state, "critic": critic, "frozen": frozen, "copies": copies},
            loop_trips=N,
        ),
        step(
            "score",
            ppo.make_score(run, model, model if judge else None),
            (params, scalar, copies[0] if options.reference_rate else reference, judge, prompts, done),
            judged,
            kinds={PARAMETERS: (params, scalar), FROZEN: frozen},
            beside={"policy": policy.opt_state, "critic": critic.opt_state, "copies": copies},
            passes=3 + bool(judge),
        ),
        step(
            "policy update",
            ppo_update.make_policy_update(run, optimizer, schedule),
            (policy, _episodes(run, part, P + N), None, whole),
            work(model, part, False, 3),
            kinds={PARAMETERS: policy.params, OPTIMIZER: policy.opt_state},
            beside={"critic": critic, "frozen": frozen, "copies": copies},
            tokens=part * (P + N),
            passes=2 * micro,
        ),
        step(
            "value update",
            ppo_update.make_value_update(run, model, optimizer),
            (critic, _episodes(run, part, P + N), whole),
            work(model, part, True, 3),
            kinds={PARAMETERS: critic.params, OPTIMIZER: critic.opt_state},
            beside={"policy": policy, "frozen": frozen, "copies": copies},
            tokens=part * (P + N),
            passes=2 * micro,
            parameters=scalar["transformer"],
        ),
    ]


def _episodes(run: Run, rows: int, length: int) -> Rollout:
    ints, floats = _rows(run, rows, length), _rows(run, rows, length, dtype=jnp.float32)
    return Rollout(ints, ints, ints, floats, floats, floats, floats, floats)


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
