"""Supervised fine-tuning of any model on demonstrations.

    jaxalign train --config=sft --config.model.init_from=MODEL --config.data.train=FILE.jsonl --workdir=runs/sft

MODEL is a run, a Hugging Face folder or a hub name; rows are {"messages": [{"role", "content"}, ...]} (loss on every
assistant turn), {"prompt": ..., "completion": ...} (loss on the completion) or {"text": ...} (loss on all of it).

Learning rate, lengths, batch size and microbatches are found for the model and the data when a run is opened, which its
first lines say; docs/defaults.md has the rules and the sources. `--config=sft:smoke` is a few steps of it.

For devices that are not here:

    jaxalign plan --config=sft:llama3_1_8b --topology=v5p:2x2x2
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "") -> ConfigDict:
    """`model`: a published size; else that of config.model.init_from."""
    config = jaxalign.at_scale(jaxalign.default_config("sft"), model)
    config.num_epochs = 2.0  # Tülu 3 (arXiv 2411.15124)
    config.optimizer.schedule = "linear"  # Tülu 3
    config.optimizer.warmup = 0.03  # Tülu 3
    return config
