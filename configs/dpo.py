"""Direct preference optimisation from the SFT model, on pairs of its own answers, in the HHH world.

    jaxalign quickstart        # once: writes the data and trains the model to start from
    jaxalign train --config=dpo --workdir=runs/dpo

The whole quickstart takes about 8 minutes on 2 CPU cores. `--config=dpo:smoke` is a few steps of this stage.

On your own data: `--config.data.train=FILE.jsonl --config.model.init_from=RUN`, rows as for `reward`. Losses:
`--config.dpo.variant=sigmoid|robust|hinge|ipo|ipo_mean`; see jaxalign/losses/dpo.py. SimPO (arXiv 2405.14734) needs no
reference: `--config.dpo.length_normalized=True --config.dpo.reference_free=True --config.dpo.beta=2.0
--config.dpo.target_margin=1.0`.

A published model, the length-normalised loss and rates of Tülu 3 8B (arXiv 2411.15124):

    jaxalign plan --config=dpo:llama3_1_8b --topology=v5p:2x2x2
    # docs/plans.md, with --config.batch_size=64: 46.8 of 95.7 GiB a chip, at least 5.6 s a step; compiled, not run
    jaxalign train --config=dpo:llama3_1_8b --config.model.init_from=MODEL --config.data.train=FILE \\
        --workdir=runs/dpo
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "", root: str = "quickstart") -> ConfigDict:
    """`model`: a published one, or finetune, see `large`; else the quickstart's, `root` being its folder."""
    if model:
        return large(model)
    config = jaxalign.default_config("dpo")
    config.model.init_from = f"{root}/sft"  # the reference, too
    config.data.train = f"{root}/data/preference_on_policy.jsonl"  # pairs of that model's own answers
    config.data.eval = f"{root}/data/preference_held_out.jsonl"  # pairs about other animals
    config.data.max_length = 96  # a prompt of at most 48 tokens and its answer
    config.data.row_length = 192  # a pair must lie in one row
    config.num_steps = 70  # 1,120 rows
    config.batch_size = 16  # rows of two or more sequences
    config.optimizer.learning_rate = 2e-4  # a fifth of SFT's
    config.optimizer.warmup = 0.143  # 10 of 70 steps
    config.dpo.beta = 0.2  # a tighter tie than 0.1: the labels are noisy
    config.log_every = 10  # 7 lines in all
    return config


def large(name: str) -> ConfigDict:
    """The stage for a published model."""
    # Whole pairs, as Tülu 3.
    config = jaxalign.at_scale(jaxalign.default_config("dpo"), name, max_length=2048, sequences=2)
    config.optimizer.learning_rate = 5e-7  # Tülu 3 8B
    config.optimizer.schedule = "linear"  # Tülu 3
    config.optimizer.warmup = 0.1  # Tülu 3
    config.dpo.beta = 5.0  # of log-ratios a token, not a sequence
    config.dpo.length_normalized = True  # Tülu 3: long answers weigh no more
    return config
