"""The settings of the PPO stage: config.ppo."""

import dataclasses

from jaxalign.errors import ConfigError
from jaxalign.fields import Checked, field
from jaxalign.sampling.generate import SamplingConfig


@dataclasses.dataclass(frozen=True)
class PPOConfig(Checked, at="config.ppo"):
    """config.ppo. `config.batch_size` counts episodes, `config.optimizer` is the policy's."""

    # The folder of a run of the reward stage; or module:function, called as f(prompt, completion) -> float.
    reward_model: str = field("", replaces=("reward_function",))
    reward_function: str = field("", replaces=("reward_model",))
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    ppo_epochs: int = field(4, at_least=1)  # passes over the episodes of a rollout
    num_minibatches: int = field(1, at_least=1)  # updates a pass
    # The tie to the reference
    kl_coef: float = field(0.05, at_least=0)  # β
    # k1, k2, k3 of the sampled token, or exact over the vocabulary.
    kl_estimator: str = field("k1", choices=("k1", "k2", "k3", "exact"))
    # Adapt β until a sequence's KL is this many nats; 0: β is fixed.
    kl_target: float = field(0.0, at_least=0)
    kl_horizon: int = field(10_000, at_least=1)  # episodes over which β adapts
    # The reference moves towards the policy by this share a rollout (arXiv 2404.10719).
    reference_rate: float = field(0.0, at_least=0, at_most=1)
    # Scores to rewards
    reward_scale: float = 1.0
    reward_clip: float | None = None  # scaled scores are clipped to ± this
    whiten_rewards: bool = False
    missing_eos_penalty: float | None = None  # taken off an episode that ran into the length limit
    # Policy loss
    clip: float = field(0.2, above=0)
    clip_high: float | None = None  # upper clip, where it differs
    gamma: float = field(1.0, at_least=0, at_most=1)
    lam: float = field(0.95, at_least=0, at_most=1)
    whiten_advantages: bool = True  # over all episodes on all devices
    entropy_coef: float = 0.0
    # No more updates on a rollout once policy/approxkl_avg exceeds it; 0: never.
    early_stop_kl: float = field(0.0, at_least=0)
    # Weight of the pretraining loss on ptx_data (InstructGPT's γ; it used 27.8).
    ptx_coef: float = field(0.0, at_least=0)
    ptx_data: str | tuple[str, ...] = ""  # sources of text, as config.data.train
    ptx_batch_size: int = field(8, at_least=1)  # rows of pretraining text a policy update
    # The result is an average of the weights (InstructGPT: 0.992); 0: the last ones.
    average_decay: float = field(0.0, at_least=0, below=1)
    # Critic
    # Start from the "policy", from the "reward" model, or "auto": from the reward model if there is one.
    critic_init: str = field("policy", choices=("policy", "reward", "auto"))
    critic_learning_rate: float = field(1e-5, above=0)
    value_clip: float | None = 0.2
    normalize_values: bool = False  # train the critic on returns of mean 0 and variance 1
    value_decay: float = field(0.99, at_least=0, below=1)  # of their running mean and variance

    @property
    def updates_per_step(self) -> int:
        """Updates of the policy on one rollout."""
        return self.ppo_epochs * self.num_minibatches

    @property
    def critic_from_reward(self) -> bool:
        """Whether the critic starts as the reward model does."""
        return self.critic_init == "reward" or (self.critic_init == "auto" and bool(self.reward_model))

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.reward_model) == bool(self.reward_function):
            state = "both are" if self.reward_model else "neither is"
            raise ConfigError(f"set config.ppo.reward_model or config.ppo.reward_function; {state} set")
        if self.critic_init == "reward" and not self.reward_model:
            raise ConfigError(
                "config.ppo.critic_init='reward' needs config.ppo.reward_model; or use 'policy'"
            )
        if self.sampling.temperature == 0:
            raise ConfigError("config.ppo.sampling.temperature=0 never explores; use a positive temperature")
        if self.sampling.truncated:
            raise ConfigError(
                "config.ppo.sampling uses top_k, top_p or min_p: the loss would divide by the probabilities of "
                "another distribution than the one sampled from, and the KL can become negative; set them to "
                "0, 1 and 0 and lower the temperature instead"
            )
