"""What may be set of every stage that samples from the model it trains."""

import dataclasses
from typing import ClassVar

from jaxalign.errors import ConfigError
from jaxalign.sampling.generate import SamplingConfig


@dataclasses.dataclass(frozen=True)
class OnPolicyConfig:
    """`config.batch_size` counts sampled completions, `config.optimizer` is the policy's."""

    path: ClassVar[str] = "config"  # of these settings in a config file

    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    num_minibatches: int = 1  # updates a pass over a rollout
    reference_rate: float = 0.0  # the reference moves towards the policy by this share a rollout (2404.10719)
    early_stop_kl: float = 0.0  # no more updates on a rollout once policy/approxkl_avg exceeds it; 0: never
    ptx_coef: float = 0.0  # weight of the pretraining loss on ptx_data (InstructGPT's γ; it used 27.8)
    ptx_data: str | tuple[str, ...] = ""  # sources of text, as config.data.train
    ptx_batch_size: int = 8  # rows of pretraining text a policy update
    # The result is an average of the weights (InstructGPT: 0.992); 0: the last ones.
    average_decay: float = 0.0

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
        for key in ("num_minibatches", "ptx_batch_size"):
            self.check_at_least_1(key)
        if self.sampling.temperature == 0:
            raise ConfigError(f"{self.path}.sampling.temperature=0 never explores; use a positive temperature")
        if self.sampling.truncated:
            raise ConfigError(
                f"{self.path}.sampling uses top_k, top_p or min_p: the loss would divide by the probabilities of "
                "another distribution than the one sampled from, and the KL can become negative; set them to "
                "0, 1 and 0 and lower the temperature instead"
            )

    def check_at_least_1(self, key: str) -> None:
        """Raises ConfigError unless the value of `key` is 1 or more."""
        if getattr(self, key) < 1:
            raise ConfigError(f"{self.path}.{key}={getattr(self, key)} must be at least 1")


@dataclasses.dataclass(frozen=True)
class RewardedConfig(OnPolicyConfig):
    """Of a stage that learns from rewards: a trained model, functions, or both by their weights."""

    reward_model: str = ""  # the folder of a run of the reward stage
    # Or module:function or FILE.py:function; several give a weighted sum. See jaxalign/rewards.py.
    reward_function: str | tuple[str, ...] = ""
    reward_weights: tuple[float, ...] = ()  # one for each function, after that of the model; none: 1 each
    reward_scale: float = 1.0
    reward_clip: float | None = None  # scaled scores are clipped to ± this
    missing_eos_penalty: float | None = None  # taken off a completion that ran into the length limit

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of the reward functions."""
        names = self.reward_function
        return tuple(name for name in ((names,) if isinstance(names, str) else names) if name)

    def __post_init__(self) -> None:
        both = bool(self.reward_model) and bool(self.functions)
        if not self.reward_model and not self.functions or (both and not self.reward_weights):
            state, more = ("both are", f", or {self.path}.reward_weights, one for each") if both else ("neither is", "")
            raise ConfigError(f"set {self.path}.reward_model or {self.path}.reward_function{more}; {state} set")
        count = bool(self.reward_model) + len(self.functions)
        if self.reward_weights and len(self.reward_weights) != count:
            raise ConfigError(
                f"{self.path}.reward_weights={self.reward_weights}: give one for each of the {count} rewards, the "
                "model first, or none"
            )
        super().__post_init__()


@dataclasses.dataclass(frozen=True)
class GroupConfig(RewardedConfig):
    """Of a stage that compares several completions of one prompt."""

    group_size: int = 8  # completions of each prompt
    num_iterations: int = 1  # passes over the completions of a rollout

    @property
    def passes(self) -> int:
        """Passes over the completions of a rollout."""
        return self.num_iterations

    @property
    def samples_per_row(self) -> int:
        """Completions of each prompt in a rollout."""
        return self.group_size

    def __post_init__(self) -> None:
        self.check_at_least_1("num_iterations")
        if self.group_size < 2:
            raise ConfigError(
                f"{self.path}.group_size={self.group_size}: completions are compared with others of their prompt; "
                "use 2 or more"
            )
        super().__post_init__()
