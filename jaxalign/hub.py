"""Files of the Hugging Face hub, fetched once and from then on taken from its cache."""

import pathlib
import re
from collections.abc import Sequence

from jaxalign.errors import ConfigError

QUICKSTART = "quickstart"  # the folder that `jaxalign quickstart` makes, and that config files name
_SECONDS = 5  # for an answer of the hub, before its cache is asked


def is_hub_name(path: str) -> bool:
    """Whether `path` reads as "organisation/name" and can be no path of this machine."""
    parts = re.fullmatch(r"([\w.-]+)/[\w.-]+", path)
    return parts is not None and parts[1] != QUICKSTART and not pathlib.Path(parts[1]).exists()


def way_to(path: str) -> str:
    """What to do about a path that does not exist, for errors."""
    made = QUICKSTART in pathlib.PurePath(path).parts
    return "`jaxalign quickstart` makes it; or check the path" if made else "check the path"


def download(name: str, patterns: Sequence[str], key: str) -> pathlib.Path:
    """The folder with those files of the hub's repository `name` that match `patterns`.

    Raises:
      ConfigError: neither the hub nor its cache has it; names the config `key` that gave the name.
    """
    if pathlib.PurePath(name).parts[0] == QUICKSTART:
        raise ConfigError(f"{key}={name!r}: no such path (looked from {pathlib.Path.cwd()}); {way_to(name)}")
    import huggingface_hub  # slow to import, and most runs need nothing of it

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=list(patterns), ignore_patterns=["*/*"], etag_timeout=_SECONDS
            )
        )
    except Exception as error:  # of the hub, of its HTTP client, or of the network: no common base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{key}={name!r}: no such path, and neither the hub nor its cache on this machine gave a repository of "
            f"that name ({reason}); correct the name, or run `hf download {name} --local-dir FOLDER` where there is "
            f"a network and name that folder"
        ) from None
