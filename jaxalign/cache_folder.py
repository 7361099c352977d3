"""The user's folder for what can be made again."""

import os
import pathlib
from collections.abc import Mapping


def cache_folder(environ: Mapping[str, str] = os.environ) -> pathlib.Path:
    """JAXALIGN_CACHE, or jaxalign in XDG_CACHE_HOME or ~/.cache."""
    if own := environ.get("JAXALIGN_CACHE"):
        return pathlib.Path(own).expanduser()
    base = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME", "~"), ".cache")
    return pathlib.Path(base).expanduser() / "jaxalign"
