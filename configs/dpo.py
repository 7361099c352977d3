"""Direct preference optimisation from the SFT model, on pairs of its own answers, in the HHH world.

    jaxalign quickstart        # once: writes the data and trains the model to start from
    jaxalign train --config=configs/dpo.py --workdir=runs/dpo

On your own data: `--config.data.train=FILE.jsonl --config.model.init_from=RUN`, rows as for configs/reward.py. Losses:
`--config.dpo.variant=sigmoid|robust|hinge|ipo|ipo_mean`; see jaxalign/losses/dpo.py. SimPO (arXiv 2405.14734) needs no
reference: `--config.dpo.length_normalized=True --config.dpo.reference_free=True --config.dpo.beta=2.0
--config.dpo.target_margin=1.0`.

A published model, the length-normalised loss and rates of Tülu 3 8B (arXiv 2411.15124):

    jaxalign plan --config=configs/dpo.py:llama3_1_8b --topology=v5p:2x2x2
    jaxalign train --config=configs/dpo.py:llama3_1_8b --config.model.init_from=MODEL --config.data.train=FILE \\
        --workdir=runs/dpo
"""

from ml_collections import ConfigDict

from jaxalign.scale import at_scale, names_model
from jaxalign.stages import default_config


def get_config(root: str = "") -> ConfigDict:
    """`root` is the folder of a quickstart, `quickstart` when empty; or a preset (models/presets.py), or finetune."""
    if names_model(root):
        return large(root)
    root = root or "quickstart"
    config = default_config("dpo")
    config.model.init_from = f"{root}/sft"
    config.data.train = f"{root}/data/preference_on_policy.jsonl"
    config.data.eval = f"{root}/data/preference_held_out.jsonl"
    config.data.max_length = 96
    config.data.row_length = 192
    config.num_steps = 70
    config.batch_size = 16
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup = 0.143
    config.dpo.beta = 0.2
    config.log_every = 10
    return config


def large(name: str) -> ConfigDict:
    """The stage for a published model."""
    config = at_scale(default_config("dpo"), name, max_length=2048, sequences=2)
    config.optimizer.learning_rate = 5e-7
    config.optimizer.schedule = "linear"
    config.optimizer.warmup = 0.1
    config.dpo.beta = 5.0
    config.dpo.length_normalized = True
    return config
