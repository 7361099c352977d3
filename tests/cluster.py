"""Real processes on this machine that find each other as those of several hosts do."""

import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import jax

TESTS = pathlib.Path(__file__).parent
PATH = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "stages")))


def start(
    arguments: Sequence[Sequence[str]], *, devices: int = 4, **environment: str
) -> list[subprocess.Popen]:
    """One Python process for each list of arguments, with `devices` CPU devices; all are one run.

    They compile as tests/stages/conftest.py says, into the cache that is in force here.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = os.environ | {
        "PYTHONPATH": PATH,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "JAXALIGN_COORDINATOR": address,
        "JAXALIGN_NUM_PROCESSES": str(len(arguments)),
    }
    return [
        subprocess.Popen(
            [sys.executable, *own],
            env=common | {"JAXALIGN_PROCESS_ID": str(index)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index, own in enumerate(arguments)
    ]


def finish(processes: Sequence[subprocess.Popen], timeout: float = 300) -> list[tuple[int, str]]:
    """(exit code, output) of each; kills those that are still there after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    ended = []
    for process in processes:
        try:
            output, _ = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            output = process.communicate()[0] + "\n(killed by the test: it did not end)"
        ended.append((process.returncode, output))
    return ended


def succeed(processes: Sequence[subprocess.Popen], timeout: float = 300) -> list[str]:
    """The outputs of processes that must all end with 0."""
    ended = finish(processes, timeout)
    assert all(code == 0 for code, _ in ended), "\n".join(f"exit code {code}\n{out}" for code, out in ended)
    return [output for _, output in ended]


def wait_until(
    condition: Callable[[], bool], processes: Sequence[subprocess.Popen], timeout: float = 300
) -> None:
    """Waits for something that the processes do; fails if one of them ends before."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes), finish(processes, 1)
        time.sleep(0.02)
