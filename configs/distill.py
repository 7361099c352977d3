"""On-policy distillation: any model learns from what a teacher would say at every token of its own answers.

    jaxalign train --config=distill --config.model.init_from=MODEL --config.distill.teacher=TEACHER \\
        --config.data.train=FILE.jsonl --workdir=runs/distill

MODEL and TEACHER are runs, Hugging Face folders or hub names, with the same tokenizer; rows are {"prompt": ...}.
`--config.distill.divergence=reverse_kl|forward_kl|jsd`: what the student would say must please the teacher, or all that
the teacher would say must be likely to the student, or both.

Learning rate, lengths, batch size and microbatches are found for the model and the data when a run is opened, which its
first lines say; docs/defaults.md has the rules and the sources. `--config=distill:smoke` is a few steps of it.

For devices that are not here, where the teacher is taken to be like the student:

    jaxalign plan --config=distill:llama3_1_8b --topology=v5p:4x4x4
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "") -> ConfigDict:
    """`model`: a published size; else that of config.model.init_from."""
    config = jaxalign.at_scale(jaxalign.default_config("distill"), model)
    config.num_epochs = 1.0  # no prompt twice: there is no reward to search for
    config.optimizer.schedule = "linear"  # down to 0 with the last rollout
    config.optimizer.warmup = 0.1  # as DPO
    return config
