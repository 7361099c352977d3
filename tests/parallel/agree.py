"""What one of two processes with four devices each must see; run by test_processes.py with a folder as argument."""

import pathlib
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxalign import parallel
from jaxalign.errors import ConfigError, DistributedError
from jaxalign.parallel import AXES, processes

folder = pathlib.Path(sys.argv[1])
processes.initialize()
processes.initialize()  # a second time changes nothing
me = jax.process_index()
assert (jax.process_count(), jax.device_count()) == (2, 8)

# The rows that `batch_parts` names are those that the devices hold, in order, on every kind of layout.
batch = np.arange(16, dtype=np.int32).reshape(16, 1) * 10 + np.arange(3, dtype=np.int32)
LAYOUTS = [
    ({"data": 8}, range(8), ((0, 1, 2, 3), (4, 5, 6, 7)), 8),
    ({"data": 2, "fsdp": 2, "tensor": 2}, range(8), ((0, 1), (2, 3)), 4),
    ({"data": 8}, (0, 1, 4, 5, 2, 3, 6, 7), ((0, 1, 4, 5), (2, 3, 6, 7)), 8),
    ({"data": 4, "tensor": 2}, (0, 4, 1, 5, 2, 6, 3, 7), ((0, 1, 2, 3), (0, 1, 2, 3)), 4),
    ({"data": 1, "tensor": 8}, range(8), ((0,), (0,)), 1),
]
for sizes, order, parts, count in LAYOUTS:
    devices = np.array(jax.devices())[list(order)].reshape([sizes.get(axis, 1) for axis in AXES])
    mesh = Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    with parallel.use_mesh(mesh):
        assert processes.batch_parts(mesh) == (parts[me], count), (sizes, order)
        mine = np.concatenate([np.split(batch, count)[part] for part in parts[me]])
        x = jax.make_array_from_process_local_data(parallel.batch_sharding(mesh), mine)
        assert x.shape == batch.shape
        np.testing.assert_array_equal(processes.fetch_whole(x), batch)

        vote = processes.make_vote(mesh)
        said = [vote(me == 1 and number == 2) for number in range(6)]
        assert said == [False, False, False, True, False, False]

# Programs may be sent while the first of them waits for its input: none takes the threads that another needs.
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("rows", "columns"))
layout = NamedSharding(mesh, PartitionSpec("rows", "columns"))
add_mean = jax.jit(lambda x: x + x.mean(), out_shardings=layout)
results = []
for number in range(60):
    x = jax.make_array_from_process_local_data(layout, np.full((512, 512), number, np.float32))
    results.append(add_mean(add_mean(add_mean(x))))
for number, result in enumerate(results):
    np.testing.assert_array_equal(result.addressable_data(0), 8 * number)

lopsided = Mesh(np.array(jax.devices()[:5]).reshape(5, 1, 1, 1, 1), AXES)
with parallel.use_mesh(lopsided), pytest.raises(ConfigError, match=r"unequal numbers \(0: 4, 1: 1\)"):
    processes.batch_parts(lopsided)

assert processes.gather_texts("é" * me) == ["", "é"]
assert processes.broadcast_from_first(me == 0) and not processes.broadcast_from_first(me == 1)

with processes.fail_together():
    pass
with pytest.raises(ConfigError if me == 1 else DistributedError) as raised, processes.fail_together():
    if me == 1:
        raise ConfigError("no such file")
assert str(raised.value) == ("no such file" if me == 1 else "process 1 failed: no such file")

processes.check_same({"config.seed": 0, "jax": "0.10"})
with pytest.raises(ConfigError) as raised:
    processes.check_same({"config.seed": 0, "config.beta": 0.1 + me} | ({"only": 1} if me == 0 else {}))
assert "config.beta: process 0 has 0.1, process 1 has 1.1" in str(raised.value)
assert "only: process 0 has 1, process 1 has None" in str(raised.value)
assert "seed" not in str(raised.value)

processes.check_shared(folder / "same")
assert list((folder / "same").iterdir()) == [] or me == 1
with pytest.raises((ConfigError, DistributedError), match=r"is not the folder of process 0"):
    processes.check_shared(folder / str(me))
