"""RLOO from the SFT model against the trained reward model, in the HHH world.

    jaxalign quickstart        # once: writes the data and trains the models to start from
    jaxalign train --config=rloo --workdir=runs/rloo

`--config=rloo:smoke` is a few steps of this stage.

On your own data: `--config.data.train=FILE.jsonl --config.model.init_from=RUN`, rows {"prompt": ...}, and a reward:
`--config.rloo.reward_model=RUN`, or any Python function f(prompt, completion) -> float with
`--config.rloo.reward_function=module:function`; see docs/rewards.md. `config.batch_size` counts completions, a multiple
of `config.rloo.group_size`.

A published model on prompts of 1,024 tokens and answers of 1,024:

    jaxalign plan --config=rloo:llama3_1_8b --topology=v5p:4x4x4
    jaxalign train --config=rloo:llama3_1_8b --config.model.init_from=MODEL --config.data.train=FILE \\
        --config.rloo.reward_model=RUN --workdir=runs/rloo
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "", root: str = "quickstart") -> ConfigDict:
    """`model`: a published one, or finetune, see `large`; else the quickstart's, `root` being its folder."""
    if model:
        return large(model)
    config = jaxalign.default_config("rloo")
    config.model.init_from = f"{root}/sft"  # policy and reference
    config.rloo.reward_model = f"{root}/reward"  # the one that PPO learns from
    config.data.train = f"{root}/data/prompts.jsonl"  # questions without answers
    config.data.max_length = 48  # of a prompt
    config.rloo.sampling.max_new_tokens = 32  # answers are of about 10 tokens
    config.num_steps = 36  # rollouts, 2,304 completions, as many as PPO's episodes
    config.batch_size = 64  # completions a rollout
    config.rloo.group_size = 4  # of each of 16 prompts: the most that arXiv 2402.14740 tries
    config.rloo.num_minibatches = 2  # 32 completions an update
    config.rloo.kl_coef = 0.1  # as PPO: the reward model knows answers near the SFT model's
    config.rloo.missing_eos_penalty = 1.0  # taken off an answer that does not end
    config.optimizer.learning_rate = 2e-4  # as PPO
    config.optimizer.schedule = "linear"  # down to 0 with the last rollout
    config.log_every = 2  # 18 lines in all
    return config


def large(name: str) -> ConfigDict:
    """The stage for a published model."""
    config = jaxalign.at_scale(jaxalign.default_config("rloo"), name, batch_size=512)  # of 128 prompts
    length = min(1024, config.data.max_length // 2)  # prompt and answer fit the model together
    config.data.max_length = length  # of a prompt
    config.data.row_length = length  # prompts have rows of their own
    config.rloo.sampling.max_new_tokens = length  # as long as the prompt
    config.rloo.reward_model = "runs/reward"  # name yours by a flag
    config.rloo.group_size = 4  # the most that arXiv 2402.14740 tries
    config.optimizer.learning_rate = 1e-6  # TRL's default for RLOO
    config.optimizer.schedule = "linear"  # TRL's default
    config.num_steps = 400  # rollouts, 204,800 completions, as PPO
    return config
