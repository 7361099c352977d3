"""local_cluster.sh with real processes."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from .conftest import ROOT, alive, until

# Prints what it was told, waits until all have printed, then ends with the code given for it, or waits (-1).
MEMBER = """
import os, pathlib, signal, sys, time
folder, codes = pathlib.Path(sys.argv[1]), [int(code) for code in sys.argv[2].split(",")]
k = int(os.environ["JAXALIGN_PROCESS_ID"])
def stop(number, frame):
    print("told", signal.Signals(number).name, flush=True)
    sys.exit(75)
if codes[k] != -2:
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
names = ("JAXALIGN_COORDINATOR", "JAXALIGN_NUM_PROCESSES", "JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES",
         "JAX_CPU_COLLECTIVES_IMPLEMENTATION")
print(*(os.environ[name] for name in names), *sys.argv[3:], flush=True)
(folder / f"{k}.new").write_text(str(os.getpid()))
(folder / f"{k}.new").rename(folder / str(k))
while len([path for path in folder.iterdir() if path.name.isdigit()]) < len(codes):
    time.sleep(0.01)
while codes[k] < 0:
    time.sleep(0.1)
print("the end", file=sys.stderr)
sys.exit(codes[k])
"""


@pytest.fixture
def member(tmp_path):
    path = tmp_path / "member.py"
    path.write_text(MEMBER)
    (tmp_path / "here").mkdir()
    return [sys.executable, "-IS", str(path), str(tmp_path / "here")]


def cluster(member, codes, *flags, words=()):
    command = [
        "launch/local_cluster.sh",
        str(len(codes)),
        *flags,
        "--",
        *member,
        ",".join(map(str, codes)),
        *words,
    ]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def processes(member, count):
    """The process ids of the members, once all are there."""
    folder = pathlib.Path(member[-1])
    until(lambda: len([path for path in folder.iterdir() if path.name.isdigit()]) == count)
    return [int((folder / str(k)).read_text()) for k in range(count)]


def test_processes_know_one_another(member):
    script = cluster(member, [0, 0, 0], "--devices-per-process=4", words=["two words", "it's"])
    out, _ = script.communicate(timeout=60)
    assert script.returncode == 0
    said = dict(line.split("] ", 1) for line in out.splitlines() if "the end" not in line)
    assert set(said) == {"[0", "[1", "[2"} and len(set(said.values())) == 1
    address, *rest = said["[0"].split(" ", 1)
    host, port = address.split(":")
    assert host == "127.0.0.1" and 20000 <= int(port) < 32000
    assert rest == ["3 cpu 4 gloo two words it's"]
    assert sorted(line for line in out.splitlines() if "the end" in line) == [
        f"[{k}] the end" for k in range(3)
    ]


@pytest.mark.parametrize("codes, result", [([0, 0], 0), ([75, 75], 75), ([0, 75], 75), ([75, 0, 0], 75)])
def test_the_common_exit_code(member, codes, result):
    script = cluster(member, codes)
    script.communicate(timeout=60)
    assert script.returncode == result


@pytest.mark.parametrize("codes", [[-1, 3, -1], [75, 3, -1], [-2, 3]])
def test_one_failure_ends_all(member, codes):
    """Also those that would not listen, and those that wait for a dead peer."""
    script = cluster(member, codes)
    running = processes(member, len(codes))
    _, err = script.communicate(timeout=60)
    assert script.returncode == 3
    assert "process 1 failed with exit code 3" in err
    assert not any(alive(pid) for pid in running)


def test_a_killed_process_is_a_failure(member):
    script = cluster(member, [-1, -1])
    running = processes(member, 2)
    os.kill(running[0], signal.SIGKILL)
    script.communicate(timeout=60)
    assert script.returncode == 128 + signal.SIGKILL
    assert not alive(running[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_go_to_all(member, number):
    script = cluster(member, [-1, -1])
    processes(member, 2)
    script.send_signal(number)
    out, _ = script.communicate(timeout=60)
    assert script.returncode == 75
    assert sorted(line for line in out.splitlines() if "told" in line) == [
        f"[{k}] told {number.name}" for k in range(2)
    ]
