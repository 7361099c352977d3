"""The command line's own behaviour; what the verbs do is tested with their rooms."""

import subprocess
import sys

import pytest

from jaxalign.cli import main


def test_usage(capsys):
    assert main(["--help"]) == 0
    assert "quickstart" in capsys.readouterr().out
    assert main([]) == 2


def test_unknown_verb_names_the_known_ones(capsys):
    assert main(["trian"]) == 2
    err = capsys.readouterr().err
    assert "'trian'" in err and "train --config" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--workdir=x"], "--config=FILE is missing"),
        (["train", "--config=configs/sft.py"], "--workdir=DIR is missing"),
        (["train", "--config=configs/sfd.py", "--workdir=x"], "configs/sfd.py does not exist"),
        (["train", "--config=configs/sft.py", "--workdir=x", "--config.seeed=1"], "did you mean 'seed'"),
        (["train", "--config=configs/sft.py", "--workdir=x", "--config.seed=one"], "config.seed=one"),
        (
            ["evaluate", "--model=no/such", "--prompts=p.jsonl", "--reward=math:sqrt"],
            "--model='no/such'",
        ),
        (["tokenizer", "--data=no.jsonl", "--out=t.model"], "no.jsonl: no such file"),
    ],
)
def test_errors_are_one_clear_message(argv, message, capsys):
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert message in err and err.startswith(f"jaxalign {argv[0]}: ") and "Traceback" not in err


def test_version_runs_as_a_module():
    out = subprocess.run(
        [sys.executable, "-m", "jaxalign", "version"], capture_output=True, text=True, check=True, timeout=120
    )
    assert out.stdout.startswith("jaxalign ")


def test_tokenizer_verb_trains_one(tmp_path, capsys):
    data = tmp_path / "text.jsonl"
    data.write_text(
        "".join(f'{{"text": "the {w} cat sat on the mat"}}\n' for w in "red blue green old".split())
    )
    assert main(["tokenizer", f"--data={data}", f"--out={tmp_path}/t.model", "--vocab=290"]) == 0
    assert "290 pieces" in capsys.readouterr().out
    from jaxalign.data import load_tokenizer

    tokenizer = load_tokenizer(tmp_path / "t.model")
    assert tokenizer.decode(tokenizer.encode("the old mat")) == "the old mat"


@pytest.mark.parametrize("name", ["sft", "ppo", "dpo.py:llama3_1_8b"])
def test_the_printed_config_is_the_config_as_flags(name, capsys):
    file = f"--config=configs/{name if '.py' in name else name + '.py'}"
    assert (
        main(["train", file, "--print-config", "--config.seed=7", "--config.mesh.rules=embed=fsdp+data"]) == 0
    )
    printed = capsys.readouterr().out.splitlines()
    assert "--config.seed=7" in printed
    flags = [line for line in printed if line.startswith("--")]
    assert len(flags) > 70
    assert main(["train", file, "--print-config", *flags]) == 0
    assert capsys.readouterr().out.splitlines() == printed
