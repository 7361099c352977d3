"""The published numbers of every stage by the size of the model, each with its source; docs/defaults.md explains them.

A model takes the first entry that is not too small for it. Below 50 million parameters nothing is published: those
rates were tried here, on the million parameters of the quickstart (configs/quickstart.py), or are those of a stage
tried there that is named instead ("as dpo").
"""

from jaxalign.training.recipe import Rate, Recipe

SMALL = 50e6  # parameters
LARGEST = float("inf")
HERE = "tried here on 1 million parameters"
TULU = "Tülu 3, arXiv 2411.15124"
OLMO = "OLMo 2 1B, arXiv 2501.00656"
TLDR = "arXiv 2403.17031, 1B to 6.9B"
PYTHIA = "arXiv 2304.01373"
LLAMA = "Llama 3, arXiv 2407.21783"
GPT3 = "GPT-3, arXiv 2005.14165"
LLEMMA = "Llemma, arXiv 2310.10631"

PRETRAIN = Recipe(
    # What a model can forget bounds the rate at which it goes on.
    rates=(
        Rate(SMALL, 1e-3, f"as sft, {HERE}"),
        Rate(2e9, 1e-4, f"{LLEMMA}, its 7B"),
        Rate(20e9, 1e-4, f"{LLEMMA}, 7B", batch=4_000_000),
        Rate(LARGEST, 5e-5, f"{LLEMMA}, 34B", batch=4_000_000),
    ),
    fresh=(
        Rate(SMALL, 3e-3, HERE, batch=2048),
        Rate(100e6, 1e-3, f"Pythia 70M, {PYTHIA}"),
        Rate(300e6, 6e-4, f"Pythia 160M, {PYTHIA}"),
        Rate(2e9, 3e-4, f"Pythia 410M and 1B, {PYTHIA}"),
        Rate(20e9, 3e-4, f"{LLAMA}, 8B", batch=4_000_000),
        Rate(100e9, 1.5e-4, f"{LLAMA}, 70B", batch=4_000_000),
        Rate(LARGEST, 8e-5, f"{LLAMA}, 405B", batch=4_000_000),
    ),
    batch=500_000,
    in_tokens=True,
    max_length=8192,
    source=f"{GPT3} and {LLAMA}",
    rows=512,
)
SFT = Recipe(
    rates=(
        Rate(SMALL, 1e-3, HERE),
        Rate(500e6, 5e-5, "Google's guide to fine-tuning Gemma 3 270M"),
        Rate(2e9, 3e-5, OLMO),
        Rate(5e9, 2e-5, "SmolLM3 3B, alignment handbook"),
        Rate(20e9, 5e-6, f"{TULU}, 8B"),
        Rate(LARGEST, 2e-6, f"{TULU}, 70B"),
    ),
    batch=128,
    max_length=4096,
    source=TULU,
)
REWARD = Recipe(
    rates=(
        Rate(SMALL, 5e-4, HERE),
        Rate(7e9, 3e-6, TLDR),
        Rate(20e9, 3e-6, f"{TULU}, 8B"),
        Rate(LARGEST, 5e-6, "Llama 2 70B, arXiv 2307.09288"),
    ),
    batch=256,
    max_length=2048,
    source=TULU,
)
DPO = Recipe(
    rates=(
        Rate(SMALL, 2e-4, HERE),
        Rate(2e9, 2.5e-6, OLMO),
        Rate(20e9, 5e-7, f"{TULU}, 8B"),
        Rate(LARGEST, 2e-7, f"{TULU}, 70B"),
    ),
    batch=128,
    max_length=2048,
    source=TULU,
)
ORPO = Recipe(
    rates=(
        Rate(SMALL, 2e-3, HERE),
        Rate(5e9, 8e-6, "arXiv 2403.07691, 125M to 2.7B"),
        Rate(LARGEST, 5e-6, "Mistral-ORPO 7B, arXiv 2403.07691"),
    ),
    batch=32,
    max_length=2048,
    source="Mistral-ORPO 7B, arXiv 2403.07691",
)
KTO = Recipe(
    rates=(Rate(SMALL, 2e-4, f"as dpo, {HERE}"), Rate(LARGEST, 1e-6, "TRL's default for KTO")),
    batch=64,
    max_length=2048,
    source="within what TRL's guide to KTO advises",
    rows=64,
)
PPO = Recipe(
    rates=(
        Rate(SMALL, 2e-4, HERE),
        Rate(7e9, 3e-6, TLDR),
        Rate(20e9, 3e-7, f"{TULU}, 8B"),
        Rate(LARGEST, 1e-7, f"{TULU}, 70B"),
    ),
    batch=512,
    max_length=1024,
    source="InstructGPT, arXiv 2203.02155",
)
GRPO = Recipe(
    rates=(
        Rate(SMALL, 2e-4, HERE),
        Rate(2e9, 5e-7, OLMO),
        Rate(LARGEST, 1e-6, "DeepSeekMath 7B, arXiv 2402.03300"),
    ),
    batch=512,
    max_length=1024,
    source="as PPO",
)
RLOO = Recipe(
    rates=(Rate(SMALL, 2e-4, f"as ppo, {HERE}"), Rate(LARGEST, 1e-6, "arXiv 2402.14740, 6.9B")),
    batch=512,
    max_length=1024,
    source="as PPO",
)
DISTILL = Recipe(
    rates=(Rate(SMALL, 2e-4, f"as ppo, {HERE}"), Rate(LARGEST, 1e-6, "as rloo")),
    batch=128,
    max_length=1024,
    source="no paper's",
)
