"""All six stages on real text: movie-review sentences with human ratings, and VADER's sentiment as a reward.

    jaxalign tokenizer --data=DIR/text.jsonl --out=runs/reviews/tokenizer.model --vocab=2048
    for stage in pretrain sft reward ppo; do
        jaxalign train --config=reviews:$stage,DIR,runs/reviews --workdir=runs/reviews/$stage
    done
    jaxalign generate --model=runs/reviews/sft --prompts=DIR/sft.jsonl --out=runs/reviews/completions.jsonl \\
        --n=4 --take=4000 --prompt-slots=24 --max-new-tokens=48 --batch-size=128
    jaxalign label --completions=runs/reviews/completions.jsonl --out=runs/reviews/pairs.jsonl \\
        --reward=jaxalign.rewards:vader
    for stage in dpo orpo; do
        jaxalign train --config=reviews:$stage,DIR,runs/reviews --workdir=runs/reviews/$stage
    done
    jaxalign evaluate --model=runs/reviews/ppo --reference=runs/reviews/sft --prompts=DIR/sft_held_out.jsonl \\
        --reward=jaxalign.rewards:vader --prompt-slots=24 --max-new-tokens=48

DIR holds text.jsonl {"text"}, sft.jsonl {"prompt", "completion"} and preference.jsonl {"prompt", "chosen", "rejected"},
and *_held_out.jsonl of the last two. DPO and ORPO learn from pairs of the SFT model's own continuations. 45 minutes on
2 CPU cores. Expected VADER of 996 held-out prompts: SFT 0.19, PPO 0.62, DPO 0.43, ORPO 0.28, and a reward model that
orders 82.6 % of the held-out pairs as people did; docs/reviews.md has intervals and the KL that it costs.
"""

from ml_collections import ConfigDict

import jaxalign


@jaxalign.config_argument
def get_config(stage: str, data: str, root: str) -> ConfigDict:
    """`data` is the folder with the reviews, `root` that of the runs."""
    config = jaxalign.default_config(stage)
    config.data.max_length = 64  # a sentence
    config.data.row_length = 128  # two sentences, or more short ones
    config.optimizer.warmup_steps = 20  # a few of some hundred
    config.log_every = 20  # runs are of some hundred steps
    if stage == "pretrain":
        config.model.num_layers = 4  # 1.1 million parameters: minutes on a CPU
        config.model.embed_dim = 128  # 4 heads of 32
        config.model.num_heads = 4  # of 32 dimensions each
        config.model.num_kv_heads = 4  # one for every head: the cache is small anyway
        config.model.head_dim = 32  # embed_dim / num_heads
        config.model.mlp_dim = 384  # 3 x embed_dim, in three matrices
        config.data.tokenizer = f"{root}/tokenizer.model"  # of the first command
        config.data.train = f"{data}/text.jsonl"  # 18,002 sentences
        config.num_epochs = 3.0  # the text is small
        config.batch_size = 16  # 2,048 tokens
        config.optimizer.learning_rate = 3e-3  # small models take large steps
        config.optimizer.weight_decay = 0.1  # usual for pretraining
        return config
    # ORPO takes the place of SFT.
    config.model.init_from = f"{root}/{'pretrain' if stage in ('sft', 'orpo') else 'sft'}"
    config.batch_size = 16  # rows of two or more sequences
    if stage == "sft":
        config.data.train = f"{data}/sft.jsonl"  # 9,429 openings and how their writers went on
        config.data.eval = f"{data}/sft_held_out.jsonl"  # 1,000 more
        config.num_epochs = 2.0  # the data is small
        config.optimizer.learning_rate = 5e-4  # a sixth of pretraining's
    elif stage == "ppo":
        config.data.train = f"{data}/sft.jsonl"  # of which only the prompts are read
        config.data.max_length = 24  # of a prompt
        config.batch_size = 64  # episodes a rollout
        config.num_steps = 60  # rollouts, 3,840 episodes
        config.optimizer.learning_rate = 2e-4  # twice DPO's
        config.ppo.reward = "jaxalign.rewards:vader"  # what is measured in the end
        config.ppo.sampling.max_new_tokens = 48  # a sentence ends before
        config.ppo.ppo_epochs = 2  # episodes are cheap at this size: few passes over each
        config.ppo.num_minibatches = 2  # 32 episodes an update
        config.ppo.kl_coef = 0.03  # below the default: scores lie in [-1, 1]
        config.ppo.missing_eos_penalty = 0.5  # taken off a continuation that does not end
        config.ppo.critic_learning_rate = 5e-4  # the critic has more to learn than the policy
        config.log_every = 5  # 12 lines in all
    elif stage == "reward":
        config.data.train = f"{data}/preference.jsonl"  # 6,000 pairs, ordered by people
        config.data.eval = f"{data}/preference_held_out.jsonl"  # 500 more
        config.data.overlap_by = "record"  # one instruction stands before every pair
        config.data.max_length = 128  # the instruction stands before each sentence
        config.data.row_length = 256  # a pair
        config.num_epochs = 1.0  # ratings are noisy: each pair is seen once
        config.optimizer.learning_rate = 3e-4  # below SFT's
        config.reward.use_margin = False  # only the order of two ratings is learned
    else:
        config.data.train = f"{root}/pairs.jsonl"  # the SFT model's own continuations, labelled
        config.data.max_length = 80  # prompts of 24 tokens, completions of 48
        config.data.row_length = 160  # a pair
        config.num_epochs = 1.0  # each pair once
        config.optimizer.learning_rate = {"dpo": 1e-4, "orpo": 1e-3}[stage]  # ORPO is fine-tuning, too
        if stage == "orpo":
            # The pairs teach what to prefer; the reviewers' own sentences what a review reads like.
            config.data.train = f"{root}/pairs.jsonl,{data}/sft.jsonl"
            config.data.weights = (0.5, 0.5)  # pairs, sentences
            config.num_epochs = 0.5  # half a pass over the rows of both
    return config
