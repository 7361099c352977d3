"""Processes find each other or say why not, read the rows that their devices hold, and decide alike."""

import pathlib

import jax
import numpy as np
import pytest
from cluster import finish, start, succeed

from jaxalign import parallel
from jaxalign.errors import DistributedError
from jaxalign.parallel import processes

HERE = pathlib.Path(__file__).parent
JOIN = "from jaxalign.parallel import processes; processes.initialize()"


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in (processes.ADDRESS, processes.COUNT, processes.INDEX, processes.TIMEOUT, processes.HEARTBEAT):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
def test_two_processes_agree(tmp_path):
    succeed(start([[str(HERE / "agree.py"), str(tmp_path)]] * 2))


def test_seconds_are_passed_on(monkeypatch):
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **settings: given.update(settings))
    monkeypatch.setattr(processes, "prepare_cpu", lambda: None)
    named = {processes.ADDRESS: "localhost:1", processes.COUNT: "2", processes.INDEX: "0"}
    for name, value in (named | {processes.TIMEOUT: "7", processes.HEARTBEAT: "11"}).items():
        monkeypatch.setenv(name, value)
    processes.initialize()
    assert given["heartbeat_timeout_seconds"] == 11 and given["initialization_timeout"] > 7


def test_one_process_needs_nobody(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    processes.initialize()
    assert not jax.distributed.is_initialized()
    mesh = parallel.make_mesh()
    assert processes.batch_parts(mesh) == (tuple(range(8)), 8)
    assert [processes.make_vote(mesh)(answer) for answer in (False, True)] == [False, True]
    assert processes.gather_texts("é") == ["é"]
    np.testing.assert_array_equal(processes.gather(np.int32([1, 2])), [[1, 2]])
    processes.check_same({"a": 1})
    processes.check_shared(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    with pytest.raises(DistributedError, match=r"^mine$"), processes.fail_together():
        raise DistributedError("mine")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"COORDINATOR": "a:1"},
            r"JAXALIGN_COORDINATOR set, but not JAXALIGN_NUM_PROCESSES, JAXALIGN_PROCESS_ID",
        ),
        (
            {"NUM_PROCESSES": "2", "PROCESS_ID": "0"},
            r"JAXALIGN_PROCESS_ID set, but not JAXALIGN_COORDINATOR: set all",
        ),
        (
            {"COORDINATOR": "a", "NUM_PROCESSES": "2", "PROCESS_ID": "0"},
            r"JAXALIGN_COORDINATOR='a' is not .* host:port",
        ),
        (
            {"COORDINATOR": "a:1", "NUM_PROCESSES": "two", "PROCESS_ID": "0"},
            r"JAXALIGN_NUM_PROCESSES='two' is not",
        ),
        (
            {"COORDINATOR": "a:1", "NUM_PROCESSES": "2", "PROCESS_ID": "2"},
            r"JAXALIGN_PROCESS_ID=2: .* use 0 to 1",
        ),
        ({"HEARTBEAT": "0"}, r"JAXALIGN_HEARTBEAT=0: give at least one second"),
        ({"HEARTBEAT": "-1"}, r"JAXALIGN_HEARTBEAT='-1' is not a whole number"),
        ({"TIMEOUT": "5m"}, r"JAXALIGN_TIMEOUT='5m' is not a whole number"),
    ],
)
def test_variables_that_cannot_work_are_named(variables, message, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(f"JAXALIGN_{name}", value)
    with pytest.raises(DistributedError, match=message):
        processes.initialize()


@pytest.mark.slow
def test_an_unreachable_coordinator_is_named():
    alone = start([["-c", JOIN]], JAXALIGN_NUM_PROCESSES="2", JAXALIGN_PROCESS_ID="1", JAXALIGN_TIMEOUT="2")
    (code, output), *_ = finish(alone, 120)
    assert code == 1
    assert "DistributedError: process 1 of 2, coordinator localhost:" in output
    assert (
        "the others were not there within 2 s (JAXALIGN_TIMEOUT); check that JAXALIGN_COORDINATOR is"
        in output
    )


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4"}, "a SLURM job step"),
        ({"SLURM_STEP_NUM_TASKS": "1"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "a host with TPUs"),
        ({}, ""),
    ],
)
def test_clusters_are_told_by_their_environment(environment, place, monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "")
    try:
        assert processes._cluster() == place
    finally:
        jax.config.update("jax_platforms", before)
    if "TPU_WORKER_HOSTNAMES" in environment:
        assert processes._cluster() == ""  # the tests' platform is the CPU
