"""KTO from any model, on answers each of which is liked or not.

    jaxalign train --config=kto --config.model.init_from=MODEL --config.data.train=FILE.jsonl --workdir=runs/kto

MODEL is a run, a Hugging Face folder or a hub name, and is the reference, too; rows are {"prompt": ..., "completion":
..., "label": true} and others with "label": false. Rows of pairs, as `reward` reads them, are taken as one completion
that is liked and one that is not. Where one label has n times as many rows as the other, arXiv 2402.01306 advises
weights by which both sides count alike: `--config.kto.desirable_weight=n`, or `--config.kto.undesirable_weight=n`, for
the side that has fewer.

Learning rate, lengths, batch size and microbatches are found for the model and the data when a run is opened, which its
first lines say; docs/defaults.md has the rules and the sources. `--config=kto:smoke` is a few steps of it.

For devices that are not here:

    jaxalign plan --config=kto:llama3_1_8b --topology=v5p:4x4x4
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "") -> ConfigDict:
    """`model`: a published size; else that of config.model.init_from."""
    config = jaxalign.at_scale(jaxalign.default_config("kto"), model)
    config.num_epochs = 1.0  # as DPO
    config.optimizer.schedule = "linear"  # TRL's default
    config.optimizer.warmup = 0.1  # as DPO
    return config
