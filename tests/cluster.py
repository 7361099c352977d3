"""Real processes on this machine that find each other as those of several hosts do."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

TESTS = pathlib.Path(__file__).parent
PATH = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "stages")))


def environment() -> dict[str, str]:
    """For processes that find the package and the tests' own modules."""
    return os.environ | {
        "PYTHONPATH": PATH,
        "PYTHONFAULTHANDLER": "1",  # see `finish`
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }


def start(arguments: Sequence[Sequence[str]], *, devices: int = 4, **special: str) -> list[subprocess.Popen]:
    """One Python process for each list of arguments, with `devices` CPU devices; all are one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = environment() | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAXALIGN_COORDINATOR": address,
        "JAXALIGN_NUM_PROCESSES": str(len(arguments)),
    }
    return [
        subprocess.Popen(
            [sys.executable, *own],
            env=common | {"JAXALIGN_PROCESS_ID": str(index)} | special,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index, own in enumerate(arguments)
    ]


def finish(processes: Sequence[subprocess.Popen], timeout: float = 600) -> list[tuple[int, str]]:
    """(exit code, output) of each; those that are still there after `timeout` seconds are ended, and say where."""
    deadline = time.monotonic() + timeout

    def end(process: subprocess.Popen) -> tuple[int, str]:
        try:
            output, _ = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            output = process.communicate()[0] + "\n(ended by the test: it was still there)"
        return process.returncode, output

    with ThreadPoolExecutor(len(processes)) as pool:  # a full pipe would stop the process that nobody reads
        return list(pool.map(end, processes))


def report(ended: Sequence[tuple[int, str]]) -> str:
    """What `finish` returned, to be read by a person."""
    return "\n".join(f"--- process {k}: exit code {code}\n{out}" for k, (code, out) in enumerate(ended))


def succeed(processes: Sequence[subprocess.Popen], timeout: float = 600) -> list[str]:
    """The outputs of processes that must all end with 0."""
    ended = finish(processes, timeout)
    assert all(code == 0 for code, _ in ended), report(ended)
    return [output for _, output in ended]


def wait_until(
    condition: Callable[[], bool], processes: Sequence[subprocess.Popen], timeout: float = 600
) -> None:
    """Waits for something that the processes do; fails if one of them ends before."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            raise AssertionError(f"it did not happen\n{report(finish(processes, 1))}")
        time.sleep(0.02)


def call(*command: str, **special: str) -> tuple[int, str]:
    """(exit code, output) of a command in the project, once nothing that it has started is left to write."""
    script = subprocess.Popen(
        command,
        cwd=TESTS.parent,
        env=environment() | special,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = script.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        script.terminate()  # which our scripts pass on to what they have started
        output = script.communicate()[0] + "\n(ended by the test: it was still there)"
    return script.returncode, output
