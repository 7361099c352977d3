"""The README's commands, each run with fakes or as a dry run; the images; the SkyPilot task."""

import pathlib
import re
import shlex

import pytest

from .conftest import PROGRAMS, ROOT

LAUNCH = ROOT / "launch"
README = (LAUNCH / "README.md").read_text()
BLOCKS = [
    block.replace("\\\n", " ").splitlines() for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
]
COMMANDS = [command for block in BLOCKS for command in block]
TRAININGS = [command for command in COMMANDS if "--config=" in command]
SEVERAL_MACHINES = ("launch/tpu_pod.sh", "launch/gke/submit.sh", "sbatch")


def flag(command, name):
    """The value of the only flag of that name."""
    (value,) = re.findall(rf"(?<=\s)--{re.escape(name)}=(\S+)", command)
    return value


def training_flags(command):
    """What reaches `jaxalign train`; SkyPilot gets it as one word."""
    words = shlex.split(command)
    for word in words:
        if word.startswith("--env=TRAIN="):
            words = shlex.split(word.removeprefix("--env=TRAIN="))
    return [word for word in words if re.match("--config[.=]|--workdir=", word)]


def bucket_roles(commands):
    """Who gets which roles on the bucket: {member: roles}."""
    found = {}
    for command in commands:
        if command.startswith("gcloud storage buckets add-iam-policy-binding "):
            found.setdefault(flag(command, "member"), set()).add(flag(command, "role"))
    return found


def test_the_readme_shows_every_launcher():
    shown = {command.split()[0] for command in COMMANDS} | {
        word for command in COMMANDS for word in command.split() if word.startswith("launch/")
    }
    launchers = {str(path.relative_to(ROOT)) for path in LAUNCH.rglob("*") if path.is_file()}
    inner = {"common.sh", "tpu_types.sh", "worker.sh", "README.md", "gke/jobset.yaml"}
    used = {re.sub(r"^--file=", "", word) for word in shown | set(" ".join(COMMANDS).split())}
    assert launchers - used == {f"launch/{name}" for name in inner}


@pytest.mark.slow
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
            "export HF_TOKEN=hf_...",
            '(umask 077; echo "HF_TOKEN=hf_..." > tpu.env)',
        )


@pytest.mark.parametrize("command", TRAININGS)
def test_trainings_of_the_readme_are_complete(command):
    """Each is a config that jaxalign takes, and names a model and data that can be fetched or were just made."""
    from jaxalign.data.public.recipes import RECIPES
    from jaxalign.stages import parse_config
    from jaxalign.verbs.train import TrainRequest

    flags = training_flags(command)
    request = TrainRequest.parse([word.replace("configs/", f"{ROOT}/configs/") for word in flags])
    values, workdir = request.read(), request.workdir
    parse_config(values)
    assert workdir and values.model.init_from and values.data.train
    if "--config=configs/quickstart.py:" not in command:
        assert {word.split("=")[0] for word in flags} >= {"--config.model.init_from", "--config.data.train"}
        assert any(values.data.train in recipe.hub for recipe in RECIPES.values())
    else:
        (block,) = (block for block in BLOCKS if command in block)
        assert "jaxalign quickstart" in block[: block.index(command)]
        assert values.model.init_from.startswith("quickstart/")


def test_all_ways_of_running_are_shown_with_a_training():
    shown = {command.split()[0] for command in TRAININGS}
    assert shown == {*SEVERAL_MACHINES, "launch/gpu_node.sh", "docker", "sky", "launch/local_cluster.sh"}


def test_several_machines_train_the_same_model_on_the_same_data():
    jobs = [
        {word for word in training_flags(command) if not word.startswith("--workdir=")}
        for command in TRAININGS
        if command.startswith(SEVERAL_MACHINES)
    ]
    assert len(jobs) == 3 and jobs[0] == jobs[1] == jobs[2]
    assert "--config.model.init_from=meta-llama/Llama-3.1-8B-Instruct" in jobs[0]


def test_images_are_built_for_the_machines_that_run_them():
    """Without the platform, an Apple machine builds for itself."""
    files = [*LAUNCH.rglob("*"), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(path.read_text() for path in files if path.is_file())
    builds = re.findall(r"docker build (\S+)", text)
    assert len(builds) >= 4 and set(builds) == {"--platform=linux/amd64"}


def test_tpu_machines_may_use_the_bucket():
    block = next(block for block in BLOCKS if any("gcloud storage buckets create" in line for line in block))
    account = "PROJECT_NUMBER-compute@developer.gserviceaccount.com"
    assert bucket_roles(block) == {
        f"serviceAccount:{account}": {"roles/storage.objectUser", "roles/storage.legacyBucketReader"}
    }
    number = "gcloud projects describe my-project --format='value(projectNumber)'"
    assert block.index(number) < next(i for i, line in enumerate(block) if account in line)
    assert f"`{account}`" in README
    assert "--create-flag=--service-account=ACCOUNT" in README


def test_pods_of_gke_may_use_the_bucket():
    """On the host's network a pod is its node pool's service account, whatever its Kubernetes service account is."""
    jobset = (LAUNCH / "gke/jobset.yaml").read_text()
    assert "hostNetwork: true" in jobset and "serviceAccountName" not in jobset
    assert not re.search("principal://|workload-pool|create serviceaccount", README)
    assert "--service-account" not in (LAUNCH / "gke/submit.sh").read_text()
    block = next(
        block for block in BLOCKS if any("gcloud container clusters create" in line for line in block)
    )
    ((member, roles),) = bucket_roles(block).items()
    assert roles == {"roles/storage.objectUser", "roles/storage.legacyBucketReader"}
    account = member.removeprefix("serviceAccount:")
    made = f"gcloud iam service-accounts create {account.removesuffix('@my-project.iam.gserviceaccount.com')}"
    assert made in block
    pools = [command for command in COMMANDS if command.startswith("gcloud container node-pools create ")]
    assert len(pools) == 2
    for pool in pools:
        assert flag(pool, "service-account") == account and flag(pool, "scopes") == "cloud-platform"
    others = {flag(line, "role") for line in block if member in line} - roles
    assert others == {"roles/container.defaultNodeServiceAccount", "roles/artifactregistry.reader"}
    assert block.index(made) < next(i for i, line in enumerate(block) if member in line)


def test_what_costs_is_given_back():
    for made in (
        "gcloud container clusters create train --location=us-east5",
        "gcloud container node-pools create slice-0 --cluster=train --location=us-east5",
    ):
        assert any(command.startswith(made) for command in COMMANDS)
        assert f"{made.replace(' create ', ' delete ')} --quiet" in COMMANDS


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
