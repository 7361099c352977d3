"""The command line's own behaviour; what the verbs do is tested with their rooms."""

import signal
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


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys\nsys.exit(0)", "line 2: SystemExit: 0"),
        ("def get_config():\n    raise SystemExit", "line 2: SystemExit"),
        ("def get_config():\n    return 1 / 0", "line 2: ZeroDivisionError: division by zero"),
        ("def get_config():\n    return {}['beta']", "line 2: KeyError: 'beta'"),
        ("def get_config():\n    raise ValueError('no')", "line 2: ValueError: no"),
        ("def get_config():\n    open('absent.json')", "line 2: FileNotFoundError: "),
        ("def get_config()\n    pass", "line 1: SyntaxError: "),
        (
            "import jaxalign.stages\njaxalign.stages.default_config('sfd')",
            "line 2: stage.sfd does",
        ),
        ("def get_config():\n    pass", "get_config returns nothing"),
    ],
)
def test_a_config_file_that_fails_is_named(code, said, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(code + "\n")
    assert main(["train", f"--config={file}", f"--workdir={tmp_path}/run"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"jaxalign train: --config={file}") and said in err and "Traceback" not in err


@pytest.mark.parametrize(("code", "ends_with"), [(None, 1), (0, 1), (3, 3)])
def test_no_call_of_exit_passes_for_a_finished_run(code, ends_with, monkeypatch, capsys):
    def leave(*_, **__):
        sys.exit(code)

    monkeypatch.setattr("jaxalign.stages.train", leave)
    monkeypatch.setattr("jaxalign.quickstart.pipeline.quickstart", leave)
    for argv in (["train", "--config=configs/pretrain.py", "--workdir=x"], ["quickstart", "--workdir=x"]):
        try:
            assert main(argv) == ends_with
        except SystemExit as error:
            assert error.code == ends_with
        else:
            assert f"jaxalign {argv[0]}: {__file__}:" in capsys.readouterr().err
    with pytest.raises(SystemExit) as helped:
        main(["quickstart", "--help"])
    assert helped.value.code == 0


def test_an_interrupt_is_one_line_and_130(monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxalign.stages.train", interrupt)
    assert main(["train", "--config=configs/pretrain.py", "--workdir=x"]) == 130
    assert capsys.readouterr().err == "jaxalign train: interrupted\n"


# Whoever runs the tests may have started them with nohup, and children inherit what that ignores.
WITHOUT_NOHUP = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from jaxalign.cli import main
sys.exit(main())
"""
SLEEP = "import sys, time\ndef get_config():\n    print('ready', flush=True)\n    time.sleep(600)\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "ends_with", "said"),
    [
        (signal.SIGTERM, 75, "\njaxalign train: stopped by SIGTERM; run the same command to go on\n"),
        (signal.SIGHUP, 75, "\njaxalign train: stopped by SIGHUP; run the same command to go on\n"),
        (signal.SIGINT, 130, "jaxalign train: interrupted\n"),
    ],
)
def test_a_signal_before_training_asks_for_the_same_command(number, ends_with, said, tmp_path):
    file = tmp_path / "slow.py"
    file.write_text(SLEEP)
    flags = [f"--config={file}", f"--workdir={tmp_path}/run"]
    command = [sys.executable, "-c", WITHOUT_NOHUP, "train", *flags]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    assert child.communicate(timeout=60) == ("", said)
    assert child.returncode == ends_with


def test_a_signal_in_the_first_moment_asks_for_the_same_command():
    code = "import os, signal; from jaxalign import cli; cli._run = lambda *_: os.kill(os.getpid(), signal.SIGTERM)"
    for verb, ends_with in (("train", 75), ("quickstart", 75), ("evaluate", -signal.SIGTERM)):
        command = [sys.executable, "-c", f"{code}; cli.main(['{verb}'])"]
        assert subprocess.run(command, capture_output=True, timeout=60).returncode == ends_with


def test_a_device_without_memory_is_told_with_ways_out(monkeypatch, capsys):
    import jax

    def fails(request):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 105496318464 bytes.")

    monkeypatch.setattr("jaxalign.verbs.version.run", fails)
    assert main(["version"]) == 1
    err = capsys.readouterr().err
    assert (
        "allocating 105496318464 bytes" in err and "config.num_microbatches" in err and "Traceback" not in err
    )
