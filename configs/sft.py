"""Supervised fine-tuning on demonstrations of mixed quality in the HHH world.

    jaxalign quickstart        # once: writes the data and trains the model to start from
    jaxalign train --config=sft --workdir=runs/sft

The whole quickstart takes about 8 minutes on 2 CPU cores. `--config=sft:smoke` is a few steps of this stage.

On your own data: `--config.data.train=FILE.jsonl --config.data.weights="()" --config.model.init_from=RUN`, rows
{"messages": [{"role", "content"}, ...]} (loss on every assistant turn), {"prompt": ..., "completion": ...} (loss on the
completion) or {"text": ...} (loss on all of it).

A published model, rates as for Tülu 3 8B (arXiv 2411.15124):

    jaxalign plan --config=sft:llama3_1_8b --topology=v5p:2x2x2
    jaxalign train --config=sft:llama3_1_8b --config.model.init_from=MODEL --config.data.train=FILE \\
        --workdir=runs/sft
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "", root: str = "quickstart") -> ConfigDict:
    """`model`: a published one, or finetune, see `large`; else the quickstart's, `root` being its folder."""
    if model:
        return large(model)
    config = jaxalign.default_config("sft")
    config.model.init_from = f"{root}/pretrain"  # the stage before
    # Two rows of text among five keep what pretraining knows of animals that no demonstration names.
    config.data.train = f"{root}/data/sft.jsonl,{root}/data/corpus.jsonl"
    config.data.weights = (0.6, 0.4)  # demonstrations, corpus
    config.data.eval = f"{root}/data/sft_held_out.jsonl"  # demonstrations about other animals
    config.data.max_length = 96  # a prompt of at most 48 tokens and its answer
    config.data.row_length = 96  # one longest sequence; shorter ones share it
    config.num_steps = 130  # 4,160 rows
    config.optimizer.learning_rate = 1e-3  # a third of pretraining's
    config.optimizer.warmup = 0.077  # 10 of 130 steps
    config.log_every = 10  # 13 lines in all
    return config


def large(name: str) -> ConfigDict:
    """The stage for a published model."""
    config = jaxalign.at_scale(jaxalign.default_config("sft"), name, max_length=4096)  # as Tülu 3
    config.num_epochs = 2.0  # Tülu 3
    config.optimizer.learning_rate = 5e-6  # Tülu 3 8B
    config.optimizer.schedule = "linear"  # Tülu 3
    config.optimizer.warmup = 0.03  # Tülu 3
    return config
