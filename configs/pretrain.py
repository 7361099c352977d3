"""Pretraining: continued from any model, or from scratch at a published size.

    jaxalign train --config=pretrain --config.model.init_from=MODEL --config.data.train=FILE.jsonl \\
        --workdir=runs/pretrain

MODEL is a run, a Hugging Face folder or a hub name, and brings its tokenizer; rows are {"text": ...}, or whole
conversations as {"messages": ...}. A mixture: several sources, separated by commas, in data.train, with their shares of
rows in data.weights.

Learning rate, lengths, batch size and microbatches are found for the model and the data when a run is opened, which its
first lines say; docs/defaults.md has the rules and the sources. `--config=pretrain:smoke` is a few steps of it.

A published size from scratch:

    jaxalign plan --config=pretrain:llama3_1_8b --topology=v5p:4x4x4
    # docs/plans.md, with --config.mesh.data=4: 52.8 of 95.7 GiB a chip, at least 9.7 s a step; compiled, not run
    jaxalign train --config=pretrain:llama3_1_8b --config.data.tokenizer=MODEL --config.data.train=FILE \\
        --workdir=runs/pretrain
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "") -> ConfigDict:
    """`model`: a published size; else that of config.model.init_from."""
    config = jaxalign.at_scale(jaxalign.default_config("pretrain"), model)
    config.optimizer.warmup = 0.01  # a hundredth of the run: as Llama 3 405B, 8,000 of 1.2 million steps
    config.optimizer.final_ratio = 0.01  # decays to a hundredth, as Llama 3 (arXiv 2407.21783)
    config.optimizer.weight_decay = 0.1  # Llama 3
    return config
