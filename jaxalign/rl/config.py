"""What may be set of every stage that samples from the model it trains."""

import dataclasses
import re
from typing import ClassVar

from jaxalign.errors import ConfigError
from jaxalign.fields import Checked, field
from jaxalign.sampling.generate import SamplingConfig


@dataclasses.dataclass(frozen=True)
class RolloutSampling(SamplingConfig):
    """How completions are sampled to learn from."""

    # Tokens of the longest completion; 0: what the model has room for beside a prompt, at most 1,024.
    max_new_tokens: int = field(0, at_least=0)


@dataclasses.dataclass(frozen=True)
class OnPolicyConfig(Checked):
    """`config.batch_size` counts sampled completions, `config.optimizer` is the policy's."""

    # What a stage may make a setting: the KL that `credit` reads, and a trained reward model.
    kl_estimator: ClassVar[str] = "k1"
    reward_model: ClassVar[str] = ""

    sampling: RolloutSampling = dataclasses.field(default_factory=RolloutSampling)
    num_minibatches: int = field(1, at_least=1)  # updates a pass over a rollout
    # Models read short completions packed into rows, where these are at most half as many. False: each in a row that
    # holds the longest.
    pack_completions: bool = True
    # The reference moves towards the policy by this share a rollout (arXiv 2404.10719).
    reference_rate: float = field(0.0, at_least=0, at_most=1)
    # No more updates on a rollout once policy/approxkl_avg exceeds it; 0: never.
    early_stop_kl: float = field(0.0, at_least=0)
    # Weight of the pretraining loss on ptx_data (InstructGPT's γ; it used 27.8).
    ptx_coef: float = field(0.0, at_least=0)
    # Sources of text, as config.data.train; config.data.fields is said of the prompts.
    ptx_data: str | tuple[str, ...] = ""
    ptx_batch_size: int = field(8, at_least=1)  # rows of pretraining text a policy update
    # The result is an average of the weights (InstructGPT: 0.992); 0: the last ones.
    average_decay: float = field(0.0, at_least=0, below=1)

    @property
    def path(self) -> str:
        """The key of these settings in a config file."""
        return self.key("").rstrip(".")

    @property
    def passes(self) -> int:
        """Passes over the completions of a rollout."""
        return 1

    @property
    def samples_per_row(self) -> int:
        """Completions of each prompt in a rollout."""
        return 1

    @property
    def updates_per_step(self) -> int:
        """Updates of the policy on one rollout."""
        return self.passes * self.num_minibatches

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling.temperature == 0:
            raise ConfigError(
                f"{self.path}.sampling.temperature=0 never explores; use a positive temperature"
            )
        if self.sampling.truncated:
            raise ConfigError(
                f"{self.path}.sampling uses top_k, top_p or min_p: the loss would divide by the probabilities of "
                "another distribution than the one sampled from, and the KL can become negative; set them to "
                "0, 1 and 0 and lower the temperature instead"
            )

        if self.sampling.altered:
            raise ConfigError(
                f"{self.path}.sampling uses {', '.join(self.sampling.altered)}: completions would come from another "
                "distribution than the one whose log-probabilities the loss uses; leave them out, and let "
                "the reward say what is wanted"
            )


@dataclasses.dataclass(frozen=True)
class RewardedConfig(OnPolicyConfig):
    """Of a stage that learns from rewards: a trained model, functions, or both by their weights."""

    # What scores a completion: a reward model (a run of the reward stage, a Hugging Face folder or a hub name), or a
    # function, as module:function or FILE.py:function. Several, separated by commas, one of which may be a model, give
    # a weighted sum. See docs/rewards.md.
    reward: str | tuple[str, ...] = ""
    reward_weights: tuple[float, ...] = ()  # one for each of `reward`; none: 1 each
    reward_scale: float = 1.0  # scores are multiplied by it
    reward_clip: float | None = field(None, above=0)  # scaled scores are clipped to ± this
    # Taken off a completion that ran into the length limit.
    missing_eos_penalty: float | None = field(None, at_least=0)

    @property
    def rewards(self) -> tuple[str, ...]:
        """What scores, one by one."""
        names = self.reward.split(",") if isinstance(self.reward, str) else self.reward
        return tuple(name.strip() for name in names if name.strip())

    @property
    def reward_model(self) -> str:
        """The reward model among them; "" where there is none."""
        return next((name for name in self.rewards if not _is_function(name)), "")

    @property
    def functions(self) -> tuple[str, ...]:
        """The reward functions among them."""
        return tuple(filter(_is_function, self.rewards))

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each."""
        return dict(zip(self.rewards, self.reward_weights or (1.0,) * len(self.rewards), strict=True))

    def __post_init__(self) -> None:
        super().__post_init__()
        key = f"{self.path}.reward"
        for name in self.rewards:
            if name.endswith(".py"):
                raise ConfigError(f"{key}={name!r} names no function; write {name}:FUNCTION")
        models = [name for name in self.rewards if not _is_function(name)]
        if len(models) > 1:
            raise ConfigError(
                f"{key}={','.join(self.rewards)!r} names {len(models)} reward models, {' and '.join(models)}; name one "
                "beside functions (module:function or FILE.py:function)"
            )
        if len(set(self.rewards)) < len(self.rewards):
            raise ConfigError(
                f"{key}={','.join(self.rewards)!r} names one of them twice; give it a weight instead"
            )
        if self.reward_weights and len(self.reward_weights) != len(self.rewards):
            raise ConfigError(
                f"{key}_weights={self.reward_weights}: give one for each of the {len(self.rewards)} in {key}, or none"
            )

    def check_named(self) -> None:
        """Raises ConfigError where there is no reward; a plan needs none."""
        if not self.rewards:
            raise ConfigError(
                f"{self.path}.reward is empty: name what scores completions, a reward model "
                f"({self.path}.reward=RUN) or a function ({self.path}.reward=module:function or FILE.py:function)"
            )


def _is_function(name: str) -> bool:
    """Whether a reward reads as module:function or FILE.py:function, and not as a folder or a name on the hub."""
    return re.fullmatch(r"(.+\.py|[\w.]+):[\w.]+", name) is not None


@dataclasses.dataclass(frozen=True)
class GroupConfig(RewardedConfig):
    """Of a stage that compares several completions of one prompt."""

    group_size: int = field(8, at_least=2)  # completions of each prompt, which are compared with one another
    num_iterations: int = field(1, at_least=1)  # passes over the completions of a rollout

    @property
    def passes(self) -> int:
        """Passes over the completions of a rollout."""
        return self.num_iterations

    @property
    def samples_per_row(self) -> int:
        """Completions of each prompt in a rollout."""
        return self.group_size
