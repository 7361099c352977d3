"""Reward functions on text: what they look like, how they are called, and two that are ready to use.

A reward function is a Python function of one of two forms; either may be `async`:

    f(prompt, completion, **fields) -> float                one completion, and fields of its row
    f(prompts, completions, **fields) -> list of floats     a batch of them: TRL's signature

`load_rewards` imports functions by name, `Rewards.score` calls them. See docs/rewards.md.
"""

from jaxalign.rewards.functions import RewardFunction, TrainerState
from jaxalign.rewards.imports import import_reward_function
from jaxalign.rewards.provided import math_accuracy, vader
from jaxalign.rewards.score import (
    Rewards,
    Scores,
    load_rewards,
    reward_metrics,
    weighted_total,
)

__all__ = [
    "RewardFunction",
    "Rewards",
    "Scores",
    "TrainerState",
    "import_reward_function",
    "load_rewards",
    "math_accuracy",
    "reward_metrics",
    "vader",
    "weighted_total",
]
