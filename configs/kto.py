"""KTO from the SFT model, on its own answers, each of which is liked or not, in the HHH world.

    jaxalign quickstart        # once: writes the data and trains the model to start from
    jaxalign train --config=kto --workdir=runs/kto

`--config=kto:smoke` is a few steps of this stage.

On your own data: `--config.data.train=FILE.jsonl --config.model.init_from=RUN`, rows {"prompt": ..., "completion": ...,
"label": true} and others with "label": false. Rows of pairs, as `reward` reads them, are taken as one completion that
is liked and one that is not. Where one label has n times as many rows as the other, arXiv 2402.01306 advises weights by
which both sides count alike: `--config.kto.desirable_weight=n`, or `--config.kto.undesirable_weight=n`, for the side
that has fewer.

A published model, the rate that TRL has by default:

    jaxalign plan --config=kto:llama3_1_8b --topology=v5p:4x4x4
    jaxalign train --config=kto:llama3_1_8b --config.model.init_from=MODEL --config.data.train=FILE \\
        --workdir=runs/kto
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "", root: str = "quickstart") -> ConfigDict:
    """`model`: a published one, or finetune, see `large`; else the quickstart's, `root` being its folder."""
    if model:
        return large(model)
    config = jaxalign.default_config("kto")
    config.model.init_from = f"{root}/sft"  # the reference, too
    config.data.train = f"{root}/data/preference_on_policy.jsonl"  # DPO's pairs, their answers one by one
    config.data.eval = f"{root}/data/preference_held_out.jsonl"  # answers about other animals
    config.data.max_length = 96  # a prompt of at most 48 tokens and its answer
    config.data.row_length = 192  # an answer stands in one row with another prompt's, for the KL
    config.num_steps = 70  # as DPO
    config.batch_size = 16  # rows of two or more sequences
    config.optimizer.learning_rate = 2e-4  # as DPO
    config.optimizer.warmup = 0.143  # 10 of 70 steps
    config.kto.beta = 0.2  # as DPO: a tighter tie than 0.1, as the labels are noisy
    config.log_every = 10  # 7 lines in all
    return config


def large(name: str) -> ConfigDict:
    """The stage for a published model."""
    # A completion and the mismatched one beside it; enough rows for the mean that estimates the KL.
    config = jaxalign.at_scale(
        jaxalign.default_config("kto"), name, max_length=2048, sequences=2, batch_size=64
    )
    config.optimizer.learning_rate = 1e-6  # TRL's default for KTO
    config.optimizer.schedule = "linear"  # TRL's default
    config.optimizer.warmup = 0.1  # as DPO
    return config
