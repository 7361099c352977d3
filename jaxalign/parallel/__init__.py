"""Meshes and the table from logical axes to mesh axes."""

from jaxalign.parallel.mesh import AXES, MeshConfig, make_mesh, platform
from jaxalign.parallel.sharding import (
    RULES,
    batch_sharding,
    batch_shards,
    check_divides,
    constrain,
    param_shardings,
    parse_rules,
    spec,
    split_rows,
    use_mesh,
)

__all__ = [
    "AXES",
    "RULES",
    "MeshConfig",
    "batch_sharding",
    "batch_shards",
    "check_divides",
    "constrain",
    "make_mesh",
    "param_shardings",
    "parse_rules",
    "platform",
    "spec",
    "split_rows",
    "use_mesh",
]
