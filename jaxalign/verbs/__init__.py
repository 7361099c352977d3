"""The verbs of the command line, each in a file.

The file of verb `name` has a class `NameRequest`, from which the flags and the help are made, and a function `run`
that takes such a request, prints what there is to say, and returns the exit code.
"""

import importlib
from types import ModuleType

from jaxalign.verbs.requests import Request

VERBS = (
    "quickstart",
    "train",
    "prepare",
    "audit",
    "plan",
    "evaluate",
    "tokenizer",
    "generate",
    "label",
    "chat",
    "compare",
    "convert",
    "verify",
    "ablate",
    "version",
)
# Those that go on where they were stopped, when the same command is given again.
RESUMED = ("quickstart", "train", "prepare", "ablate")


def load_verb(name: str) -> tuple[ModuleType, type[Request]]:
    """The module of a verb and the class of its requests."""
    module = importlib.import_module(f"jaxalign.verbs.{name}")
    return module, getattr(module, f"{name.capitalize()}Request")
