"""Checkpoints of a whole training state, and of parameters alone, in one layout written by Orbax.

    <directory>/<step>/arrays    every array of the state under its path, e.g. "params/layers/kernel",
                                 and files.json, the size of each file there
    <directory>/<step>/meta      JSON: the shape and type of each array, and the caller's `meta`

A step is written under a temporary name and renamed when complete, so that a process killed at any moment
leaves the steps before it and never a broken one. The directory may be local or gs://.
"""

import contextlib
import dataclasses
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxalign.errors import CheckpointError
from jaxalign.storage import DISK_REFUSES, is_remote, read_json, to_path

PyTree = Any
Index = dict[str, dict[str, Any]]  # Array name -> {"shape", "dtype"} and, for PRNG keys, {"impl"}.

CHECKPOINTS = "checkpoints"  # Where, inside a run directory, the steps lie.
_FILES = "files.json"
_WRITERS = ("async_save", "save_finalize")  # Orbax's threads


def _no_orbax_chatter(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or "orbax" not in record.pathname


# absl prints INFO once a command-line program has started, and Orbax writes dozens of such lines per save.
logging.getLogger("absl").addFilter(_no_orbax_chatter)


class _ListedArrays(ocp.PyTreeCheckpointHandler):
    """Orbax's handler, which also lists its files, so that a missing or short one is named before reading."""

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        sizes = {str(file.relative_to(directory)): file.stat().length for file in _walk(directory)}
        (directory / _FILES).write_text(json.dumps(sizes, indent=0))


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
        self.directory = _absolute(directory)
        self._keep, self._keep_every = keep, keep_every
        self.best: int | None = None  # a step that stays, whatever comes after it
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        registry.add("arrays", ocp.args.PyTreeSave, _ListedArrays())
        registry.add("meta", ocp.args.JsonSave, ocp.JsonCheckpointHandler())
        self._manager = ocp.CheckpointManager(
            self.directory,
            handler_registry=registry,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self,
                enable_async_checkpointing=async_save,
                cleanup_tmp_directories=True,
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
        try:
            json.dumps(record, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"meta of step {step} cannot be written as JSON: {error}") from error
        arrays = {name: _raw(leaf) for name, leaf in leaves.items()}
        with self._told_in_a_line(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(record)),
                force=True,
            )
        self.newest = step
        self._under_way = step if self._async_save else None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Of Orbax's checkpoints, oldest first, which to keep: Orbax asks after each save."""
        newest = len(checkpoints) - self._keep
        every = self._keep_every
        return [
            number >= newest or each.step == self.best or bool(every and each.step and each.step % every == 0)
            for number, each in enumerate(checkpoints)
        ]

    @contextlib.contextmanager
    def _told_in_a_line(self, step: int) -> Iterator[None]:
        """Raises CheckpointError for what a disk refuses; those who save `step` know no other reason to fail."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise  # Out of device memory, which says nothing about the disk.
        except Exception as error:  # An OSError, or what TensorStore makes of one.
            reason = _disk_reason(error)
            if reason is None:
                raise
            # As they lie on the disk: Orbax has forgotten those that this step was to replace.
            earlier = [other for other in _steps(self.directory) if other != step]
            left = f"step {max(earlier)} is there" if earlier else "none is there yet"
            raise CheckpointError(
                f"{self.directory}: the checkpoint of step {step} could not be written ({reason}); of the earlier "
                f"ones, {left}. Make room, then run the same command"
            ) from error

    def latest(self) -> int | None:
        """Returns the newest committed step, or None; waits for a save under way."""
        self.wait()
        return self._manager.latest_step()

    def restore(self, step: int | None, abstract_state: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Returns (state, meta) of `step`, or of the latest when None.

        `abstract_state` is a pytree of ShapeDtypeStruct, whose shardings may belong to another mesh than the
        one that saved; a leaf without a sharding goes to the first device. Raises CheckpointError when the
        step is missing, damaged, or differs from `abstract_state` in any name, shape or type.
        """
        self.wait()
        path = _find(self.directory) if step is None else _find(self.directory / str(step))
        record = _read_record(path)
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

    def check(self) -> None:
        """Raises what went wrong in a save under way, if it has ended; waits for nothing."""
        if self._under_way is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def close(self) -> None:
        """Waits, then releases the threads."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Who interrupts does not want to wait; what is under way is going to be whole, or not there.
        if not (self._under_way is not None and kind is not None and issubclass(kind, KeyboardInterrupt)):
            self.close()


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
    step_path = _find(_absolute(path))
    return _read_arrays(step_path, _read_record(step_path)["arrays"], abstract_params, prefix=f"{where}/")


def load_leaf(
    path: epath.PathLike, name: str, abstract: jax.ShapeDtypeStruct, *, where: str = "params"
) -> jax.Array:
    """Returns one parameter of those that `load_params` would, by its path, such as "layers/mlp/up/kernel"."""
    step_path = _find(_absolute(path))
    full = f"{where}/{name}"
    index = {key: entry for key, entry in _read_record(step_path)["arrays"].items() if key == full}
    return _read_arrays(step_path, index, {name: abstract}, prefix=f"{where}/")[name]


def load_state(path: epath.PathLike, abstract_state: Any, *, fresh: Sequence[str] = ()) -> Any:
    """Returns the state of a step, but for its fields `fresh`, which are zeros of the shapes asked for.

    `abstract_state` is a dataclass of such fields. Raises CheckpointError as `Checkpointer.restore` does.
    """
    step_path = _find(_absolute(path))
    index = {
        name: entry
        for name, entry in _read_record(step_path)["arrays"].items()
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
    return _read_record(_find(_absolute(path)))["meta"]


def find_step(path: epath.PathLike) -> epath.Path:
    """The directory of the step at `path`, which is anything `load_params` takes; raises CheckpointError."""
    return _find(_absolute(path))


def saved_metas(directory: epath.PathLike) -> dict[int, dict[str, Any]]:
    """The metas of all steps in a directory, oldest first, by the names of the steps; no array is looked at.

    A step that is being removed meanwhile, by the run that goes on there, is left out.
    """
    found = {}
    for step in _steps(_absolute(directory)):
        with contextlib.suppress(CheckpointError):
            found[step] = _read_object(_absolute(directory) / str(step), "meta/metadata")["meta"]
    return found


def _disk_reason(error: BaseException) -> str | None:
    """What the disk says in an error of writing; None: the disk is not the reason."""
    known = [os.strerror(number) for number in DISK_REFUSES]
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        if isinstance(seen, OSError) and seen.errno in DISK_REFUSES:
            return os.strerror(seen.errno)
        if found := next((reason for reason in known if reason in text), None):
            return found
        seen = seen.__cause__ or seen.__context__
    return None


def _walk(directory: epath.Path) -> Iterator[epath.Path]:
    for child in directory.iterdir():
        if child.is_dir():
            yield from _walk(child)
        else:
            yield child


def _absolute(given: epath.PathLike) -> Any:
    path = to_path(given)  # epath would put the current folder before gs://
    return path if is_remote(path) else epath.Path(path.absolute())


def _steps(directory: epath.Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(directory))


def _find(path: epath.Path) -> epath.Path:
    """Returns the directory of the step that `path` means; see `load_params`."""
    if (path / "arrays").is_dir() or (path / "meta").is_dir():
        return path
    for directory in (path, path / CHECKPOINTS):
        if steps := _steps(directory):
            return directory / str(steps[-1])
    base = path
    while not base.is_dir() and base != base.parent:
        base = base.parent
    present = ", ".join(sorted(child.name for child in base.iterdir())[:10]) or "nothing"
    raise CheckpointError(
        f"no checkpoint in {path}: looked for a step (a directory with a number for a name) in it and in its "
        f"{CHECKPOINTS}/; {base} contains {present}"
    )


def _damaged(path: epath.Path, reason: str) -> CheckpointError:
    others = [step for step in _steps(path.parent) if str(step) != path.name]
    way_out = f"then step {others[-1]} is used" if others else f"no other step is in {path.parent}"
    return CheckpointError(f"{path} is half-written or damaged: {reason[:500]}. Delete it; {way_out}")


def _read_record(path: epath.Path) -> dict[str, Any]:
    record = _read_object(path, "meta/metadata")
    for name, size in _read_object(path, f"arrays/{_FILES}").items():
        file = path / "arrays" / name
        if not file.exists():
            raise _damaged(path, f"arrays/{name} is missing")
        if (found := file.stat().length) != size:
            raise _damaged(path, f"arrays/{name} has {found} of {size} bytes")
    return record


def _read_object(path: epath.Path, name: str) -> dict[str, Any]:
    return read_json(path / name, lambda reason: _damaged(path, f"{name} is {reason}"))


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
        raise _damaged(path, str(error.__cause__ or error)) from error
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
