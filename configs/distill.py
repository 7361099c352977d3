"""On-policy distillation: the SFT model learns from what the DPO model would say at every token of its own answers.

    jaxalign quickstart        # once: writes the data and trains both models
    jaxalign train --config=distill --workdir=runs/distill

`--config=distill:smoke` is a few steps of this stage.

On your own data: `--config.data.train=FILE.jsonl --config.model.init_from=RUN`, rows {"prompt": ...}, and
`--config.distill.teacher=RUN`, a language model of any size with the student's tokenizer. `--config.distill.divergence=
reverse_kl|forward_kl|jsd`: what the student would say must please the teacher, or all that the teacher would say must
be likely to the student, or both.

A published model on prompts of 1,024 tokens and answers of 1,024; `plan` takes the teacher to be like the student:

    jaxalign plan --config=distill:llama3_1_8b --topology=v5p:4x4x4
    jaxalign train --config=distill:llama3_1_8b --config.model.init_from=MODEL --config.data.train=FILE \\
        --config.distill.teacher=RUN --workdir=runs/distill
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(model: jaxalign.Preset = "", root: str = "quickstart") -> ConfigDict:
    """`model`: a published one, or finetune, see `large`; else the quickstart's, `root` being its folder."""
    if model:
        return large(model)
    config = jaxalign.default_config("distill")
    config.model.init_from = f"{root}/sft"  # the student
    config.distill.teacher = f"{root}/dpo"  # what the student begins without: the preferences
    config.data.train = f"{root}/data/prompts.jsonl"  # questions without answers
    config.data.max_length = 48  # of a prompt
    config.distill.sampling.max_new_tokens = 32  # answers are of about 10 tokens
    config.num_steps = 36  # rollouts, 2,304 completions, as many as PPO's episodes
    config.batch_size = 64  # completions a rollout
    config.distill.num_minibatches = 2  # 32 completions an update
    config.optimizer.learning_rate = 2e-4  # as DPO, which made the teacher
    config.optimizer.schedule = "linear"  # down to 0 with the last rollout
    config.log_every = 2  # 18 lines in all
    return config


def large(name: str) -> ConfigDict:
    """The stage for a published model."""
    config = jaxalign.at_scale(
        jaxalign.default_config("distill"), name, batch_size=128
    )  # completions a rollout
    length = min(1024, config.data.max_length // 2)  # prompt and answer fit the model together
    config.data.max_length = length  # of a prompt
    config.data.row_length = length  # prompts have rows of their own
    config.distill.sampling.max_new_tokens = length  # as long as the prompt
    config.distill.teacher = "runs/teacher"  # name yours by a flag
    config.optimizer.learning_rate = 1e-6  # small, as for the other stages that sample
    config.optimizer.warmup = 0.1  # as DPO
    config.num_steps = 400  # rollouts, 51,200 completions
    return config
