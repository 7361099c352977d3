"""tpu_pod.sh against a fake gcloud: the exact calls of every course that a job can take."""

import re
import shutil

import pytest

from .conftest import AWKWARD, ROOT

PLACE = ["--name=dpo", "--zone=us-east5-a", "--project=p"]
JOB = ["--config=configs/dpo.py", "--workdir=gs://b/dpo"]
CREATE = ["describe", "create", "describe"]
SETUP = ["scp jaxalign.tar.gz", "install"]
RUN = ["start", "follow", "status", "describe"]


def pod(fakes, verb, *flags, **environment):
    return fakes.run("launch/tpu_pod.sh", verb, *PLACE, "--poll=0", *flags, **environment)


def train(fakes, verb, *flags):
    return pod(fakes, verb, "--type=v5p-16", *JOB, *flags)


def state(fakes, *states):
    """The queued resource is found in these states, one after the other; NONE: not found."""
    for name in states:
        if name == "NONE":
            error = (
                "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource was not found\n"
            )
            fakes.answer("gcloud", "describe", err=error, code=1)
        else:
            fakes.answer("gcloud", "describe", out=f"{name}\n", err="Using zone us-east5-a\n")


def workers(fakes, *found):
    """The workers are found like this, one look after the other: states, or None when one cannot be reached."""
    for states in found:
        names = (states or "running").split()
        out = "".join(f"jaxalign-worker t1v-w-{i} {name}\n" for i, name in enumerate(names))
        look = "--command=bash jaxalign/launch/worker.sh status"
        fakes.answer("gcloud", look, out=out, code=0 if states else 255)


def command_of(call):
    return next(word for word in call if word.startswith("--command=")).removeprefix("--command=")


def brief(call):
    """What a call of gcloud is for."""
    assert call[:3] == ["gcloud", "compute", "tpus"], call
    if call[3] == "queued-resources":
        return call[4]
    if call[4] == "scp":
        return f"scp {call[6].split(':')[1]}"
    return (
        "install" if "install.sh" in command_of(call) else re.search(r"worker\.sh (\w+)", command_of(call))[1]
    )


def briefs(fakes):
    return [brief(call) for call in fakes.calls]


def test_from_nothing_to_the_end(fakes):
    state(fakes, "NONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE")
    workers(fakes, "0 0")
    ran = train(fakes, "all", "--spot")
    assert ran.returncode == 0, ran.stderr
    assert briefs(fakes) == [*CREATE, "describe", "describe", *SETUP, *RUN]
    assert (
        "done: gs://b/dpo" in ran.stderr and "delete --name=dpo --zone=us-east5-a --project=p" in ran.stderr
    )
    place = ["--zone=us-east5-a", "--project=p"]
    assert fakes.calls[0] == [
        *"gcloud compute tpus queued-resources describe dpo".split(),
        *place,
        "--format=value(state.state)",
    ]
    assert fakes.calls[1] == [
        *"gcloud compute tpus queued-resources create dpo".split(),
        *place,
        *"--quiet --node-id=dpo --accelerator-type=v5p-16 --runtime-version=v2-alpha-tpuv5 --spot".split(),
    ]
    ssh = [
        *"gcloud compute tpus tpu-vm ssh dpo".split(),
        *place,
        "--quiet",
        "--worker=all",
        "--ssh-flag=-o ServerAliveInterval=30",
        "--ssh-flag=-o ServerAliveCountMax=4",
    ]
    assert fakes.calls[7] == [
        *ssh,
        "--command=bash jaxalign/launch/worker.sh start --config=configs/dpo.py --workdir=gs://b/dpo",
    ]
    assert fakes.calls[8][9] == "--worker=0"


def test_verbs_one_by_one(fakes):
    state(fakes, "NONE", "ACTIVE")
    assert train(fakes, "create").returncode == 0
    assert pod(fakes, "setup").returncode == 0
    state(fakes, "ACTIVE", "ACTIVE")
    workers(fakes, "0")
    assert train(fakes, "run").returncode == 0
    assert briefs(fakes) == [*CREATE, *SETUP, "describe", *RUN]


@pytest.mark.parametrize(
    "kind, gcloud_type, runtime",
    [
        ("v4-32", "v4-32", "tpu-ubuntu2204-base"),
        ("v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5litepod-8", "v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v5p-128", "v2-alpha-tpuv5"),
        ("v6e-256", "v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_each_generation_has_its_runtime(fakes, kind, gcloud_type, runtime):
    state(fakes, "NONE", "ACTIVE")
    assert pod(fakes, "create", f"--type={kind}").returncode == 0
    assert f"--accelerator-type={gcloud_type}" in fakes.calls[1]
    assert f"--runtime-version={runtime}" in fakes.calls[1]


def test_create_passes_on_other_flags(fakes):
    state(fakes, "NONE", "ACTIVE")
    flags = [
        "--reserved",
        "--create-flag=--network=my net",
        "--create-flag=--internal-ips",
        "--runtime-version=r",
    ]
    assert pod(fakes, "create", "--type=v4-8", *flags).returncode == 0
    assert fakes.calls[1][-4:] == ["--runtime-version=r", "--reserved", "--network=my net", "--internal-ips"]


def test_flags_reach_the_worker_as_they_were_given(fakes):
    state(fakes, "ACTIVE", "ACTIVE")
    workers(fakes, "0")
    assert train(fakes, "run", *AWKWARD).returncode == 0
    start = command_of(next(call for call in fakes.calls if brief(call) == "start"))
    # What the login shell of a worker makes of it.
    words = fakes.run("bash", "-c", f'printf "%s\\0" {start}').stdout.split("\0")[:-1]
    assert words == ["bash", "jaxalign/launch/worker.sh", "start", *JOB, *AWKWARD]


def test_a_dry_run_prints_what_a_run_does(fakes):
    shown = train(fakes, "all", "--dry-run", *AWKWARD)
    assert fakes.calls == []
    assert fakes.run("bash", "-c", shown.stdout.replace("pack ", "true ")).returncode == 0
    printed = fakes.calls
    (fakes.folder / "calls.jsonl").unlink()
    state(fakes, "NONE", "ACTIVE", "ACTIVE")
    workers(fakes, "0")
    assert train(fakes, "all", *AWKWARD).returncode == 0
    unnumbered = [
        [[re.sub(r"jaxalign\.\d+\.tar", "jaxalign.tar", word) for word in call] for call in calls]
        for calls in (printed, fakes.calls)
    ]
    assert unnumbered[0] == unnumbered[1]


def test_exit_code_75_runs_it_again(fakes):
    state(fakes, *["ACTIVE"] * 3)
    workers(fakes, "75 75", "0 0")
    ran = train(fakes, "run")
    assert ran.returncode == 0, ran.stderr
    assert briefs(fakes) == ["describe", *RUN, "stop", *RUN]


def test_a_slice_taken_away_is_asked_for_anew(fakes):
    state(fakes, "ACTIVE", "SUSPENDING", "SUSPENDING", "SUSPENDED", "NONE", "ACTIVE", "ACTIVE")
    workers(fakes, None, "0 0")
    ran = train(fakes, "run")
    assert ran.returncode == 0, ran.stderr
    anew = ["describe", "describe", "delete", "describe", "create", "describe", *SETUP]
    assert briefs(fakes) == ["describe", *RUN, *anew, *RUN]
    deleted = fakes.calls[briefs(fakes).index("delete")]
    assert deleted[-2:] == ["--quiet", "--force"]
    assert "dpo was taken away (SUSPENDING)" in ran.stderr


def test_a_slice_taken_away_while_it_is_set_up(fakes):
    state(fakes, "NONE", "ACTIVE", "SUSPENDED", "SUSPENDED", "NONE", "ACTIVE", "ACTIVE")
    fakes.answer("gcloud", "install.sh", code=255)
    workers(fakes, "0")
    ran = train(fakes, "all")
    assert ran.returncode == 0, ran.stderr
    anew = ["describe", "describe", "delete", "describe", "create", "describe"]
    assert briefs(fakes) == [*CREATE, *SETUP, *anew, *SETUP, *RUN]
    assert "dpo is SUSPENDED; asking for it anew" in ran.stderr


def test_errors_of_workers_of_a_slice_that_is_gone_are_not_the_trainings(fakes):
    state(fakes, "ACTIVE", "SUSPENDED", "SUSPENDED", "NONE", "ACTIVE", "ACTIVE")
    workers(fakes, "1 75", "0 0")
    ran = train(fakes, "run")
    assert ran.returncode == 0, ran.stderr
    assert "failed" not in ran.stderr and briefs(fakes).count("start") == 2


def test_a_worker_that_restarted_has_lost_the_job(fakes):
    state(fakes, *["ACTIVE"] * 4)
    workers(fakes, "1 lost", "none 134", "0 0")
    ran = train(fakes, "run")
    assert ran.returncode == 0, ran.stderr
    assert briefs(fakes).count("start") == 3 and briefs(fakes).count("stop") == 2


def test_a_real_error_stops_everything(fakes):
    state(fakes, *["ACTIVE"] * 2)
    workers(fakes, "1 75")
    ran = train(fakes, "run")
    assert ran.returncode == 1
    assert briefs(fakes) == ["describe", *RUN]
    assert "the training failed:\njaxalign-worker t1v-w-0 1\njaxalign-worker t1v-w-1 75\n" in ran.stderr
    assert "logs --name=dpo --zone=us-east5-a --project=p --worker=K" in ran.stderr


def test_restarts_after_errors_are_counted(fakes):
    state(fakes, *["ACTIVE"] * 5)
    workers(fakes, "3", "75", "3", "3")
    ran = train(fakes, "run", "--max-restarts=2")
    assert ran.returncode == 3
    assert briefs(fakes).count("start") == 4
    assert "restart 2 of 2" in ran.stderr


def test_a_lost_connection_does_not_lose_the_job(fakes):
    state(fakes, *["ACTIVE"] * 3)
    fakes.answer("gcloud", "worker.sh follow", code=255)
    workers(fakes, "running running", "running 0", None, "0 0")
    ran = train(fakes, "run")
    assert ran.returncode == 0, ran.stderr
    ends = ["follow", "status", "status", "describe", "status", "describe"]
    assert briefs(fakes) == ["describe", "start", "follow", "status", *ends]


def test_stuck_workers_are_stopped(fakes):
    """One has ended with 75 and the other hangs: after ten looks both begin anew."""
    state(fakes, *["ACTIVE"] * 3)
    workers(fakes, *["75 running"] * 10, "0 0")
    ran = train(fakes, "run")
    assert ran.returncode == 0, ran.stderr
    assert briefs(fakes) == ["describe", "start", "follow", *["status"] * 10, "describe", "stop", *RUN]


def test_a_worker_out_of_reach_on_an_active_slice_is_reported(fakes):
    state(fakes, *["ACTIVE"] * 12)
    workers(fakes, *[None] * 10)
    ran = train(fakes, "run")
    assert ran.returncode == 2
    assert "dpo is ACTIVE, but after 10 looks a worker of it cannot be reached" in ran.stderr


def test_the_same_command_again_finds_the_running_job(fakes):
    state(fakes, *["ACTIVE"] * 2)
    workers(fakes, "running running", "0 0")
    assert train(fakes, "all").returncode == 0
    assert briefs(fakes) == ["describe", "status", *RUN]


def test_all_uses_a_slice_that_is_there(fakes):
    state(fakes, *["ACTIVE"] * 2)
    workers(fakes, "none none", "0 0")
    assert train(fakes, "all").returncode == 0
    assert briefs(fakes) == ["describe", "status", *SETUP, *RUN]


def test_run_refuses_to_create(fakes):
    state(fakes, "NONE")
    ran = train(fakes, "run")
    assert ran.returncode == 2 and "write 'all' in place of 'run'" in ran.stderr
    assert briefs(fakes) == ["describe"]


def test_a_request_that_always_fails_is_given_up(fakes):
    state(fakes, *["NONE", "FAILED"] * 3)
    ran = train(fakes, "create")
    assert ran.returncode == 2 and "dpo is FAILED after 3 requests" in ran.stderr
    assert briefs(fakes).count("create") == 3 and briefs(fakes).count("delete") == 2


def test_a_refused_request_stops(fakes):
    state(fakes, "NONE")
    fakes.answer("gcloud", "create", err="ERROR: quota exceeded\n", code=1)
    ran = train(fakes, "create")
    assert ran.returncode == 2
    assert "quota exceeded" in ran.stderr and "the slice was not granted" in ran.stderr


def test_gclouds_own_troubles_are_shown_after_three_tries(fakes):
    for _ in range(3):
        fakes.answer("gcloud", "describe", err="ERROR: not logged in\n", code=1)
    ran = train(fakes, "create")
    assert ran.returncode == 2 and "cannot ask for the state of dpo" in ran.stderr
    assert "not logged in" in ran.stderr and briefs(fakes) == ["describe"] * 3


def test_failed_setup_is_an_error_of_ours(fakes):
    state(fakes, "NONE", "ACTIVE", "ACTIVE")
    fakes.answer("gcloud", "install.sh", err="no space left\n", code=1)
    ran = train(fakes, "all")
    assert ran.returncode == 2 and "setup failed on dpo" in ran.stderr
    assert briefs(fakes)[-1] == "describe" and "start" not in briefs(fakes)


def test_several_slices(fakes):
    state(fakes, "NONE", "ACTIVE", "ACTIVE", "ACTIVE")
    workers(fakes, "0 0", "0 75", "0 0", "0 0")
    ran = train(fakes, "all", "--slices=2")
    assert ran.returncode == 0, ran.stderr
    assert ["--node-count=2", "--node-prefix=dpo"] == fakes.calls[1][9:11]
    assert "--node-id" not in " ".join(fakes.calls[1])
    on = {}
    for call in fakes.calls:
        if call[3] == "tpu-vm":
            node = call[6].split(":")[0] if call[4] == "scp" else call[5]
            on.setdefault(node, []).append(brief(call))
    again = ["stop", "start", "follow", "status"]
    assert on["dpo-0"] == [*SETUP, "start", "follow", "status", *again]
    assert on["dpo-1"] == [*SETUP, "start", "status", *[b for b in again if b != "follow"]]


def test_one_slice_of_several_that_fails_to_start_is_noticed(fakes):
    state(fakes, *["ACTIVE"] * 2)
    fakes.answer("gcloud", "ssh dpo-1", "worker.sh start", err="another job runs here\n", code=2)
    ran = train(fakes, "run", "--slices=2")
    assert ran.returncode == 2
    assert "another job runs here" in ran.stderr and "starting the training failed on dpo" in ran.stderr


def test_code_from_git(fakes):
    assert pod(fakes, "setup", "--repo=https://example.org/my repo.git#main").returncode == 0
    assert briefs(fakes) == ["install"]
    assert (
        "git clone --quiet --depth 1 --branch main 'https://example.org/my repo.git' jaxalign"
        in command_of(fakes.calls[0])
    )


def test_secrets_travel_in_a_file_only(fakes, tmp_path):
    secret = tmp_path / "tpu.env"
    secret.write_text("HF_TOKEN=hf_secret\n")
    ran = pod(fakes, "setup", f"--env-file={secret}")
    assert ran.returncode == 0
    assert briefs(fakes) == ["scp jaxalign.tar.gz", "scp .jaxalign.env", "install"]
    assert "chmod 600 .jaxalign.env && " in command_of(fakes.calls[2])
    assert "hf_secret" not in str(fakes.calls) + ran.stdout + ran.stderr


def test_small_verbs(fakes):
    state(fakes, "ACTIVE")
    workers(fakes, "running 1")
    shown = pod(fakes, "status")
    assert "dpo is ACTIVE" in shown.stderr and "jaxalign-worker t1v-w-1 1" in shown.stdout
    pod(fakes, "logs", "--worker=3", "--slices=2", "--slice=1")
    assert "--worker=3" in fakes.calls[-1] and fakes.calls[-1][5] == "dpo-1"
    pod(fakes, "stop")
    pod(fakes, "delete")
    assert briefs(fakes) == ["describe", "status", "follow", "stop", "delete"]


# gcloud as it would be: files are copied, commands run, in a home of their own.
SCP = "import shutil; shutil.copy(argv[4], os.environ['REMOTE_HOME'] + argv[5].replace('dpo:', '/'))"
SSH = """
command = next(word for word in argv if word.startswith('--command=')).removeprefix('--command=')
environment = os.environ | {'HOME': os.environ['REMOTE_HOME']}
code = subprocess.run(['bash', '-c', command], cwd=os.environ['REMOTE_HOME'], env=environment).returncode
"""
PYTHON = """
import os, pathlib, sys
if sys.argv[1:3] == ["-m", "venv"]:
    for name in ("python", "jaxalign"):
        path = pathlib.Path(sys.argv[3], "bin", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(pathlib.Path(os.environ["FAKE_DIR"], "bin", "jaxalign"))
"""


@pytest.mark.slow
def test_the_whole_way_with_real_workers(fakes, tmp_path):
    """The working tree is packed, copied and installed; the training is started for real, stops (75), goes on, ends."""
    worker = tmp_path / "worker"
    worker.mkdir()
    fakes.add("python3.13", PYTHON)
    state(fakes, "NONE", *["ACTIVE"] * 3)
    for _ in range(2):
        fakes.answer("gcloud", "scp", run=SCP)
    for _ in range(12):
        fakes.answer("gcloud", "ssh", run=SSH)
    say_token = "print('token', os.environ['HF_TOKEN'], os.getcwd())"
    fakes.answer("jaxalign", "train", run=say_token, code=75)
    fakes.answer("jaxalign", "train", out="finished\n")
    secret = tmp_path / "tpu.env"
    secret.write_text("# mine\n\nHF_TOKEN=a b'$c\n")
    flags = [*PLACE, "--poll=0", "--type=v5p-16", *JOB, *AWKWARD, f"--env-file={secret}"]
    ran = fakes.run("launch/tpu_pod.sh", "all", *flags, REMOTE_HOME=str(worker))
    assert ran.returncode == 0, ran.stderr
    assert f"token a b'$c {worker}/jaxalign" in ran.stdout and "finished" in ran.stdout
    assert [call for call in fakes.calls if call[0] != "gcloud"] == [
        ["python", "-m", "pip", "install", "--quiet", "jax[tpu]", ".[gcs]"],
        ["jaxalign", "train", *JOB, *AWKWARD],
        ["jaxalign", "train", *JOB, *AWKWARD],
    ]
    assert (worker / ".jaxalign.env").stat().st_mode & 0o777 == 0o600
    assert (worker / "jaxalign/launch/worker.sh").read_text() == (ROOT / "launch/worker.sh").read_text()
    assert not list(fakes.folder.glob("jaxalign.*.tar.gz"))
    shutil.rmtree(worker)
