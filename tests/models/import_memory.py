"""Run by test_hf_import.py: imports a folder and prints what it took. Arguments: folder, small folder, devices."""

import json
import pathlib
import sys

import jax

FOLDER, SMALL, DEVICES = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", DEVICES)

import numpy as np  # noqa: E402

from jaxalign.models import abstract_params  # noqa: E402
from jaxalign.models.hf.importer import load_folder, open_folder  # noqa: E402
from jaxalign.parallel import MeshConfig, make_mesh, use_mesh  # noqa: E402


def status(key: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


mesh = make_mesh(MeshConfig(data=1, fsdp=DEVICES))
with use_mesh(mesh):
    small = open_folder(SMALL)
    load_folder(small, abstract_params(small.config, mesh))  # what JAX itself takes comes before
    model = open_folder(FOLDER)
    before = status("VmRSS:")
    params = load_folder(model, abstract_params(model.config, mesh))
    peak = status("VmHWM:")
up = params["layers"]["mlp"]["up"]["kernel"]
print(
    json.dumps(
        {
            "beyond": peak - before - sum(x.nbytes for x in jax.tree.leaves(params)),
            "corner": np.asarray(up[-1, :4, -3:]).tolist(),
            "embedding": np.asarray(params["embedding"][-2:, :5]).tolist(),
        }
    )
)
