"""The README's commands, each run with fakes or as a dry run; the images; the SkyPilot task."""

import pathlib
import re
import shlex

import pytest

from .conftest import PROGRAMS, ROOT

LAUNCH = ROOT / "launch"
COMMANDS = [
    command
    for block in re.findall(r"```bash\n(.*?)```", (LAUNCH / "README.md").read_text(), re.DOTALL)
    for command in block.replace("\\\n", " ").splitlines()
]
LAUNCHERS = [command for command in COMMANDS if command.startswith("launch/")]


def test_the_readme_shows_every_launcher():
    shown = {command.split()[0] for command in COMMANDS} | {
        word for command in COMMANDS for word in command.split() if word.startswith("launch/")
    }
    launchers = {str(path.relative_to(ROOT)) for path in LAUNCH.rglob("*") if path.is_file()}
    inner = {"common.sh", "tpu_types.sh", "worker.sh", "README.md", "gke/jobset.yaml"}
    used = {re.sub(r"^--file=", "", word) for word in shown | set(" ".join(COMMANDS).split())}
    assert launchers - used == {f"launch/{name}" for name in inner}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme(fakes, command, tmp_path):
    """Launchers as dry runs; programs of others by fakes, which must be called with just these words."""
    words = shlex.split(command)
    if words[0].startswith("launch/"):
        (fakes.folder / "tpu.env").write_text("HF_TOKEN=hf_...\n")
        words = [re.sub("^--env-file=", f"--env-file={fakes.folder}/", word) for word in words]
        shown = fakes.run(words[0], *([words[1], "--dry-run"] if len(words) > 1 else []), *words[2:])
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout and fakes.calls == []
    elif words[0] in PROGRAMS:
        assert fakes.run("bash", "-euc", command).returncode == 0
        assert fakes.calls == [words]
    else:
        assert command in (
            'eval "$(ssh-agent)"',
            "ssh-add ~/.ssh/google_compute_engine",
            '(umask 077; echo "HF_TOKEN=hf_..." > tpu.env)',
        )


@pytest.mark.parametrize("command", [c for c in LAUNCHERS if "--config=" in c])
def test_keys_of_the_readme_exist(command):
    """What stands in the README is a config that jaxalign takes."""
    from jaxalign.config import parse_flags
    from jaxalign.stages import parse_config

    flags = [word for word in shlex.split(command) if re.match("--config[.=]|--workdir=", word)]
    values, workdir = parse_flags([flag.replace("configs/", f"{ROOT}/configs/") for flag in flags])
    parse_config(values)
    assert workdir


@pytest.mark.parametrize(
    "name, extra, user", [("tpu", "jax[tpu]", None), ("cuda", "jax[cuda${CUDA}]", "jaxalign")]
)
def test_images(name, extra, user):
    text = (LAUNCH / f"{name}.Dockerfile").read_text()
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    steps = {}
    for key, value in lines:
        steps.setdefault(key, []).append(value)
    (base,) = steps["FROM"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    assert steps["ENTRYPOINT"] == ['["jaxalign"]']
    assert f'"{extra}${{JAX_VERSION}}" ".[gcs]"' in steps["RUN"][0]
    assert steps.get("USER", [None])[-1] == user
    for source in (word for step in steps["COPY"] for word in step.split()[:-1]):
        assert (ROOT / source).exists(), source


def test_the_skypilot_task(fakes):
    yaml = pytest.importorskip("yaml")
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert task["file_mounts"]["/bucket"]["source"] == "gs://${BUCKET}"
    home = fakes.folder / "home"
    (home / ".venv/bin").mkdir(parents=True)
    pathlib.Path(home / ".venv/bin/jaxalign").symlink_to(fakes.bin / "jaxalign")
    show = "print(*(os.environ.get(f'JAXALIGN_{name}') for name in ('COORDINATOR', 'NUM_PROCESSES', 'PROCESS_ID')))"
    nodes = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"}
    flags = "--config=c.py --config.data.train='two words'"
    for extra, said in (("cuda12", "10.0.0.1:8476 2 1"), ("tpu", "None None None")):
        fakes.answer("jaxalign", run=show, code=75)
        ran = fakes.run("bash", "-c", task["run"], cwd=home, TRAIN=flags, EXTRA=extra, **nodes)
        assert (ran.returncode, ran.stdout) == (75, said + "\n")
    assert fakes.calls == [["jaxalign", "train", "--config=c.py", "--config.data.train=two words"]] * 2
