"""A config as a config file: every key with its value, what it may be, its default where it differs, its meaning."""

import dataclasses
import os
import shlex
import textwrap
from collections.abc import Iterator, Sequence

from jaxalign.keys import Key
from jaxalign.stages import NAMES
from jaxalign.training.config import Config, config_keys, value_of
from jaxalign.verbs.requests import WIDTH

_FILE = '''"""Every key of a run of stage {stage}, as printed by

    {command}

Saved as a file, it trains the same:

    jaxalign train --config=FILE.py --workdir=DIR
"""

import jaxalign


def get_config():
    config = {start}
{keys}
    return config
'''


def config_file(config: Config, name: str, settings: Sequence[str] = ()) -> str:
    """The text of a config file whose config is `config`.

    Args:
      name: the config file, with its argument, that `config` was read from.
      settings: the flags that changed it.
    """
    stage = config.stage.name
    flags = [f"--config={name}", *settings, "--print-config"]
    command = f"jaxalign train {shlex.join(flags)}"
    if len(command) > WIDTH - 4:
        command = " \\\n        ".join(["jaxalign train", *map(shlex.quote, flags)])
    path, colon, arg = name.partition(":")
    given = [repr(os.path.abspath(path)), *([repr(arg)] if colon else [])]
    # A stage of one's own is known once the file that declares it has run.
    start = (
        f"jaxalign.default_config({stage!r})"
        if stage in NAMES
        else f"jaxalign.load_config({', '.join(given)})"
    )
    return _FILE.format(
        stage=stage,
        command=command.replace("\\", "\\\\").replace('"""', '\\"\\"\\"'),
        start=start,
        keys="\n".join(_assignments(config)),
    )


def _assignments(config: Config) -> Iterator[str]:
    """The lines of a function's body that set every key."""
    section, title = None, ""
    for key in config_keys(config.stage):
        above = key.path.rpartition(".")[0]
        if above != section or key.title != title:
            section, title = above, key.title
            heading = " ".join(filter(None, [f"config.{above}" if above else "", title and f"({title})"]))
            yield ""
            if heading:
                yield f"    # --- {heading} ---"
        value = value_of(config, key.path)
        beside = describe(key, value)
        assignment = f"    config.{key.path} = {value!r}"
        words = [key.doc] if key.doc else []
        if len(f"{assignment}  # {beside}") > WIDTH:
            words.append(beside)
        else:
            assignment += f"  # {beside}"
        for line in words:
            yield from (f"    # {part}" for part in textwrap.wrap(line, WIDTH - 6))
        yield assignment


def describe(key: Key, value: object) -> str:
    """What a key may be, and its default where `value` is another."""
    if key.default is dataclasses.MISSING:
        return f"{key.allowed}; no default"
    return key.allowed if key.default == value else f"{key.allowed}; default: {key.default!r}"
