"""The state of a run that samples, by shapes alone, and the checks that need no more than these."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig
from jaxalign.rl.rollout import OnPolicyState, Rollout
from jaxalign.sampling.generate import Completions
from jaxalign.training.open import Run
from jaxalign.training.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.state import abstract_train_state

if TYPE_CHECKING:
    from jaxalign.rl.stage import OnPolicyStage


def critic_rates(run: Run) -> OptimizerConfig:
    """The policy's optimizer settings at the critic's learning rate."""
    return dataclasses.replace(run.config.optimizer, learning_rate=run.config.options.critic_learning_rate)


def make_critic_optimizer(run: Run) -> optax.GradientTransformation:
    """The critic's optimizer, which makes as many updates as the policy's."""
    return make_optimizer(critic_rates(run), run.updates)


def check_run(stage: "OnPolicyStage", run: Run) -> None:
    """Checks what the fields of the options cannot say alone.

    Raises:
      ConfigError: the completions of a rollout cannot be grouped, cut into minibatches and split, or a setting is of
        a reference that the stage does not read.
    """
    config, options = run.config, run.config.options
    if options.reference_rate and not stage.reference(options):
        raise ConfigError(
            f"{options.path}.reference_rate={options.reference_rate} moves a reference, but a run of {stage.name} with "
            "these settings reads none; leave it at 0"
        )
    E, k = config.batch_size, options.samples_per_row
    if E % k:
        raise ConfigError(
            f"config.batch_size={E} completions are no whole number of groups of {options.path}.group_size={k}; make "
            f"the batch a multiple of it, such as {-(-E // k) * k}"
        )
    run.check_divides(f"batch_size / {options.path}.group_size" if k > 1 else "batch_size", E // k)
    run.check_divides(
        f"batch_size / ({options.path}.num_minibatches * config.num_microbatches)",
        E,
        options.num_minibatches * config.num_microbatches,
    )


def abstract_state(stage: "OnPolicyStage", run: Run, critic_config: ModelConfig | None) -> OnPolicyState:
    """The ShapeDtypeStructs, with shardings, of a run's state."""
    options = run.config.options

    def scalar(dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((), dtype, sharding=run.replicated)

    critic = None
    if critic_config is not None:
        params = run.abstract_params(scalar=True, model=critic_config)
        critic = abstract_train_state(params, make_critic_optimizer(run), run.mesh)
    control = jax.tree.map(lambda x: scalar(x.dtype), jax.eval_shape(lambda: stage.control(options)))
    shape = (run.config.batch_size, run.prompt_length + options.sampling.max_new_tokens)
    return OnPolicyState(
        policy=abstract_train_state(run.abstract_params(), run.optimizer, run.mesh),
        critic=critic,
        kl_coef=control.get("kl_coef"),
        moments=control.get("moments"),
        reference=run.abstract_params() if options.reference_rate else None,
        average=run.abstract_params() if options.average_decay else None,
        rollout=abstract_rollout(stage, run, shape),
        key=scalar(jax.random.key(0).dtype),
    )


def abstract_rollout(stage: "OnPolicyStage", run: Run, shape: tuple[int, int]) -> Rollout:
    """A rollout [E, T] with the parts that the stage's credit gives it."""
    options, E = run.config.options, shape[0]
    ints, floats = run.abstract_rows(shape, jnp.int32), run.abstract_rows(shape, jnp.float32)
    scored = {"tokens": ints, "positions": ints, "segment_ids": ints, "mask": floats}
    scored |= {"old_logp": floats, "entropy": floats}
    if stage.reference(options):
        scored |= {"ref_logp": floats, "kl": floats, "kl1": floats}
    if stage.critic_loss is not None:
        scored["old_values"] = floats
    N = options.sampling.max_new_tokens
    abstract: Any = run.abstract_rows
    new = abstract((E, N), jnp.float32)
    done = Completions(abstract((E, N), jnp.int32), new, new, abstract((E,), jnp.bool_))
    credit = functools.partial(stage.credit, options=options)
    control = jax.eval_shape(lambda: stage.control(options))
    rollout, _, _ = jax.eval_shape(credit, scored, abstract((E,), jnp.float32), done, control)
    return jax.tree.map(lambda x: run.abstract_rows(x.shape, x.dtype), rollout)
