"""The rows of the comparison: what is timed, on which data, with which settings on both sides."""

import dataclasses

BATCH = 32  # sequences, pairs or completions of a step
EPISODES = 64  # completions of a rollout
GROUP = 4  # completions of a prompt in GRPO
NEW_TOKENS = 64
BEGAN = "BENCHMARK_BEGAN"  # the variable that tells a side when its process was started, in seconds
ADAMW = {"learning_rate": 1e-4, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": 1.0}


@dataclasses.dataclass(frozen=True)
class Row:
    """One thing that both libraries do.

    Where tokens are sampled, losses cannot be compared; that weights, tokens and masks are the same is then seen by
    the losses of `checked`.
    """

    name: str
    stage: str  # of ours
    data: str  # a file of the work
    scalar: bool = False  # starts from the reward model
    checked: str = ""  # the row whose losses are compared; "": its own
    settings: tuple[str, ...] = ()  # of ours, KEY=VALUE
    whole_rows: bool = False  # a step is BATCH packed rows of LONGEST tokens, on both sides


ROWS = {
    row.name: row
    for row in (
        Row("sft", "sft", "sft"),
        Row("sft_packed", "sft", "sft", checked="sft", settings=("data.row_length=256",), whole_rows=True),
        Row("reward", "reward", "preference", scalar=True),
        Row("dpo", "dpo", "preference", settings=("dpo.beta=0.1", "dpo.length_normalized=False")),
        Row("orpo", "orpo", "preference", settings=("orpo.coef=0.1", "orpo.nll_on_prompt=True")),
        Row("kto", "kto", "unpaired", settings=("kto.beta=0.1",)),
        Row("grpo", "grpo", "prompts", checked="sft", settings=("grpo.beta=0.04",)),
        Row("ppo", "ppo", "prompts", checked="sft"),
        Row("generate", "", "prompts", checked="sft"),
    )
}


def reward(prompt: str, completion: str) -> float:
    """Of both sides in GRPO: the part of a completion's words that are different."""
    words = completion.split()
    return len(set(words)) / max(1, len(words))
