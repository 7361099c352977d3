"""Studies as files: `configs/ablations/NAME.py` has a function `get_study(size)`."""

import dataclasses
import functools
import importlib.machinery
import importlib.util
import os
import pathlib
import sys
from typing import Any

from jaxalign.ablation.study import Study
from jaxalign.config_files import blaming
from jaxalign.errors import ConfigError, UsageError
from jaxalign.fields import nearest

SMALL = "small"


def own_studies() -> dict[str, pathlib.Path]:
    """The studies that come with jaxalign, by name."""
    folder = pathlib.Path(__file__).parent.parent / "configs" / "ablations"
    return {file.stem: file for file in sorted(folder.glob("[!_]*.py"))}


def find_study(name: str) -> str:
    """The path of a study that is named by its path or, if jaxalign's own, by name.

    Raises:
      UsageError: there is no such file; says which name is nearest.
    """
    own = own_studies()
    if os.path.isfile(name):
        return name
    if name in own:
        return str(own[name])
    near = nearest(pathlib.PurePath(name).stem, list(own))
    hint = f"did you mean {near}? " if near else ""
    raise UsageError(f"{name} is no study; {hint}write the path of a file, or one of {', '.join(own)}")


def load_study(name: str, size: str | None = None) -> Study:
    """The study of a file.

    Args:
      size: "small" (None is the same), or another that the file has.

    Raises:
      UsageError: no such file.
      ConfigError: it does not run, has no `get_study` or not this size, or declares what cannot be.
    """
    path = find_study(name)
    loader = importlib.machinery.SourceFileLoader(f"jaxalign.study.{pathlib.PurePath(path).stem}", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # where dataclasses of the file look up their module
    with blaming(path, ""):
        loader.exec_module(module)
        if not callable(getattr(module, "get_study", None)):
            raise ConfigError("it has no function get_study; write one that returns a Study")
        study = module.get_study(size or SMALL)
    if not isinstance(study, Study):
        raise ConfigError(f"{path}: get_study returns a {type(study).__name__}; return a Study")

    def blamed(f: Any) -> Any:
        @functools.wraps(f)
        def call(*args: Any) -> Any:
            with blaming(path, ""):
                return f(*args)

        return call

    return dataclasses.replace(study, run=blamed(study.run), share=blamed(study.share))
