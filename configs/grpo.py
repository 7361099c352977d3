"""GRPO from the SFT model against the trained reward model, in the HHH world.

    jaxalign quickstart        # once: writes the data and trains the models to start from
    jaxalign train --config=grpo --workdir=runs/grpo

`--config=grpo:smoke` is a few steps of this stage.

On your own data: `--config.data.train=FILE.jsonl --config.model.init_from=RUN`, rows {"prompt": ...}, and a reward:
`--config.grpo.reward_model=RUN`, or any Python function f(prompt, completion) -> float with
`--config.grpo.reward_function=module:function`; see docs/rewards.md. `config.batch_size` counts completions, a multiple
of `config.grpo.group_size`. DAPO (arXiv 2503.14476) but for its sampling until a batch is full:
`--config.grpo.clip_high=0.28 --config.grpo.drop_equal_groups=True --config.grpo.mask_overlong=True`. Dr. GRPO (arXiv
2503.20783): `--config.grpo.loss_type=dr_grpo --config.grpo.scale=none`. GSPO (arXiv 2507.18071):
`--config.grpo.loss_type=grpo --config.grpo.importance=sequence_mean --config.grpo.clip=3e-4
--config.grpo.clip_high=4e-4`.

A published model on prompts of 1,024 tokens and answers of 1,024, rate and β of DeepSeekMath (arXiv 2402.03300):

    jaxalign plan --config=grpo:llama3_1_8b --topology=v5p:4x4x4
    jaxalign train --config=grpo:llama3_1_8b --config.model.init_from=MODEL --config.data.train=FILE \\
        --config.grpo.reward_model=RUN --workdir=runs/grpo
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "", root: str = "quickstart") -> ConfigDict:
    """`model`: a published one, or finetune, see `large`; else the quickstart's, `root` being its folder."""
    if model:
        return large(model)
    config = jaxalign.default_config("grpo")
    config.model.init_from = f"{root}/sft"  # policy and reference
    config.grpo.reward_model = f"{root}/reward"  # the one that PPO learns from
    config.data.train = f"{root}/data/prompts.jsonl"  # questions without answers
    config.data.max_length = 48  # of a prompt
    config.grpo.sampling.max_new_tokens = 32  # answers are of about 10 tokens
    config.num_steps = 18  # rollouts, 4,608 completions, twice PPO's episodes: there is no critic to train
    config.batch_size = 256  # completions a rollout: 8 of each of 32 prompts
    config.grpo.num_minibatches = 2  # 128 completions an update
    # Divided by a group's deviation, small differences, of which the reward model knows least, would count as much
    # as large ones (arXiv 2503.20783).
    config.grpo.scale = "none"
    # Twice PPO's, and here in the loss: the reward model knows answers near the SFT model's.
    config.grpo.beta = 0.2
    config.grpo.missing_eos_penalty = 1.0  # taken off an answer that does not end
    config.optimizer.learning_rate = 2e-4  # as PPO
    config.optimizer.schedule = "linear"  # down to 0 with the last rollout
    config.log_every = 1  # 18 lines in all
    return config


def large(name: str) -> ConfigDict:
    """The stage for a published model."""
    # 8 completions of each of 64 prompts.
    config = jaxalign.at_scale(jaxalign.default_config("grpo"), name, batch_size=512)
    length = min(1024, config.data.max_length // 2)  # prompt and answer fit the model together
    config.data.max_length = length  # of a prompt
    config.data.row_length = length  # prompts have rows of their own
    config.grpo.sampling.max_new_tokens = length  # as long as the prompt
    config.grpo.reward_model = "runs/reward"  # name yours by a flag
    config.grpo.beta = 0.04  # DeepSeekMath; 0 holds no reference in memory
    config.optimizer.learning_rate = 1e-6  # DeepSeekMath
    config.optimizer.schedule = "linear"  # down to 0 with the last rollout
    config.num_steps = 400  # rollouts, 204,800 completions, as PPO
    return config
