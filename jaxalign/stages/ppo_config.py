"""The settings of the PPO stage: config.ppo."""

import dataclasses

from jaxalign.errors import ConfigError
from jaxalign.sampling.generate import SamplingConfig


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """config.ppo. `config.batch_size` counts episodes, `config.optimizer` is the policy's."""

    reward_model: str = ""  # the folder of a run of the reward stage
    reward_function: str = ""  # or module:function, called as f(prompt, completion) -> float
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    ppo_epochs: int = 4  # passes over the episodes of a rollout
    num_minibatches: int = 1  # updates a pass
    # The tie to the reference
    kl_coef: float = 0.05  # β
    kl_estimator: str = "k1"  # k1, k2, k3 of the sampled token, or exact over the vocabulary
    kl_target: float = 0.0  # adapt β until a sequence's KL is this many nats; 0: β is fixed
    kl_horizon: int = 10_000  # episodes over which β adapts
    reference_rate: float = 0.0  # the reference moves towards the policy by this share a rollout (2404.10719)
    # Scores to rewards
    reward_scale: float = 1.0
    reward_clip: float | None = None  # scaled scores are clipped to ± this
    whiten_rewards: bool = False
    missing_eos_penalty: float | None = None  # taken off an episode that ran into the length limit
    # Policy loss
    clip: float = 0.2
    clip_high: float | None = None  # upper clip, where it differs
    gamma: float = 1.0
    lam: float = 0.95
    whiten_advantages: bool = True  # over all episodes on all devices
    entropy_coef: float = 0.0
    early_stop_kl: float = 0.0  # no more updates on a rollout once policy/approxkl_avg exceeds it; 0: never
    ptx_coef: float = 0.0  # weight of the pretraining loss on ptx_data (InstructGPT's γ; it used 27.8)
    ptx_data: str | tuple[str, ...] = ""  # sources of text, as config.data.train
    ptx_batch_size: int = 8  # rows of pretraining text a policy update
    average_decay: float = (
        0.0  # the result is an average of the weights (InstructGPT: 0.992); 0: the last ones
    )
    # Critic
    # Start from the "policy", from the "reward" model, or "auto": from the reward model if there is one.
    critic_init: str = "policy"
    critic_learning_rate: float = 1e-5
    value_clip: float | None = 0.2
    normalize_values: bool = False  # train the critic on returns of mean 0 and variance 1
    value_decay: float = 0.99  # of their running mean and variance

    @property
    def updates_per_step(self) -> int:
        """Updates of the policy on one rollout."""
        return self.ppo_epochs * self.num_minibatches

    @property
    def critic_from_reward(self) -> bool:
        """Whether the critic starts as the reward model does."""
        return self.critic_init == "reward" or (self.critic_init == "auto" and bool(self.reward_model))

    def __post_init__(self) -> None:
        if bool(self.reward_model) == bool(self.reward_function):
            state = "both are" if self.reward_model else "neither is"
            raise ConfigError(f"set config.ppo.reward_model or config.ppo.reward_function; {state} set")
        if self.kl_estimator not in ("k1", "k2", "k3", "exact"):
            raise ConfigError(
                f"config.ppo.kl_estimator={self.kl_estimator!r} is not one of k1, k2, k3, exact"
            )
        if self.critic_init not in ("policy", "reward", "auto"):
            raise ConfigError(
                f"config.ppo.critic_init={self.critic_init!r} is not one of policy, reward, auto"
            )
        if self.critic_init == "reward" and not self.reward_model:
            raise ConfigError(
                "config.ppo.critic_init='reward' needs config.ppo.reward_model; or use 'policy'"
            )
        for key in ("ppo_epochs", "num_minibatches", "ptx_batch_size"):
            if getattr(self, key) < 1:
                raise ConfigError(f"config.ppo.{key}={getattr(self, key)} must be at least 1")
        if self.sampling.temperature == 0:
            raise ConfigError("config.ppo.sampling.temperature=0 never explores; use a positive temperature")
        if self.sampling.truncated:
            raise ConfigError(
                "config.ppo.sampling uses top_k, top_p or min_p: the loss would divide by the probabilities of "
                "another distribution than the one sampled from, and the KL can become negative; set them to "
                "0, 1 and 0 and lower the temperature instead"
            )
