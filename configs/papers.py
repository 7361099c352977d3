"""Trainings of papers in the papers' own size: model, hyper-parameters, and a slice of TPUs that they fit.

    jaxalign plan --config=papers:orpo_mistral_7b --topology=v5p:2x2x2
    jaxalign train --config=papers:orpo_mistral_7b --config.model.init_from=mistralai/Mistral-7B-v0.1 \\
        --config.data.train=HuggingFaceH4/ultrafeedback_binarized --workdir=runs/orpo

`RECIPES` says of each where the numbers stand, and which weights and data the paper took; a stage that begins with
another one, as PPO does with SFT and a reward model, takes their runs in place of these. Where the paper's model is not
to be had, the nearest one that is stands in its place. What a paper does not say is found as docs/defaults.md says.
docs/papers.md has what each would take.
"""

from ml_collections import ConfigDict

import jaxalign

# By name: what changes a stage's config, and about it the stage; the model, a preset; its weights on the hub, with a
# note where the paper's are others, or the recipe `after` whose run it begins with, and those whose runs are its
# `reward` or `teacher`; the data on the hub; the source of the numbers; and a topology that it fits.
RECIPES: dict[str, dict] = {}


def recipe(**about):
    """Keeps a function that changes a stage's config as the recipe of its name."""

    def keep(change):
        RECIPES[change.__name__] = about | {"change": change}
        return change

    return keep


@jaxalign.config_argument
def get_config(name: str) -> ConfigDict:
    """`name`: one of `RECIPES`."""
    if name not in RECIPES:
        raise jaxalign.ConfigError(f"{name!r} is no recipe of a paper; there are {', '.join(RECIPES)}")
    found = RECIPES[name]
    config = jaxalign.at_scale(jaxalign.default_config(found["stage"]), found["model"])
    config.data.packing = False  # a batch has so many sequences or pairs, as the papers count them
    config.optimizer.b2 = 0.999  # the default of the optimizers that the papers used
    found["change"](config)
    return config


def get_commands(name: str, folder: str) -> list[str]:
    """What trains the model of a recipe, in order, the trainings before it first, each with the slice that it fits.

    Args:
      name: of a recipe.
      folder: that of all runs, each in one with its recipe's name.
    """
    found = RECIPES[name]
    needed = [found[key] for key in ("after", "reward", "teacher") if key in found]
    lines = [line for other in needed for line in get_commands(other, folder)]
    start = f"{folder}/{found['after']}" if "after" in found else found["weights"]
    reward = f"{folder}/{found['reward']}" if "reward" in found else "YOUR_REWARD"
    flags = [
        f"--config.model.init_from={start}",
        f"--config.data.train={'YOUR_DATA' if found['data'] == 'yours' else found['data']}",
        *([f"--config.{found['stage']}.reward={reward}"] if found["stage"] in ("ppo", "rloo") else []),
        *([f"--config.distill.teacher={folder}/{found['teacher']}"] if "teacher" in found else []),
    ]
    command = " ".join(["jaxalign train", f"--config=papers:{name}", *flags, f"--workdir={folder}/{name}"])
    note = f", {found['note']}" if "note" in found else ""
    lines.append(f"{command}  # {found['topology']}{note}")
    return list(dict.fromkeys(lines))


DPO = "arXiv 2305.18290, appendix B"
IS_DPO_SUPERIOR = "arXiv 2404.10719, appendix"
ORPO = "arXiv 2403.07691, section 5.1 and appendix"
TLDR = "arXiv 2403.17031, tables of hyper-parameters"
DISPLACEMENT = "arXiv 2410.08847, sections 5 and 6, and the authors' commands"
MINILLM = "arXiv 2306.08543, the authors' scripts for GPT-2"
HH = "Anthropic/hh-rlhf"
DOLLY = "databricks/databricks-dolly-15k"
SUMMARIES = "vwxyzjn/summarize_from_feedback_tldr_3_filtered"
COMPARISONS = "vwxyzjn/summarize_from_feedback_oai_preprocessing_1706381144"
ULTRAFEEDBACK = "HuggingFaceH4/ultrafeedback_binarized"


@recipe(
    stage="dpo", model="pythia_2_8b", weights="EleutherAI/pythia-2.8b", note="after SFT on the chosen answers", data=HH,
    source=DPO, topology="v5p:2x2x1",
)  # fmt: skip
def dpo_hh_pythia_2_8b(config: ConfigDict) -> None:
    """Single-turn dialogue."""
    _dpo(config)
    config.dpo.beta = 0.1  # 0.5 for TL;DR


@recipe(
    stage="dpo", model="gpt2_large", weights="gpt2-large", note="after SFT on reviews; pairs of its own answers",
    data="yours", source=DPO, topology="v5e:2x4",
)  # fmt: skip
def dpo_imdb_gpt2_large(config: ConfigDict) -> None:
    """Controlled sentiment: Figure 2, left. The pairs are of 4 answers to a beginning, ranked by a classifier."""
    _dpo(config)
    config.dpo.beta = 0.1  # 0.05, 1 and 5 make the other points of the frontier


@recipe(
    stage="dpo", model="llama2_7b", weights="meta-llama/Llama-2-7b-hf", note="after SFT on the chosen answers", data=HH,
    source=IS_DPO_SUPERIOR, topology="v5p:2x2x2",
)  # fmt: skip
def dpo_hh_llama2_7b(config: ConfigDict) -> None:
    """Table 4, DPO."""
    config.num_epochs = 2.0  # passes over the pairs
    config.data.max_length = 512  # 256 tokens of a prompt and 256 of an answer
    config.data.row_length = 1024  # a pair
    config.optimizer.learning_rate = 1e-6  # of DPO
    config.dpo.beta = 0.1  # 0.05 and 0.2 were tried, too


@recipe(
    stage="ppo", model="llama2_7b", weights="meta-llama/Llama-2-7b-hf", note="after SFT on the chosen answers", data=HH,
    source=IS_DPO_SUPERIOR, topology="v5p:2x2x4",
)  # fmt: skip
def ppo_hh_llama2_7b(config: ConfigDict) -> None:
    """Tables 3 and 4, PPO with all that the paper found to help.

    The authors sample among 200 tokens; that is left out, as the loss divides by probabilities among all.
    """
    config.num_epochs = 5.0  # passes over the prompts
    config.batch_size = 512  # completions; 64 was worse
    config.data.max_length = 256  # of a prompt
    config.optimizer.learning_rate = 1e-5  # of the policy
    config.ppo.critic_learning_rate = 5e-6  # half of it
    config.ppo.num_minibatches = 4  # of 128 completions
    config.ppo.ppo_epochs = 1  # each rollout is learned from once
    config.ppo.kl_coef = 0.1  # 0.05 and 0.2 were tried, too
    config.ppo.gamma = 1.0  # no discount
    config.ppo.lam = 1.0  # Monte Carlo returns
    config.ppo.reward_clip = 20.0  # of the authors' code
    config.ppo.whiten_advantages = True  # table 3: .706 to .716
    config.ppo.normalize_values = True  # as the advantages
    config.ppo.reference_rate = 0.001  # of the authors' code; table 3: .716 to .718
    config.ppo.sampling.max_new_tokens = 256  # of an answer
    config.ppo.sampling.temperature = 1.0  # of sampling


@recipe(
    stage="orpo", model="mistral_7b", weights="mistralai/Mistral-7B-v0.1", data=ULTRAFEEDBACK, source=ORPO,
    topology="v5p:2x2x2",
)  # fmt: skip
def orpo_mistral_7b(config: ConfigDict) -> None:
    """Mistral-ORPO."""
    config.num_epochs = 5.0  # passes over the pairs
    config.batch_size = 32  # pairs
    config.data.max_length = 2048  # of a prompt and an answer
    config.data.row_length = 4096  # a pair
    config.optimizer.learning_rate = 5e-6  # peak
    config.optimizer.schedule = "inverse_sqrt"  # after the warm-up
    config.optimizer.warmup_steps = 200  # linear
    config.orpo.coef = 0.1  # λ of Mistral-ORPO
    config.orpo.nll_on_prompt = True  # as the authors' code has it


@recipe(
    stage="orpo", model="llama2_7b", weights="meta-llama/Llama-2-7b-hf", data=ULTRAFEEDBACK, source=ORPO,
    topology="v5p:2x2x2",
)  # fmt: skip
def orpo_llama2_7b(config: ConfigDict) -> None:
    """Llama-2 with ORPO."""
    config.num_epochs = 10.0  # passes over the pairs; the best is kept
    config.data.max_length = 2048  # of a prompt and an answer
    config.data.row_length = 4096  # a pair
    config.optimizer.learning_rate = 8e-6  # peak
    config.optimizer.schedule = "cosine"  # to 0
    config.orpo.coef = 0.2  # λ of Llama-2
    config.orpo.nll_on_prompt = True  # as the authors' code has it


@recipe(
    stage="sft", model="opt_1_3b", weights="facebook/opt-1.3b", data=HH, source=ORPO, topology="v5e:2x4",
)  # fmt: skip
def sft_orpo_opt_1_3b(config: ConfigDict) -> None:
    """The SFT that ORPO is compared with."""
    config.num_epochs = 1.0  # one pass
    config.data.max_length = 1024  # of HH; 2,048 of UltraFeedback
    config.optimizer.learning_rate = 1e-5  # peak


@recipe(
    stage="orpo", model="opt_1_3b", weights="facebook/opt-1.3b", data=HH, source=ORPO, topology="v5e:2x4",
)  # fmt: skip
def orpo_opt_1_3b(config: ConfigDict) -> None:
    """Tables 2 and 3."""
    config.num_epochs = 10.0  # passes over the pairs
    config.data.max_length = 1024  # of HH; 2,048 of UltraFeedback
    config.data.row_length = 2048  # a pair
    config.optimizer.learning_rate = 8e-6  # peak
    config.optimizer.schedule = "cosine"  # to 0
    config.orpo.nll_on_prompt = True  # as the authors' code has it


@recipe(
    stage="dpo", model="opt_1_3b", after="sft_orpo_opt_1_3b", data=HH, source=ORPO, topology="v5e:2x4",
)  # fmt: skip
def dpo_orpo_opt_1_3b(config: ConfigDict) -> None:
    """The DPO that ORPO is compared with."""
    config.num_epochs = 3.0  # passes over the pairs
    config.data.max_length = 1024  # of HH; 2,048 of UltraFeedback
    config.data.row_length = 2048  # a pair
    config.optimizer.learning_rate = 5e-6  # peak
    config.dpo.beta = 0.1  # of all models


@recipe(
    stage="sft", model="llama2_7b", weights="meta-llama/Llama-2-7b-hf", note="in place of LLaMA 7B", data="yours",
    source="arXiv 2305.11206, section 3", topology="v5p:2x2x2",
)  # fmt: skip
def sft_lima_llama2_7b(config: ConfigDict) -> None:
    """LIMA's ablations, without its dropout."""
    config.num_epochs = 15.0  # over 1,000 or 2,000 rows
    config.batch_size = 64  # of models smaller than 65B
    config.data.max_length = 2048  # longer ones were cut
    config.optimizer.learning_rate = 1e-5  # at first
    config.optimizer.schedule = "linear"  # without a warm-up
    config.optimizer.final_ratio = 0.1  # down to 1e-6
    config.optimizer.b2 = 0.95  # of AdamW
    config.optimizer.weight_decay = 0.1  # of AdamW


@recipe(
    stage="dpo", model="gemma_2b", weights="google/gemma-2b", note="512 pairs of UltraFeedback that are chosen by CHES",
    data="yours", source=DISPLACEMENT, topology="v5e:2x4",
)  # fmt: skip
def dpo_ultrafeedback_gemma_2b(config: ConfigDict) -> None:
    """Figure 2: which pairs lower the answers that they prefer."""
    _displacement(config)
    config.optimizer.learning_rate = 1e-7  # of 16 updates


@recipe(
    stage="dpo", model="gemma_2b", weights="google/gemma-2b-it", note="pairs of its own answers to SORRY-Bench",
    data="yours", source=DISPLACEMENT, topology="v5e:2x4",
)  # fmt: skip
def dpo_sorrybench_gemma_2b(config: ConfigDict) -> None:
    """Figure 3: refusals become fewer by training on them."""
    _displacement(config)
    config.optimizer.learning_rate = 5e-6  # of both models


@recipe(stage="sft", model="gpt2_xl", weights="gpt2-xl", data=DOLLY, source=MINILLM, topology="v5e:2x4")
def sft_minillm_gpt2_xl(config: ConfigDict) -> None:
    """The teacher."""
    _minillm(config)
    config.num_epochs = 10.0  # half of the students'
    config.optimizer.learning_rate = 5e-5  # a tenth of the students'


@recipe(stage="sft", model="gpt2", weights="gpt2", data=DOLLY, source=MINILLM, topology="v5e:2x2")
def sft_minillm_gpt2(config: ConfigDict) -> None:
    """SFT without distillation, and what the distilled student begins with."""
    _minillm(config)
    config.num_epochs = 20.0  # of the smallest student
    config.optimizer.learning_rate = 5e-4  # of the smallest student


@recipe(
    stage="distill", model="gpt2", after="sft_minillm_gpt2", teacher="sft_minillm_gpt2_xl", data=DOLLY, source=MINILLM,
    topology="v5e:2x2",
)  # fmt: skip
def distill_minillm_gpt2(config: ConfigDict) -> None:
    """Own samples, without text of the web: reverse KL is exact over the vocabulary here, by policy gradient there.

    The paper takes four passes over its samples, and a fifth of each token's distribution from the teacher.
    """
    config.batch_size = 256  # completions
    config.num_steps = 5000  # updates
    config.data.max_length = 512  # of a prompt and an answer
    config.distill.sampling.max_new_tokens = 256  # beside prompts of 256
    config.distill.divergence = "reverse_kl"  # of the student from the teacher
    config.optimizer.learning_rate = 5e-6  # of all sizes
    config.optimizer.schedule = "constant"  # after the warm-up
    config.optimizer.warmup_steps = 100  # linear


@recipe(
    stage="sft", model="pythia_6_9b", weights="EleutherAI/pythia-6.9b-deduped", data=SUMMARIES, source=TLDR,
    topology="v5p:2x2x1",
)  # fmt: skip
def sft_tldr_pythia_6_9b(config: ConfigDict) -> None:
    """Summaries of Reddit posts."""
    _tldr(config)
    config.num_epochs = 1.0  # 116,722 episodes
    config.batch_size = 128  # summaries
    config.data.max_length = 565  # 512 tokens of a post and 53 of a summary


@recipe(
    stage="reward", model="pythia_6_9b", after="sft_tldr_pythia_6_9b", data=COMPARISONS, source=TLDR,
    topology="v5p:2x2x2",
)  # fmt: skip
def reward_tldr_pythia_6_9b(config: ConfigDict) -> None:
    """Comparisons of two summaries."""
    _tldr_pairs(config)


@recipe(
    stage="dpo", model="pythia_6_9b", after="sft_tldr_pythia_6_9b", data=COMPARISONS, source=TLDR,
    topology="v5p:2x2x2",
)  # fmt: skip
def dpo_tldr_pythia_6_9b(config: ConfigDict) -> None:
    """DPO beside PPO."""
    _tldr_pairs(config)
    config.dpo.beta = 0.05  # as PPO's


@recipe(
    stage="ppo", model="pythia_6_9b", after="sft_tldr_pythia_6_9b", reward="reward_tldr_pythia_6_9b", data=SUMMARIES,
    source=TLDR, topology="v5p:2x2x4",
)  # fmt: skip
def ppo_tldr_pythia_6_9b(config: ConfigDict) -> None:
    """PPO from the reward model of the same comparisons."""
    _tldr(config)
    config.num_epochs = 0.0  # num_steps decides
    config.num_steps = 1954  # 1,000,000 episodes
    config.batch_size = 512  # episodes
    config.data.max_length = 512  # of a post
    config.optimizer.schedule = "linear"  # to 0
    config.ppo.ppo_epochs = 4  # K
    config.ppo.num_minibatches = 1  # an update has all episodes
    config.ppo.clip = 0.2  # of the ratio
    config.ppo.value_clip = 0.2  # of values
    config.ppo.gamma = 1.0  # no discount
    config.ppo.lam = 0.95  # of the advantages
    config.ppo.kl_coef = 0.05  # β
    config.ppo.missing_eos_penalty = 1.0  # a summary that does not end
    config.ppo.sampling.max_new_tokens = 53  # of a summary
    config.ppo.sampling.temperature = 0.7  # of sampling


@recipe(
    stage="rloo", model="pythia_6_9b", after="sft_tldr_pythia_6_9b", reward="reward_tldr_pythia_6_9b", data=SUMMARIES,
    source="arXiv 2402.14740, appendix", topology="v5p:2x2x4",
)  # fmt: skip
def rloo_tldr_pythia_6_9b(config: ConfigDict) -> None:
    """RLOO with k = 4."""
    config.batch_size = 512  # completions, of 128 posts
    config.data.max_length = 512  # of a post
    config.optimizer.learning_rate = 1e-6  # of all methods
    config.rloo.group_size = 4  # k; 2 was tried, too
    config.rloo.kl_coef = 0.03  # β for TL;DR; 0.10 for HH
    config.rloo.sampling.max_new_tokens = 53  # of a summary


@recipe(
    stage="sft", model="pythia_1_4b", weights="EleutherAI/pythia-1.4b", note="in place of GPT-3 1.3B", data="yours",
    source="arXiv 2203.02155, appendix C", topology="v5e:2x4",
)  # fmt: skip
def sft_instructgpt_pythia_1_4b(config: ConfigDict) -> None:
    """Demonstrations; 13,000 prompts of the authors' that nobody else has."""
    config.num_epochs = 16.0  # chosen by the reward model's score, not by the loss
    config.batch_size = 32  # of 1.3B and 6B
    config.data.max_length = 2048  # 1,000 tokens of a prompt and as many of an answer
    config.optimizer.b2 = 0.95  # of all stages
    config.optimizer.learning_rate = 9.65e-6  # of 1.3B and 6B
    config.optimizer.schedule = "cosine"  # without a warm-up
    config.optimizer.final_ratio = 0.1  # down to a tenth


@recipe(
    stage="reward", model="pythia_6_9b", weights="EleutherAI/pythia-6.9b", note="after SFT, in place of GPT-3 6B",
    data="yours", source="arXiv 2203.02155, appendix C", topology="v5p:2x2x4",
)  # fmt: skip
def reward_instructgpt_pythia_6_9b(config: ConfigDict) -> None:
    """Rankings of 4 to 9 answers, all comparisons of one together: rows {"prompt", "responses", "scores"}."""
    config.num_epochs = 1.0  # a second one overfits
    config.batch_size = 64  # prompts, each with its ranking
    config.data.max_length = 2048  # 1,000 tokens of a prompt and as many of an answer
    config.data.row_length = 18432  # nine answers
    config.optimizer.b2 = 0.95  # of all stages
    config.optimizer.learning_rate = 9e-6  # at first
    config.optimizer.schedule = "cosine"  # without a warm-up
    config.optimizer.final_ratio = 0.1  # down to a tenth


@recipe(
    stage="ppo", model="pythia_1_4b", after="sft_instructgpt_pythia_1_4b", data="yours",
    source="arXiv 2203.02155, appendix C", topology="v5p:2x2x2",
)  # fmt: skip
def ppo_instructgpt_pythia_1_4b(config: ConfigDict) -> None:
    """PPO-ptx; `--config.ppo.ptx_data` is pretraining text."""
    config.num_epochs = 0.0  # num_steps decides
    config.num_steps = 500  # 256,000 episodes
    config.batch_size = 512  # episodes
    config.data.max_length = 1024  # of a prompt
    config.optimizer.b2 = 0.95  # of all stages
    config.optimizer.learning_rate = 9e-6  # as the critic's; the paper's own was searched for
    config.optimizer.schedule = "constant"  # after the warm-up
    config.optimizer.warmup_steps = 80  # ten rollouts of eight updates
    config.ppo.critic_learning_rate = 9e-6  # begins as the reward model
    config.ppo.num_minibatches = 8  # of 64 episodes
    config.ppo.ppo_epochs = 1  # each rollout is learned from once
    config.ppo.kl_coef = 0.02  # the best of 0 to 2.0
    config.ppo.clip = 0.2  # of the ratio
    config.ppo.gamma = 1.0  # no discount
    config.ppo.average_decay = 0.992  # the result is an average
    config.ppo.ptx_coef = 27.8  # γ
    config.ppo.sampling.max_new_tokens = 1024  # of an answer
    config.ppo.sampling.temperature = 1.0  # of sampling


@recipe(
    stage="ppo", model="pythia_1b", weights="EleutherAI/pythia-1b", note="after SFT, in place of GPT-3 1.2B",
    data="yours", source="arXiv 2210.10760, appendix", topology="v5e:4x4",
)  # fmt: skip
def ppo_overoptimisation_pythia_1b(config: ConfigDict) -> None:
    """PPO against a proxy; `--config.ppo.reward` is a reward model of 3M to 3B parameters."""
    config.batch_size = 256  # episodes
    config.ppo.clip = 0.2  # of the ratio
    config.ppo.lam = 0.95  # of the advantages
    config.ppo.kl_coef = 0.0  # a penalty acted as stopping early


def _dpo(config: ConfigDict) -> None:
    config.batch_size = 64  # pairs
    config.data.max_length = 512  # of a prompt and an answer
    config.data.row_length = 1024  # a pair
    config.optimizer.name = "rmsprop"  # as little memory as it takes
    config.optimizer.learning_rate = 1e-6  # of all tasks
    config.optimizer.schedule = "constant"  # after the warm-up
    config.optimizer.warmup_steps = 150  # linear
    config.optimizer.clip_norm = 10.0  # as in the authors' code


def _displacement(config: ConfigDict) -> None:
    config.num_epochs = 1.0  # over the pairs
    config.batch_size = 32  # pairs, 8 times 4
    config.data.max_length = 512  # of a prompt and an answer
    config.data.row_length = 1024  # a pair
    config.optimizer.name = "rmsprop"  # of all models
    config.optimizer.schedule = "constant"  # without a warm-up
    config.optimizer.warmup = 0.0  # none
    config.optimizer.clip_norm = None  # none
    config.dpo.beta = 0.1  # of DPO and IPO


def _minillm(config: ConfigDict) -> None:
    config.batch_size = 32  # 16 times 2
    config.data.max_length = 512  # of a prompt and an answer
    config.optimizer.schedule = "cosine"  # to 0
    config.optimizer.warmup = 0.0  # none
    config.optimizer.weight_decay = 0.01  # of AdamW
    config.optimizer.clip_norm = 1.0  # of gradients


def _tldr(config: ConfigDict) -> None:
    config.optimizer.learning_rate = 3e-6  # of all stages
    config.optimizer.schedule = "cosine"  # to 0
    config.optimizer.eps = 1e-5  # as TensorFlow's Adam in the original


def _tldr_pairs(config: ConfigDict) -> None:
    _tldr(config)
    config.num_epochs = 1.0  # 92,832 pairs
    config.batch_size = 64  # pairs
    config.data.max_length = 681  # 512 tokens of a post and 169 of a summary
    config.data.row_length = 1362  # a pair
