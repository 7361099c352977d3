"""PPO from any SFT model against a reward.

    jaxalign train --config=ppo --config.model.init_from=MODEL --config.data.train=FILE.jsonl \\
        --config.ppo.reward=REWARD --workdir=runs/ppo

MODEL is a run, a Hugging Face folder or a hub name; rows are {"prompt": ...}; REWARD is a reward model, or any Python
function f(prompt, completion) -> float as module:function or FILE.py:function, or several of them, see docs/rewards.md.
The critic begins as the reward model, where there is one, or else as the policy.

Learning rate, lengths, batch size and microbatches are found for the model and the data when a run is opened, which its
first lines say; docs/defaults.md has the rules and the sources. `--config=ppo:smoke` is a few steps of it.

For devices that are not here:

    jaxalign plan --config=ppo:llama3_1_8b --topology=v5p:4x4x4
    # docs/plans.md, with --config.mesh.data=4: at most 33.6 of 95.7 GiB a chip; compiled, not run
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "") -> ConfigDict:
    """`model`: a published size; else that of config.model.init_from."""
    config = jaxalign.at_scale(jaxalign.default_config("ppo"), model)
    config.num_epochs = 8.0  # InstructGPT (arXiv 2203.02155): 256,000 episodes of 31,000 prompts
    config.optimizer.schedule = "linear"  # down to 0 with the last rollout, as arXiv 2403.17031
    return config
