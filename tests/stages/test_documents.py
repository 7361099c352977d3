"""Every command line of README.md and docs/, as it stands there, on small stand-ins of the models and data it names."""

import configparser
import dataclasses
import json
import math
import multiprocessing
import os
import pathlib
import random
import re
import shlex
import shutil
import sys
import tempfile

import jax
import pytest
from tiny import FILES, sentence, write_jsonl

from jaxalign.cli import main
from jaxalign.data import load_tokenizer
from jaxalign.models import ModelConfig, init_params
from jaxalign.models.presets import PRESETS
from jaxalign.stages import NAMES
from jaxalign.training.saved_model import save_model
from jaxalign.verbs.convert import ConvertRequest, convert

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
DOCS = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
# Published models at the size of a test, under their own names.
SMALL = {
    "num_layers": 2,
    "embed_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 64,
    "vocab_size": 336,
    "max_length": 8192,
    "rope_theta": 1e6,
    "tie_embeddings": True,
    "norm_eps": 1e-6,
    "qk_norm": "head",
}
# What a stand-in makes necessary: less of everything, and a hub dataset that lies here.
PLACES = {
    "Anthropic/hh-rlhf/harmless-base": "hh-rlhf:hh.jsonl",
    "--prompts=FILE.jsonl": "--prompts=prompts.jsonl",
    "--data=FILE.jsonl": "--data=text.jsonl",
    "--config=STAGE": "--config=sft",
    "init_from=MODEL": "init_from=runs/pretrain",
    "train=DATA": "train=mine.jsonl",
    "--workdir=RUN": "--workdir=runs/some",
    "--config=...": "--config=sft",
    "--config=FILE": "--config=sft --config.model.init_from=runs/pretrain --config.data.train=mine.jsonl",
}
LESS = {
    "train": ["--config.num_steps=2", "--config.batch_size=8", "--config.checkpoint_every=0"],
    "generate": ["--max-new-tokens=24"],
    "tokenizer": ["--vocab=300"],
    "evaluate": ["--max-new-tokens=8"],
    "chat": ["--max-new-tokens=4"],
}


def blocks(document: str = README) -> list[list[str]]:
    """The commands of every block of a document for a shell, lines that go on joined, variables put in."""
    made = []
    for text in re.findall(r"```bash\n(.*?)```", document, re.DOTALL):
        variables: dict[str, str] = {}
        commands = []
        for line in text.replace("\\\n", " ").splitlines():
            if assigned := re.fullmatch(r'([A-Z]+)="(.*)"', line):
                variables[assigned[1]] = assigned[2]
            elif line.strip():
                commands.append(re.sub(r"\$([A-Z]+)", lambda m, known=variables: known[m[1]], line))
        made.append(commands)
    # Commands in running text, whose RUN is any run.
    made.append(
        [text.replace("RUN", "runs/sft") for text in re.findall(r"`(jaxalign\s[a-z]+\s--[^`]*)`", document)]
    )
    return made


@pytest.fixture(scope="module")
def place(runs, tmp_path_factory):
    """What a reader of the README has: a checkout's configs, runs, data and models by their names."""
    place = tmp_path_factory.mktemp("readme")
    furnish(place, runs, "pretrain", "reward")
    return place


def furnish(place: pathlib.Path, runs: pathlib.Path, *trained: str) -> None:
    (place / "configs").symlink_to(ROOT / "configs")
    for name in trained:
        shutil.copytree(runs / name, place / "runs" / name)
    rng = random.Random(0)
    write_jsonl(
        place / "mine.jsonl",
        [{"prompt": sentence(rng, 2, 4), "completion": sentence(rng, 2, 6)} for _ in range(40)],
    )
    write_jsonl(place / "prompts.jsonl", [{"prompt": sentence(rng, 2, 5)} for _ in range(40)])
    write_jsonl(place / "text.jsonl", [{"text": sentence(rng, 5, 12)} for _ in range(100)])
    talk = "\n\nHuman: {}\n\nAssistant: {}"
    pairs = [
        {side: talk.format(question, sentence(rng, 2, 6)) for side in ("chosen", "rejected")}
        for question in (sentence(rng, 2, 5) for _ in range(60))
    ]
    write_jsonl(place / "hh.jsonl", pairs)
    write_jsonl(place / "maths.jsonl", [{"prompt": f"{n} x 7?", "answer": str(n * 7)} for n in range(8)])
    (place / "module.py").write_text("def function(prompt, completion):\n    return float(len(completion))\n")
    config = ModelConfig(**SMALL | {"max_length": 96})
    tokenizer = load_tokenizer(runs / "tiny.model")
    save_model(
        place / "made", init_params(jax.random.key(0), config), config, tokenizer, scalar=False, meta={}
    )
    (place / "Qwen").mkdir()
    convert(
        ConvertRequest(
            str(place / "made"), str(place / "Qwen/Qwen3-0.6B"), "hf", architecture="Qwen3ForCausalLM"
        )
    )


@dataclasses.dataclass(frozen=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


# Commands run in processes of their own. These are forked from one that has loaded the packages and done nothing else.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [f"jaxalign.verbs.{verb}" for verb in ("train", "evaluate", "chat", "convert")]
)


def run(command: str, place: pathlib.Path) -> Done:
    for theirs, ours in PLACES.items():
        command = command.replace(theirs, ours)
    words = shlex.split(command, comments=True)
    assert words[0] == "jaxalign", command
    return run_verb(words[1:] + LESS.get(words[1], []), place)


def run_verb(argv: list[str], place: pathlib.Path) -> Done:
    with tempfile.TemporaryDirectory() as folder:
        streams = [os.path.join(folder, name) for name in ("stdin", "stdout", "stderr")]
        pathlib.Path(streams[0]).write_text("who asks?\n")
        process = PROCESSES.Process(target=answer, args=(argv, str(place), streams))
        process.start()
        process.join(1200)
        if process.exitcode is None:  # it would keep the tests from ending
            process.kill()
            process.join()
        return Done(process.exitcode, *(pathlib.Path(stream).read_text() for stream in streams[1:]))


def answer(argv: list[str], place: str, streams: list[str]) -> None:
    """The command line in a process of its own: ends it with the exit code."""
    for number, stream in enumerate(streams):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY), number)
    os.chdir(place)
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("qwen3_0_6b", "llama3_1_8b"):
        PRESETS[name] = SMALL
    sys.exit(main(argv))


def test_every_block_is_of_commands_that_are_known_here():
    words = {shlex.split(command, comments=True)[0] for commands in blocks() for command in commands}
    assert words == {"python3", "pip", "jaxalign"}
    verbs = {
        shlex.split(command)[1] for commands in blocks() for command in commands if command[:8] == "jaxalign"
    }
    assert verbs >= {
        "train",
        "audit",
        "chat",
        "convert",
        "generate",
        "label",
        "plan",
        "tokenizer",
        "evaluate",
    }


def test_packages_that_are_installed_by_name_are_extras_of_this_checkout():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = re.findall(r"pip install[^\n`]*'\.\[(\w+)\]'", README)
    assert extras and set(extras) <= set(setup["options.extras_require"])
    assert "pip install 'jaxalign" not in README  # no index has it


def test_the_main_job_is_one_line():
    """tests/quickstart/test_pipeline.py runs it."""
    (command,) = (c for commands in blocks() for c in commands if "quickstart" in c)
    assert command == "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/jaxalign quickstart"


@pytest.mark.slow
def test_every_command_runs_as_it_stands_there(place):
    pytest.importorskip("libtpu")
    commands = [c for block in blocks() for c in block if c.startswith("jaxalign")]
    for command in commands:
        done = run(command, place)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    for folder in re.findall(r"--workdir=(runs/\S+)", "\n".join(commands)):
        assert json.loads((place / folder / "summary.json").read_text())["steps"] == 2
    assert (place / "dpo-hf/model.safetensors").is_file()


def pairs_of_other_names(place: pathlib.Path) -> None:
    row = {"ask": "who asks?", "data": {"good": "the fox", "bad": "the dog"}}
    write_jsonl(place / "mine.jsonl", [row] * 8)


def stage_of_ones_own(place: pathlib.Path) -> None:
    text = re.search(r"\n## A stage of one's own\n.*?```python\n(.*?)```", DOCS["library"], re.DOTALL)[1]
    (place / "my_simpo.py").write_text("import jax\nimport jax.numpy as jnp\nimport jaxalign\n" + text)
    write_jsonl(place / "pairs.jsonl", [{"prompt": "who?", "chosen": "the fox", "rejected": "a dog"}] * 8)


# What a page takes as there, beside what the README does.
BEFORE = {"data": pairs_of_other_names, "library": stage_of_ones_own}
PAGES = [name for name, text in DOCS.items() if any(blocks(text))]


def test_these_pages_have_commands():
    assert PAGES == ["config", "data", "defaults", "library", "plans", "rewards", "runs", "studies"]
    for path in sorted((ROOT / "docs").glob("*.md")):  # what is not in a block of its own is not run here
        assert not re.search(r"^(    |```\n)jaxalign ", path.read_text("utf-8"), re.MULTILINE), path


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_every_command_of_a_page_runs(name, runs, tmp_path):
    if name == "plans":
        pytest.importorskip("libtpu")
    furnish(tmp_path, runs, "pretrain", "reward", *(["sft"] if name in ("library", "rewards") else []))
    BEFORE.get(name, lambda place: None)(tmp_path)
    for command in (c for block in blocks(DOCS[name]) for c in block):
        done = run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr


# What a stage cannot do without, beside a model and data: flags by which it is named.
ALSO = {stage: [f"--config.{stage}.reward=module.py:function"] for stage in ("ppo", "grpo", "rloo")}
ALSO["distill"] = ["--config.distill.teacher=Qwen/Qwen3-0.6B"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", NAMES)
def test_model_and_data_are_enough_for_any_stage(stage, place, runs):
    """As docs/defaults.md promises: on a Hugging Face folder, each stage at its first try and to its end."""
    data = f"--config.data.train={runs / FILES.get(stage, 'pairs')}.jsonl"
    flags = [f"--config={stage}", "--config.model.init_from=Qwen/Qwen3-0.6B", data, *ALSO.get(stage, [])]
    done = run_verb(["train", *flags, f"--workdir=jobs/{stage}"], place)
    assert done.returncode == 0, done.stderr
    summary = json.loads((place / f"jobs/{stage}/summary.json").read_text())
    chosen = json.loads((place / f"jobs/{stage}/settings.json").read_text())
    assert 1 <= summary["steps"] == int(re.search(rf"{stage}: (\d+) steps", done.stdout)[1])
    assert math.isfinite(summary["train"]["loss"]) and 0 < chosen["config.optimizer.learning_rate"] < 1e-2
    assert chosen["config.data.max_length"] <= 96
