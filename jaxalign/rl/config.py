"""What may be set of every stage that samples from the model it trains."""

import dataclasses
from typing import ClassVar

from jaxalign.errors import ConfigError
from jaxalign.fields import Checked, field
from jaxalign.sampling.generate import SamplingConfig


@dataclasses.dataclass(frozen=True)
class OnPolicyConfig(Checked):
    """`config.batch_size` counts sampled completions, `config.optimizer` is the policy's."""

    # What a stage may make a setting: the KL that `credit` reads, and a trained reward model.
    kl_estimator: ClassVar[str] = "k1"
    reward_model: ClassVar[str] = ""

    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    num_minibatches: int = field(1, at_least=1)  # updates a pass over a rollout
    # The reference moves towards the policy by this share a rollout (arXiv 2404.10719).
    reference_rate: float = field(0.0, at_least=0, at_most=1)
    # No more updates on a rollout once policy/approxkl_avg exceeds it; 0: never.
    early_stop_kl: float = field(0.0, at_least=0)
    # Weight of the pretraining loss on ptx_data (InstructGPT's γ; it used 27.8).
    ptx_coef: float = field(0.0, at_least=0)
    ptx_data: str | tuple[str, ...] = ""  # sources of text, as config.data.train
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


@dataclasses.dataclass(frozen=True)
class RewardedConfig(OnPolicyConfig):
    """Of a stage that learns from rewards: a trained model, functions, or both by their weights."""

    # The folder of a run of the reward stage.
    reward_model: str = field("", replaces=("reward_function",))
    # Or module:function or FILE.py:function; several give a weighted sum. See docs/rewards.md.
    reward_function: str | tuple[str, ...] = field("", replaces=("reward_model",))
    reward_weights: tuple[float, ...] = ()  # one for each function, after that of the model; none: 1 each
    reward_scale: float = 1.0  # scores are multiplied by it
    reward_clip: float | None = None  # scaled scores are clipped to ± this
    missing_eos_penalty: float | None = None  # taken off a completion that ran into the length limit

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of the reward functions."""
        names = self.reward_function
        return tuple(name for name in ((names,) if isinstance(names, str) else names) if name)

    def __post_init__(self) -> None:
        super().__post_init__()
        both = bool(self.reward_model) and bool(self.functions)
        if (not self.reward_model and not self.functions) or (both and not self.reward_weights):
            state, more = (
                ("both are", f", or {self.path}.reward_weights, one for each") if both else ("neither is", "")
            )
            raise ConfigError(
                f"set {self.path}.reward_model or {self.path}.reward_function{more}; {state} set"
            )
        count = bool(self.reward_model) + len(self.functions)
        if self.reward_weights and len(self.reward_weights) != count:
            raise ConfigError(
                f"{self.path}.reward_weights={self.reward_weights}: give one for each of the {count} rewards, the "
                "model first, or none"
            )


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
