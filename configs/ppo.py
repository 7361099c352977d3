"""PPO from the SFT model against the trained reward model, in the HHH world.

    jaxalign quickstart        # once: writes the data and trains the models to start from
    jaxalign train --config=configs/ppo.py --workdir=runs/ppo

On your own data: `--config.data.train=FILE.jsonl --config.model.init_from=RUN`, rows {"prompt": ...}, and a reward:
`--config.ppo.reward_model=RUN`, or any Python function f(prompt, completion) -> float with
`--config.ppo.reward_function=module:function`.

A published model on prompts of 1,024 tokens and answers of 1,024, rates near those of Tülu 3 8B (arXiv 2411.15124):

    jaxalign plan --config=configs/ppo.py:llama3_1_8b --topology=v5p:4x4x4
    jaxalign train --config=configs/ppo.py:llama3_1_8b --config.model.init_from=MODEL --config.data.train=FILE \\
        --config.ppo.reward_model=RUN --workdir=runs/ppo
"""

from ml_collections import ConfigDict

from jaxalign.scale import at_scale, names_model
from jaxalign.stages import default_config


def get_config(root: str = "") -> ConfigDict:
    """`root` is the folder of a quickstart, `quickstart` when empty; or a preset (models/presets.py), or finetune."""
    if names_model(root):
        return large(root)
    root = root or "quickstart"
    config = default_config("ppo")
    config.model.init_from = f"{root}/sft"
    config.ppo.reward_model = f"{root}/reward"
    config.ppo.critic_init = "auto"
    config.data.train = f"{root}/data/prompts.jsonl"
    config.data.max_length = 48  # of a prompt
    config.ppo.sampling.max_new_tokens = 32
    config.num_steps = 36
    config.batch_size = 64
    config.ppo.ppo_epochs = 2
    config.ppo.num_minibatches = 2
    config.ppo.kl_coef = 0.1
    config.ppo.missing_eos_penalty = 1.0
    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "linear"
    config.ppo.critic_learning_rate = 1e-3
    config.log_every = 2
    return config


def large(name: str) -> ConfigDict:
    """The stage for a published model."""
    config = at_scale(default_config("ppo"), name, batch_size=512)
    length = min(1024, config.data.max_length // 2)
    config.data.max_length = length  # of a prompt
    config.data.row_length = length
    config.ppo.sampling.max_new_tokens = length
    config.ppo.reward_model = "runs/reward"
    config.ppo.critic_init = "auto"
    config.optimizer.learning_rate = 3e-7
    config.optimizer.schedule = "linear"
    config.ppo.critic_learning_rate = 3e-7
    config.num_steps = 400
    return config
