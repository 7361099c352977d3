"""The trainings of papers: their numbers, and that each fits the slice it names."""

import pytest

from jaxalign.ablation.at_scale import describe_trainings
from jaxalign.ablation.files import load_study, own_studies
from jaxalign.config import load_config
from jaxalign.config_files import own_configs
from jaxalign.errors import ConfigError
from jaxalign.plan.topology import parse_topology
from jaxalign.stages import parse_config
from jaxalign.verbs.plan import estimated_plan

# As the papers have them, read a second time: arXiv 2305.18290 (DPO), 2404.10719 (is DPO superior to PPO), 2403.07691
# (ORPO), 2305.11206 (LIMA), 2403.17031 (TL;DR), 2402.14740 (RLOO), 2203.02155 (InstructGPT), 2210.10760
# (over-optimisation); of 2410.08847 (displacement) and 2306.08543 (MiniLLM) the commands that its authors published.
DPO = {
    "optimizer.name": "rmsprop",
    "optimizer.learning_rate": 1e-6,
    "optimizer.warmup_steps": 150,
    "optimizer.clip_norm": 10,
    "batch_size": 64,
    "dpo.beta": 0.1,
}
DISPLACEMENT = {
    "optimizer.name": "rmsprop",
    "optimizer.decay": 0.99,
    "optimizer.schedule": "constant",
    "optimizer.warmup": 0,
    "optimizer.warmup_steps": 0,
    "optimizer.clip_norm": None,
    "batch_size": 32,
    "num_epochs": 1,
    "data.max_length": 512,
    "dpo.beta": 0.1,
}
MINILLM = {
    "optimizer.schedule": "cosine",
    "optimizer.warmup": 0,
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0.01,
    "optimizer.clip_norm": 1,
    "batch_size": 32,
    "data.max_length": 512,
}
NUMBERS = {
    "dpo_hh_pythia_2_8b": DPO,
    "dpo_imdb_gpt2_large": DPO,
    "dpo_hh_llama2_7b": {"optimizer.learning_rate": 1e-6, "num_epochs": 2, "dpo.beta": 0.1},
    "ppo_hh_llama2_7b": {
        "optimizer.learning_rate": 1e-5,
        "ppo.critic_learning_rate": 5e-6,
        "batch_size": 512,
        "ppo.num_minibatches": 4,
        "ppo.gamma": 1,
        "ppo.lam": 1,
        "ppo.kl_coef": 0.1,
        "ppo.reward_clip": 20,
        "ppo.reference_rate": 0.001,
        "ppo.sampling.max_new_tokens": 256,
        "num_epochs": 5,
    },
    "orpo_mistral_7b": {
        "optimizer.learning_rate": 5e-6,
        "optimizer.schedule": "inverse_sqrt",
        "optimizer.warmup_steps": 200,
        "num_epochs": 5,
        "batch_size": 32,
        "orpo.coef": 0.1,
    },
    "orpo_llama2_7b": {"optimizer.learning_rate": 8e-6, "num_epochs": 10, "orpo.coef": 0.2},
    "sft_orpo_opt_1_3b": {"optimizer.learning_rate": 1e-5, "num_epochs": 1},
    "orpo_opt_1_3b": {"optimizer.learning_rate": 8e-6, "num_epochs": 10, "data.max_length": 1024},
    "dpo_orpo_opt_1_3b": {"optimizer.learning_rate": 5e-6, "num_epochs": 3, "dpo.beta": 0.1},
    "sft_lima_llama2_7b": {
        "optimizer.learning_rate": 1e-5,
        "optimizer.final_ratio": 0.1,
        "optimizer.warmup_steps": 0,
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.95,
        "optimizer.weight_decay": 0.1,
        "batch_size": 64,
        "num_epochs": 15,
        "data.max_length": 2048,
    },
    "dpo_ultrafeedback_gemma_2b": DISPLACEMENT | {"optimizer.learning_rate": 1e-7},
    "dpo_sorrybench_gemma_2b": DISPLACEMENT | {"optimizer.learning_rate": 5e-6},
    "sft_minillm_gpt2_xl": MINILLM | {"optimizer.learning_rate": 5e-5, "num_epochs": 10},
    "sft_minillm_gpt2": MINILLM | {"optimizer.learning_rate": 5e-4, "num_epochs": 20},
    "distill_minillm_gpt2": {
        "optimizer.learning_rate": 5e-6,
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 100,
        "batch_size": 256,
        "num_steps": 5000,
        "data.max_length": 512,
        "distill.sampling.temperature": 1,
    },
    "sft_tldr_pythia_6_9b": {"optimizer.learning_rate": 3e-6, "batch_size": 128, "optimizer.eps": 1e-5},
    "reward_tldr_pythia_6_9b": {"optimizer.learning_rate": 3e-6, "batch_size": 64, "num_epochs": 1},
    "dpo_tldr_pythia_6_9b": {"optimizer.learning_rate": 3e-6, "batch_size": 64, "dpo.beta": 0.05},
    "ppo_tldr_pythia_6_9b": {
        "optimizer.learning_rate": 3e-6,
        "batch_size": 512,
        "ppo.ppo_epochs": 4,
        "ppo.num_minibatches": 1,
        "ppo.clip": 0.2,
        "ppo.value_clip": 0.2,
        "ppo.gamma": 1,
        "ppo.lam": 0.95,
        "ppo.kl_coef": 0.05,
        "ppo.sampling.temperature": 0.7,
        "ppo.sampling.max_new_tokens": 53,
        "ppo.missing_eos_penalty": 1,
    },
    "rloo_tldr_pythia_6_9b": {"optimizer.learning_rate": 1e-6, "rloo.group_size": 4, "rloo.kl_coef": 0.03},
    "sft_instructgpt_pythia_1_4b": {
        "optimizer.learning_rate": 9.65e-6,
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.95,
        "optimizer.final_ratio": 0.1,
        "optimizer.warmup_steps": 0,
        "batch_size": 32,
        "num_epochs": 16,
    },
    "reward_instructgpt_pythia_6_9b": {
        "optimizer.learning_rate": 9e-6,
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.95,
        "optimizer.final_ratio": 0.1,
        "optimizer.warmup_steps": 0,
        "batch_size": 64,
        "num_epochs": 1,
    },
    "ppo_instructgpt_pythia_1_4b": {
        "batch_size": 512,
        "ppo.num_minibatches": 8,
        "ppo.ppo_epochs": 1,
        "ppo.kl_coef": 0.02,
        "ppo.critic_learning_rate": 9e-6,
        "ppo.average_decay": 0.992,
        "ppo.ptx_coef": 27.8,
        "ppo.clip": 0.2,
    },
    "ppo_overoptimisation_pythia_1b": {"batch_size": 256, "ppo.clip": 0.2, "ppo.lam": 0.95, "ppo.kl_coef": 0},
}
EPISODES = {"ppo_tldr_pythia_6_9b": 1_000_000, "ppo_instructgpt_pythia_1_4b": 256_000}


def recipes():
    space: dict = {"__name__": "papers"}
    exec(compile(own_configs()["papers"].read_text(), "papers.py", "exec"), space)
    return space["RECIPES"]


def test_every_recipe_has_numbers_of_its_paper():
    assert set(recipes()) == set(NUMBERS)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_recipe_has_its_papers_numbers_and_fits_its_slice(name):
    values = load_config("papers", name)
    for key, wanted in NUMBERS[name].items():
        found = values
        for part in key.split("."):
            found = found[part]
        assert found == wanted, key
    if name in EPISODES:
        assert values.num_steps * values.batch_size == pytest.approx(EPISODES[name], rel=1e-3)
    config = parse_config(values)
    plan = estimated_plan(config, parse_topology(recipes()[name]["topology"]))
    assert all(step["fits"] for step in plan["steps"]), plan


def test_a_recipe_that_is_none_is_refused():
    with pytest.raises(
        ConfigError, match=r"'orpo_mistral' is no recipe of a paper; there are .*orpo_mistral_7b"
    ):
        load_config("papers", "orpo_mistral")


def test_a_study_names_the_trainings_of_its_paper():
    """The rewarded ones after their SFT and reward model, each once, and every recipe is one."""
    study = load_study("rloo")
    lines = list(describe_trainings(study))
    commands = [line for line in lines if not line.startswith("#")]
    begun = [line.split("--config=papers:")[1].split()[0] for line in commands]
    assert begun[:3] == ["sft_tldr_pythia_6_9b", "reward_tldr_pythia_6_9b", "rloo_tldr_pythia_6_9b"]
    assert "--config.model.init_from=ablations/rloo-paper/sft_tldr_pythia_6_9b" in commands[2]
    assert "--config.rloo.reward=ablations/rloo-paper/reward_tldr_pythia_6_9b" in commands[2]
    assert commands[2].endswith("--workdir=ablations/rloo-paper/rloo_tldr_pythia_6_9b  # v5p:2x2x4")


def test_a_distilled_student_comes_after_its_teacher():
    commands = [line for line in describe_trainings(load_study("distillation")) if not line.startswith("#")]
    begun = [line.split("--config=papers:")[1].split()[0] for line in commands]
    assert begun == ["sft_minillm_gpt2", "sft_minillm_gpt2", "sft_minillm_gpt2_xl", "distill_minillm_gpt2"]
    folder = "ablations/distillation-paper"
    assert f"--config.distill.teacher={folder}/sft_minillm_gpt2_xl" in commands[-1]
    assert f"--config.model.init_from={folder}/sft_minillm_gpt2 " in commands[-1]


@pytest.mark.parametrize("name", own_studies())
def test_recipes_of_studies_are_there(name):
    assert set(load_study(name).recipes.values()) <= set(NUMBERS)
