"""Every command line of README.md, as it stands there, on small stand-ins of the models and data that it names."""

import configparser
import json
import os
import pathlib
import random
import re
import shlex
import shutil
import subprocess
import sys

import jax
import pytest
from tiny import sentence, write_jsonl

from jaxalign.data import load_tokenizer
from jaxalign.models import ModelConfig, init_params
from jaxalign.training.saved_model import save_model
from jaxalign.verbs.convert import ConvertRequest, convert

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
# Published models at the size of a test, under their own names.
SMALL = {
    "num_layers": 2,
    "embed_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 64,
    "vocab_size": 336,
    "max_length": 256,
    "rope_theta": 1e6,
    "tie_embeddings": True,
    "norm_eps": 1e-6,
    "qk_norm": "head",
}
RUN = """
import sys
import jaxalign.models.presets as models
for name in ("qwen3_0_6b", "llama3_1_8b"):
    models.PRESETS[name] = {small!r}
from jaxalign.cli import main
sys.exit(main(sys.argv[1:]))
"""
# What a stand-in makes necessary: less of everything, and a hub dataset that lies here.
PLACES = {
    "Anthropic/hh-rlhf/harmless-base": "hh-rlhf:hh.jsonl",
    "--prompts=FILE.jsonl": "--prompts=prompts.jsonl",
    "--data=FILE.jsonl": "--data=text.jsonl",
}
LESS = {
    "quickstart": ["--fast", "--workdir=world"],
    "train": ["--config.num_steps=2", "--config.batch_size=8", "--config.checkpoint_every=0"],
    "generate": ["--max-new-tokens=24"],
    "tokenizer": ["--vocab=300"],
    "evaluate": ["--max-new-tokens=8"],
    "chat": ["--max-new-tokens=4"],
}


def blocks() -> list[list[str]]:
    """The commands of every block of README.md for a shell, lines that go on joined, variables put in."""
    made = []
    for text in re.findall(r"```bash\n(.*?)```", README, re.DOTALL):
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
        [text.replace("RUN", "runs/sft") for text in re.findall(r"`(jaxalign\s[a-z]+\s--[^`]*)`", README)]
    )
    return made


@pytest.fixture(scope="module")
def place(runs, tmp_path_factory):
    """A folder with what a reader of the README has: a checkout's configs, runs, data and models by their names."""
    place = tmp_path_factory.mktemp("readme")
    (place / "configs").symlink_to(ROOT / "configs")
    for name in ("pretrain", "reward"):
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
    (place / "module.py").write_text("def function(prompt, completion):\n    return float(len(completion))\n")
    config = ModelConfig(**SMALL)
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
    return place


def run(command: str, place: pathlib.Path) -> subprocess.CompletedProcess:
    for theirs, ours in PLACES.items():
        command = command.replace(theirs, ours)
    words = shlex.split(command, comments=True)
    assert words[0] == "jaxalign", command
    argv = words[1:] + LESS.get(words[1], [])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", RUN.format(small=SMALL), *argv],
        cwd=place, env=environment, input="who asks?\n", capture_output=True, text=True, timeout=1200,
    )  # fmt: skip


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


@pytest.mark.slow
def test_quickstart_runs(place):
    (command,) = (c for commands in blocks() for c in commands if "quickstart" in c)
    assert command.startswith(
        "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/jaxalign quickstart"
    )
    done = run("jaxalign quickstart", place)
    assert done.returncode == 0, done.stderr
    assert (place / "world/report.html").is_file()


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
