"""Studies as files: `configs/ablations/NAME.py` has a function `get_study(size)`."""

import dataclasses
import functools
import pathlib
from typing import Any

from jaxalign.ablation.study import Study
from jaxalign.config_files import blaming, find_own, load_function
from jaxalign.errors import ConfigError, UsageError

SMALL, PAPER = "small", "paper"


def own_studies() -> dict[str, pathlib.Path]:
    """The studies that come with jaxalign, by name."""
    folder = pathlib.Path(__file__).parent.parent / "configs" / "ablations"
    return {file.stem: file for file in sorted(folder.glob("[!_]*.py"))}


def find_study(name: str) -> str:
    """The path of a study that is named by its path or, if jaxalign's own, by name.

    Raises:
      UsageError: there is no such file; says which name is nearest.
    """
    return find_own(name, own_studies(), "")


def load_study(name: str, size: str | None = None) -> Study:
    """The study of a file.

    Args:
      size: "small" (None is the same), or another that the file has; "paper" also where it has recipes of that size.

    Raises:
      UsageError: no such file, or the study has not this size.
      ConfigError: it does not run, has no `get_study`, or declares what cannot be.
    """
    path = find_study(name)
    get_study = load_function(path, "get_study", "study", "")
    with blaming(path, ""):
        study = get_study(size or SMALL)
    if not isinstance(study, Study):
        raise ConfigError(f"{path}: get_study returns a {type(study).__name__}; return a Study")
    if size and size not in study.sizes and not (size == PAPER and study.recipes):
        raise UsageError(f"{name}:{size}: the study has no such size; it has {', '.join(study.sizes)}")

    def blamed(f: Any) -> Any:
        @functools.wraps(f)
        def call(*args: Any) -> Any:
            from jaxalign.training.loop import Stopped

            with blaming(path, ""):
                try:
                    return f(*args)
                except Stopped as asked:  # no fault of the file
                    stopped = asked
            raise stopped

        return call

    return dataclasses.replace(study, run=blamed(study.run), share=blamed(study.share))
