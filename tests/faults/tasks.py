"""What is interrupted: a command for each stage and each verb that writes, and how its results are compared."""

import dataclasses
import json
import pathlib
import random
from collections.abc import Callable

from tiny import STAGES, baseline_changes, final_state, history, sentence, write_data

from jaxalign.data import train_sentencepiece
from jaxalign.quickstart.pipeline import STAGES as PIPELINE
from jaxalign.training.writer import SAMPLES
from tests.faults.forks import ROOT, attempt

STEPS = 6


@dataclasses.dataclass(frozen=True)
class Task:
    """A command whose results in a folder do not depend on what interrupted it."""

    name: str
    command: Callable[[pathlib.Path], list[str]]  # the arguments for a folder
    differences: Callable[[pathlib.Path, pathlib.Path], list[str]]  # of one folder's results from another's


def prepare(folder: pathlib.Path) -> None:
    """Data, tokenizer, and the runs from which others begin."""
    if (folder / "ready").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    train_sentencepiece([sentence(rng, 5, 12) + ".?\n" for _ in range(200)], folder / "tiny.model", 336)
    write_data(folder)
    for stage in ("pretrain", "sft", "reward"):
        changes = {"num_steps": 6, "optimizer.learning_rate": 1e-2}
        _succeed(_train(stage, folder, folder / stage, changes), folder / f"{stage}.log")
    (folder / "ready").touch()


def _succeed(argv: list[str], log: pathlib.Path) -> None:
    ended = attempt(argv, log)
    assert ended.code == 0, ended.log


def _train(stage: str, runs: pathlib.Path, workdir: pathlib.Path, changes: dict[str, object]) -> list[str]:
    config = f"--config={ROOT}/tests/stages/tiny_config.py:{stage},{runs}"
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    return ["train", config, f"--workdir={workdir}", *flags]


def stage_task(stage: str, runs: pathlib.Path) -> Task:
    """A run of a stage that is evaluated and saved on the way, with every part of its state in use."""
    changes = baseline_changes(stage, runs) | {"num_steps": STEPS, "checkpoint_every": 1}
    return Task(
        stage,
        lambda folder: _train(stage, runs, folder / "run", changes),
        lambda got, wanted: run_differences(got / "run", wanted / "run"),
    )


def run_differences(got: pathlib.Path, wanted: pathlib.Path) -> list[str]:
    """In what two runs differ by a bit: state, model, metrics but for times, samples, evaluation."""
    found = []
    for part in ("checkpoints", "model"):
        mine, theirs = final_state(got, part), final_state(wanted, part)
        if mine.keys() != theirs.keys():
            found.append(f"{part}: other arrays")
        found += [
            f"{part}: {name}"
            for name in mine.keys() & theirs.keys()
            if mine[name].tobytes() != theirs[name].tobytes()
        ]
    for kind in ("train", "eval"):
        mine, theirs = history(got, kind), history(wanted, kind)
        if mine != theirs:
            found.append(
                f"metrics.jsonl: {kind} rows {[step for step, _ in mine]}, not {[step for step, _ in theirs]}"
            )
    mine, theirs = (folder / SAMPLES for folder in (got, wanted))
    if mine.exists() != theirs.exists() or (mine.exists() and mine.read_bytes() != theirs.read_bytes()):
        found.append(SAMPLES)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (got, wanted)]
    if summaries[0]["eval"] != summaries[1]["eval"]:
        found.append("summary.json: eval")
    return found


def verb_tasks(runs: pathlib.Path) -> list[Task]:
    """Commands that write files of their own."""
    sampling = ["--n=4", "--max-new-tokens=8", "--batch-size=8"]
    completions = runs / "completions.jsonl"
    generate = ["generate", f"--model={runs}/sft", f"--prompts={runs}/prompts.jsonl", *sampling]
    if not completions.exists():
        _succeed([*generate, f"--out={completions}"], runs / "generate.log")
    label = ["label", f"--completions={completions}", f"--reward-model={runs}/reward", "--max-length=64"]
    convert = ["convert", f"--from={runs}/sft", "--to=hf", "--max-shard-size=20KB"]
    prepare = _train("sft", runs, pathlib.Path("unused"), {})
    prepare = ["prepare", *(flag for flag in prepare[1:] if not flag.startswith("--workdir"))]
    ablate = ["ablate", f"{ROOT}/configs/ablations/ipo_bandits.py", "--jobs=1"]
    return [
        Task("generate", lambda folder: [*generate, f"--out={folder}/out.jsonl"], _files_differ),
        Task("label", lambda folder: [*label, f"--out={folder}/out.jsonl"], _files_differ),
        Task("convert", lambda folder: [*convert, f"--out={folder}/hf"], _files_differ),
        Task("prepare", lambda folder: [*prepare, f"--config.data.store={folder}/store"], _files_differ),
        Task("ablate", lambda folder: [*ablate, f"--workdir={folder}/study"], _files_differ),
    ]


def quickstart_task() -> Task:
    """The main job at smoke size: seven stages, their evaluation and the report."""

    def command(folder: pathlib.Path) -> list[str]:
        return ["quickstart", "--fast", "--seed=3", f"--workdir={folder}/job"]

    def differences(got: pathlib.Path, wanted: pathlib.Path) -> list[str]:
        found = _files_differ(got / "job" / "data", wanted / "job" / "data")
        for stage in PIPELINE:
            runs = (folder / "job" / stage for folder in (got, wanted))
            found += [f"{stage}: {difference}" for difference in run_differences(*runs)]
        results = (_content(folder / "job" / "results.json", folder) for folder in (got, wanted))
        return found + ([] if len(set(results)) == 1 else ["results.json"])

    return Task("quickstart", command, differences)


# What no two starts write alike, or what nobody reads: pictures and pages say how long a study took.
_OWN = ("lock", "partial", "log", "png", "svg", "md", "alive")


def _files_differ(got: pathlib.Path, wanted: pathlib.Path) -> list[str]:
    mine, theirs = (
        {
            str(file.relative_to(folder)): _content(file, folder)
            for file in folder.rglob("*")
            if file.is_file() and file.name.rpartition(".")[2] not in _OWN
        }
        for folder in (got, wanted)
    )
    names = {name for name in mine.keys() | theirs.keys() if not name.startswith(("hf/", ".hf."))}
    names |= {name for name in theirs if name.startswith("hf/")}
    return sorted(name for name in names if mine.get(name) != theirs.get(name))


def _content(file: pathlib.Path, folder: pathlib.Path) -> bytes:
    """What a file holds, but for the place it lies in and what a clock measured."""
    data = file.read_bytes().replace(str(folder).encode(), b"")
    if file.suffix in (".json", ".jsonl") and b'"seconds"' in data:
        rows = [json.loads(line) for line in (data.splitlines() if file.suffix == ".jsonl" else [data])]
        return json.dumps([{k: v for k, v in row.items() if k != "seconds"} for row in rows]).encode()
    return data


def all_tasks(runs: pathlib.Path) -> dict[str, Task]:
    """Every task by its name."""
    tasks = [*(stage_task(stage, runs) for stage in STAGES), *verb_tasks(runs), quickstart_task()]
    return {task.name: task for task in tasks}
