"""Every test runs on 8 virtual CPU devices, in float32, with warnings as errors."""

import atexit
import collections
import contextlib
import gc
import os
import pathlib
import shutil
import signal
import tempfile
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Compiling takes longer here than running what was compiled: so it is done in haste, and once for all the processes
# of a test run, pytest's workers and those that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxalign-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest

from jaxalign.parallel.processes import prepare_cpu
from jaxalign.training.programs import forget_programs, unshared

# A shell that begins the tests in the background has them ignore SIGINT, nohup SIGHUP, and so would all they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Tracing makes objects by the million: one second in ten went into looking for garbage among them.
gc.set_threshold(100_000, 20, 50)

jax.config.update("jax_num_cpu_devices", 8)
prepare_cpu()
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_traceback_in_locations_limit", 0)  # they are read by nobody and take a while to make
jax.config.update("jax_numpy_rank_promotion", "raise")
# Eight virtual devices may share two busy cores, and XLA ends a program when a thread comes 40 seconds late to one of
# its collectives.
flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_collective_call_terminate_timeout_seconds=600"]
# For tests of hundreds of steps, which are not compiled in haste: programs of the first level run as fast as those of
# the last one, and compile in a twentieth of the time.
flags.append("--xla_backend_optimization_level=1")
# The older emitters compile in two thirds of the time; later versions of XLA do not know the flag.
if jax.__version_info__ < (0, 11):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(flags)


@pytest.fixture(autouse=True)
def _programs_of_ones_own(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that changes the code shares no program with others."""
    with unshared() if "monkeypatch" in request.fixturenames else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True, scope="module")
def _room_in_memory() -> Iterator[None]:
    """What was compiled stays in memory, for the tests that compile it again, up to 3 GB."""
    yield
    memory = pathlib.Path("/proc/self/statm")  # of Linux
    if memory.exists() and int(memory.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > 3e9:
        forget_programs()
        jax.clear_caches()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many slow tests first, so that at the end no worker is left alone with one."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
