"""Memory comes in large pages where a CPU computes, and the environment has the last word."""

import os
import platform
import subprocess
import sys

import pytest

from jaxalign.host_memory import VARIABLE, huge_pages

PROGRAM = """
import ctypes, os, resource
from jaxalign.host_memory import restart_with_huge_pages

restart_with_huge_pages()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    block = libc.malloc(64 << 20)
    libc.memset(block, 1, 64 << 20)
    libc.free(block)
print(os.environ.get("GLIBC_TUNABLES", ""), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def clean() -> dict[str, str]:
    return {name: x for name, x in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}


@pytest.mark.skipif(not huge_pages(clean()), reason="this system has none")
@pytest.mark.parametrize(
    ("environment", "said"),
    [({}, "glibc.malloc.hugetlb=1"), ({VARIABLE: "glibc.malloc.perturb=0"}, "glibc.malloc.perturb=0")],
)
def test_memory_comes_in_large_pages(environment, said):
    """64 MiB are 16,384 pages of 4 KiB, or 32 of 2 MiB."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=clean() | environment, capture_output=True, text=True, check=True
    )
    told, faults = ran.stdout.split()
    assert told == said
    assert int(faults) < 20 * 1000 if not environment else int(faults) > 20 * 10_000


@pytest.mark.parametrize("told", [{"MALLOC_ARENA_MAX": "1"}, {VARIABLE: "glibc.malloc.check=1"}])
def test_the_environment_has_the_last_word(told):
    assert huge_pages(clean() | told) == {}


@pytest.mark.skipif(not huge_pages(clean()), reason="this system has none")
def test_the_command_starts_so():
    """Under its own number, as what sends it a signal knows it by that."""
    code = "import os; os.write(1, os.environ.get('GLIBC_TUNABLES', '').encode()); raise SystemExit"
    program = f"import jaxalign.cli as cli; cli.main = lambda: exec({code!r}); cli.command()"
    ran = subprocess.run(
        [sys.executable, "-c", program], env=clean(), capture_output=True, text=True, check=True
    )
    assert ran.stdout == "glibc.malloc.hugetlb=1"


_THREADS = """
import pathlib, resource, threading
from jaxalign.host_memory import return_freed

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

def work():
    held = [bytes(2000) for _ in range(20_000)]
    last.append(held[-1])  # a piece that stays, so that what lies below is not given back by itself

last, before = [], resident()
workers = [threading.Thread(target=work) for _ in range(4)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
kept = resident() - before
return_freed()
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a C library that keeps nothing")
def test_what_threads_have_freed_goes_back_to_the_system():
    made = subprocess.run([sys.executable, "-c", _THREADS], capture_output=True, text=True, check=True)
    kept, after = map(float, made.stdout.split())
    assert kept > 20 and after < 5
