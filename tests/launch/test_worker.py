"""worker.sh and gpu_node.sh with real processes: start, find again, stop, restart."""

import os
import signal
import subprocess

import pytest

from .conftest import AWKWARD, alive, until

JOB = ["--config=c.py", "--workdir=w"]
# Tells its process id, then waits to be stopped.
WAIT = """
import pathlib, signal, time
def stop(*_):
    print('saving', flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(folder, 'pid').write_text(str(os.getpid()))
time.sleep(60)
"""


@pytest.fixture
def worker(fakes, checkout):
    def run(*words):
        return fakes.run("launch/worker.sh", *words, cwd=checkout)

    yield run
    run("stop")


def status(worker):
    return worker("status").stdout.split()[-1]


def training(fakes):
    """The process of the training, once it is there."""
    path = fakes.folder / "pid"
    until(lambda: path.exists() and path.read_text())
    return int(path.read_text())


def test_a_job_outlives_the_shell_that_started_it(fakes, worker):
    fakes.answer("jaxalign", "train", run=WAIT)
    assert status(worker) == "none"
    assert worker("start", *JOB, *AWKWARD).returncode == 0
    process = training(fakes)
    assert status(worker) == "running"
    assert fakes.calls == [["jaxalign", "train", *JOB, *AWKWARD]]

    again = worker("start", *JOB, *AWKWARD)
    assert again.returncode == 0 and "runs already" in again.stderr
    other = worker("start", *JOB, "--config.seed=1")
    assert other.returncode == 2 and "another job runs here: jaxalign train --config=c.py" in other.stderr
    assert len(fakes.calls) == 1

    assert worker("stop").returncode == 0
    assert status(worker) == "75" and not alive(process)
    assert "saving" in worker("follow").stdout
    assert worker("stop").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 1, 75, 134])
def test_the_exit_code_is_kept(fakes, worker, code):
    fakes.answer("jaxalign", "train", out="the last words\n", code=code)
    worker("start", *JOB)
    assert "the last words" in worker("follow").stdout
    assert status(worker) == str(code)


def test_a_new_start_forgets_the_old_end(fakes, worker):
    fakes.answer("jaxalign", "train", code=75)
    fakes.answer("jaxalign", "train", run=WAIT)
    worker("start", *JOB)
    worker("follow")
    worker("start", *JOB)
    training(fakes)
    assert status(worker) == "running"


def test_a_job_that_vanished_is_lost(fakes, worker):
    fakes.answer("jaxalign", "train", run=WAIT)
    worker("start", *JOB)
    process = training(fakes)
    supervisor = int((fakes.folder / ".jaxalign-job/pid").read_text())
    os.kill(supervisor, signal.SIGKILL)
    os.kill(process, signal.SIGKILL)
    until(lambda: status(worker) == "lost")


def test_the_environment_comes_from_a_file(fakes, worker):
    (fakes.folder / ".jaxalign.env").write_text("# tokens\n\nHF_TOKEN=a b'$(id)\nEMPTY=\nURL=http://x/?a=b")
    show = "print([os.environ[name] for name in ('HF_TOKEN', 'EMPTY', 'URL')])"
    fakes.answer("jaxalign", "train", run=show)
    worker("start", *JOB)
    assert "[\"a b'$(id)\", '', 'http://x/?a=b']" in worker("follow").stdout


def test_a_bad_environment_file_is_an_error_that_names_the_line(fakes, worker):
    (fakes.folder / ".jaxalign.env").write_text("hf token=x\n")
    worker("start", *JOB)
    assert "'hf token' is not a variable; write lines NAME=VALUE" in worker("follow").stdout
    assert fakes.calls == []


def node(fakes, checkout, *flags):
    return fakes.run("launch/gpu_node.sh", *JOB, *flags, cwd=checkout)


@pytest.mark.parametrize(
    "codes, flags, result, runs",
    [
        ([0], [], 0, 1),
        ([75, 75, 0], [], 0, 3),
        ([75, 1], [], 1, 2),
        ([1, 75, 0], ["--max-restarts=1"], 0, 3),
        ([5, 5, 6], ["--max-restarts=2"], 6, 3),
    ],
)
def test_gpu_node_runs_again_what_wants_it(fakes, checkout, codes, flags, result, runs):
    for code in codes:
        fakes.answer("jaxalign", "train", code=code)
    assert node(fakes, checkout, *flags, *AWKWARD).returncode == result
    assert fakes.calls == [["jaxalign", "train", *JOB, *AWKWARD]] * runs


def test_gpu_node_installs_once(fakes, checkout):
    (checkout / ".venv/bin/jaxalign").unlink()
    shown = node(fakes, checkout, "--cuda=13", "--dry-run").stdout.splitlines()
    assert shown[0] == f"bash {checkout}/launch/install.sh cuda13"
    assert shown[1] == f"{checkout}/.venv/bin/jaxalign train {' '.join(JOB)}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_gpu_node_stops_the_training_and_does_not_restart_it(fakes, checkout, number):
    fakes.answer("jaxalign", "train", run=WAIT)
    script = subprocess.Popen(
        ["launch/gpu_node.sh", *JOB], cwd=checkout, env=fakes.environment, stdout=subprocess.PIPE, text=True
    )
    process = training(fakes)
    script.send_signal(number)
    out, _ = script.communicate(timeout=60)
    assert script.returncode == 75
    assert "saving" in out and not alive(process) and len(fakes.calls) == 1


def test_a_job_that_does_not_stop_is_killed(fakes, worker):
    fakes.answer("jaxalign", "train", run=WAIT.replace("sys.exit(75)", "pass"))
    worker("start", *JOB)
    process = training(fakes)
    assert "did not stop within 1 seconds" in worker("stop", "--grace=1").stderr
    until(lambda: not alive(process))
    assert status(worker) == "lost"
