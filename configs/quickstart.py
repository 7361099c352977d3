"""The stages of `jaxalign quickstart`, a model of a million parameters in the HHH world, one by one.

    jaxalign quickstart        # once: writes the data to quickstart/ and trains the models that others start from
    jaxalign train --config=quickstart:dpo --workdir=runs/dpo

The whole quickstart takes about 8 minutes on 2 CPU cores. kto, rloo and distill are no part of it, and begin with what
it leaves. `--config=quickstart:dpo,FOLDER` takes a quickstart in another folder, `--config=quickstart:dpo,smoke` is a
few steps.
"""

from ml_collections import ConfigDict

import jaxalign

PAIRS = ("reward", "dpo", "orpo", "kto")
SAMPLING = ("ppo", "grpo", "rloo", "distill")


@jaxalign.config_argument
def get_config(stage: str, root: str = "quickstart") -> ConfigDict:
    """`root` is the folder of the quickstart."""
    config = jaxalign.default_config(stage)
    data = f"{root}/data"
    config.num_microbatches = 1  # rows are short
    config.model.init_from = f"{root}/sft"  # policy and reference, where there is one
    config.data.max_length = 96  # a prompt of at most 48 tokens and its answer
    config.data.row_length = 96  # one longest sequence; shorter ones share it
    if stage in PAIRS:
        config.data.row_length = 192  # a pair must lie in one row
        config.data.eval = f"{data}/preference_held_out.jsonl"  # pairs about other animals
        config.data.share_prompts = False  # steps and rates were chosen for whole pairs
        config.batch_size = 16  # rows of two or more sequences
        config.log_every = 10  # 7 to 20 lines in all
    if stage in SAMPLING:
        config.data.train = f"{data}/prompts.jsonl"  # questions without answers
        config.data.max_length = 48  # of a prompt
        config[stage].sampling.max_new_tokens = 32  # answers are of about 10 tokens
        config[stage].num_minibatches = 2  # 32 completions an update; 128 of GRPO
        config.num_steps = 36  # rollouts, 2,304 completions
        config.batch_size = 64  # completions a rollout
        config.optimizer.learning_rate = 2e-4  # as DPO
        config.optimizer.schedule = "linear"  # down to 0 with the last rollout
        config.log_every = 2  # 18 lines in all
    if stage in ("ppo", "grpo", "rloo"):
        config[stage].reward = f"{root}/reward"  # the stage before
        config[stage].missing_eos_penalty = 1.0  # taken off an answer that does not end
    match stage:
        case "pretrain":
            pretrain(config, data)
        case "sft":
            config.model.init_from = f"{root}/pretrain"  # the stage before
            # Two rows of text among five keep what pretraining knows of animals that no demonstration names.
            config.data.train = f"{data}/sft.jsonl,{data}/corpus.jsonl"
            config.data.weights = (0.6, 0.4)  # demonstrations, corpus
            config.data.eval = f"{data}/sft_held_out.jsonl"  # demonstrations about other animals
            config.num_steps = 130  # 4,160 rows
            config.batch_size = 32  # 3,072 tokens a step
            config.optimizer.learning_rate = 1e-3  # a third of pretraining's
            config.optimizer.warmup = 0.077  # 10 of 130 steps
            config.log_every = 10  # 13 lines in all
        case "reward":
            # Pairs of demonstrators' answers, and of the SFT model's own, which PPO's rollouts are like.
            config.data.train = f"{data}/preference.jsonl,{data}/preference_on_policy.jsonl"
            config.num_steps = 140  # 2,240 rows
            config.optimizer.learning_rate = 5e-4  # half of SFT's
            config.optimizer.warmup = 0.072  # 10 of 140 steps
            config.reward.centering = 0.01  # scores stay near 0, as PPO wants them
        case "dpo" | "kto":
            # Pairs of that model's own answers; of KTO, one by one, each in a row with another prompt's.
            config.data.train = f"{data}/preference_on_policy.jsonl"
            config.num_steps = 70  # 1,120 rows
            config.optimizer.learning_rate = 2e-4  # a fifth of SFT's
            config.optimizer.warmup = 0.143  # 10 of 70 steps
            config[stage].beta = 0.2  # a tighter tie than 0.1: the labels are noisy
        case "orpo":
            config.model.init_from = f"{root}/pretrain"  # ORPO takes the place of SFT
            # One row of text among five keeps what pretraining knows of animals that no demonstration names.
            config.data.train = f"{data}/preference.jsonl,{data}/corpus.jsonl"
            config.data.weights = (0.8, 0.2)  # pairs, corpus
            config.num_steps = 200  # as many as SFT and DPO together
            config.optimizer.learning_rate = 2e-3  # near pretraining's: it learns to answer, too
            config.optimizer.warmup = 0.1  # 20 of 200 steps
            config.orpo.coef = 0.5  # between the paper's 0.1 and 1
        case "ppo":
            config.ppo.ppo_epochs = 2  # episodes are cheap at this size: few passes over each
            config.ppo.kl_coef = 0.1  # twice the default: the reward model knows answers near the SFT model's
            config.ppo.critic_learning_rate = 1e-3  # the critic has more to learn than the policy
        case "grpo":
            config.num_steps = 18  # rollouts, 4,608 completions: twice PPO's, for want of a critic to train
            config.batch_size = 256  # completions a rollout: 8 of each of 32 prompts
            # Divided by a group's deviation, small differences, of which the reward model knows least, would count as
            # much as large ones (arXiv 2503.20783).
            config.grpo.scale = "none"
            # Twice PPO's, and here in the loss: the reward model knows answers near the SFT model's.
            config.grpo.beta = 0.2
            config.log_every = 1  # 18 lines in all
        case "rloo":
            config.rloo.group_size = 4  # of each of 16 prompts: the most that arXiv 2402.14740 tries
            config.rloo.kl_coef = 0.1  # as PPO: the reward model knows answers near the SFT model's
        case "distill":
            config.distill.teacher = f"{root}/dpo"  # what the student begins without: the preferences
    return config


def pretrain(config: ConfigDict, data: str) -> None:
    """From scratch, on the corpus."""
    config.model.init_from = ""  # random weights
    config.model.num_layers = 4  # about 1 million parameters: minutes on a CPU
    config.model.embed_dim = 128  # 4 heads of 32
    config.model.num_heads = 4  # of 32 dimensions each
    config.model.num_kv_heads = 4  # one for every head: the cache is small anyway
    config.model.head_dim = 32  # embed_dim / num_heads
    config.model.mlp_dim = 384  # 3 x embed_dim, in three matrices
    config.model.max_length = 128  # the rows of all later stages fit
    config.data.tokenizer = f"{data}/tokenizer.model"  # trained on this corpus by the quickstart
    config.data.train = f"{data}/corpus.jsonl"  # facts about animals, and filler
    config.data.eval = f"{data}/corpus_held_out.jsonl"  # other sentences of the same kind
    config.data.max_length = 64  # short texts; longer ones are split
    config.data.row_length = 64  # as long as a text: many short rows a batch
    config.num_steps = 600  # 1.2 million tokens
    config.batch_size = 32  # 2,048 tokens a step
    config.optimizer.learning_rate = 3e-3  # small models take large steps
    config.optimizer.warmup = 0.0667  # 40 of 600 steps
    config.optimizer.weight_decay = 0.1  # usual for pretraining
    config.log_every = 20  # 30 lines in all
