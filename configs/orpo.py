"""ORPO from the pretrained model: demonstrations and preferences in one stage, in the HHH world.

    jaxalign quickstart        # once: writes the data and trains the model to start from
    jaxalign train --config=configs/orpo.py --workdir=runs/orpo

On your own data: `--config.data.train=FILE.jsonl --config.data.weights="()" --config.model.init_from=RUN`, rows as for
configs/reward.py; rows as for configs/sft.py may be mixed in, and are learned by likelihood alone.

A published model, rates as for Mistral-ORPO (arXiv 2403.07691):

    jaxalign plan --config=configs/orpo.py:llama3_1_8b --topology=v5p:2x2x2
    jaxalign train --config=configs/orpo.py:llama3_1_8b --config.model.init_from=MODEL --config.data.train=FILE \\
        --workdir=runs/orpo
"""

from ml_collections import ConfigDict

from jaxalign.scale import at_scale, names_model
from jaxalign.stages import default_config


def get_config(root: str = "") -> ConfigDict:
    """`root` is the folder of a quickstart, `quickstart` when empty; or a preset (models/presets.py), or finetune."""
    if names_model(root):
        return large(root)
    root = root or "quickstart"
    config = default_config("orpo")
    config.model.init_from = f"{root}/pretrain"
    # One row of text among five keeps what pretraining knows of animals that no demonstration names.
    config.data.train = f"{root}/data/preference.jsonl,{root}/data/corpus.jsonl"
    config.data.weights = (0.8, 0.2)
    config.data.eval = f"{root}/data/preference_held_out.jsonl"
    config.data.max_length = 96
    config.data.row_length = 192
    config.num_steps = 200
    config.batch_size = 16
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup = 0.1
    config.orpo.coef = 0.5
    config.log_every = 10
    return config


def large(name: str) -> ConfigDict:
    """The stage for a published model."""
    config = at_scale(default_config("orpo"), name, max_length=2048, sequences=2)
    config.optimizer.learning_rate = 5e-6
    config.optimizer.schedule = "inverse_sqrt"
    config.optimizer.warmup = 0.1
    return config
