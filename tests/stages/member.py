"""One process of several that train: python member.py RUNS WORKDIR JOBS.

The jobs are JSON, [[name, stage, order, changes], ...]: runs in WORKDIR/name, one after the other; `order` lists the
devices as the mesh is to have them.
"""

import itertools
import json
import os
import pathlib
import signal
import sys
import time

import jax
from tiny import make_config, reward_function

from jaxalign.parallel import processes
from jaxalign.stages import parse_config, train

calls = itertools.count(1)  # of the reward function


def failing_on_process_1(prompt: str, completion: str) -> float:
    return 1 / (1 - jax.process_index())


def hanging(prompt: str, completion: str) -> float:
    """Scores the 16 episodes of two rollouts, and then no more."""
    if next(calls) > 16:
        time.sleep(600)
    return reward_function(prompt, completion)


def dying_on_process_1(prompt: str, completion: str) -> float:
    """Process 1 is gone without a word; the other would stay for longer than any test waits."""
    if jax.process_index() == 1:
        os._exit(3)
    time.sleep(600)


def interrupted_once(prompt: str, completion: str) -> float:
    """Tells process 1 to stop in the second rollout (four episodes each), unless the folder $ONCE is there already."""
    once = pathlib.Path(os.environ["ONCE"])
    if jax.process_index() == 1 and next(calls) == 6 and not once.exists():
        once.mkdir()
        os.kill(os.getpid(), signal.SIGTERM)
    return reward_function(prompt, completion)


def main(runs: str, workdir: str, jobs: str) -> None:
    processes.initialize()
    for name, stage, order, changes in json.loads(jobs):
        config = parse_config(make_config(stage, pathlib.Path(runs), **changes))
        devices = [jax.devices()[i] for i in order]
        train(config, pathlib.Path(workdir) / name, devices=devices, quiet=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
