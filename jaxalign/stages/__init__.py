"""The six stages: config + parameters + batch -> new state + metrics."""

import contextlib
import importlib
import os
from types import ModuleType
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxalign import parallel
from jaxalign.config import check_keys
from jaxalign.errors import ConfigError
from jaxalign.locks import LOCK, locked
from jaxalign.parallel import processes
from jaxalign.storage import to_path
from jaxalign.training import config as settings
from jaxalign.training import loop
from jaxalign.training.open import open_run

OPTIONS = {
    "pretrain": "PretrainConfig",
    "sft": "SFTConfig",
    "reward": "RewardConfig",
    "ppo": "PPOConfig",
    "dpo": "DPOConfig",
    "orpo": "ORPOConfig",
}


def _module(stage: str) -> ModuleType:
    check_keys([stage], list(OPTIONS), "stage")
    return importlib.import_module(f"jaxalign.stages.{stage}")


def default_config(stage: str) -> ConfigDict:
    """A locked ConfigDict with every key of `stage` at its default, for config files to change."""
    return settings.default_config(stage, getattr(_module(stage), OPTIONS[stage]))


def parse_config(values: ConfigDict) -> settings.Config:
    """The frozen Config of a ConfigDict; raises ConfigError naming the key that cannot work."""
    if "stage" not in values:
        raise ConfigError(f"config.stage is missing; start from default_config(stage): {', '.join(OPTIONS)}")
    return settings.parse_config(values, getattr(_module(values.stage), OPTIONS[values.stage]))


def train(
    config: settings.Config,
    workdir: str | os.PathLike,
    *,
    devices: list | None = None,
    stop_at: loop.StopAt | None = None,
    probe: loop.Probe | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Runs a stage in `workdir` to its end and returns its summary; see `training.loop.train`.

    Args:
      devices: to run on; all of them when None.

    Raises:
      ConfigError: another process trains in `workdir`.
    """
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            if jax.process_index() == 0:
                stack.enter_context(locked(folder / LOCK, f"--workdir={workdir}"))

        with processes.together():
            folder = to_path(workdir)
            mesh = parallel.make_mesh(config.mesh, devices or jax.devices())
            # A new folder is not made before the config and the data are known to be good.
            existed = os.path.isdir(folder)
            if existed:
                lock()
        stack.enter_context(parallel.use_mesh(mesh, parallel.parse_rules(config.mesh.rules)))
        run = open_run(config, workdir)
        with processes.together():
            if not existed:
                lock()
        return loop.train(_module(config.stage).build(run), stop_at=stop_at, probe=probe, quiet=quiet)
