"""One process whose CPU is divided into several devices, by JAX_NUM_CPU_DEVICES."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os
import jax
from jaxalign.parallel import processes
processes.initialize()
print(jax.config.values["jax_cpu_enable_async_dispatch"], os.environ.get("PJRT_NPROC"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "expected"), [("", "True None"), ("4", "False {}")])
def test_programs_in_flight_have_threads(devices, expected):
    """Two programs in flight need two threads a device, or they can wait for each other for ever."""
    environment = {name: x for name, x in os.environ.items() if name != "PJRT_NPROC"}
    environment |= {"JAX_NUM_CPU_DEVICES": devices} if devices else {}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected.format(8 + (os.cpu_count() or 1))
