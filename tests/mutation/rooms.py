"""The rooms whose mutants are tried, and the tests that are to kill them."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
FAST = ("-m", "not slow")
_STUDIES = tuple(f"ablation/test_{name}" for name in ("statistics", "variance", "screening", "recorded"))
_ERRORS = (*FAST, "tests/stages/test_stage_errors.py")
_ON_POLICY = ("-k", "ppo or grpo or rloo or distill")
_ENDS = ("-k", "scores_of_rollouts", "tests/data/test_answer_endings.py")
_RL = ("step_zero", "ppo_options", "pack_completions", "evaluation")
_LOSSES = ("metrics", "numerics", "orpo", "reward", "kto", "ppo", "dpo", "trl_parity", "grpo", "contract")
_DATA = (
    "unpaired",
    "dataset",
    "learned",
    "injection",
    "hf_tokenizer",
    "control_tokens",
    "tools",
    "templates",
)
_ROWS = ("loader", "store", "answer_endings", "shared_prompts")
_STEPS = (
    "training/test_checkpoint",
    "training/test_damage",
    "training/test_small_files",
    "verbs/test_verify",
)
_TIMELESS = ("-k", "not kill_at_any_moment")  # what it finds depends on when
_RUNS = ("training/test_saved_model", "stages/test_checkpoints_used", "stages/test_best")


def _files(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/{folder}{name}.py" for name in names)


# By room: its files, as patterns.
ROOMS: dict[str, tuple[str, ...]] = {
    "intervals": (
        "jaxalign/evaluation/intervals.py",
        *(f"jaxalign/ablation/{name}.py" for name in ("statistics", "variance", "screening")),
    ),
    "losses": ("jaxalign/losses/*.py",),
    "packing": ("jaxalign/data/packing.py",),
    "encode": ("jaxalign/data/encode.py",),
    "checkpoint": (
        *(f"jaxalign/training/{name}.py" for name in ("checkpoint", "step_files", "verify")),
        "jaxalign/checksums.py",
    ),
    "sampling": ("jaxalign/sampling/*.py",),
    "rl": ("jaxalign/rl/*.py",),
    "stages": ("jaxalign/stages/*.py",),
}
# The tests, as arguments of pytest, that are run one after the other where those of the file let a mutant survive. They
# are those that are near, and not the whole suite: so that a mutant that survives might still be killed by it.
WIDER: dict[str, tuple[tuple[str, ...], ...]] = {
    "intervals": ((*FAST, *_files("", "evaluation/test_intervals", *_STUDIES)),),
    "losses": (_ERRORS, _files("losses/test_", *_LOSSES), _files("stages/test_", "options")),
    "packing": (_files("data/test_", *_DATA[:2], *_ROWS),),
    "encode": (_files("data/test_", *_DATA), _files("data/test_", "answer_endings")),
    "checkpoint": ((*_TIMELESS, *_files("", *_STEPS)), (*FAST, *_files("", *_RUNS))),
    "sampling": (("-k", "slots and 5-3-settings", "tests/sampling/test_slots.py"), (*FAST, "tests/sampling")),
    "rl": (_ERRORS, (*_ON_POLICY, *_files("stages/test_", "options")), _files("stages/test_", *_RL), _ENDS),
    "stages": (
        _ERRORS,
        _files("stages/test_", "options"),
        _files("stages/test_", "step_zero", "ppo_options", "recomputed_metrics", "recomputed_rollouts"),
    ),
}
# The tests of a file that come first, where they are not those with its name.
OWN: dict[str, tuple[str, ...]] = {
    "jaxalign/losses/__init__.py": _files("losses/test_", "dpo", "ppo"),
    "jaxalign/data/packing.py": (
        *("-k", "not learn_the_same"),
        *_files("data/test_", "packing", "shared_prompts", "unpaired", "dataset"),
    ),
    "jaxalign/data/encode.py": _files("data/test_", "encode", "unpaired", "shapes", "learned"),
    "jaxalign/checksums.py": _files("", "test_checksums", "training/test_damage"),
    "jaxalign/training/checkpoint.py": (*_TIMELESS, *_files("training/test_", "checkpoint")),
    "jaxalign/training/step_files.py": (*_TIMELESS, *_files("training/test_", "damage", "checkpoint")),
    "jaxalign/training/verify.py": _files("verbs/test_", "verify"),
    "jaxalign/sampling/answers.py": _files(
        "sampling/test_", "answers", "sequence_rewards", "sampling_config"
    ),
    "jaxalign/sampling/generate.py": (
        *FAST,
        *_files("", "sampling/test_sampling_config", "sampling/test_generate", "data/test_answer_endings"),
    ),
    "jaxalign/sampling/slots.py": _files("sampling/test_", "queue"),
    "jaxalign/rl/learner.py": _files("rl/test_", "learner"),
    "jaxalign/rl/rollout.py": _files("rl/test_", "rollout"),
    "jaxalign/rl/programs.py": ("-k", "run_counts or rollout_reads", "tests/plan/test_programs.py"),
    "jaxalign/rl/layout.py": (*FAST, "tests/rl/test_layout.py", "tests/stages/test_pack_completions.py"),
    "jaxalign/stages/published.py": ("tests/training/test_recipe.py",),
    "jaxalign/stages/__init__.py": (*FAST, *_files("stages/test_", "out_of_tree", "stage_errors", "dry_run")),
}


def files_of(room: str) -> list[str]:
    """The files of a room, by their paths in the repository."""
    found = (path for pattern in ROOMS[room] for path in ROOT.glob(pattern))
    return sorted(path.relative_to(ROOT).as_posix() for path in found if path.stat().st_size)


def steps_of(room: str, file: str) -> list[tuple[str, ...]]:
    """What is run for a mutant of a file, one after the other until it is killed."""
    named = sorted((ROOT / "tests").rglob(f"test_{Path(file).stem}.py"))
    near = [path.relative_to(ROOT).as_posix() for path in named if path.parent.name == Path(file).parent.name]
    own = OWN.get(file) or tuple(near)
    return [*([own] if own else []), *WIDER[room]]
