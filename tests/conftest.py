"""Every test runs on 8 virtual CPU devices, in float32, with warnings as errors."""

import collections
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Eight virtual devices may share two busy cores: programs in flight together can starve each other's
# collectives, and XLA ends the process when a thread comes 40 seconds late to one. Nor must they wait for each
# other's threads, see `processes.initialize`.
jax.config.update("jax_cpu_enable_async_dispatch", False)
os.environ.setdefault("PJRT_NPROC", str(2 * 8 + (os.cpu_count() or 1)))
flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_collective_call_terminate_timeout_seconds=600"]
# The older emitters compile in two thirds of the time; later versions of XLA do not know the flag.
if jax.__version_info__ < (0, 11):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(flags)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many slow tests first, so that at the end no worker is left alone with one."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
