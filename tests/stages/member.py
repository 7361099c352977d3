"""One process of several that train: python member.py RUNS WORKDIR JOBS.

The jobs are JSON, [[name, stage, order, changes], ...]: runs in WORKDIR/name, one after the other; `order` lists the
devices as the mesh is to have them.
"""

import json
import pathlib
import sys
import time

import jax
from tiny import make_config, reward_function

from jaxalign.parallel import processes
from jaxalign.stages import parse_config, train


def failing_on_process_1(prompt: str, completion: str) -> float:
    return 1 / (1 - jax.process_index())


def hanging(prompt: str, completion: str) -> float:
    """Scores the episodes of two rollouts, and then no more."""
    hanging.calls = getattr(hanging, "calls", 0) + 1
    if hanging.calls > 2 * 8:
        time.sleep(600)
    return reward_function(prompt, completion)


def main(runs: str, workdir: str, jobs: str) -> None:
    processes.initialize()
    for name, stage, order, changes in json.loads(jobs):
        config = parse_config(make_config(stage, pathlib.Path(runs), **changes))
        devices = [jax.devices()[i] for i in order]
        train(config, pathlib.Path(workdir) / name, devices=devices, quiet=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
