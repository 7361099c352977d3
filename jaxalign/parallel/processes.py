"""Several processes as one run: how they find each other, which rows each one reads, and how they agree.

With one process, all of it answers at once. What compares or gathers is collective: every process must call it
at the same point.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import pathlib
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import ConfigError, DistributedError, JaxalignError
from jaxalign.parallel.sharding import batch_sharding, batch_shards
from jaxalign.storage import Path

ADDRESS = "JAXALIGN_COORDINATOR"
COUNT = "JAXALIGN_NUM_PROCESSES"
INDEX = "JAXALIGN_PROCESS_ID"
TIMEOUT = "JAXALIGN_TIMEOUT"
HEARTBEAT = "JAXALIGN_HEARTBEAT"
# A process that ends waits this long for the others to end too: one that failed alone must not keep them for long.
_SHUTDOWN_SECONDS = 30
_GRACE_SECONDS = 60  # beyond the time-out, when JAX's own, which aborts the process, comes


def initialize() -> None:
    """Joins this process to the others of its run, if there are any; call it before anything touches a device.

    Plain hosts name them in the environment: JAXALIGN_COORDINATOR (host:port, of process 0), JAXALIGN_NUM_PROCESSES
    and JAXALIGN_PROCESS_ID (0, 1, ...). Job steps of SLURM with several tasks, and hosts with TPUs (Cloud TPU, GKE),
    are recognised, and JAX finds out the rest. JAXALIGN_TIMEOUT is how many seconds to wait for the others (300), and
    JAXALIGN_HEARTBEAT after how many without a sign of life from one of them all end (100).

    Raises:
      DistributedError: a variable is missing or cannot be used, or the others are not there in time.
    """
    if jax.distributed.is_initialized():
        return
    timeout, heartbeat = _number(TIMEOUT, 300), _number(HEARTBEAT, 100)
    if known := _named_processes():
        index, count = known["process_id"], known["num_processes"]
        who = f"process {index} of {count}, coordinator {known['coordinator_address']}"
        check = (
            f"{ADDRESS} is the address of the host of process 0 and the same everywhere, its port is free there and "
            f"open to the others, and all {count} processes have been started, each with its own {INDEX}"
        )
    elif place := _cluster():
        who = f"a process in {place}"
        check = f"all processes have been started, and their hosts reach each other; or set {ADDRESS}, {COUNT}, {INDEX}"
    else:
        if _cpu_devices() > 1:
            prepare_cpu()
        return
    # Its handler of SIGTERM would take the signal that the loop answers itself, see `make_vote`.
    jax.config.update("jax_enable_preemption_service", False)
    prepare_cpu()
    _connect(timeout, who, check, known | {"heartbeat_timeout_seconds": heartbeat})


def prepare_cpu() -> None:
    """Has several devices of one CPU, or CPUs of several processes, wait for each other without a deadlock."""
    # Gloo matches messages by their order alone, so programs must run one after the other; see also `place`.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    # And a program blocks a thread of XLA's pool for each device until its collectives are done, as does the next
    # one, sent while it runs: with less than two threads a device, the last to start may find none, for ever.
    if devices := _cpu_devices():
        os.environ.setdefault("PJRT_NPROC", str(2 * devices + (os.cpu_count() or 1)))


def _cpu_devices() -> int:
    """Into how many devices the CPUs of this process are divided; 0 where something else computes."""
    settings: Any = jax.config
    return max(1, settings.jax_num_cpu_devices) if settings.jax_platforms == "cpu" else 0


def _named_processes() -> dict[str, Any]:
    names = (ADDRESS, COUNT, INDEX)
    given = [name for name in names if os.environ.get(name)]
    if not given:
        return {}
    if missing := [name for name in names if name not in given]:
        raise DistributedError(
            f"{', '.join(given)} set, but not {', '.join(missing)}: set all three, or none for a single process"
        )
    address, count, index = os.environ[ADDRESS], _number(COUNT), _number(INDEX)
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        raise DistributedError(f"{ADDRESS}={address!r} is not of the form host:port, such as 10.0.0.1:8476")
    if not index < count:
        raise DistributedError(f"{INDEX}={index}: with {COUNT}={count} use 0 to {count - 1}")
    known = {"coordinator_address": address, "num_processes": count, "process_id": index}
    return known | {"cluster_detection_method": "deactivate"}  # what was said is all there is to know


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit():
        raise DistributedError(f"{name}={text!r} is not a whole number")
    if name in (TIMEOUT, HEARTBEAT) and not int(text):
        raise DistributedError(f"{name}=0: give at least one second")
    return int(text)


def _cluster() -> str:
    """What kind of cluster this process has been started in, if JAX can find the other processes there."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return "a SLURM job step"
    settings: Any = jax.config
    wanted = settings.jax_platforms or "tpu"
    if "tpu" not in wanted or importlib.util.find_spec("libtpu") is None:
        return ""
    devices = [*pathlib.Path("/dev").glob("accel*"), *pathlib.Path("/dev").glob("vfio/[0-9]*")]
    # One host alone is called so, and so is one without TPUs, see `cli`.
    named = os.environ.get("TPU_WORKER_HOSTNAMES", "localhost") != "localhost"
    return "a host with TPUs" if devices or named else ""


def _connect(timeout: int, who: str, check: str, known: dict[str, Any]) -> None:
    # In a thread, because JAX's own time-out ends the process with a stack trace instead of raising.
    failure: list[Exception] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(
                **known,
                initialization_timeout=timeout + _GRACE_SECONDS,
                shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            )
        except Exception as error:  # of gRPC, of a metadata server, of JAX: no common base
            failure.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise DistributedError(
            f"{who}: the others were not there within {timeout} s ({TIMEOUT}); check that {check}"
        )
    if failure:
        raise DistributedError(f"{who}: {failure[0]}; check that {check}") from failure[0]


def batch_parts(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """Which of the equal parts of a batch the devices of this process hold, in ascending order, and how many there are.

    It is the mesh that decides: processes that share a part's devices (a tensor axis that crosses them) hold the
    same one, and the parts of a process need not be neighbours (on a torus they seldom are).

    Raises:
      ConfigError: a process has more of the batch than another, or none of it.
    """
    count = batch_shards(mesh)
    held: dict[int, set[int]] = {process: set() for process in range(jax.process_count())}
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((count,)).items():
        held[device.process_index].add(rows.start or 0)
    if len({len(parts) for parts in held.values()}) > 1:
        sizes = ", ".join(f"{process}: {len(parts)}" for process, parts in held.items())
        raise ConfigError(
            f"config.mesh {dict(mesh.shape)}: of the {count} parts of a batch the processes hold unequal numbers "
            f"({sizes}); choose axes that split it alike over the processes"
        )
    return tuple(sorted(held[jax.process_index()])), count


def place(x: np.ndarray, layout: NamedSharding, shape: tuple[int, ...] | None = None) -> jax.Array:
    """The array whose part on this process's devices is `x`; `shape` is that of the whole, where `x` may be whole."""
    array = jax.make_array_from_process_local_data(layout, x, shape)
    # A program on CPUs runs to its end when it is called, unless its inputs are still on their way.
    return array.block_until_ready() if next(iter(layout.device_set)).platform == "cpu" else array


def fetch_whole(x: jax.Array) -> np.ndarray:
    """The whole of an array on the host of every process."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def gather(x: np.ndarray | np.generic) -> np.ndarray:
    """The arrays of all processes, equal in shape, stacked: [P, ...]."""
    return multihost_utils.process_allgather(x) if jax.process_count() > 1 else np.asarray(x)[None]


def gather_texts(text: str) -> list[str]:
    """The texts of all processes."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = gather(np.int32(data.size))
    padded = gather(np.pad(data, (0, max(1, sizes.max()) - data.size)))
    return [row[:size].tobytes().decode() for row, size in zip(padded, sizes, strict=True)]


def broadcast_from_first(answer: bool) -> bool:
    """The answer of process 0, in every process."""
    return bool(gather(np.bool_(answer))[0])


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """A deliberate error in one process is raised in all, instead of leaving the others to wait for that one.

    Raises:
      DistributedError: another process failed; names it, with its message. The one that failed raises its own error.
    """
    error = None
    try:
        yield
    except JaxalignError as raised:
        error = raised
    failed = gather(np.bool_(error is not None))
    if not failed.any():
        return
    messages = gather_texts("" if error is None else str(error))
    if error is not None:
        raise error
    process = int(np.argmax(failed))
    raise DistributedError(f"process {process} failed: {messages[process]}")


def check_same(facts: Mapping[str, Any]) -> None:
    """Checks that every process has been started with the same `facts`, a JSON-able dict.

    Raises:
      ConfigError: one has not, in all processes; names the keys, and the values of process 0 and of this process
        (or, in a process that is like process 0, of the first that is not).
    """
    mine = json.dumps(facts, sort_keys=True)
    digests = gather(np.frombuffer(hashlib.sha256(mine.encode()).digest(), np.uint8))
    others = [process for process, digest in enumerate(digests) if (digest != digests[0]).any()]
    if not others:
        return
    everyone = [json.loads(text) for text in gather_texts(mine)]
    other = jax.process_index() if jax.process_index() in others else others[0]
    first, theirs = everyone[0], everyone[other]
    lines = [
        f"  {key}: process 0 has {first.get(key)!r}, process {other} has {theirs.get(key)!r}"
        for key in sorted(first | theirs)
        if first.get(key) != theirs.get(key)
    ]
    raise ConfigError(
        "the processes of this run were not started alike\n"
        + "\n".join(lines)
        + "\nstart all of them with the same command, data and versions"
    )


def check_shared(folder: Path) -> None:
    """Checks that `folder` is one and the same for all processes.

    Raises:
      ConfigError: a process does not see what process 0 wrote there; checkpoints would be in pieces.
    """
    if jax.process_count() == 1:
        return
    name = gather_texts(f".shared-{secrets.token_hex(8)}")[0]
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    barrier()
    with fail_together():
        if not (folder / name).exists():
            raise ConfigError(
                f"--workdir={str(folder)!r} of process {jax.process_index()} is not the folder of process 0; "
                f"put it on storage that all hosts share"
            )
    if jax.process_index() == 0:
        (folder / name).unlink()


def barrier() -> None:
    """Waits until every process is here."""
    gather(np.bool_(True))


def make_vote(mesh: Mesh) -> Callable[[bool], bool]:
    """A function by which all processes decide alike: has any of them said True?

    Every process calls it at the same points. With several, the verdict is on the call before: a reduction of one
    number follows the step that has just been sent, and is read when the next step has been sent, too. So the
    host waits for nothing that its log would not wait for, and all processes stop at the same place.
    """
    if jax.process_count() == 1:
        return bool
    layout = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    largest = jax.jit(jax.numpy.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
    sent: list[jax.Array] = []

    def vote(answer: bool) -> bool:
        local = np.full(len(mesh.local_devices), answer, np.int32)
        sent.append(largest(place(local, layout, (mesh.size,))))
        return len(sent) > 1 and bool(sent.pop(0))

    return vote
