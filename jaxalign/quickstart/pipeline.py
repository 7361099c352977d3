"""From nothing to four aligned models and a report: seven stages, in the HHH world, in one workdir.

    data/ ─► pretrain/ ─► sft/ ─┬─► reward/ ─┬─► ppo/   preferences between demonstrators' answers, and
                 │              │            └─► grpo/  between the SFT model's own, labelled by the judge
                 │              └─► dpo/
                 └────────────────► orpo/

Every part leaves files and is skipped when they are there: an interrupted quickstart goes on where it stopped.
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from jaxalign import parallel
from jaxalign.config import load_config
from jaxalign.errors import ConfigError, amount
from jaxalign.evaluation import win_rate
from jaxalign.locks import LOCK, locked
from jaxalign.models import count_params
from jaxalign.quickstart.data import make_data, make_tokenizer
from jaxalign.quickstart.evaluate import Examiner, make_examiner, measure_reward_model
from jaxalign.quickstart.findings import ALIGNED
from jaxalign.quickstart.pairs import on_policy_pairs
from jaxalign.quickstart.report import print_results, write_report
from jaxalign.stages import parse_config, train
from jaxalign.storage import claim, is_remote, write_whole
from jaxalign.training.saved_model import find_model
from jaxalign.training.workdir import finished
from jaxalign.training.writer import FILE_NAME, read_metrics
from jaxalign.worlds import DEFAULT_NOISE, DatasetSizes, World

STAGES = ("pretrain", "sft", "reward", *ALIGNED)
CURVES = {
    "pretrain": "loss",
    "sft": "loss",
    "reward": "accuracy",
    "ppo": "objective/scores",
    "grpo": "objective/scores",
    "dpo": "rewards/margins",
    "orpo": "log_odds_chosen",
}
# The name of a model in the results, and the stage that made it.
MODELS = {"pretrained": "pretrain", "sft": "sft", **{stage: stage for stage in ALIGNED}}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of everything."""

    sizes: DatasetSizes
    on_policy_prompts: int = 3_000  # each answered twice by the SFT model
    questions: int = 400  # held-out questions that every model answers
    probe_questions: int = 128  # those answered in the middle of training
    probes: int = 4  # points of the frontier
    steps: float = 1.0  # of the num_steps in configs/quickstart.py


FULL = Scale(DatasetSizes())
FAST = Scale(
    DatasetSizes(1_500, 60, 200, 40, 200, 60, 128, 64), on_policy_prompts=64, questions=64, probe_questions=64,
    probes=1, steps=0.01,
)  # fmt: skip


def quickstart(
    workdir: str | pathlib.Path, *, fast: bool = False, seed: int = 0, console: Console | None = None
) -> dict[str, Any]:
    """Runs what is missing in `workdir`, writes results.json and report.html there, and prints the table.

    Args:
      fast: a smoke version under a minute; its numbers mean nothing.
      seed: of the world, the data, the weights and the sampling.

    Returns:
      The results; quickstart/report.py says what is in them.

    Raises:
      ConfigError: `workdir` holds a quickstart with another seed or size, is in use, or is not local.
    """
    if is_remote(workdir):
        raise ConfigError(
            f"--workdir={workdir}: a quickstart works in a local folder; name one, and copy it then"
        )
    root = pathlib.Path(workdir)
    with locked(root / LOCK, f"--workdir={root}"):
        return _run_parts(root, fast, seed, console or Console())


def _run_parts(root: pathlib.Path, fast: bool, seed: int, console: Console) -> dict[str, Any]:
    scale = FAST if fast else FULL
    _claim(root, {"fast": fast, "seed": seed})
    clock = _Clock(root / "seconds.json", console)
    world = World(seed=seed)

    with clock.part("data", "a world, its corpus, demonstrations, preferences and questions"):
        make_data(world, root / "data", sizes=scale.sizes, seed=seed)
    with clock.part("tokenizer", "SentencePiece on the corpus and the demonstrations"):
        make_tokenizer(root / "data")

    devices = jax.devices()[:1]
    mesh = parallel.make_mesh(parallel.MeshConfig(), devices)
    with parallel.use_mesh(mesh):
        examiner: Examiner | None = None
        for stage in STAGES:
            if stage in ALIGNED and examiner is None:
                take = scale.probe_questions
                examiner = make_examiner(root, world, take=take)
            if stage == "reward":
                with clock.part(
                    "pairs", "two answers of the SFT model to each prompt, compared by the judge"
                ):
                    _write_on_policy_pairs(root, world, scale, seed)
            with clock.part(stage, _describe(stage)):
                if finished(root / stage) is None:
                    values = stage_config(stage, root, scale, seed)
                    probe = examiner.probe if examiner and stage in ALIGNED else None
                    train(parse_config(values), root / stage, devices=devices, probe=probe)
        with clock.part("evaluation", f"{scale.questions} held-out questions to every model"):
            results = _measure(root, world, scale)
    results |= {"seed": seed, "fast": fast, "seconds": clock.seconds()}
    write_whole(root / "results.json", json.dumps(results, indent=1).encode())
    write_report(results, root / "report.html")
    print_results(results, console)
    console.print(f"The report: {root / 'report.html'}")
    return results


def stage_config(stage: str, root: pathlib.Path, scale: Scale, seed: int) -> ConfigDict:
    """The config of a stage, for this folder, seed and scale."""
    config = load_config("quickstart", stage=stage, root=str(root))
    config.seed = seed
    full = config.num_steps
    config.num_steps = max(2, round(full * scale.steps))
    config.log_every = max(1, config.num_steps // 40)
    if stage in ALIGNED:
        config.eval_every = max(1, config.num_steps // scale.probes)
    return config


def _claim(root: pathlib.Path, settings: dict[str, Any]) -> None:
    way_out = f"delete it if this quickstart began with {settings}, or use another --workdir"
    found = claim(root / "quickstart.json", settings, way_out)
    if found != settings:
        raise ConfigError(
            f"--workdir={root} holds a quickstart with {found}, not {settings}; use another --workdir, or delete it"
        )


def _describe(stage: str) -> str:
    return {
        "pretrain": "next-token prediction on the corpus",
        "sft": "imitation of demonstrators, good and bad",
        "reward": "a reward model on noisy preferences",
        "ppo": "reinforcement learning against the reward model",
        "grpo": "the same reward model, eight answers to a prompt compared, no critic",
        "dpo": "preference pairs, no reward model",
        "orpo": "preference pairs from the pretrained model, no SFT",
    }[stage]


def _write_on_policy_pairs(root: pathlib.Path, world: World, scale: Scale, seed: int) -> None:
    path = root / "data/preference_on_policy.jsonl"
    if path.is_file():
        return
    take = scale.on_policy_prompts
    examiner = make_examiner(root, world, take=take, questions="prompts.jsonl")
    rows, without = on_policy_pairs(examiner, seed)
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    Console().print(
        f"  {amount(len(rows), 'pair')}; {amount(without, 'prompt')} gave none (equal or empty answers)"
    )


def _measure(root: pathlib.Path, world: World, scale: Scale) -> dict[str, Any]:
    examiner = make_examiner(root, world, take=scale.questions)
    measured = {}
    for name, stage in MODELS.items():
        params = find_model(str(root / stage), stage).load(jax.sharding.get_mesh())
        measured[name] = examiner.measure(params)
    base = measured["sft"]["scores"]
    models = {
        name: {
            **{key: value for key, value in m.items() if key not in ("scores", "texts")},
            "win_rate": None if name == "sft" else win_rate(m["scores"], base),
        }
        for name, m in measured.items()
    }
    return {
        "parameters": count_params(examiner.reference_params),
        "vocabulary": examiner.reference.config.vocab_size,
        "questions": len(base),
        "models": models,
        "reward_model": measure_reward_model(root, DEFAULT_NOISE, take=0),
        "frontier": {stage: _frontier(root / stage, measured["sft"]) for stage in ALIGNED},
        "curves": {stage: _curve(root / stage, name) for stage, name in CURVES.items()},
        "examples": _examples(examiner, measured),
    }


def _frontier(folder: pathlib.Path, sft: dict[str, Any]) -> list[dict[str, float]]:
    points = [
        {"step": line["step"], "kl": line["values"]["judge/kl"], "score": line["values"]["judge/score"]}
        for line in read_metrics(folder / FILE_NAME)
        if line["kind"] == "eval"
    ]
    start = [] if folder.name == "orpo" else [{"step": 0, "kl": 0.0, "score": sft["score"][0]}]
    return start + points


def _curve(folder: pathlib.Path, name: str) -> dict[str, Any]:
    lines = [line for line in read_metrics(folder / FILE_NAME) if line["kind"] == "train"]
    return {"name": name, "points": [[line["step"], line["values"][name]] for line in lines]}


def _examples(examiner: Examiner, measured: dict[str, Any]) -> list[dict[str, Any]]:
    """The first held-out question of every kind, with every model's answer."""
    seen: dict[str, dict[str, Any]] = {}
    for i, record in enumerate(examiner.records):
        kind = record["kind"]
        if kind not in seen:
            answers = {name: {"text": m["texts"][i], "score": m["scores"][i]} for name, m in measured.items()}
            seen[kind] = {"kind": kind, "prompt": record["prompt"], "answers": answers}
    return [seen[kind] for kind in sorted(seen)]


@dataclasses.dataclass(frozen=True)
class _Clock:
    """Says what is being done, and adds up how long each part took over all attempts."""

    path: pathlib.Path
    console: Console

    def seconds(self) -> dict[str, float]:
        times = self._read()
        return times | {"total": round(sum(times.values()), 1)}

    def _read(self) -> dict[str, float]:
        if not self.path.is_file():
            return {}
        try:
            return {name: float(value) for name, value in json.loads(self.path.read_bytes()).items()}
        except (ValueError, TypeError, AttributeError):  # an earlier version was cut off while writing it
            self.console.print(f"{self.path} cannot be read: the times of the parts begin anew")
            return {}

    @contextlib.contextmanager
    def part(self, name: str, what: str) -> Iterator[None]:
        self.console.rule(f"[bold]{name}[/]  {what}", align="left")
        began = time.monotonic()
        try:
            yield
        finally:
            times = self._read()
            times[name] = round(times.get(name, 0.0) + time.monotonic() - began, 1)
            write_whole(self.path, json.dumps(times).encode())
