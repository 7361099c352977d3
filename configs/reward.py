"""A reward model from any model, on preferences.

    jaxalign train --config=reward --config.model.init_from=MODEL --config.data.train=FILE.jsonl --workdir=runs/reward

MODEL is a run, a Hugging Face folder or a hub name; rows are {"prompt", "chosen", "rejected"} as text or messages, with
an optional "margin"; or {"prompt", "responses": [...], "scores": [...]} for K ranked ones.

Learning rate, lengths, batch size and microbatches are found for the model and the data when a run is opened, which its
first lines say; docs/defaults.md has the rules and the sources. `--config=reward:smoke` is a few steps of it.

For devices that are not here:

    jaxalign plan --config=reward:llama3_1_8b --topology=v5p:2x2x2
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "") -> ConfigDict:
    """`model`: a published size; else that of config.model.init_from."""
    config = jaxalign.at_scale(jaxalign.default_config("reward"), model)
    config.num_epochs = 1.0  # Tülu 3, InstructGPT and Llama 2: a second pass overfits
    config.optimizer.schedule = "linear"  # Tülu 3 (arXiv 2411.15124)
    config.optimizer.warmup = 0.03  # Llama 2 (arXiv 2307.09288)
    return config
