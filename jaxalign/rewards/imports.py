"""Reward functions by name: imported, and their form read from their signature."""

import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from jaxalign.errors import ConfigError
from jaxalign.rewards.functions import RewardFunction

FORMS = "f(prompt, completion, **fields) -> float, or f(prompts, completions, **fields) -> list of floats"


def import_reward_function(
    name: str, key: str, files: dict[str, ModuleType] | None = None
) -> Callable[..., Any]:
    """The callable that `module:function` names.

    Args:
      key: where the name was given, for errors.
      files: modules by name that have been loaded already, so that functions of one file share what is in it.

    Raises:
      ConfigError: not of that form, or not importable, or its file ends the program.
    """
    module, _, attribute = name.rpartition(":")
    files = {} if files is None else files
    try:
        if module not in files:
            files[module] = _load_file(module) if module.endswith(".py") else _import(module)
        function = files[module]
        for part in attribute.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{key}={name!r} cannot be imported ({error}); write FILE.py:function, or module:function with the module "
            "installed, in the current folder or on PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{key}={name!r}: importing {module} raised {type(error).__name__}: {error}; mend it: importing should "
            "do no more than define the function"
        ) from error
    if not callable(function):
        raise ConfigError(f"{key}={name!r} is not callable")
    return function


def read_form(function: Callable[..., Any], name: str, place: str) -> RewardFunction:
    """The form of a function, by the names of its parameters.

    `prompts` or `completions` make it one of batches, `prompt` or `completion` one of single completions; without any
    of them, `completion_ids` or `**fields` make it one of batches, as in TRL, and any two parameters are prompt and
    completion.

    Args:
      name: what metrics and errors call the function.
      place: where the function was named, at the head of an error.

    Raises:
      ConfigError: it has another signature.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Some functions that are not written in Python have no signature to be read.
        return RewardFunction(name, function, batched=False, positional=True)
    parameters = list(signature.parameters.values())
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = {p.name for p in named}
    rest = any(p.kind is p.VAR_KEYWORD for p in parameters)
    single = not names & {"prompts", "completions"} and bool(names & {"prompt", "completion"})
    if single or rest or names & {"prompts", "completions", "completion_ids"}:
        nameless = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
        wrong = nameless or ([] if single else sorted(names & {"prompt", "completion"}))
        if not wrong:
            required = tuple(p.name for p in named if p.default is p.empty)
            optional = tuple(p.name for p in named if p.default is not p.empty)
            return RewardFunction(name, function, not single, required, optional, rest)
    else:
        try:
            signature.bind("prompt", "completion")
            return RewardFunction(name, function, batched=False, positional=True)
        except TypeError:
            pass
    raise ConfigError(f"{place} has the signature {name}{signature}; write {FORMS}")


def _import(module: str) -> ModuleType:
    # A command line tool does not look into the current folder by itself, as `python -m` would.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(module)


def _load_file(path: str) -> ModuleType:
    # Shells leave a `~` alone that stands behind `=`.
    file = pathlib.Path(path).expanduser()
    name = f"jaxalign.reward_file.{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # what is imported is a FILE.py
    module = importlib.util.module_from_spec(spec)
    # Dataclasses of the file look up their module there.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except OSError as error:
        raise ImportError(str(error)) from error
    return module
