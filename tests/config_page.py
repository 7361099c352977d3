"""docs/config.md, made from the dataclasses that configs are: python -m tests.config_page"""

import textwrap
from collections.abc import Iterator
from pathlib import Path

from jaxalign.keys import Key
from jaxalign.peer_names import ROWS
from jaxalign.stages import NAMES, find_stage
from jaxalign.training.config import config_keys
from jaxalign.verbs.config_text import describe

PAGE = Path(__file__).parents[1] / "docs/config.md"
HEAD = """# Keys of a config

Made from the dataclasses by `python -m tests.config_page`: change a key there.

A config file returns `jaxalign.default_config(STAGE)` with some keys changed; a flag `--config.KEY=VALUE` changes one
more. `jaxalign train --config=... --print-config` prints a config with the values that it has, as a config file that
can be saved and changed. A flag may say None, too: `--config.optimizer.clip_norm=None`. Several values are parted by
commas: `--config.data.train=a.jsonl,b.jsonl`.

Each key is followed by its default and by what it may be.
"""
ELSEWHERE = """
## Names in other codebases

A flag or a config file with one of these names is refused with the key that it has here, and its value where that
changes too. `STAGE` stands for the stage of the config.
"""


def page() -> str:
    """The text of docs/config.md."""
    lines = [HEAD]
    stages = [find_stage(name) for name in NAMES]
    shared = [key for key in config_keys(stages[0]) if not key.path.startswith(f"{NAMES[0]}.")]
    lines += ["\n## All stages\n", *_listed(shared)]
    for stage in stages:
        own = [key for key in config_keys(stage) if key.path.startswith(f"{stage.name}.")]
        lines += [f"\n## Stage {stage.name}\n", *(_listed(own) if own else ["No keys of its own."])]
    return "\n".join([*lines, ELSEWHERE, *_elsewhere()]) + "\n"


def _listed(keys: list[Key]) -> Iterator[str]:
    section, title = "", ""
    for key in keys:
        above, _, leaf = key.path.rpartition(".")
        if above != section:
            section, title = above, ""
            yield f"\n### config.{above}\n"
        if key.title != title:
            title = key.title
            yield f"\n{title}:\n"
        name = f"config.{leaf}" if not above else leaf
        said = f"- `{name}` = `{key.default!r}` ({describe(key, key.default)})"
        yield _wrapped(f"{said}: {key.doc}" if key.doc else said)


def _elsewhere() -> Iterator[str]:
    for names, peer in ROWS:
        here = " or ".join(f"`config.{key}`" for key in peer.keys)
        yield _wrapped(
            f"- {', '.join(f'`{name}`' for name in names)}: {', '.join(filter(None, [here, peer.note]))}"
        )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
