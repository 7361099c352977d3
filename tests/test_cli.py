"""The command line's own behaviour; what the verbs do is tested with their rooms."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from jaxalign.cli import main
from jaxalign.config import read_config
from jaxalign.stages import parse_config
from jaxalign.training.config import config_keys, to_json


def test_usage(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert main([]) == 2
    assert capsys.readouterr().out == page
    assert len(page.splitlines()) < 24 and max(map(len, page.splitlines())) <= 110
    assert "\n  train       Run one stage\n" in page


def test_help_of_a_verb_may_be_asked_for_before_or_behind_it(capsys):
    pages = []
    for argv in (["help", "train"], ["train", "--help"]):
        with pytest.raises(SystemExit) as left:
            main(argv)
        assert left.value.code == 0
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1] and pages[0].startswith("usage: jaxalign train --config=FILE[:ARG] ")


def test_the_version_names_what_a_report_needs_and_touches_no_device(capsys, monkeypatch):
    import flax
    import jax

    import jaxalign

    monkeypatch.setattr(jax, "devices", None)
    assert main(["--version"]) == 0
    python = ".".join(map(str, sys.version_info[:3]))
    wanted = (
        f"jaxalign {jaxalign.__version__}, jax {jax.__version__}, flax {flax.__version__}, Python {python}\n"
    )
    assert capsys.readouterr().out == wanted


def test_unknown_verb_names_the_known_ones(capsys):
    assert main(["trian"]) == 2
    err = capsys.readouterr().err
    assert err == "jaxalign: there is no verb 'trian'; did you mean 'train'?\n`jaxalign --help` lists all\n"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["train", "--workdir=x"], 2, "--config=FILE is missing"),
        (["train", "--config=configs/sft.py"], 2, "--workdir=DIR is missing"),
        (["train", "--config=configs/sfd.py", "--workdir=x"], 2, "configs/sfd.py does not exist"),
        (["train", "--config=sft", "--workdir=x", "--config.seeed=1"], 2, "did you mean --config.seed=1?"),
        (
            ["train", "--config=sft", "--workdir=x", "--config.seed=one"],
            2,
            "--config.seed=one cannot be read; it must be of type int",
        ),
        (
            ["train", "--config=sft", "--workdir=x", "--config.batch_size=-1"],
            1,
            "config.batch_size=-1 must be 0 or more",
        ),
        (["evaluate", "--model=no/such", "--prompts=p.jsonl", "--reward=math:sqrt"], 1, "--model='no/such'"),
        (["tokenizer", "--data=no.jsonl", "--out=t.model"], 1, "no.jsonl: no such file"),
        (["tokenizer", "--data=no.jsonl", "--out=t.model", "--vocab=0"], 2, "--vocab=0 must be at least 1"),
    ],
)
def test_errors_are_one_clear_message(argv, code, message, capsys):
    """A command that cannot be understood ends with 2, work that cannot be done with 1."""
    assert main(argv) == code
    err = capsys.readouterr().err
    assert message in err and err.startswith(f"jaxalign {argv[0]}: ") and "Traceback" not in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
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


SIMPO = """
import dataclasses
import jaxalign
from jaxalign.data.kinds import PAIRS
from jaxalign.stages.dpo import pair_totals

@dataclasses.dataclass(frozen=True)
class Options:
    beta: float = 2.0  # how steep the loss is

STAGE = jaxalign.Stage("simpo", data=PAIRS, options=Options, loss=lambda *_: None, totals=pair_totals)

def get_config(beta: str = "2"):
    config = jaxalign.default_config(STAGE)
    config.simpo.beta = float(beta)
    return config
"""


@pytest.mark.parametrize("name", ["sft", "ppo", "dpo:llama3_1_8b", "simpo.py:3"])
def test_a_printed_config_is_a_config_file_of_the_same_config(name, capsys, tmp_path, monkeypatch):
    """It says of every key what it is, and holds every value, a None and several sources among them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "simpo.py").write_text(SIMPO)
    flags = ["--config.seed=7", "--config.mesh.rules=embed=fsdp+data", "--config.optimizer.clip_norm=None"]
    more = ["--config.data.train=a.jsonl,b.jsonl", "--config.data.weights=0.5,0.25"]
    assert main(["train", f"--config={name}", "--print-config", *flags, *more]) == 0
    printed = capsys.readouterr().out
    wanted = parse_config(read_config(name, [*flags, *more]))
    (tmp_path / "saved.py").write_text(printed)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = parse_config(read_config(str(tmp_path / "saved.py")))
    assert to_json(found) == to_json(wanted) and found.stage.name == wanted.stage.name
    assert (wanted.seed, wanted.optimizer.clip_norm, wanted.data.weights) == (7, None, (0.5, 0.25))
    assert "    config.seed = 7  # int, at least 0 and below 4294967296; default: 0\n" in printed
    assert (
        "    # Global gradient norm; None turns clipping off.\n    config.optimizer.clip_norm = None  #"
        in printed
    )
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 110
    keys = re.findall(r"^    config\.([\w.]+) = ", printed, re.MULTILINE)
    assert sorted(keys) == sorted(key.path for key in config_keys(wanted.stage))


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


@pytest.mark.parametrize(
    ("platform", "said"), [("nonsense", r" \(Unable to initialize .*\)"), ("cuda", r"( \(.*\))?")]
)
def test_devices_that_are_not_there_are_told_with_ways_out(platform, said):
    """Of CUDA, JAX without it says nothing but that an assertion fails."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    lines = (
        "import types",
        "import jax",
        f"jax.config.update('jax_platforms', {platform!r})",
        "from jaxalign import cli",
        "module = types.SimpleNamespace(run=lambda asked: jax.devices())",
        "cli.load_verb = lambda verb: (module, types.SimpleNamespace(parse=lambda argv: None))",
        "raise SystemExit(cli.main(['train']))",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    found = rf"jaxalign train: JAX finds no device of JAX_PLATFORMS={platform}{said}; unset JAX_PLATFORMS"
    assert re.search(found, done.stderr), done.stderr


@pytest.mark.slow
def test_a_laptop_with_libtpu_is_not_told_that_it_has_no_tpu():
    """Without settings libtpu, which plans need, writes five lines to stderr when devices are looked for."""
    pytest.importorskip("libtpu")
    if list(pathlib.Path("/dev").glob("accel*")) or list(pathlib.Path("/dev").glob("vfio/[0-9]*")):
        pytest.skip("a host with TPUs")
    hidden = ("JAX_PLATFORMS", "TF_CPP_MIN_LOG_LEVEL")
    environment = {
        key: value for key, value in os.environ.items() if key not in hidden and not key.startswith("TPU_")
    }
    command = [sys.executable, "-m", "jaxalign", "version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("jaxalign ")
