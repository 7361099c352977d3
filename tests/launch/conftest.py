"""A PATH on which every cloud command is a fake that writes down its calls, and a checkout with nothing installed."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = ("gcloud", "kubectl", "sbatch", "srun", "scontrol", "sky", "docker", "jaxalign")
AWKWARD = [  # values that a careless shell would break
    "--config.data.train=two words.jsonl",
    '--config.data.eval=it\'s "quoted" $HOME `id` \\ & | ; * ~ #',
    "--config.data.split=",
    "--config.data.chat_template=line one\n\tline two",
    "--config.data.tokenizer=@NAME@ $(HOME) ${x} 100%",
]


class Fakes:
    """Fake programs on a PATH, their calls and their answers."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        (folder / "answers.json").write_text("[]")
        code = (pathlib.Path(__file__).parent / "fake_command.py").read_text()
        for program in PROGRAMS:
            self.add(program, code)

    def add(self, program: str, code: str) -> None:
        """Puts a Python program on the PATH."""
        path = self.bin / program
        path.write_text(f"#!{sys.executable} -IS\n{code}")
        path.chmod(0o755)

    def answer(self, program: str, *when: str, **answer: Any) -> None:
        """The next call of `program` with all these words is answered with `out`, `err`, `code`, `run`."""
        path = self.folder / "answers.json"
        path.write_text(
            json.dumps([*json.loads(path.read_text()), {"program": program, "when": when, **answer}])
        )

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin",
            "FAKE_DIR": str(self.folder),
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
        }

    def run(self, *command: str, cwd: pathlib.Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            command, cwd=cwd, env=self.environment | environment, text=True, capture_output=True, timeout=60
        )


@pytest.fixture
def fakes(tmp_path):
    return Fakes(tmp_path / "fakes")


@pytest.fixture
def checkout(tmp_path):
    """A folder with launch/ and a fake .venv/bin/jaxalign; it stops as the answers for `jaxalign` say."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "launch", root / "launch")
    install_fake_jaxalign(root)
    return root


def install_fake_jaxalign(root: pathlib.Path) -> None:
    path = root / ".venv/bin/jaxalign"
    path.parent.mkdir(parents=True)
    path.write_text('#!/bin/sh\nexec jaxalign "$@"\n')
    path.chmod(0o755)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(condition: Callable[[], bool]) -> None:
    """Waits for what another process does; a minute is never reached."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")
