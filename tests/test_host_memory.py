"""Memory that is freed is kept where a CPU computes, and the environment has the last word."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from jaxalign.host_memory import keep_freed_memory

done = keep_freed_memory()
for _ in range(3):
    np.ones(16 << 20, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(16 << 20, np.uint8)
print(int(done), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize(("environment", "done"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "1"}, False)])
def test_pages_are_asked_for_once(environment, done):
    """16 MiB are 4,096 pages of 4 KiB, or 8 of 2 MiB: asked for at every turn, or not again."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=clean | environment, capture_output=True, text=True, check=True
    )
    was_done, faults = map(int, ran.stdout.split())
    if was_done or not done:
        assert was_done == done
        assert faults < 100 if done else faults >= 20 * 8
