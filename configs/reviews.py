"""All six stages on real text: movie-review sentences with human ratings, and VADER's sentiment as a reward.

    jaxalign tokenizer --data=DIR/text.jsonl --out=runs/reviews/tokenizer.model --vocab=2048
    for stage in pretrain sft reward ppo; do
        jaxalign train --config=configs/reviews.py:$stage,DIR,runs/reviews --workdir=runs/reviews/$stage
    done
    jaxalign generate --model=runs/reviews/sft --prompts=DIR/sft.jsonl --out=runs/reviews/completions.jsonl \\
        --n=4 --take=4000 --prompt-slots=24 --max-new-tokens=48 --batch-size=128
    jaxalign label --completions=runs/reviews/completions.jsonl --out=runs/reviews/pairs.jsonl \\
        --reward=jaxalign.rewards:vader
    for stage in dpo orpo; do
        jaxalign train --config=configs/reviews.py:$stage,DIR,runs/reviews --workdir=runs/reviews/$stage
    done
    jaxalign evaluate --model=runs/reviews/ppo --reference=runs/reviews/sft --prompts=DIR/sft_held_out.jsonl \\
        --reward=jaxalign.rewards:vader --prompt-slots=24 --max-new-tokens=48

DIR holds text.jsonl {"text"}, sft.jsonl {"prompt", "completion"} and preference.jsonl {"prompt", "chosen", "rejected"},
and *_held_out.jsonl of the last two. DPO and ORPO learn from pairs of the SFT model's own continuations. 45 minutes on
2 CPU cores; docs/reviews.md has the numbers.
"""

from ml_collections import ConfigDict

from jaxalign.stages import default_config


def get_config(arg: str) -> ConfigDict:
    """`arg` is "stage,data folder,folder of the runs"."""
    stage, data, root = arg.split(",")
    config = default_config(stage)
    config.data.max_length = 64
    config.data.row_length = 128
    config.optimizer.warmup_steps = 20
    config.log_every = 20
    if stage == "pretrain":
        config.model.num_layers = 4
        config.model.embed_dim = 128
        config.model.num_heads = 4
        config.model.num_kv_heads = 4
        config.model.head_dim = 32
        config.model.mlp_dim = 384
        config.data.tokenizer = f"{root}/tokenizer.model"
        config.data.train = f"{data}/text.jsonl"
        config.num_epochs = 3.0
        config.batch_size = 16
        config.optimizer.learning_rate = 3e-3
        config.optimizer.weight_decay = 0.1
        return config
    config.model.init_from = f"{root}/{'pretrain' if stage in ('sft', 'orpo') else 'sft'}"
    config.batch_size = 16
    if stage == "sft":
        config.data.train = f"{data}/sft.jsonl"
        config.data.eval = f"{data}/sft_held_out.jsonl"
        config.num_epochs = 2.0
        config.optimizer.learning_rate = 5e-4
    elif stage == "ppo":
        config.data.train = f"{data}/sft.jsonl"
        config.data.max_length = 24
        config.batch_size = 64
        config.num_steps = 60
        config.optimizer.learning_rate = 2e-4
        config.ppo.reward_function = "jaxalign.rewards:vader"
        config.ppo.sampling.max_new_tokens = 48
        config.ppo.ppo_epochs = 2
        config.ppo.num_minibatches = 2
        config.ppo.kl_coef = 0.03
        config.ppo.missing_eos_penalty = 0.5
        config.ppo.critic_learning_rate = 5e-4
        config.log_every = 5
    elif stage == "reward":
        config.data.train = f"{data}/preference.jsonl"
        config.data.eval = f"{data}/preference_held_out.jsonl"
        config.data.overlap_by = "record"  # one instruction stands before every pair
        config.data.max_length = 128
        config.data.row_length = 256
        config.num_epochs = 1.0
        config.optimizer.learning_rate = 3e-4
        config.reward.use_margin = False
    else:
        config.data.train = f"{root}/pairs.jsonl"
        config.data.max_length = 80  # prompts of 24 tokens, completions of 48
        config.data.row_length = 160
        config.num_epochs = 1.0
        config.optimizer.learning_rate = {"dpo": 1e-4, "orpo": 1e-3}[stage]
        if stage == "orpo":
            # The pairs teach what to prefer; the reviewers' own sentences what a review reads like.
            config.data.train = f"{root}/pairs.jsonl,{data}/sft.jsonl"
            config.data.weights = (0.5, 0.5)
            config.num_epochs = 0.5
    return config
