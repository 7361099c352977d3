"""A reward model on noisy preferences in the HHH world.

    jaxalign quickstart        # once: writes the data and trains the model to start from
    jaxalign train --config=reward --workdir=runs/reward

The whole quickstart takes about 8 minutes on 2 CPU cores. `--config=reward:smoke` is a few steps of this stage.

On your own data: `--config.data.train=FILE.jsonl --config.model.init_from=RUN`, rows {"prompt", "chosen", "rejected"}
as text or messages, with an optional "margin"; or {"prompt", "responses": [...], "scores": [...]} for K ranked ones.

A published model, rates as for Tülu 3's reward model (arXiv 2411.15124):

    jaxalign plan --config=reward:llama3_1_8b --topology=v5p:2x2x2
    jaxalign train --config=reward:llama3_1_8b --config.model.init_from=MODEL --config.data.train=FILE \\
        --workdir=runs/reward
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "", root: str = "quickstart") -> ConfigDict:
    """`model`: a published one, or finetune, see `large`; else the quickstart's, `root` being its folder."""
    if model:
        return large(model)
    config = jaxalign.default_config("reward")
    config.model.init_from = f"{root}/sft"  # it scores answers of this model
    # Pairs of demonstrators' answers, and of the SFT model's own, which PPO's rollouts are like.
    config.data.train = f"{root}/data/preference.jsonl,{root}/data/preference_on_policy.jsonl"
    config.data.eval = f"{root}/data/preference_held_out.jsonl"  # pairs about other animals
    config.data.max_length = 96  # a prompt of at most 48 tokens and its answer
    config.data.row_length = 192  # a pair must lie in one row
    config.num_steps = 140  # 2,240 rows
    config.batch_size = 16  # rows of two or more sequences
    config.optimizer.learning_rate = 5e-4  # half of SFT's
    config.optimizer.warmup = 0.072  # 10 of 140 steps
    config.reward.centering = 0.01  # scores stay near 0, as PPO wants them
    config.log_every = 10  # 14 lines in all
    return config


def large(name: str) -> ConfigDict:
    """The stage for a published model."""
    # Whole pairs.
    config = jaxalign.at_scale(jaxalign.default_config("reward"), name, max_length=2048, sequences=2)
    config.optimizer.learning_rate = 3e-6  # Tülu 3's reward model
    config.optimizer.schedule = "linear"  # Tülu 3
    config.optimizer.warmup = 0.03  # Tülu 3
    return config
