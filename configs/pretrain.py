"""Pretraining from scratch on the corpus of the HHH world, a model of about 1 million parameters.

    jaxalign quickstart        # once: writes the corpus and the tokenizer to quickstart/data
    jaxalign train --config=configs/pretrain.py --workdir=runs/pretrain

On your own text: `--config.data.train=FILE.jsonl --config.data.tokenizer=FILE.model`, rows {"text": ...}. To
continue from a trained model: `--config.model.init_from=RUN`. A mixture: several sources, separated by commas,
in data.train, with their shares of rows in data.weights.

A published size from scratch, 4 million tokens a step, rates as for Llama 3 8B (arXiv 2407.21783):

    jaxalign plan --config=configs/pretrain.py:llama3_1_8b --topology=v5p:4x4x4
    jaxalign train --config=configs/pretrain.py:llama3_1_8b --config.data.tokenizer=MODEL --config.data.train=FILE \\
        --workdir=runs/pretrain
"""

from ml_collections import ConfigDict

from jaxalign.scale import FINE_TUNE, at_scale, names_model
from jaxalign.stages import default_config


def get_config(root: str = "") -> ConfigDict:
    """`root` is the folder of a quickstart, `quickstart` when empty; or a preset (models/presets.py), or finetune."""
    if names_model(root):
        return large(root)
    root = root or "quickstart"
    config = default_config("pretrain")
    config.model.num_layers = 4
    config.model.embed_dim = 128
    config.model.num_heads = 4
    config.model.num_kv_heads = 4
    config.model.head_dim = 32
    config.model.mlp_dim = 384
    config.model.max_length = 128
    config.data.tokenizer = f"{root}/data/tokenizer.model"
    config.data.train = f"{root}/data/corpus.jsonl"
    config.data.eval = f"{root}/data/corpus_held_out.jsonl"
    config.data.max_length = 64
    config.data.row_length = 64
    config.num_steps = 600
    config.batch_size = 32
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup = 0.0667
    config.optimizer.weight_decay = 0.1
    config.log_every = 20
    return config


def large(name: str) -> ConfigDict:
    """The stage for a published model, from scratch; or continued from any other, at a tenth of its rate."""
    if name == FINE_TUNE:
        config = at_scale(default_config("pretrain"), name, max_length=4096)
        config.optimizer.learning_rate = 3e-5
    else:
        config = at_scale(default_config("pretrain"), name, batch_size=512)
        config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup = 0.01
    config.optimizer.final_ratio = 0.01
    config.optimizer.weight_decay = 0.1
    return config
