"""Supervised fine-tuning on demonstrations of mixed quality in the HHH world.

    jaxalign quickstart        # once: writes the data and trains the model to start from
    jaxalign train --config=configs/sft.py --workdir=runs/sft

On your own data: `--config.data.train=FILE.jsonl --config.data.weights="()" --config.model.init_from=RUN`, rows
{"messages": [{"role", "content"}, ...]} (loss on every assistant turn), {"prompt": ..., "completion": ...} (loss on the
completion) or {"text": ...} (loss on all of it).

A published model, rates as for Tülu 3 8B (arXiv 2411.15124):

    jaxalign plan --config=configs/sft.py:llama3_1_8b --topology=v5p:2x2x2
    jaxalign train --config=configs/sft.py:llama3_1_8b --config.model.init_from=MODEL --config.data.train=FILE \\
        --workdir=runs/sft
"""

from ml_collections import ConfigDict

from jaxalign.scale import at_scale, names_model
from jaxalign.stages import default_config


def get_config(root: str = "") -> ConfigDict:
    """`root` is the folder of a quickstart, `quickstart` when empty; or a preset (models/presets.py), or finetune."""
    if names_model(root):
        return large(root)
    root = root or "quickstart"
    config = default_config("sft")
    config.model.init_from = f"{root}/pretrain"
    # Two rows of text among five keep what pretraining knows of animals that no demonstration names.
    config.data.train = f"{root}/data/sft.jsonl,{root}/data/corpus.jsonl"
    config.data.weights = (0.6, 0.4)
    config.data.eval = f"{root}/data/sft_held_out.jsonl"
    config.data.max_length = 96
    config.data.row_length = 96
    config.num_steps = 130
    config.batch_size = 32
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 0.077
    config.log_every = 10
    return config


def large(name: str) -> ConfigDict:
    """The stage for a published model."""
    config = at_scale(default_config("sft"), name, max_length=4096)
    config.num_epochs = 2.0
    config.optimizer.learning_rate = 5e-6
    config.optimizer.schedule = "linear"
    config.optimizer.warmup = 0.03
    return config
