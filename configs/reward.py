"""A reward model on noisy preferences in the HHH world.

    jaxalign quickstart        # once: writes the data and trains the model to start from
    jaxalign train --config=configs/reward.py --workdir=runs/reward

On your own data: `--config.data.train=FILE.jsonl --config.model.init_from=RUN`, rows {"prompt", "chosen", "rejected"}
as text or messages, with an optional "margin"; or {"prompt", "responses": [...], "scores": [...]} for K ranked ones.

A published model, rates as for Tülu 3's reward model (arXiv 2411.15124):

    jaxalign plan --config=configs/reward.py:llama3_1_8b --topology=v5p:2x2x2
    jaxalign train --config=configs/reward.py:llama3_1_8b --config.model.init_from=MODEL --config.data.train=FILE \\
        --workdir=runs/reward
"""

from ml_collections import ConfigDict

from jaxalign.scale import at_scale, names_model
from jaxalign.stages import default_config


def get_config(root: str = "") -> ConfigDict:
    """`root` is the folder of a quickstart, `quickstart` when empty; or a preset (models/presets.py), or finetune."""
    if names_model(root):
        return large(root)
    root = root or "quickstart"
    config = default_config("reward")
    config.model.init_from = f"{root}/sft"
    config.data.train = f"{root}/data/preference.jsonl,{root}/data/preference_on_policy.jsonl"
    config.data.eval = f"{root}/data/preference_held_out.jsonl"
    config.data.max_length = 96
    config.data.row_length = 192
    config.num_steps = 140
    config.batch_size = 16
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup = 0.072
    config.reward.centering = 0.01
    config.log_every = 10
    return config


def large(name: str) -> ConfigDict:
    """The stage for a published model."""
    config = at_scale(default_config("reward"), name, max_length=2048, sequences=2)
    config.optimizer.learning_rate = 3e-6
    config.optimizer.schedule = "linear"
    config.optimizer.warmup = 0.03
    return config
