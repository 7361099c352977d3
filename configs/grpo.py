"""GRPO from any SFT model against a reward.

    jaxalign train --config=grpo --config.model.init_from=MODEL --config.data.train=FILE.jsonl \\
        --config.grpo.reward=REWARD --workdir=runs/grpo

MODEL is a run, a Hugging Face folder or a hub name; rows are {"prompt": ...}; REWARD is a reward model, or any Python
function f(prompt, completion) -> float as module:function or FILE.py:function, or several of them, see docs/rewards.md.
`config.batch_size` counts completions, a multiple of `config.grpo.group_size`.

Learning rate, lengths, batch size and microbatches are found for the model and the data when a run is opened, which its
first lines say; docs/defaults.md has the rules and the sources. `--config=grpo:smoke` is a few steps of it.

DAPO (arXiv 2503.14476) but for its sampling until a batch is full: `--config.grpo.clip_high=0.28
--config.grpo.drop_equal_groups=True --config.grpo.mask_overlong=True`. Dr. GRPO (arXiv 2503.20783):
`--config.grpo.loss_type=dr_grpo --config.grpo.scale=none`. GSPO (arXiv 2507.18071): `--config.grpo.loss_type=grpo
--config.grpo.importance=sequence_mean --config.grpo.clip=3e-4 --config.grpo.clip_high=4e-4`.

For devices that are not here:

    jaxalign plan --config=grpo:llama3_1_8b --topology=v5p:4x4x4
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "") -> ConfigDict:
    """`model`: a published size; else that of config.model.init_from."""
    config = jaxalign.at_scale(jaxalign.default_config("grpo"), model)
    config.num_epochs = 4.0  # OLMo 2 1B: 125,000 groups of 30,000 prompts
    config.grpo.beta = 0.04  # DeepSeekMath (arXiv 2402.03300); 0 holds no reference in memory
    config.optimizer.schedule = "linear"  # down to 0 with the last rollout
    return config
