"""The models of a run that samples: what learns is made, and what does not is loaded and checked."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.encode import encode_completion
from jaxalign.data.kinds import PROMPTS
from jaxalign.data.records import PromptCompletion, parse_record
from jaxalign.errors import ConfigError, StepZeroError
from jaxalign.models import ModelConfig, Params, init_head
from jaxalign.models.frozen import keep
from jaxalign.rewards import Rewards, load_rewards
from jaxalign.rl.config import OnPolicyConfig, RewardedConfig
from jaxalign.text.messages import Message
from jaxalign.training.open import Run
from jaxalign.training.saved_model import SavedModel, check_length, find_model, fingerprint
from jaxalign.training.supervised import FrozenModels, check_same_tokenizer, computed_alike, load_frozen


@dataclasses.dataclass(frozen=True)
class RolloutModels:
    """What reads a rollout and does not learn."""

    reference: Params | None  # None: there is none, or it moves and is part of the state
    reward: Params | None
    judge: SavedModel | None  # where the reward model lies
    functions: Rewards | None
    frozen: FrozenModels  # what the loss reads
    text_batch: Callable[[int], Any] | None  # pretraining text by the number of an update
    digest: str

    @property
    def holds_models(self) -> bool:
        """Whether config.frozen has anything to say about."""
        return self.reference is not None or self.reward is not None or bool(self.frozen.params)

    @property
    def reward_config(self) -> ModelConfig | None:
        """The reward model's architecture."""
        return self.judge.config if self.judge else None


def load_models(stage: Any, run: Run) -> RolloutModels:
    """Loads and checks the models and functions that the options of a stage name.

    Raises:
      ConfigError: the reward model is not one, or reads other tokens than the policy writes.
      CheckpointError: a model is missing.
    """
    options: OnPolicyConfig = run.config.options
    path = options.path
    if options.ptx_coef:
        key = f"{path.removeprefix('config.')}.ptx_batch_size / config.num_microbatches"
        run.check_divides(key, options.ptx_batch_size, run.config.num_microbatches)
    judge, functions = find_rewards(run)
    reward: Any = judge.load(run.mesh) if judge else None
    digests = [f"reward:{fingerprint(reward)}"] if judge else []
    if functions is not None:
        digests += [f"function:{name.rpartition('/')[2]}" for name in getattr(options, "functions", ())]
    reference: Any = None
    if stage.reference(options):
        reference = run.load_init()
        digests.insert(0, f"reference:{fingerprint(reference)}")
        # A moving reference is part of the state, and begins as the policy.
        reference = None if options.reference_rate else keep(reference, run.config.frozen)
    reward = keep(reward, run.config.frozen) if judge else None
    run, frozen = load_frozen(stage.frozen(options), run)
    text_batch = None
    if options.ptx_coef:
        text_batch, text = run.text_batches(options.ptx_data, options.ptx_batch_size)
        digests.append(f"text:{text}")
    new = options.sampling.max_new_tokens
    asked = f"config.data.max_length={run.prompt_length} and {path}.sampling.max_new_tokens={new} make"
    longest = run.prompt_length + new
    check_length(run.model, longest, asked)
    if judge:
        # It also reads what the chat format writes after the token that stops the policy.
        more = run.train.rows.longest_ending - 1
        check_length(judge.config, longest + more, asked, f"{path}.reward")
    for name, model in frozen.configs.items():
        check_length(model, longest, asked, stage.frozen(options)[name].key)
    digests += [frozen.digest] if frozen.digest else []
    return RolloutModels(reference, reward, judge, functions, frozen, text_batch, "-".join(digests))


def find_rewards(run: Run) -> tuple[SavedModel | None, Rewards | None]:
    """The reward model of a run, not loaded, and its reward functions, imported.

    Raises:
      ConfigError: the model is none, or reads other tokens than the policy writes; a function cannot be imported.
      CheckpointError: the model is missing.
    """
    options: OnPolicyConfig = run.config.options
    key, judge, functions = f"{options.path}.reward", None, None
    if isinstance(options, RewardedConfig):
        judge = find_judge(run, options.reward_model, key) if options.reward_model else None
        if options.functions:
            weights = [options.weights[name] for name in options.functions]
            functions = load_rewards(options.functions, weights, key, f"{key}_weights")
    return judge, functions


def critic_architecture(options: Any, run: Run, reward_config: ModelConfig | None) -> ModelConfig:
    """The critic is like the policy, or like the reward model that it starts from."""
    if options.critic_from_reward and reward_config is not None:
        return dataclasses.replace(computed_alike(reward_config, run), remat=run.model.remat)
    return run.model


def first_critic(options: Any, run: Run, policy: Params, judge: SavedModel | None) -> Params:
    """The critic before the first update."""
    if options.critic_from_reward and judge is not None:
        return judge.load(run.mesh)
    # First values are 0: nothing is known of the returns yet.
    head = init_head(jax.random.key(0), run.model, zero=True)
    return {"transformer": jax.tree.map(jnp.copy, policy), "head": head}


def find_judge(run: Run, path: str, key: str) -> SavedModel:
    """The reward model that `key` names, which reads what the policy writes.

    Raises:
      ConfigError: it is a language model, or has another tokenizer or chat template. CheckpointError: it is missing.
    """
    found = find_model(path, key)
    if not found.scalar:
        raise ConfigError(f"{key}={path!r} is a language model; name a run of the reward stage")
    check_same_tokenizer(found, path, key, run)
    check_format(run, found, key)
    return found


def check_format(run: Run, judge: SavedModel, key: str) -> None:
    """Checks that an answer ends alike where the reward model was trained and where it reads the policy's answers."""
    tokenizer, theirs = run.tokenizer, judge.tokenizer()
    first: Any = parse_record(run.train.record(run.train.rows.items[0].row), PROMPTS, "the first prompt")
    asked = first.prompt
    reply = "answer" if isinstance(asked, str) else (Message("assistant", "answer"),)
    read, trained = (encode_completion(PromptCompletion(asked, reply), t).ids for t in (tokenizer, theirs))
    if not np.array_equal(read, trained):
        raise ConfigError(
            f"{key}={str(judge.path)!r} was trained with another chat template than the policy has: "
            f"the first prompt with an answer is {theirs.decode(trained)!r} to it, and {tokenizer.decode(read)!r} here;"
            f" train both with one template (config.data.chat_template)"
        )
    ending = run.train.rows.items[0].ending
    if tuple(read[-len(ending) :].tolist()) != ending:
        raise StepZeroError(
            f"the first prompt with an answer ends with the tokens {read[-len(ending) :].tolist()} in training, but a "
            f"rollout with {list(ending)}: the chat template ends answers unlike one another"
        )
