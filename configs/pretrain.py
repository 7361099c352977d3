"""Pretraining from scratch on the corpus of the HHH world, a model of about 1 million parameters.

    jaxalign quickstart        # once: writes the corpus and the tokenizer to quickstart/data
    jaxalign train --config=pretrain --workdir=runs/pretrain

The whole quickstart takes about 8 minutes on 2 CPU cores. `--config=pretrain:smoke` is a few steps of this stage.

On your own text: `--config.data.train=FILE.jsonl --config.data.tokenizer=FILE.model`, rows {"text": ...}. To
continue from a trained model: `--config.model.init_from=RUN`. A mixture: several sources, separated by commas,
in data.train, with their shares of rows in data.weights.

A published size from scratch, 4 million tokens a step, rates as for Llama 3 8B (arXiv 2407.21783):

    jaxalign plan --config=pretrain:llama3_1_8b --topology=v5p:4x4x4
    # docs/plans.md, with --config.mesh.data=4: 52.8 of 95.7 GiB a chip, at least 9.7 s a step; compiled, not run
    jaxalign train --config=pretrain:llama3_1_8b --config.data.tokenizer=MODEL --config.data.train=FILE \\
        --workdir=runs/pretrain
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "", root: str = "quickstart") -> ConfigDict:
    """`model`: a published one, or finetune, see `large`; else the quickstart's, `root` being its folder."""
    if model:
        return large(model)
    config = jaxalign.default_config("pretrain")
    config.model.num_layers = 4  # about 1 million parameters: minutes on a CPU
    config.model.embed_dim = 128  # 4 heads of 32
    config.model.num_heads = 4  # of 32 dimensions each
    config.model.num_kv_heads = 4  # one for every head: the cache is small anyway
    config.model.head_dim = 32  # embed_dim / num_heads
    config.model.mlp_dim = 384  # 3 x embed_dim, in three matrices
    config.model.max_length = 128  # the rows of all later stages fit
    config.data.tokenizer = f"{root}/data/tokenizer.model"  # trained on this corpus by the quickstart
    config.data.train = f"{root}/data/corpus.jsonl"  # facts about animals, and filler
    config.data.eval = f"{root}/data/corpus_held_out.jsonl"  # other sentences of the same kind
    config.data.max_length = 64  # short texts; longer ones are split
    config.data.row_length = 64  # as long as a text: many short rows a batch
    config.num_steps = 600  # 1.2 million tokens
    config.batch_size = 32  # 2,048 tokens a step
    config.optimizer.learning_rate = 3e-3  # small models take large steps
    config.optimizer.warmup = 0.0667  # 40 of 600 steps
    config.optimizer.weight_decay = 0.1  # usual for pretraining
    config.log_every = 20  # 30 lines in all
    return config


def large(name: str) -> ConfigDict:
    """The stage for a published model, from scratch; or continued from any other, at a tenth of its rate."""
    if name == "finetune":
        # Rows that most models take.
        config = jaxalign.at_scale(jaxalign.default_config("pretrain"), name, max_length=4096)
        config.optimizer.learning_rate = 3e-5  # a tenth: it goes on from where another ended
    else:
        # 4 million tokens a step.
        config = jaxalign.at_scale(jaxalign.default_config("pretrain"), name, batch_size=512)
        config.optimizer.learning_rate = 3e-4  # Llama 3 8B's peak
    config.optimizer.warmup = 0.01  # a hundredth of the run
    config.optimizer.final_ratio = 0.01  # decays to a hundredth, as Llama 3
    config.optimizer.weight_decay = 0.1  # usual for pretraining
    return config
