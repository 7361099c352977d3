"""Controlled sentiment (arXiv 2305.18290 §6.1, in small) from a pretrained Gemma 3 270M, on movie-review sentences.

    M=gemma-3-270m R=runs/gemma D=reviews          # a Hugging Face folder, the runs, the data of configs/reviews.py
    jaxalign train --config=configs/gemma_sentiment.py:sft,$M,$R,$D --workdir=$R/sft
    jaxalign generate --model=$R/sft --prompts=$D/sft.jsonl --out=$R/completions.jsonl --n=4 --take=240 \\
        --prompt-slots=16 --max-new-tokens=32
    jaxalign label --completions=$R/completions.jsonl --out=$R/pairs.jsonl --reward=jaxalign.rewards:vader
    for stage in dpo ppo orpo; do
        jaxalign train --config=configs/gemma_sentiment.py:$stage,$M,$R,$D --workdir=$R/$stage
    done
    jaxalign evaluate --model=$R/dpo --reference=$R/sft --base=$M --prompts=$D/sft_held_out.jsonl --take=100 \\
        --reward=jaxalign.rewards:vader --prompt-slots=16 --max-new-tokens=32

A fifth argument "full" takes all the prompts and three times the steps, for an accelerator. About an hour on 2 CPU
cores, most of it the output matrix of 262,144 words; docs/gemma.md has the numbers.
"""

from ml_collections import ConfigDict

from jaxalign.stages import default_config


def get_config(arg: str) -> ConfigDict:
    """`arg` is "stage,model,folder of the runs,data folder[,full]"."""
    stage, model, root, data, *size = arg.split(",")
    full = size == ["full"]
    config = default_config(stage)
    config.model.init_from = model if stage in ("sft", "orpo") else f"{root}/sft"
    config.data.max_length = 64
    config.data.row_length = 128
    config.batch_size = 8
    config.optimizer.warmup_steps = 5
    config.log_every = 5
    if stage == "sft":
        config.data.train = f"{data}/sft.jsonl"
        config.data.take = 0 if full else 1200
        config.data.row_length = 64
        config.num_epochs = 1.0
        config.optimizer.learning_rate = 5e-5
    elif stage == "ppo":
        config.data.train = f"{data}/sft.jsonl"
        config.data.max_length = 16
        config.batch_size = 32
        config.num_steps = 60 if full else 8
        config.optimizer.learning_rate = 3e-5
        config.ppo.reward_function = "jaxalign.rewards:vader"
        config.ppo.sampling.max_new_tokens = 32
        config.ppo.ppo_epochs = 1
        config.ppo.num_minibatches = 1
        config.ppo.kl_coef = 0.03
        config.ppo.critic_learning_rate = 1e-4
        config.log_every = 1
    else:
        config.data.train = f"{root}/pairs.jsonl"
        config.num_epochs = 2.0 if full else 1.0
        config.optimizer.learning_rate = {"dpo": 3e-5, "orpo": 5e-5}[stage]
        if stage == "orpo":
            config.orpo.coef = 0.5
    return config
