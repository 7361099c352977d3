"""Controlled sentiment (arXiv 2305.18290 §6.1, in small) from a pretrained Gemma 3 270M, on movie-review sentences.

    M=gemma-3-270m R=runs/gemma D=reviews          # a Hugging Face folder, the runs, the data of configs/reviews.py
    jaxalign train --config=gemma_sentiment:sft,$M,$R,$D --workdir=$R/sft
    jaxalign generate --model=$R/sft --prompts=$D/sft.jsonl --out=$R/completions.jsonl --n=4 --take=240 \\
        --prompt-slots=16 --max-new-tokens=32
    jaxalign label --completions=$R/completions.jsonl --out=$R/pairs.jsonl --reward=jaxalign.rewards:vader
    for stage in dpo ppo orpo; do
        jaxalign train --config=gemma_sentiment:$stage,$M,$R,$D --workdir=$R/$stage
    done
    jaxalign evaluate --model=$R/dpo --reference=$R/sft --base=$M --prompts=$D/sft_held_out.jsonl --take=100 \\
        --reward=jaxalign.rewards:vader --prompt-slots=16 --max-new-tokens=32

A fifth word `full` takes all the prompts and three times the steps or more, for an accelerator. About an hour on 2 CPU
cores, most of it the output matrix of 262,144 words. Expected VADER of 100 held-out prompts: SFT 0.14, DPO 0.53,
PPO 0.32, ORPO 0.37; docs/gemma.md has intervals and the KL that it costs.
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(stage: str, model: str, root: str, data: str, full: bool = False) -> ConfigDict:
    """`root` is the folder of the runs, `data` the one with the reviews."""
    config = jaxalign.default_config(stage)
    # ORPO takes the place of SFT.
    config.model.init_from = model if stage in ("sft", "orpo") else f"{root}/sft"
    config.data.max_length = 64  # openings of at most 16 tokens, and how they went on
    config.data.row_length = 128  # a pair
    config.batch_size = 8  # rows
    config.optimizer.warmup_steps = 5  # runs are of tens of steps
    config.log_every = 5  # as runs are short
    if stage == "sft":
        config.data.train = f"{data}/sft.jsonl"  # openings and how their writers went on
        config.data.take = 0 if full else 1200  # of 9,429
        config.data.row_length = 64  # no pairs here
        config.num_epochs = 1.0  # 62 steps
        config.optimizer.learning_rate = 5e-5  # a pretrained model is changed little
    elif stage == "ppo":
        config.data.train = f"{data}/sft.jsonl"  # of which only the prompts are read
        config.data.max_length = 16  # of a prompt
        config.batch_size = 32  # episodes a rollout
        config.num_steps = 60 if full else 8  # rollouts
        config.optimizer.learning_rate = 3e-5  # as DPO
        config.ppo.reward = "jaxalign.rewards:vader"  # what is measured in the end
        config.ppo.sampling.max_new_tokens = 32  # a sentence ends before
        config.ppo.ppo_epochs = 1  # one update a rollout: on-policy
        config.ppo.num_minibatches = 1  # of all its episodes
        config.ppo.kl_coef = 0.03  # below the default: scores lie in [-1, 1]
        config.ppo.critic_learning_rate = 1e-4  # the critic begins from the policy and must learn more
        config.log_every = 1  # 8 lines in all
    else:
        config.data.train = f"{root}/pairs.jsonl"  # the SFT model's own continuations, labelled
        config.num_epochs = 2.0 if full else 1.0  # 10 steps on 225 pairs
        config.optimizer.learning_rate = {"dpo": 3e-5, "orpo": 5e-5}[stage]  # ORPO is fine-tuning, too
        if stage == "orpo":
            config.orpo.coef = 0.5  # between the paper's 0.1 and 1
    return config
