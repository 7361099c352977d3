"""ORPO from the pretrained model: demonstrations and preferences in one stage, in the HHH world.

    jaxalign quickstart        # once: writes the data and trains the model to start from
    jaxalign train --config=orpo --workdir=runs/orpo

The whole quickstart takes about 8 minutes on 2 CPU cores. `--config=orpo:smoke` is a few steps of this stage.

On your own data: `--config.data.train=FILE.jsonl --config.data.weights="()" --config.model.init_from=RUN`, rows as for
configs/reward.py; rows as for `sft` may be mixed in, and are learned by likelihood alone.

A published model, rates as for Mistral-ORPO (arXiv 2403.07691):

    jaxalign plan --config=orpo:llama3_1_8b --topology=v5p:2x2x2
    jaxalign train --config=orpo:llama3_1_8b --config.model.init_from=MODEL --config.data.train=FILE \\
        --workdir=runs/orpo
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "", root: str = "quickstart") -> ConfigDict:
    """`model`: a published one, or finetune, see `large`; else the quickstart's, `root` being its folder."""
    if model:
        return large(model)
    config = jaxalign.default_config("orpo")
    config.model.init_from = f"{root}/pretrain"  # ORPO takes the place of SFT
    # One row of text among five keeps what pretraining knows of animals that no demonstration names.
    config.data.train = f"{root}/data/preference.jsonl,{root}/data/corpus.jsonl"
    config.data.weights = (0.8, 0.2)  # pairs, corpus
    config.data.eval = f"{root}/data/preference_held_out.jsonl"  # pairs about other animals
    config.data.max_length = 96  # a prompt of at most 48 tokens and its answer
    config.data.row_length = 192  # a pair must lie in one row
    config.num_steps = 200  # as many as SFT and DPO together
    config.batch_size = 16  # rows of two or more sequences
    config.optimizer.learning_rate = 2e-3  # near pretraining's: it learns to answer, too
    config.optimizer.warmup = 0.1  # 20 of 200 steps
    config.orpo.coef = 0.5  # between the paper's 0.1 and 1
    config.log_every = 10  # 20 lines in all
    return config


def large(name: str) -> ConfigDict:
    """The stage for a published model."""
    # Whole pairs.
    config = jaxalign.at_scale(jaxalign.default_config("orpo"), name, max_length=2048, sequences=2)
    config.optimizer.learning_rate = 5e-6  # Mistral-ORPO
    config.optimizer.schedule = "inverse_sqrt"  # Mistral-ORPO
    config.optimizer.warmup = 0.1  # a tenth of the run, whatever its length
    return config
