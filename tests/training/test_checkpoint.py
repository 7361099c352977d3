"""What comes back from a checkpoint is bit for bit what went in, or an error that says what to do."""

import logging
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from flax import struct
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxalign import checksums, cli
from jaxalign.errors import CheckpointError
from jaxalign.training import checkpoint as module
from jaxalign.training.checkpoint import Checkpointer, load_meta, load_params, load_state, save_params
from jaxalign.training.step_files import saved_metas


@struct.dataclass
class _State:
    step: jax.Array
    params: dict
    opt_state: tuple
    key: jax.Array
    ema: dict | None = None


def _mesh(*shape):
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def _state(mesh, seed=0):
    """A state with float32 (NaN included), bfloat16, int and PRNG key leaves, and with empty subtrees."""
    kernel = jax.random.normal(jax.random.key(seed), (2, 8, 16)).at[0, 0, 0].set(jnp.nan)
    params = {
        "layers": {
            "kernel": kernel,
            "norm.scale": jnp.linspace(-1, 1, 16).astype(jnp.bfloat16).reshape(2, 8),
        },
        "empty": {},
    }
    state = _State(
        step=jnp.int32(seed),
        params=params,
        opt_state=({"mu": kernel * 2}, None, (jnp.uint8([1, 2, 255]), jnp.bool_([True, False]))),
        key=jax.random.split(jax.random.key(seed, impl="rbg"), 8),
    )
    return jax.device_put(state, _shardings(state, mesh))


def _shardings(state, mesh):
    specs = {(2, 8, 16): P(None, "data", "fsdp"), (2, 8): P(None, "fsdp"), (8,): P("fsdp")}
    return jax.tree.map(lambda x: NamedSharding(mesh, specs.get(x.shape, P())), state)


def _abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _bits(leaf):
    raw = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return np.asarray(raw).tobytes()


def _assert_same(restored, saved):
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(restored), jax.tree.leaves(saved), strict=True
    ):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), path
        assert _bits(a) == _bits(b), path


@pytest.mark.slow
@pytest.mark.parametrize("async_save", [False, True])
@pytest.mark.parametrize("shape", [(4, 2), (1, 8), (2, 1)])
def test_round_trip_is_bitwise_on_any_mesh(tmp_path, shape, async_save):
    saved = _state(_mesh(4, 2), seed=7)
    meta = {"config": {"lr": 1e-4, "name": "δ"}, "position": [3, None, True]}
    with Checkpointer(tmp_path, async_save=async_save) as checkpointer:
        checkpointer.save(7, saved, meta)
        target = jax.eval_shape(lambda: _state(_mesh(4, 2)))
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            target,
            _shardings(target, _mesh(*shape)),
        )
        restored, found = checkpointer.restore(None, target)
        assert checkpointer.load_meta() == load_meta(tmp_path / "7") == found == meta
    _assert_same(restored, saved)
    jax.tree.map(
        lambda x, t: x.sharding.is_equivalent_to(t.sharding, x.ndim) or pytest.fail(), restored, target
    )
    draw = jax.vmap(jax.random.normal)
    np.testing.assert_array_equal(draw(restored.key), draw(saved.key))


def test_saved_arrays_may_be_donated_while_an_async_save_runs(tmp_path):
    overwrite = jax.jit(lambda x: x * 0, donate_argnums=0)
    with Checkpointer(tmp_path, async_save=True) as checkpointer:
        state = {"x": jnp.arange(1 << 20, dtype=jnp.float32)}
        abstract = _abstract(state)
        checkpointer.save(1, state, {})
        overwrite(state["x"])
        restored, _ = checkpointer.restore(1, abstract)
    np.testing.assert_array_equal(restored["x"], np.arange(1 << 20))


def test_keeps_the_newest_and_restores_a_named_step(tmp_path):
    states = {step: _state(_mesh(4, 2), seed=step) for step in (1, 5, 10)}
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        assert checkpointer.latest() is None
        for step, state in states.items():
            checkpointer.save(step, state, {"step": step})
        assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "5"]
        assert checkpointer.latest() == 10
        restored, meta = checkpointer.restore(5, _abstract(states[5]))
        assert meta == {"step": 5} == checkpointer.load_meta(5)
        _assert_same(restored, states[5])
        with pytest.raises(CheckpointError, match=r"10 exists: resume from it, or delete it"):
            checkpointer.save(10, states[10], {})
        with pytest.raises(CheckpointError, match=r"no checkpoint in .*/1: looked for .* contains 10, 5$"):
            checkpointer.restore(1, _abstract(states[1]))


def test_the_best_and_every_nth_stay_beside_the_newest(tmp_path):
    with Checkpointer(tmp_path, keep=2, keep_every=4) as checkpointer:
        for step in range(12):
            checkpointer.best = 3 if step < 9 else 9
            checkpointer.save(step, {"x": jnp.float32(step)}, {})
            if step == 8:
                assert list(saved_metas(tmp_path)) == [3, 4, 7, 8]
        assert list(saved_metas(tmp_path)) == [4, 8, 9, 10, 11]


def test_a_disk_that_takes_no_more_is_told_in_a_line_and_nothing_is_lost(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = jax.random.normal(jax.random.key(0), (1 << 19,))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"x": noise}, {})
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
            with pytest.raises(CheckpointError) as caught:
                checkpointer.save(2, {"x": noise + 1}, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(caught.value) == (
            f"{tmp_path}: the checkpoint of step 2 could not be written (File too large); of the earlier ones, step 1 "
            "is there. Make room, then run the same command"
        )
        state, _ = checkpointer.restore(None, _abstract({"x": noise}))
        np.testing.assert_array_equal(state["x"], noise)
        checkpointer.save(2, {"x": noise + 1}, {})
        assert checkpointer.latest() == 2


def test_what_goes_wrong_in_the_background_is_told_as_at_once_and_removes_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = jax.random.normal(jax.random.key(0), (1 << 19,))
    with Checkpointer(tmp_path, keep=1, async_save=True) as checkpointer:
        checkpointer.save(1, {"x": noise}, {})
        checkpointer.wait()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
            with pytest.raises(CheckpointError) as caught:
                checkpointer.save(2, {"x": noise + 1}, {})
                deadline = time.monotonic() + 60
                while time.monotonic() < deadline:  # as a loop does between its steps
                    checkpointer.check()
                    time.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(caught.value) == (
            f"{tmp_path}: the checkpoint of step 2 could not be written (File too large); of the earlier ones, step 1 "
            "is there. Make room, then run the same command"
        )
        checkpointer.wait()  # told once
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        state, _ = checkpointer.restore(1, _abstract({"x": noise}))
        np.testing.assert_array_equal(state["x"], noise)
        assert list(saved_metas(tmp_path)) == [1]


def test_what_is_told_again_as_the_threads_are_released_is_told_in_a_line_too(tmp_path, monkeypatch):
    """Orbax raises in `close` the other parts of a save of which the first has been told already."""
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, {"x": jnp.float32(0)}, {})
    close = checkpointer._manager.close

    def close_and_tell():
        close()
        raise ValueError("RESOURCE_EXHAUSTED: Error writing local file: No space left on device")

    monkeypatch.setattr(checkpointer._manager, "close", close_and_tell)
    with pytest.raises(CheckpointError, match=r"could not be written \(No space left on device\)"):
        checkpointer.close()


def test_a_folder_that_goes_is_told_and_what_says_nothing_of_the_disk_is_raised_as_it_is(
    tmp_path, monkeypatch
):
    checkpointer = Checkpointer(tmp_path / "run")
    raised: list[Exception] = []

    def fail(*_, **__):
        raise raised[-1]

    monkeypatch.setattr(checkpointer._manager, "save", fail)
    for error, told in (
        (ValueError("odd"), None),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Error writing 3 GB"), None),
        (ValueError("NOT_FOUND: Error opening"), "is gone, or something in it"),
        (
            OSError(28, "No space left on device"),
            r"\(No space left on device\); of the earlier ones, none is there",
        ),
    ):
        raised.append(error)
        with pytest.raises(type(error) if told is None else CheckpointError, match=told or str(error)):
            checkpointer.save(1, {"x": jnp.float32(0)}, {})
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    raised.append(ValueError("odd"))
    with pytest.raises(
        CheckpointError, match=r"run is gone, or something in it: .* while step 1 was written"
    ):
        checkpointer.save(1, {"x": jnp.float32(0)}, {})
    checkpointer.close()


def test_a_state_may_begin_with_some_fields_anew(tmp_path):
    mesh = _mesh(2, 4)
    state = _state(mesh)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {})
    # A field that begins anew may have another form than the one that was saved.
    abstract = _abstract(state).replace(opt_state=_abstract(state).params["layers"]["kernel"])
    read = load_state(tmp_path, abstract, fresh=("opt_state", "step"))
    assert read.step == 0 and read.step.dtype == jnp.int32
    np.testing.assert_array_equal(read.opt_state, np.zeros((2, 8, 16), np.float32))
    assert read.opt_state.sharding == abstract.opt_state.sharding
    np.testing.assert_array_equal(read.params["layers"]["kernel"], state.params["layers"]["kernel"])
    np.testing.assert_array_equal(jax.random.key_data(read.key), jax.random.key_data(state.key))
    with pytest.raises(CheckpointError, match=r"differ, first\n  opt_state"):
        load_state(tmp_path, abstract, fresh=("step",))


def test_the_older_steps_go_when_the_newer_one_is_whole(tmp_path, monkeypatch):
    """A write that is held up: until it is let go there is the older step alone, and a step later the newer alone."""
    held = threading.Event()
    finalize = module.ListedArrays.finalize

    def wait_first(self, directory):
        assert held.wait(60)
        finalize(self, directory)

    with Checkpointer(tmp_path, keep=1, async_save=True) as checkpointer:
        checkpointer.save(1, {"x": jnp.float32(1)}, {})
        checkpointer.wait()
        monkeypatch.setattr(module.ListedArrays, "finalize", wait_first)
        checkpointer.save(2, {"x": jnp.float32(2)}, {})
        assert module.is_writing() and checkpointer.newest == 2
        checkpointer.check()
        assert list(saved_metas(tmp_path)) == [1]
        held.set()
        assert checkpointer.latest() == 2 and list(saved_metas(tmp_path)) == [2]
        assert not module.is_writing()


def test_who_interrupts_does_not_wait_for_a_write(tmp_path, monkeypatch):
    held, left = threading.Event(), []
    finalize = module.ListedArrays.finalize
    monkeypatch.setattr(
        module.ListedArrays, "finalize", lambda self, path: (held.wait(60), finalize(self, path))
    )
    monkeypatch.setattr(cli.os, "_exit", left.append)
    with pytest.raises(KeyboardInterrupt), Checkpointer(tmp_path, async_save=True) as checkpointer:
        checkpointer.save(1, {"x": jnp.float32(1)}, {})
        raise KeyboardInterrupt
    assert module.is_writing() and list(saved_metas(tmp_path)) == []
    cli._leave_writers()  # where Python itself would wait
    assert left == [130]
    held.set()
    checkpointer.close()
    cli._leave_writers()
    assert left == [130] and list(saved_metas(tmp_path)) == [1]


def test_params_load_from_a_run_a_step_or_an_export(tmp_path):
    old, new = (_state(_mesh(4, 2), seed=s) for s in (1, 2))
    with Checkpointer(tmp_path / "run" / "checkpoints") as checkpointer:
        checkpointer.save(1, old, {"at": 1})
        checkpointer.save(2, new, {"at": 2})
    save_params(tmp_path / "model", old.params, {"at": 1})
    save_params(tmp_path / "model", new.params, {"at": 2})
    assert len(list((tmp_path / "model").iterdir())) == 1
    for path in ("run", "run/checkpoints", "run/checkpoints/2", "model"):
        _assert_same(load_params(tmp_path / path, _abstract(new.params)), new.params)
        assert load_meta(str(tmp_path / path)) == {"at": 2}
    _assert_same(load_params(tmp_path / "run/checkpoints/1", _abstract(old.params)), old.params)


def test_a_leaf_without_sharding_goes_to_the_first_device(tmp_path):
    params = _state(_mesh(4, 2)).params
    save_params(tmp_path, params, {})
    loaded = load_params(tmp_path, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params))
    _assert_same(loaded, params)
    assert {leaf.devices().pop() for leaf in jax.tree.leaves(loaded)} == {jax.devices()[0]}


def test_params_load_without_reading_optimizer_state(tmp_path):
    params = {"w": jax.random.normal(jax.random.key(0), (64, 64))}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"params": params, "opt_state": {"mu": jnp.ones((64, 64))}}, {})
    arrays = tmp_path / "1" / "arrays"
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{arrays}/"}).result()
    assert any(key.startswith(b"opt_state/mu") for key in store.list().result())
    store.delete_range(ts.KvStore.KeyRange("opt_state", "opt_statf")).result()
    assert not any(key.startswith(b"opt_state") for key in store.list().result())
    (arrays / "files.json").write_text("{}")
    checksums.write_sums(arrays, ["files.json"])
    _assert_same(load_params(tmp_path, _abstract(params)), params)


def test_a_changed_byte_that_orbax_notices_is_called_damage(tmp_path):
    save_params(tmp_path, {"w": jnp.ones(3)}, {})
    manifest = tmp_path / "0" / "arrays" / "manifest.ocdbt"
    data = bytearray(manifest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    manifest.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"/0 is half-written or damaged: .*manifest\.ocdbt"):
        load_params(tmp_path, {"w": jax.ShapeDtypeStruct((3,), jnp.float32)})


def test_a_sharding_that_does_not_divide_is_not_called_damage(tmp_path):
    save_params(tmp_path, {"w": jnp.ones((3, 4))}, {})
    sharding = NamedSharding(_mesh(4, 2), P("data"))
    with pytest.raises(CheckpointError, match=r"params/w of shape \[3, 4\] cannot be sharded as .*'data'"):
        load_params(tmp_path, {"w": jax.ShapeDtypeStruct((3, 4), jnp.float32, sharding=sharding)})


_LOOP = """
import sys
import jax.numpy as jnp
from jaxalign.training.checkpoint import Checkpointer
with Checkpointer(sys.argv[1], async_save=sys.argv[2] == "True") as checkpointer:
    step = checkpointer.latest() or 0
    print(step, flush=True)
    while True:
        step += 1
        w = jnp.arange(1 << 18, dtype=jnp.float32) * step
        checkpointer.save(step, {"params": {"w": w}, "step": jnp.int32(step)}, {"step": step})
        print(step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("async_save", [False, True])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path, async_save):
    root = str(pathlib.Path(__file__).parents[2])
    abstract = {
        "params": {"w": jax.ShapeDtypeStruct((1 << 18,), jnp.float32)},
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    rng = np.random.default_rng(0)
    before = 0
    for _ in range(4):
        command = [sys.executable, "-c", _LOOP, str(tmp_path), str(async_save)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert int(process.stdout.readline()) == before
            returned = [int(process.stdout.readline()) for _ in range(rng.integers(1, 5))]
            time.sleep(rng.uniform(0, 0.06))  # A save takes about 0.03 s.
            os.kill(process.pid, signal.SIGKILL)
            returned += map(int, process.stdout.read().split())
        with Checkpointer(tmp_path) as checkpointer:
            # The step under way may be committed before `save` returns, or, if asynchronous, after it.
            before = checkpointer.latest() or 0
            assert before - returned[-1] in ((-1, 0, 1) if async_save else (0, 1))
            if before:
                restored, meta = checkpointer.restore(None, abstract)
                assert meta == {"step": before} and restored["step"] == before
                expected = np.arange(1 << 18, dtype=np.float32) * np.float32(before)
                np.testing.assert_array_equal(restored["params"]["w"], expected)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(before + 1, restored, {})
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [before, before + 1]


def test_what_a_kill_left_half_written_is_gone_once_the_folder_is_open(tmp_path):
    """Not in a thread of its own: two that open the folder one after the other do not meet in it."""
    for number in range(20):
        half = tmp_path / f"{number}.orbax-checkpoint-tmp"
        for part in range(20):
            (half / f"arrays/{part}").mkdir(parents=True)
            (half / f"arrays/{part}/d").write_bytes(b"x")
    with Checkpointer(tmp_path):
        assert list(tmp_path.iterdir()) == []
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"x": jnp.float32(0)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def _copy_without(source, target, name, keep_bytes):
    target.mkdir()
    for file in (f for f in source.rglob("*") if f.is_file()):
        relative = file.relative_to(source)
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        data = file.read_bytes()
        if str(relative) != name:
            (target / relative).write_bytes(data)
        elif keep_bytes is not None:
            (target / relative).write_bytes(data[: int(len(data) * keep_bytes)])


@pytest.mark.parametrize("keep_bytes", [None, 0.0, 0.5], ids=["deleted", "empty", "half"])
def test_every_missing_or_short_file_is_named_or_harmless(tmp_path, keep_bytes, caplog):
    state = _state(_mesh(4, 2))
    with Checkpointer(tmp_path / "whole") as checkpointer:
        checkpointer.save(3, state, {})
        checkpointer.save(4, state, {})
    step = tmp_path / "whole" / "4"
    # Orbax's own notes, which a restore does not need.
    harmless = {"_CHECKPOINT_METADATA", *(str(f.relative_to(step)) for f in step.rglob("commit_success.txt"))}
    names = {str(f.relative_to(step)) for f in step.rglob("*") if f.is_file()}
    assert any(name.startswith("arrays/d/") for name in names)
    caplog.set_level(logging.CRITICAL, logger="absl")
    for i, name in enumerate(sorted(names)):
        broken = tmp_path / f"broken{i}"
        (broken / "3").mkdir(parents=True)
        _copy_without(step, broken / "4", name, keep_bytes)
        if name in harmless:
            _assert_same(load_params(broken, _abstract(state.params)), state.params)
            continue
        with pytest.raises(CheckpointError) as error:
            load_params(broken, _abstract(state.params))
        message = str(error.value)
        assert message.startswith(f"{broken}/4 is half-written or damaged: {name} ")
        assert message.endswith("Delete it; then step 3 is used")


def test_a_lone_damaged_step_says_that_nothing_else_is_there(tmp_path):
    save_params(tmp_path, {"w": jnp.ones(3)}, {})
    (tmp_path / "0" / "meta" / "metadata").write_text('{"meta": {')
    with pytest.raises(CheckpointError, match=r"meta/metadata is not JSON .* no other step is in"):
        load_meta(tmp_path)


def test_a_missing_directory_says_what_was_looked_for_and_what_is_there(tmp_path):
    (tmp_path / "sft-final").mkdir()
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .*/sft/last: looked for .* contains sft-final$"
    ):
        load_params(tmp_path / "sft" / "last", {})
    with pytest.raises(CheckpointError, match=r"sft-final contains nothing$"):
        load_meta(tmp_path / "sft-final")
    assert [p.name for p in tmp_path.iterdir()] == ["sft-final"]
    for number in range(12):
        (tmp_path / "sft-final" / f"{number:02}").touch()
    with pytest.raises(CheckpointError, match=rf"contains {', '.join(f'{n:02}' for n in range(10))}$"):
        load_meta(tmp_path / "sft-final")


def test_a_mismatch_names_the_arrays_and_the_config_keys(tmp_path):
    state = _state(_mesh(4, 2))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {})
        wide = state.replace(params={"layers": {"kernel": jnp.ones((2, 8, 32)), "bias": jnp.ones(3)}})
        with pytest.raises(CheckpointError) as error:
            checkpointer.restore(1, _abstract(wide))
        assert str(error.value).splitlines()[1:] == [
            "  params/layers/bias: saved absent, wanted float32[3]",
            "  params/layers/kernel: saved float32[2, 8, 16], wanted float32[2, 8, 32]",
            "  params/layers/norm.scale: saved bfloat16[2, 8], wanted absent",
            "The usual cause is config.model (layers, widths, vocabulary, head, parameter type); "
            "compare with the config in its meta.",
        ]
        other = state.replace(opt_state=())
        with pytest.raises(CheckpointError, match=r"3 of 7 arrays differ(.|\n)*config\.optimizer\.name"):
            checkpointer.restore(1, _abstract(other))
        with pytest.raises(CheckpointError, match=r"key: saved key<rbg>\[8\], wanted key<fry>\[4\]"):
            checkpointer.restore(1, _abstract(state.replace(key=jax.random.split(jax.random.key(0), 4))))
        cast = state.replace(step=jnp.float32(0))
        with pytest.raises(CheckpointError, match=r"step: saved int32\[\], wanted float32\[\]"):
            checkpointer.restore(1, _abstract(cast))


def test_bad_arguments_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(CheckpointError, match=r"keep=0: keep at least 1"):
        Checkpointer(tmp_path, keep=0)
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(CheckpointError, match=r"leaf 'opt/1' is a float: make it a jax array"):
            checkpointer.save(1, {"opt": [jnp.ones(1), 0.5]}, {})
        with pytest.raises(CheckpointError, match=r"meta of step 1 .* PosixPath is not JSON serializable"):
            checkpointer.save(1, {"x": jnp.ones(1)}, {"path": pathlib.PosixPath("x")})
        with pytest.raises(CheckpointError, match=r"meta of step 1 .*JSON compliant"):
            checkpointer.save(1, {"x": jnp.ones(1)}, {"loss": float("nan")})
        with pytest.raises(CheckpointError, match=r"same path"):
            checkpointer.save(1, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, {})
        assert checkpointer.latest() is None and not list(tmp_path.iterdir())


def test_saving_and_restoring_log_nothing(tmp_path, caplog):
    state = {"x": jnp.ones(3)}
    with caplog.at_level(logging.DEBUG, logger="absl"), Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {})
        checkpointer.restore(1, _abstract(state))
    assert caplog.messages == []
