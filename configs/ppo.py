"""PPO from the SFT model against the trained reward model, in the HHH world.

    jaxalign quickstart        # once: writes the data and trains the models to start from
    jaxalign train --config=ppo --workdir=runs/ppo

The whole quickstart takes about 8 minutes on 2 CPU cores. `--config=ppo:smoke` is a few steps of this stage.

On your own data: `--config.data.train=FILE.jsonl --config.model.init_from=RUN`, rows {"prompt": ...}, and a reward:
`--config.ppo.reward_model=RUN`, or any Python function f(prompt, completion) -> float with
`--config.ppo.reward_function=module:function`.

A published model on prompts of 1,024 tokens and answers of 1,024, rates near those of Tülu 3 8B (arXiv 2411.15124):

    jaxalign plan --config=ppo:llama3_1_8b --topology=v5p:4x4x4
    # docs/plans.md, with --config.mesh.data=4: at most 33.6 of 95.7 GiB a chip; compiled, not run
    jaxalign train --config=ppo:llama3_1_8b --config.model.init_from=MODEL --config.data.train=FILE \\
        --config.ppo.reward_model=RUN --workdir=runs/ppo
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "", root: str = "quickstart") -> ConfigDict:
    """`model`: a published one, or finetune, see `large`; else the quickstart's, `root` being its folder."""
    if model:
        return large(model)
    config = jaxalign.default_config("ppo")
    config.model.init_from = f"{root}/sft"  # policy and reference
    config.ppo.reward_model = f"{root}/reward"  # the stage before
    config.ppo.critic_init = "auto"  # as the reward model, where there is one
    config.data.train = f"{root}/data/prompts.jsonl"  # questions without answers
    config.data.max_length = 48  # of a prompt
    config.ppo.sampling.max_new_tokens = 32  # answers are of about 10 tokens
    config.num_steps = 36  # rollouts, 2,304 episodes
    config.batch_size = 64  # episodes a rollout
    config.ppo.ppo_epochs = 2  # episodes are cheap at this size: few passes over each
    config.ppo.num_minibatches = 2  # 32 episodes an update
    config.ppo.kl_coef = 0.1  # twice the default: the reward model knows answers near the SFT model's
    config.ppo.missing_eos_penalty = 1.0  # taken off an answer that does not end
    config.optimizer.learning_rate = 2e-4  # as DPO
    config.optimizer.schedule = "linear"  # down to 0 with the last rollout
    config.ppo.critic_learning_rate = 1e-3  # the critic has more to learn than the policy
    config.log_every = 2  # 18 lines in all
    return config


def large(name: str) -> ConfigDict:
    """The stage for a published model."""
    config = jaxalign.at_scale(jaxalign.default_config("ppo"), name, batch_size=512)  # episodes a rollout
    length = min(1024, config.data.max_length // 2)  # prompt and answer fit the model together
    config.data.max_length = length  # of a prompt
    config.data.row_length = length  # prompts have rows of their own
    config.ppo.sampling.max_new_tokens = length  # as long as the prompt
    config.ppo.reward_model = "runs/reward"  # name yours by a flag
    config.ppo.critic_init = "auto"  # as the reward model, where there is one
    config.optimizer.learning_rate = 3e-7  # near Tülu 3 8B's
    config.optimizer.schedule = "linear"  # down to 0 with the last rollout
    config.ppo.critic_learning_rate = 3e-7  # the policy's
    config.num_steps = 400  # rollouts, 204,800 episodes
    return config
