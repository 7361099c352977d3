"""Describing a TPU slice: before libtpu is loaded it is told to look for no TPU."""

import contextlib
import importlib.util
import os

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from jaxalign.plan import gpus

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_WORKER_ID", "0")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


@pytest.fixture
def tpu():
    """Skips a test where the compiler for TPUs is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install '.[plan]'")
    with compiling_elsewhere():
        yield


@pytest.fixture
def gpu():
    """Skips a test where the compiler for GPUs is not installed."""
    if not gpus.is_compiler_installed():
        pytest.skip("JAX's plugin for CUDA is not installed: pip install '.[plan-gpu]'")
    with compiling_elsewhere():
        yield


@pytest.fixture
def estimates(monkeypatch):
    """Plans for GPUs are estimates, as where their compiler is not installed."""
    monkeypatch.setattr(gpus, "PLUGINS", ("no_such_plugin",))


@contextlib.contextmanager
def compiling_elsewhere():
    """As `jaxalign plan` compiles: nothing of it is cached, and products are in the type of their operands."""
    cached = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # tests before this one may have used it
    with jax.default_matmul_precision("default"):  # the kernels have no other for bfloat16
        yield
    jax.config.update("jax_enable_compilation_cache", cached)
    reset_cache()
