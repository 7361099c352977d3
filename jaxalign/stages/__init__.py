"""The stages: one declaration a file. A stage from elsewhere joins them by `default_config(STAGE)`."""

import contextlib
import importlib
import os
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxalign import parallel
from jaxalign.data.kinds import check_kind
from jaxalign.errors import ConfigError
from jaxalign.locks import LOCK, locked
from jaxalign.parallel import processes
from jaxalign.sections import check_keys
from jaxalign.storage import to_path
from jaxalign.training import config as settings
from jaxalign.training import loop
from jaxalign.training.open import open_run
from jaxalign.training.profile import Steps
from jaxalign.training.stage import Stage
from jaxalign.training.trackers import check_trackers

NAMES = ("pretrain", "sft", "reward", "ppo", "dpo", "orpo", "kto", "grpo", "rloo", "distill")

_others: dict[str, Stage] = {}  # stages from elsewhere, by name


def find_stage(name: str) -> Stage:
    """The stage of this name.

    Raises:
      ConfigError: there is none; names the nearest.
    """
    if name in _others:
        return _others[name]
    check_keys([name], [*NAMES, *_others], "stage")
    return importlib.import_module(f"jaxalign.stages.{name}").STAGE


def default_config(stage: str | Stage) -> ConfigDict:
    """A locked ConfigDict with every key of a stage at its default, for config files to change.

    Args:
      stage: the name of one of jaxalign's, or a Stage of your own, which is known by its name from then on.

    Raises:
      ConfigError: no such stage, or one that cannot work: its name is taken, or its data are of no known kind.
    """
    if isinstance(stage, str):
        stage = find_stage(stage)
    elif stage.name in NAMES:
        if stage is not find_stage(stage.name):
            raise ConfigError(f"Stage {stage.name!r} is one of jaxalign's own; give yours another name")
    else:
        check_kind(stage.data, f"Stage {stage.name!r}, data")
        _others[stage.name] = stage
    return settings.default_config(stage.name, stage.options)


def parse_config(values: ConfigDict) -> settings.Config:
    """The frozen Config of a ConfigDict; raises ConfigError naming the key that cannot work."""
    if not isinstance(values, ConfigDict):
        raise ConfigError(
            f"a config is a ConfigDict, and this is a {type(values).__name__}; begin with default_config(stage), or "
            "load_config(FILE), and change its keys: config.update(...) takes a dict"
        )
    if "stage" not in values:
        raise ConfigError(f"config.stage is missing; start from default_config(stage): {', '.join(NAMES)}")
    if not isinstance(values.stage, str):
        raise ConfigError(
            f"config.stage={values.stage!r} is no name of a stage; write one of {', '.join(NAMES)}"
        )
    return settings.parse_config(values, find_stage(values.stage))


def train(
    config: settings.Config | ConfigDict,
    workdir: str | os.PathLike,
    *,
    devices: list | None = None,
    stop_at: loop.StopAt | None = None,
    probe: loop.Probe | None = None,
    profile: str = "",
    debug_nans: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Runs a stage in `workdir` to its end and returns its summary; see `training.loop.train`.

    Args:
      devices: to run on; all of them when None.
      profile: "START:STOP", the first and the last step to trace.
      debug_nans: name the first operation that gives a NaN; slow.

    Raises:
      ConfigError: another process trains in `workdir`.
    """
    steps = Steps.parse(profile) if profile else None
    if not isinstance(config, settings.Config):
        config = parse_config(config)
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            if jax.process_index() == 0:
                stack.enter_context(locked(folder / LOCK, f"--workdir={workdir}"))

        with processes.fail_together():
            folder = to_path(workdir)
            if jax.process_index() == 0:
                check_trackers(config.tracker_names)
            mesh = parallel.make_mesh(config.mesh, devices or jax.devices())
            # A new folder is not made before the config and the data are known to be good.
            existed = os.path.isdir(folder)
            if existed:
                lock()
        stack.enter_context(parallel.use_mesh(mesh, parallel.parse_rules(config.mesh.rules)))
        run = open_run(config, workdir)
        with processes.fail_together():
            if not existed:
                lock()
        return loop.train(
            config.stage.build(run),
            stop_at=stop_at,
            probe=probe,
            profile=steps,
            debug_nans=debug_nans,
            quiet=quiet,
        )
