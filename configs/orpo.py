"""ORPO from any pretrained model: demonstrations and preferences in one stage.

    jaxalign train --config=orpo --config.model.init_from=MODEL --config.data.train=FILE.jsonl --workdir=runs/orpo

MODEL is a run, a Hugging Face folder or a hub name; rows are those of `reward`. Rows of `sft` may be mixed in, and are
learned by likelihood alone.

Learning rate, lengths, batch size and microbatches are found for the model and the data when a run is opened, which its
first lines say; docs/defaults.md has the rules and the sources. `--config=orpo:smoke` is a few steps of it.

For devices that are not here:

    jaxalign plan --config=orpo:llama3_1_8b --topology=v5p:2x2x2
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "") -> ConfigDict:
    """`model`: a published size; else that of config.model.init_from."""
    config = jaxalign.at_scale(jaxalign.default_config("orpo"), model)
    config.num_epochs = 5.0  # Mistral-ORPO (arXiv 2403.07691)
    config.optimizer.schedule = "inverse_sqrt"  # Mistral-ORPO
    config.optimizer.warmup = 0.1  # of the run; Mistral-ORPO has 200 steps
    return config
