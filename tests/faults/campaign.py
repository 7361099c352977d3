"""What the campaigns of this folder have in common: flags, a folder to work in, a file of rows."""

import argparse
import contextlib
import json
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any


def make_parser(doc: str | None, *, of: str = "") -> argparse.ArgumentParser:
    """The flags that all have; with --only where a campaign is over several things, such as `of` names."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    if of:
        parser.add_argument("--only", default="", help=f"{of}, separated by commas; all by default")
    parser.add_argument("--folder", default="", help="for data and runs; by default a temporary one")
    parser.add_argument("--out", default="", help="a JSONL file, to which a row is added for each result")
    return parser


@contextlib.contextmanager
def working_folder(asked: argparse.Namespace) -> Iterator[pathlib.Path]:
    """The folder that was asked for, or one that goes when the campaign is over."""
    with tempfile.TemporaryDirectory() as temporary:
        yield pathlib.Path(asked.folder or temporary)


def chosen(asked: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """What --only names, or else all."""
    return asked.only.split(",") if asked.only else list(names)


def add_rows(asked: argparse.Namespace, *rows: dict[str, Any]) -> None:
    """Adds results to the file that was asked for, if any."""
    if asked.out:
        with open(asked.out, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
