"""The models of a PPO run: policy and critic that learn, reference and reward that do not."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.data.encode import encode_completion
from jaxalign.data.records import Message, PromptCompletion, parse_record
from jaxalign.errors import ConfigError, StepZeroError
from jaxalign.models import ModelConfig, Params, init_head
from jaxalign.models.frozen import keep
from jaxalign.rewards import RewardFunction, import_reward_function
from jaxalign.training.open import Run
from jaxalign.training.optimizer import make_optimizer, make_schedule
from jaxalign.training.saved_model import SavedModel, find_model, fingerprint
from jaxalign.training.state import TrainState, abstract_train_state, init_train_state


@dataclasses.dataclass(frozen=True)
class PPOModels:
    """What `load_models` found."""

    reference: Params | None  # None where it moves
    reward: Params | None
    reward_config: ModelConfig | None
    reward_function: RewardFunction | None
    critic_config: ModelConfig
    optimizer: optax.GradientTransformation
    critic_optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    abstract_policy: TrainState
    abstract_critic: TrainState
    init: Callable[[], tuple[TrainState, TrainState]]
    text_batch: Callable[[int], Any]
    fingerprint: str


def load_models(run: Run, options: Any) -> PPOModels:
    """Loads and checks the models that config.ppo names.

    Raises:
      ConfigError: the reward model is not one, or reads other tokens than the policy writes.
      CheckpointError: a model is missing.
    """
    critic_rates = dataclasses.replace(run.config.optimizer, learning_rate=options.critic_learning_rate)
    optimizer, critic_optimizer = (
        make_optimizer(run.config.optimizer, run.updates),
        make_optimizer(critic_rates, run.updates),
    )
    micro = run.config.num_microbatches
    run.check_divides(
        "batch_size / (config.ppo.num_minibatches * config.num_microbatches)",
        run.config.batch_size,
        options.num_minibatches * micro,
    )
    if options.ptx_coef:
        run.check_divides("ppo.ptx_batch_size / config.num_microbatches", options.ptx_batch_size, micro)

    given = run.load_init(required=True)
    found = _reward_model(run, options.reward_model) if options.reward_model else None
    judge = found.load(run.mesh) if found else None
    digests = f"reference:{fingerprint(given)}" + (f"-reward:{fingerprint(judge)}" if judge else "")
    text_batch: Callable[[int], Any] = _no_text
    if options.ptx_coef:
        text_batch, text = run.text_batches(options.ptx_data, options.ptx_batch_size)
        digests += f"-text:{text}"
    # A moving reference is part of the state, and begins as the policy.
    reference = None if options.reference_rate else keep(given, run.config.frozen)
    reward = keep(judge, run.config.frozen) if judge else None
    del given, judge  # what is kept may be smaller, and lie elsewhere
    _check_length(run, run.model, "config.model.init_from", options.sampling.max_new_tokens)
    if found:
        _check_length(run, found.config, "config.ppo.reward_model", options.sampling.max_new_tokens)
    critic_config = run.model
    if options.critic_from_reward:
        critic_config = dataclasses.replace(found.config, dtype=run.model.dtype, remat=run.model.remat)

    abstract_policy = abstract_train_state(run.abstract_params(), optimizer, run.mesh)
    abstract_critic = abstract_train_state(
        run.abstract_params(scalar=True, model=critic_config), critic_optimizer, run.mesh
    )

    def init() -> tuple[TrainState, TrainState]:
        policy = run.load_init(required=True)
        if options.critic_from_reward:
            critic = found.load(run.mesh)
        else:
            # First values are 0: nothing is known of the returns yet.
            head = init_head(jax.random.key(0), critic_config, zero=True)
            critic = {"transformer": jax.tree.map(jnp.copy, policy), "head": head}
        return (
            _state(policy, optimizer, abstract_policy),
            _state(critic, critic_optimizer, abstract_critic),
        )

    return PPOModels(
        reference=reference,
        reward=reward,
        reward_config=found.config if found else None,
        reward_function=None
        if found
        else import_reward_function(options.reward_function, "config.ppo.reward_function"),
        critic_config=critic_config,
        optimizer=optimizer,
        critic_optimizer=critic_optimizer,
        schedule=make_schedule(run.config.optimizer, run.updates),
        abstract_policy=abstract_policy,
        abstract_critic=abstract_critic,
        init=init,
        text_batch=text_batch,
        fingerprint=digests,
    )


def _state(params: Params, optimizer: optax.GradientTransformation, abstract: TrainState) -> TrainState:
    make = functools.partial(init_train_state, optimizer=optimizer)
    return jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(params)


def _no_text(step: int) -> None:
    return None


def _check_length(run: Run, model: ModelConfig, key: str, new_tokens: int) -> None:
    length = run.prompt_length + new_tokens
    if model.positions == "learned" and length > model.max_length:
        raise ConfigError(
            f"config.data.max_length={run.prompt_length} and config.ppo.sampling.max_new_tokens={new_tokens} make "
            f"{length} positions, but the table of the model in {key} ends at {model.max_length}; lower one of them"
        )


def _reward_model(run: Run, path: str) -> SavedModel:
    found = find_model(path, "config.ppo.reward_model")
    if not found.scalar:
        raise ConfigError(
            f"config.ppo.reward_model={path!r} is a language model; name a run of the reward stage"
        )
    if found.tokenizer_digest() != run.source.tokenizer_digest():
        raise ConfigError(
            f"config.ppo.reward_model={path!r} has another tokenizer than config.model.init_from; train it from "
            f"a model with the policy's tokenizer"
        )
    _check_format(run, found)
    return found


def _check_format(run: Run, judge: SavedModel) -> None:
    """Checks that an answer ends alike where the reward model was trained and where it reads the policy's answers."""
    tokenizer, theirs = run.tokenizer, judge.tokenizer()
    asked = parse_record(run.train.record(run.train.rows.items[0].row), "prompt", "the first prompt").prompt
    reply = "answer" if isinstance(asked, str) else (Message("assistant", "answer"),)
    read, trained = (encode_completion(PromptCompletion(asked, reply), t).ids for t in (tokenizer, theirs))
    if not np.array_equal(read, trained):
        raise ConfigError(
            f"config.ppo.reward_model={str(judge.path)!r} was trained with another chat template than the policy has: "
            f"the first prompt with an answer is {theirs.decode(trained)!r} to it, and {tokenizer.decode(read)!r} here;"
            f" train both with one template (config.data.chat_template)"
        )
    ending = run.train.rows.items[0].ending
    if tuple(read[-len(ending) :].tolist()) != ending:
        raise StepZeroError(
            f"the first prompt with an answer ends with the tokens {read[-len(ending) :].tolist()} in training, but a "
            f"rollout with {list(ending)}: the chat template ends answers unlike one another"
        )
