"""Checkpoints of a whole training state, and of parameters alone, in one layout written by Orbax.

    <directory>/<step>/arrays    every array of the state under its path, e.g. "params/layers/kernel";
                                 files.json, the size of each file there, and SHA256SUMS, its checksum
    <directory>/<step>/meta      JSON: the shape and type of each array, and the caller's `meta`

A step is written under a temporary name and renamed when complete, so that a process killed at any moment
leaves the steps before it and never a broken one. Whoever reads arrays reads their checksums first (see
checksums.py); a step of format 1, the first one, has only sizes. The directory may be local or gs://.
"""

import contextlib
import dataclasses
import errno
import itertools
import json
import logging
import os
import pathlib
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxalign import checksums
from jaxalign.errors import CheckpointError
from jaxalign.host_memory import return_freed
from jaxalign.parallel import processes
from jaxalign.storage import DISK_REFUSES, is_remote
from jaxalign.training.step_files import (
    CHECKSUMS,
    META,
    DamagedError,
    ListedArrays,
    SyncedMeta,
    absolute,
    damaged,
    find_step,
    find_steps,
    read_record,
    sealed,
    verified_record,
)

PyTree = Any
Index = dict[str, dict[str, Any]]  # Array name -> {"shape", "dtype"} and, for PRNG keys, {"impl"}.

DAMAGED = "damaged-"  # how the names of steps begin that were set aside
_WRITERS = ("async_save", "save_finalize")  # Orbax's threads


def _no_orbax_chatter(record: logging.LogRecord) -> bool:
    told = record.levelno >= logging.WARNING and not record.exc_info
    return told or "orbax" not in record.pathname


def _no_closed_loops(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        _tell_unraisable(unraisable)


# absl prints INFO once a command-line program has started, and Orbax writes dozens of such lines per save. The errors
# of its threads it prints with a trace, and raises again where somebody waits for them: there they are told.
logging.getLogger("absl").addFilter(_no_orbax_chatter)
# Of several files that cannot be written it waits for the first, and TensorStore finds nobody to tell of the others.
_tell_unraisable, sys.unraisablehook = sys.unraisablehook, _no_closed_loops


class Checkpointer:
    """Saves and restores the steps of one run, keeping the newest `keep`, every `keep_every`-th, and `best`.

    With `async_save` a save returns once the arrays are copied to host memory, and the caller may donate them; a thread
    writes them, commits the step, and only then removes those that are not kept. What goes wrong in it is raised by the
    next call of `check`, `wait`, `save` or `close`. Every process of a multi-process run must make the same calls. Use
    as a context manager, or call `close`.
    """

    def __init__(
        self, directory: epath.PathLike, *, keep: int = 2, keep_every: int = 0, async_save: bool = False
    ) -> None:
        if keep < 1:
            raise CheckpointError(f"keep={keep}: keep at least 1 checkpoint")
        self.directory = absolute(directory)
        self._keep, self._keep_every = keep, keep_every
        self.best: int | None = None  # a step that stays, whatever comes after it
        self.planned = 0  # of the multiples of this, the newest before the newest of all stays, too
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        registry.add("arrays", ocp.args.PyTreeSave, ListedArrays())
        registry.add("meta", ocp.args.JsonSave, SyncedMeta(META))
        _remove_half_written(self.directory)
        self._manager = ocp.CheckpointManager(
            self.directory,
            handler_registry=registry,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self,
                enable_async_checkpointing=async_save,
                cleanup_tmp_directories=is_remote(self.directory),
            ),
        )
        self._async_save = async_save
        self._under_way: int | None = None  # the step that a thread may be writing
        self.newest = self._manager.latest_step()  # also one that is under way

    def save(self, step: int, state: PyTree, meta: dict[str, Any]) -> None:
        """Saves a pytree of jax arrays (typed PRNG keys included) and a JSON-able dict as checkpoint `step`.

        Tuples in `meta` come back as lists. Raises CheckpointError when `step` exists, a leaf is not an array
        or `meta` is not JSON.
        """
        self.wait()
        if step in self._manager.all_steps():
            raise CheckpointError(f"{self.directory / str(step)} exists: resume from it, or delete it first")
        leaves = _named_leaves(state)
        for name, leaf in leaves.items():
            if not isinstance(leaf, jax.Array):
                raise CheckpointError(f"state leaf {name!r} is a {type(leaf).__name__}: make it a jax array")
        record = {"meta": meta, "arrays": {name: _describe(leaf) for name, leaf in leaves.items()}}
        record |= {CHECKSUMS: checksums.enabled() and not is_remote(self.directory)}
        try:
            json.dumps(record, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"meta of step {step} cannot be written as JSON: {error}") from error
        record = sealed(record)
        arrays = {name: _raw(leaf) for name, leaf in leaves.items()}
        with self._told_in_a_line(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(record)),
                force=True,
            )
        self.newest = step
        self._under_way = step if self._async_save else None
        if not self._async_save:
            return_freed()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Of Orbax's checkpoints, oldest first, which to keep: Orbax asks after each save."""
        newest = len(checkpoints) - self._keep
        every = self._keep_every
        planned = [each.step for each in checkpoints[:-1] if self.planned and each.step % self.planned == 0]
        return [
            number >= newest
            or each.step in (self.best, *planned[-1:])
            or bool(every and each.step and each.step % every == 0)
            for number, each in enumerate(checkpoints)
        ]

    def remove(self, step: int) -> None:
        """Deletes a step."""
        self.wait()
        self._manager.delete(step)
        self.newest = self._manager.latest_step()

    @contextlib.contextmanager
    def _told_in_a_line(self, step: int) -> Iterator[None]:
        """Raises CheckpointError for what a disk refuses; those who save `step` know no other reason to fail."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise  # Out of device memory, which says nothing about the disk.
        except Exception as error:  # An OSError, or what TensorStore makes of one.
            reason = _disk_reason(error)
            if reason is None and (_is_missing(error) or not self.directory.is_dir()):
                raise CheckpointError(
                    f"{self.directory} is gone, or something in it: it was removed or renamed while step {step} was "
                    "written; put it back, then run the same command, or begin in another folder"
                ) from error
            if reason is None:
                raise
            # As they lie on the disk: Orbax has forgotten those that this step was to replace.
            earlier = [other for other in find_steps(self.directory) if other != step]
            left = f"step {max(earlier)} is there" if earlier else "none is there yet"
            raise CheckpointError(
                f"{self.directory}: the checkpoint of step {step} could not be written ({reason}); of the earlier "
                f"ones, {left}. Make room, then run the same command"
            ) from error

    def latest(self) -> int | None:
        """Returns the newest committed step, or None; waits for a save under way."""
        self.wait()
        return self._manager.latest_step()

    def newest_whole(self) -> int | None:
        """The newest step that is as it was written, or None where there is no step at all.

        A damaged one after it is kept under another name, and told on standard error. Every process calls this alike.

        Raises:
          DamagedError: every step is damaged; of the last one.
        """
        self.wait()
        steps = find_steps(self.directory)[::-1]
        for step, earlier in itertools.zip_longest(steps, steps[1:]):
            path = self.directory / str(step)
            try:
                verified_record(path)
                return step
            except DamagedError as error:
                # A folder of a store has no name that could be changed.
                if earlier is None or is_remote(path):
                    raise
                kept = self._set_aside(path)
                if jax.process_index() == 0:
                    print(
                        f"{error.fault}. It is kept as {kept}, and step {earlier} is taken instead",
                        file=sys.stderr,
                    )
        return None

    def _set_aside(self, path: epath.Path) -> str:
        """Gives a step a name under which nobody looks for one."""
        names = (f"{DAMAGED}{path.name}{ending}" for ending in ("", *(f"-{n}" for n in range(2, 1000))))
        kept = next(name for name in names if not (path.parent / name).exists())
        processes.barrier()
        if jax.process_index() == 0:
            path.rename(path.parent / kept)
        processes.barrier()
        self._manager.reload()
        self.newest = self._manager.latest_step()
        return kept

    def restore(
        self, step: int | None, abstract_state: PyTree, *, verified: bool = False
    ) -> tuple[PyTree, dict[str, Any]]:
        """Returns (state, meta) of `step`, or of the latest when None.

        `abstract_state` is a pytree of ShapeDtypeStruct, whose shardings may belong to another mesh than the
        one that saved; a leaf without a sharding goes to the first device. `verified`: `newest_whole` has compared
        its checksums already. Raises CheckpointError when the step is missing, damaged, or differs from
        `abstract_state` in any name, shape or type.
        """
        self.wait()
        path = find_step(self.directory if step is None else self.directory / str(step))
        record = read_record(path) if verified else verified_record(path)
        return _read_arrays(path, record["arrays"], abstract_state, prefix=""), record["meta"]

    def load_meta(self, step: int | None = None) -> dict[str, Any]:
        """Returns the meta of `step`, or of the latest when None, without reading arrays."""
        self.wait()
        return load_meta(self.directory if step is None else self.directory / str(step))

    def wait(self) -> None:
        """Blocks until a save under way is committed; raises what went wrong in it."""
        step, self._under_way = self._under_way, None
        if step is not None:
            with self._told_in_a_line(step):
                self._manager.wait_until_finished()
            return_freed()

    def check(self) -> None:
        """Raises what went wrong in a save under way, if it has ended; waits for nothing."""
        if self._under_way is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def close(self) -> None:
        """Waits, then releases the threads."""
        self.wait()
        # Orbax may say here again what went wrong in a save, or another part of it.
        with self._told_in_a_line(self.newest or 0):
            self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Who interrupts does not want to wait; what is under way is going to be whole, or not there.
        if not (self._under_way is not None and kind is not None and issubclass(kind, KeyboardInterrupt)):
            self.close()


def _remove_half_written(directory: epath.Path) -> None:
    """Removes what a killed process left of a step on a local disk.

    Orbax would do so in a thread for which `close` does not wait: who opens the folder next removes the same files, and
    is told that they are gone.
    """
    if jax.process_index() != 0 or is_remote(directory) or not directory.is_dir():
        return
    for path in pathlib.Path(directory).glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
        shutil.rmtree(path)


def is_writing() -> bool:
    """Whether a thread of this process still writes a checkpoint: Python would wait for it before it ends."""
    return any(thread.name in _WRITERS for thread in threading.enumerate())


def save_params(directory: epath.PathLike, params: PyTree, meta: dict[str, Any]) -> None:
    """Exports parameters for `load_params`; an earlier export there is removed after the new one is whole."""
    with Checkpointer(directory, keep=1) as checkpointer:
        latest = checkpointer.latest()
        checkpointer.save(0 if latest is None else latest + 1, {"params": params}, meta)


def load_params(path: epath.PathLike, abstract_params: PyTree, *, where: str = "params") -> PyTree:
    """Returns the parameters at `path`, placed as `abstract_params` says; optimizer state is not read.

    `path` is an export of `save_params`, a run directory or its `checkpoints` (the latest step), or the
    directory of one step; `where` is the name of the parameters in its state. Raises CheckpointError as
    `Checkpointer.restore` does.
    """
    step_path = find_step(path)
    return _read_arrays(step_path, verified_record(step_path)["arrays"], abstract_params, prefix=f"{where}/")


def load_leaf(
    path: epath.PathLike, name: str, abstract: jax.ShapeDtypeStruct, *, where: str = "params"
) -> jax.Array:
    """Returns one parameter of those that `load_params` would, by its path, such as "layers/mlp/up/kernel".

    Whoever reads leaf by leaf calls `verified_record` before: no checksum is compared here.
    """
    step_path = find_step(path)
    full = f"{where}/{name}"
    index = {key: entry for key, entry in read_record(step_path)["arrays"].items() if key == full}
    return _read_arrays(step_path, index, {name: abstract}, prefix=f"{where}/")[name]


def load_state(path: epath.PathLike, abstract_state: Any, *, fresh: Sequence[str] = ()) -> Any:
    """Returns the state of a step, but for its fields `fresh`, which are zeros of the shapes asked for.

    `abstract_state` is a dataclass of such fields. Raises CheckpointError as `Checkpointer.restore` does.
    """
    step_path = find_step(path)
    index = {
        name: entry
        for name, entry in verified_record(step_path)["arrays"].items()
        if name.split("/")[0] not in fresh
    }
    rest = dataclasses.replace(abstract_state, **dict.fromkeys(fresh))
    state = _read_arrays(step_path, index, rest, prefix="")
    missing = {name: getattr(abstract_state, name) for name in fresh}
    make = jax.jit(
        lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), missing),
        out_shardings=jax.tree.map(lambda x: x.sharding, missing),
    )
    return dataclasses.replace(state, **make())


def load_meta(path: epath.PathLike) -> dict[str, Any]:
    """Returns the meta saved at `path`, which is anything `load_params` takes."""
    return read_record(find_step(path))["meta"]


def _is_missing(error: BaseException) -> bool:
    """Whether a file that was there is not any more, as Python or TensorStore says it."""
    return any(isinstance(each, FileNotFoundError) or "NOT_FOUND" in str(each) for each in _chain(error))


def _disk_reason(error: BaseException) -> str | None:
    """What the disk says in an error of writing; None: the disk is not the reason."""
    known = [os.strerror(number) for number in DISK_REFUSES]
    for seen in _chain(error):
        text = str(seen)
        if isinstance(seen, OSError) and seen.errno in DISK_REFUSES:
            return os.strerror(seen.errno)
        if found := next((reason for reason in known if reason in text), None):
            return found
        if (
            "RESOURCE_EXHAUSTED: Error writing" in text
        ):  # so TensorStore calls a file of which a part was taken
            return os.strerror(errno.ENOSPC)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _read_arrays(path: epath.Path, index: Index, abstract: PyTree, prefix: str) -> PyTree:
    wanted = {prefix + name: leaf for name, leaf in _named_leaves(abstract).items()}
    _check_same(path, {name: entry for name, entry in index.items() if name.startswith(prefix)}, wanted)
    raw = {name: _raw_abstract(name, leaf) for name, leaf in wanted.items()}
    handler = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    try:
        arrays = handler.restore(
            path / "arrays",
            args=ocp.args.PyTreeRestore(
                item=raw,
                restore_args=ocp.checkpoint_utils.construct_restore_args(raw),
                partial_restore=True,
            ),
        )
    except jax.errors.JaxRuntimeError:
        raise  # Out of device memory, which says nothing about the files.
    except Exception as error:  # Orbax wraps what TensorStore says in a bare Exception.
        raise damaged(path, str(error.__cause__ or error)) from error
    finally:
        handler.close()
    leaves = [
        jax.random.wrap_key_data(arrays[name], impl=index[name]["impl"]) if _is_key(leaf) else arrays[name]
        for name, leaf in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _check_same(path: epath.Path, index: Index, wanted: dict[str, Any]) -> None:
    def show(shape: Any, dtype: Any) -> str:
        return f"{dtype}{list(shape)}"

    saved = {name: show(entry["shape"], entry["dtype"]) for name, entry in index.items()}
    model = {name: show(leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
    differing = [name for name in sorted(saved | model) if saved.get(name) != model.get(name)]
    if not differing:
        return
    lines = [f"  {n}: saved {saved.get(n, 'absent')}, wanted {model.get(n, 'absent')}" for n in differing[:5]]
    in_params = any("params/" in name for name in differing)
    cause = (
        "config.model (layers, widths, vocabulary, head, parameter type)"
        if in_params
        else "config.optimizer.name, or another stage than the one that saved"
    )
    raise CheckpointError(
        f"{path} does not fit: {len(differing)} of {len(saved | model)} arrays differ, first\n"
        + "\n".join(lines)
        + f"\nThe usual cause is {cause}; compare with the config in its meta."
    )


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
    if len(leaves) != len(paths):
        raise CheckpointError("two leaves of the state have the same path: rename a key that contains '/'")
    return leaves


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(leaf: jax.Array) -> dict[str, Any]:
    entry = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    return entry | {"impl": str(jax.random.key_impl(leaf))} if _is_key(leaf) else entry


def _raw(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _raw_abstract(name: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    raw = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    try:
        sharding.shard_shape(raw.shape)
    except ValueError as error:
        raise CheckpointError(
            f"{name} of shape {list(leaf.shape)} cannot be sharded as {sharding}"
        ) from error
    return jax.ShapeDtypeStruct(raw.shape, np.dtype(raw.dtype), sharding=sharding)
