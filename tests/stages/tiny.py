"""Tiny data, models and configs on which every stage runs in seconds."""

import json
import pathlib
import random
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from jaxalign.stages import NAMES, default_config, parse_config, train
from jaxalign.training.writer import read_metrics

STAGES = NAMES
ON_POLICY = ("ppo", "grpo", "rloo", "distill")  # stages that sample
SUPERVISED = tuple(stage for stage in STAGES if stage not in ON_POLICY)
WORDS = "the quick brown fox jumps over a lazy dog and asks who wrote this reply to that question".split()
ROW_LENGTH = 96
PROMPT_LENGTH = 16


def every_stage(*fast: str) -> list:
    """All of them as test parameters, those not among `fast` marked slow."""
    return [pytest.param(stage, marks=() if stage in fast else pytest.mark.slow) for stage in STAGES]


def sentence(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def write_jsonl(path: pathlib.Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_data(folder: pathlib.Path) -> None:
    """Texts, demonstrations, pairs, rankings with their pairs written out, prompts, and labelled completions."""
    rng = random.Random(0)
    write_jsonl(folder / "pretrain.jsonl", [{"text": sentence(rng, 3, 14) + "."} for _ in range(60)])
    sft = [{"prompt": sentence(rng, 2, 6) + "?", "completion": sentence(rng, 1, 9)} for _ in range(48)]
    write_jsonl(folder / "sft.jsonl", sft)
    pairs = [
        {"prompt": sentence(rng, 2, 6) + "?", "chosen": sentence(rng, 1, 5), "rejected": sentence(rng, 6, 9)}
        for _ in range(40)
    ]
    write_jsonl(folder / "pairs.jsonl", pairs)
    rankings = []
    for number in range(12):
        responses = [f"{sentence(rng, 1, 3)} {WORDS[k]} {number}" for k in range(3)]
        scores = rng.sample(range(10), 3)
        rankings.append({"prompt": sentence(rng, 2, 4) + "?", "responses": responses, "scores": scores})
    write_jsonl(folder / "rankings.jsonl", rankings)
    explicit = []
    for row in rankings:
        ordered = [r for _, r in sorted(zip(row["scores"], row["responses"], strict=True), reverse=True)]
        for better, worse in ((0, 1), (0, 2), (1, 2)):
            explicit.append({"prompt": row["prompt"], "chosen": ordered[better], "rejected": ordered[worse]})
    write_jsonl(folder / "rankings_as_pairs.jsonl", explicit)
    write_jsonl(folder / "prompts.jsonl", [{"prompt": sentence(rng, 2, 5) + "?"} for _ in range(24)])
    unpaired = [
        {"prompt": sentence(rng, 2, 6) + "?", "completion": sentence(rng, 1, 9), "label": number % 3 == 0}
        for number in range(48)
    ]
    write_jsonl(folder / "unpaired.jsonl", unpaired)


def reward_function(prompt: str, completion: str) -> float:
    """Longer replies score higher; importable as `tiny:reward_function`."""
    return 0.1 * len(completion) - 0.01 * len(prompt)


def prompt_length_reward(prompt: str, completion: str) -> float:
    return float(len(prompt))


def set_reward_function(name: str) -> dict[str, str]:
    """The changes by which PPO takes its scores from `tiny:<name>`."""
    return {"ppo.reward": f"tiny:{name}"}


def raising_reward(prompt: str, completion: str) -> float:
    raise KeyError("no such thing")


def nan_reward(prompt: str, completion: str) -> float:
    return float("nan")


FILES = {"pretrain": "pretrain", "sft": "sft", "kto": "unpaired"} | dict.fromkeys(ON_POLICY, "prompts")


def make_config(stage: str, runs: pathlib.Path, **changes: Any) -> ConfigDict:
    """The config of a tiny run; `changes` has dotted keys written with two underscores.

    AdamW with eps=1e-3: where a gradient is nearly 0, the usual eps=1e-8 turns rounding noise into a step of
    full size, and no comparison of parameters could tell noise from a mistake.
    """
    config = default_config(stage)
    base = {
        "num_steps": 3,
        "batch_size": 8,
        "log_every": 1,
        "data.train": str(runs / f"{FILES.get(stage, 'pairs')}.jsonl"),
        "data.max_length": PROMPT_LENGTH if stage in ON_POLICY else 48,
        "data.row_length": ROW_LENGTH,
        "data.max_segments": 8,
        "data.overlap": "allow",  # several tests evaluate on what they train on
        "optimizer.learning_rate": 1e-3,
        "optimizer.eps": 1e-3,
        "optimizer.schedule": "constant",
    }
    if stage == "pretrain":
        architecture = {"num_layers": 2, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
        base |= {f"model.{key}": value for key, value in architecture.items()}
        base |= {"model.mlp_dim": 64, "data.tokenizer": str(runs / "tiny.model"), "model.init_std": 0.1}
    else:
        base["model.init_from"] = str(runs / ("pretrain" if stage in ("sft", "orpo") else "sft"))
    if stage == "ppo":
        base |= {
            "ppo.reward": str(runs / "reward"),
            "ppo.critic_init": "policy",
            "ppo.ppo_epochs": 2,
            "ppo.num_minibatches": 1,
            "ppo.critic_learning_rate": 1e-3,
        }
    if stage in ("grpo", "rloo"):
        # 8 prompts, which eight devices can share.
        base |= {"batch_size": 16, f"{stage}.group_size": 2, f"{stage}.reward": str(runs / "reward")}
    if stage == "distill":
        base["distill.teacher"] = str(runs / "pretrain")
    if stage in ON_POLICY:
        # One shape of each program is enough for most tests; test_pack_completions.py and those of resuming have more.
        base |= {f"{stage}.sampling.max_new_tokens": 8, f"{stage}.pack_completions": False}
    for key, value in (base | {key.replace("__", "."): value for key, value in changes.items()}).items():
        config.update_from_flattened_dict({key: value})
    return config


def baseline_changes(stage: str, runs: pathlib.Path) -> dict[str, Any]:
    """A run that is evaluated on the way; of a stage that samples, with every part of its state in use."""
    changes = {"num_steps": 4, "eval_every": 2, "data.eval": str(runs / f"{FILES.get(stage, 'pairs')}.jsonl")}
    changes["log_every"] = 3  # a stop after the second step comes in the middle of a line
    if stage == "sft":
        changes["log_samples"] = 3  # others sample anyway, or would do the same
    if stage == "ppo":
        changes |= {"ppo.kl_target": 1.0, "ppo.kl_horizon": 100, "ppo.normalize_values": True}
    if stage in ("grpo", "rloo"):
        changes |= {f"{stage}.num_iterations": 2, f"{stage}.num_minibatches": 2}
    if stage == "grpo":
        changes |= {"grpo.beta": 0.1, "grpo.drop_equal_groups": True, "grpo.pack_completions": True}
    if stage in ("ppo", "grpo", "rloo"):
        changes[f"{stage}.reference_rate"] = 0.1
    if stage in ON_POLICY:
        changes[f"{stage}.average_decay"] = 0.9
    return changes


def run(
    stage: str, runs: pathlib.Path, workdir: pathlib.Path, *, devices: int = 1, stop_at=None, **changes: Any
) -> dict[str, Any]:
    """Trains; see `make_config`. On the first `devices` devices."""
    config = parse_config(make_config(stage, runs, **changes))
    return train(config, workdir, devices=jax.devices()[:devices], stop_at=stop_at, quiet=True)


def final_state(workdir: pathlib.Path, folder: str = "checkpoints") -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint of a run, by name, as it lies on disk."""
    step = max(int(path.name) for path in (workdir / folder).iterdir() if path.name.isdigit())
    path = workdir / folder / str(step)
    names = json.loads((path / "meta" / "metadata").read_text())["arrays"]
    args = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path / "arrays", restore_args=args)


def history(workdir: pathlib.Path, kind: str = "train") -> list[tuple[int, dict[str, float]]]:
    """(step, metrics) of every line, without what a clock measured."""
    lines = [(line["step"], line["values"]) for line in read_metrics(workdir) if line["kind"] == kind]
    return [(s, {k: v for k, v in values.items() if not k.startswith("perf/")}) for s, values in lines]


def assert_same_bits(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert array.dtype == got[name].dtype and array.tobytes() == got[name].tobytes(), name


def assert_tree_close(got: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    """Every leaf equal to `tolerance`, relative to the leaf's largest entry (or 1 if that is smaller)."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(b).max()))
        ),
        jax.device_get(got),
        jax.device_get(wanted),
    )
