"""Direct preference optimisation of any model.

    jaxalign train --config=dpo --config.model.init_from=MODEL --config.data.train=FILE.jsonl --workdir=runs/dpo

MODEL is a run, a Hugging Face folder or a hub name, and is the reference, too; rows are those of `reward`.

Learning rate, lengths, batch size and microbatches are found for the model and the data when a run is opened, which its
first lines say; docs/defaults.md has the rules and the sources. `--config=dpo:smoke` is a few steps of it.

The loss is the length-normalised one of Tülu 3 (arXiv 2411.15124). That of the DPO paper (arXiv 2305.18290):
`--config.dpo.length_normalized=False --config.dpo.beta=0.1`. Others: `--config.dpo.variant=sigmoid|robust|hinge|ipo|
ipo_mean`; see jaxalign/losses/dpo.py. SimPO (arXiv 2405.14734) needs no reference: `--config.dpo.reference_free=True
--config.dpo.beta=2.0 --config.dpo.target_margin=1.0`.

For devices that are not here:

    jaxalign plan --config=dpo:llama3_1_8b --topology=v5p:2x2x2
    # docs/plans.md, with --config.batch_size=64: 46.8 of 95.7 GiB a chip, at least 5.6 s a step; compiled, not run
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "") -> ConfigDict:
    """`model`: a published size; else that of config.model.init_from."""
    config = jaxalign.at_scale(jaxalign.default_config("dpo"), model)
    config.num_epochs = 1.0  # Tülu 3
    config.optimizer.schedule = "linear"  # Tülu 3
    config.optimizer.warmup = 0.1  # Tülu 3
    config.dpo.beta = 5.0  # Tülu 3: of log-ratios a token, not a sequence
    config.dpo.length_normalized = True  # Tülu 3: long answers weigh no more
    return config
