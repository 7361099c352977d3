"""Config files: Python files with a function `get_config`, found by their path or, if jaxalign's own, by name."""

import contextlib
import importlib.machinery
import importlib.util
import os
import pathlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxalign.errors import ConfigError, JaxalignError, UsageError
from jaxalign.fields import nearest


def own_configs() -> dict[str, pathlib.Path]:
    """The config files that come with jaxalign, by name."""
    # In a checkout this is a link to the folder beside the package, so that both can be imported in the same way.
    folder = pathlib.Path(__file__).parent / "configs"
    return {file.stem: file for file in sorted(folder.glob("[!_]*.py"))}


def find_config(name: str) -> str:
    """The path of a config file that is named by its path, or by one of jaxalign's own names: "dpo".

    Raises:
      UsageError: there is no such file; says which name is nearest.
    """
    return find_own(name, own_configs(), "--config=")


def find_own(name: str, own: Mapping[str, pathlib.Path], flag: str) -> str:
    """The path of a file that is named by its path, or by a name among `own`.

    Args:
      flag: what stands before it where it is given.

    Raises:
      UsageError: there is no such file; says which name is nearest.
    """
    # Shells leave a `~` alone that stands behind `=`.
    if os.path.isfile(path := os.path.expanduser(name)):
        return path
    if name in own:
        return str(own[name])
    near = nearest(pathlib.PurePath(name).stem, list(own))
    hint = f"did you mean {flag}{near}? " if near else ""
    raise UsageError(
        f"{flag}{name} does not exist; {hint}write the path of a file, or one that comes with jaxalign: "
        f"{', '.join(own)}"
    )


def load_get_config(path: str) -> Any:
    """Runs the config file at `path` and returns its function `get_config`.

    Raises:
      ConfigError: the file does not run, or has no such function; names the line.
    """
    return load_function(path, "get_config", "config", "--config=")


def load_function(path: str, function: str, returns: str, flag: str) -> Any:
    """Runs the file at `path` and returns its function of that name.

    Args:
      returns: what the function is to return, in a word.
      flag: what stands before the path where it is given.

    Raises:
      ConfigError: the file does not run, or has no such function; names the line.
    """
    name = f"jaxalign.{returns}_file.{pathlib.PurePath(path).stem}"
    loader = importlib.machinery.SourceFileLoader(name, path)
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses of the file look up their module there.
    sys.modules[name] = module
    with blaming(path, flag):
        loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise ConfigError(f"{flag}{path} has no function {function}; write one that returns a {returns}")
    return getattr(module, function)


def call_get_config(get_config: Any, path: str, arg: str | None, **given: Any) -> ConfigDict:
    """Calls the function of the config file at `path` with its argument, where there is one, and what else is given.

    Raises:
      ConfigError: it fails, does not take `arg`, or returns something else than a ConfigDict.
    """
    where = f"--config={path}{'' if arg is None else f':{arg}'}"
    try:
        with blaming(path):
            config = get_config(**given) if arg is None else get_config(arg, **given)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}; the argument after ':' is that of get_config") from error
    if config is None:
        raise ConfigError(f"--config={path}: get_config returns nothing; return the config")
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"--config={path}: get_config returns a {type(config).__name__}; return a ConfigDict"
        )
    return config


@contextlib.contextmanager
def blaming(path: str, flag: str = "--config=") -> Iterator[None]:
    """Turns what the code of a config file raises, or a sys.exit there, into a ConfigError with its line.

    A deliberate error without a line of the file is put down to the file; all others pass.

    Args:
      flag: what stands before the path where it is given.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        cause: BaseException | None = error
        while cause is not None and (line := _line_of(path, cause)) is None:
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            said = str(cause) if isinstance(cause, JaxalignError) else f"{type(cause).__name__}: {cause}"
            way_out = "" if isinstance(cause, JaxalignError) else "; mend the file"
            raise ConfigError(f"{flag}{path}, line {line}: {said}{way_out}") from error
        if isinstance(error, JaxalignError | OSError | UnicodeError):
            kind = UsageError if isinstance(error, UsageError) else ConfigError
            raise kind(f"{flag}{path}: {error}") from error
        raise


def _line_of(path: str, error: BaseException) -> int | None:
    """The line of the file where `error` arose, or None if that was elsewhere."""
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno))
    lines = [line for name, line in places if os.path.abspath(name) == os.path.abspath(path)]
    return lines[-1] if lines else None
