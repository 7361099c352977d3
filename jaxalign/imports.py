"""Importing a package without what it would load beside."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def hidden(name: str) -> Iterator[None]:
    """While inside, an import of the package `name` fails as if it were not installed, unless it is loaded already."""
    modules: dict[str, Any] = sys.modules
    if name in modules:
        yield
        return
    modules[name] = None
    try:
        yield
    finally:
        del modules[name]
