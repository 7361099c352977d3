"""Models of the Hugging Face hub, by name."""

import pathlib
import re

from huggingface_hub import HfApi, snapshot_download

from jaxalign.errors import ConfigError

_FILES = ("model*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*")
_SECONDS = 5  # for an answer of the hub


def is_hub_name(path: str) -> bool:
    """Whether `path` reads as "organisation/name" and can be no path of this machine."""
    parts = re.fullmatch(r"([\w.-]+)/([\w.-]+)", path)
    return parts is not None and parts[1] not in (".", "..") and not pathlib.Path(parts[1]).exists()


def download(name: str, key: str) -> pathlib.Path:
    """The folder of the hub's model `name`: weights as safetensors, config and tokenizer.

    Files that were downloaded before are taken from the cache, also where there is no network.

    Raises:
      ConfigError: it cannot be had; names the config `key` that gave the name.
    """
    files = {"allow_patterns": list(_FILES), "ignore_patterns": ["*/*"]}
    try:
        revision = HfApi().model_info(name, timeout=_SECONDS).sha
        return pathlib.Path(snapshot_download(name, revision=revision, etag_timeout=_SECONDS, **files))
    except Exception as error:  # of the hub, of its HTTP client, or of the network: no common base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    try:
        return pathlib.Path(snapshot_download(name, local_files_only=True, **files))
    except OSError:
        raise ConfigError(
            f"{key}={name!r}: no such folder, and the hub gave no model of that name ({reason}); correct the "
            "path, or download the model where there is a network and name its folder"
        ) from None
