"""RLOO from any SFT model against a reward.

    jaxalign train --config=rloo --config.model.init_from=MODEL --config.data.train=FILE.jsonl \\
        --config.rloo.reward=REWARD --workdir=runs/rloo

MODEL is a run, a Hugging Face folder or a hub name; rows are {"prompt": ...}; REWARD is a reward model, or any Python
function f(prompt, completion) -> float as module:function or FILE.py:function, or several of them, see docs/rewards.md.
`config.batch_size` counts completions, a multiple of `config.rloo.group_size`.

Learning rate, lengths, batch size and microbatches are found for the model and the data when a run is opened, which its
first lines say; docs/defaults.md has the rules and the sources. `--config=rloo:smoke` is a few steps of it.

For devices that are not here:

    jaxalign plan --config=rloo:llama3_1_8b --topology=v5p:4x4x4
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "") -> ConfigDict:
    """`model`: a published size; else that of config.model.init_from."""
    config = jaxalign.at_scale(jaxalign.default_config("rloo"), model)
    config.num_epochs = 4.0  # as GRPO
    config.rloo.group_size = 4  # the most that arXiv 2402.14740 tries
    config.optimizer.schedule = "linear"  # TRL's default
    return config
