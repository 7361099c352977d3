"""Between `ml_collections` at the edge and the frozen dataclasses that everything else sees.

A config file returns a ConfigDict; flags override single keys of it; `freeze` turns it once into a dataclass.
Defaults, types and comments live in the dataclasses alone.
"""

import contextlib
import dataclasses
import difflib
import importlib
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from jaxalign.errors import ConfigError, JaxalignError
from jaxalign.hub import is_foreign


def thaw(cls: type, **given: Any) -> ConfigDict:
    """The ConfigDict of a dataclass's defaults, with fields of `given` in their place.

    Optional fields are placeholders that may be set later. The class's own checks run in `freeze` only, since
    defaults may have holes that a config file must fill.
    """
    out = ConfigDict()
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if field.name in given:
            value = given[field.name]
        elif dataclasses.is_dataclass(hint):
            value = thaw(hint)
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            value = field.default
        if value is None:
            kinds = [t for t in typing.get_args(hint) if t is not types.NoneType]
            value = config_dict.placeholder(typing.get_origin(kinds[0]) or kinds[0])
        out[field.name] = value
    return out


def freeze(cls: type, values: ConfigDict, path: str = "config") -> Any:
    """Builds the dataclass `cls` from `values`.

    Raises:
      ConfigError: a key that `cls` lacks (with the nearest one), or a value of another type; names the key.
    """
    hints = typing.get_type_hints(cls)
    check_keys(list(values.keys()), list(hints), path)
    given = {}
    for key, value in values.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            given[key] = freeze(hint, value, f"{path}.{key}")
        else:
            given[key] = _typed(value, hint, f"{path}.{key}")
    return cls(**given)


def check_keys(given: list[str], known: list[str], path: str) -> None:
    """Raises ConfigError for the first of `given` that is not `known`, naming the nearest known key."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = (
                f"did you mean {path}.{near[0]}?" if near else f"the keys here are {', '.join(sorted(known))}"
            )
            raise ConfigError(f"{path}.{key} does not exist; {hint}")


def _typed(value: Any, hint: Any, path: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and types.NoneType in options:
        return None
    kinds = [typing.get_origin(option) or option for option in options]
    if isinstance(value, ConfigDict) and dict in kinds:
        return value.to_dict()
    if tuple in kinds and isinstance(value, list | tuple):
        return _items(value, options[kinds.index(tuple)], path)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, tuple(kinds)) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(kind.__name__ for kind in kinds if kind is not types.NoneType)
        raise ConfigError(f"{path}={value!r} must be of type {names}")
    return value


def _items(value: Any, hint: Any, path: str) -> tuple:
    # An empty flag, or None, arrives as one empty item.
    items = tuple(item for item in value if item not in ("", None))
    kind = typing.get_args(hint)[0]
    return tuple(_typed(item, kind, f"{path}[{i}]") for i, item in enumerate(items))


def load_config(name: str, arg: str = "") -> ConfigDict:
    """`get_config(arg)` of one of the config files that are installed with the package: "sft", "dpo", ..."""
    return importlib.import_module(f"jaxalign.configs.{name}").get_config(arg)


def parse_flags(argv: list[str], *, workdir: bool = True) -> tuple[ConfigDict, str]:
    """Reads `--config=FILE[:ARG] --config.key=value ... [--workdir=DIR]`.

    Returns:
      The locked ConfigDict with the overrides applied, and the workdir ("" when not asked for).

    Raises:
      ConfigError: a missing or unknown flag, an unknown config key (with the nearest one), a value that does
        not parse as the key's type, or a config file that does not exist or does not run.
    """
    argv = _for_model(_joined(argv))
    values = flags.FlagValues()
    full = ["jaxalign", *argv]
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=full)
    if workdir:
        flags.DEFINE_string("workdir", None, "", flag_values=values)
    files = [arg.removeprefix("--config=").split(":")[0] for arg in argv if arg.startswith("--config=")]
    if not files:
        raise ConfigError("--config=FILE is missing; for instance --config=configs/sft.py")
    if not os.path.isfile(files[-1]):
        raise ConfigError(f"--config={files[-1]} does not exist; jaxalign's own config files lie in configs/")
    if workdir and not any(arg.startswith("--workdir") for arg in argv):
        raise ConfigError("--workdir=DIR is missing: the folder for checkpoints, metrics and the final model")
    try:
        with _blaming(files[-1]):
            rest = values(full)[1:]
            if values.config is None:
                raise ConfigError(f"--config={files[-1]}: get_config returns nothing; return the config")
            values.config.get("stage")  # an OSError in the file is raised only when the config is looked into
        if rest:
            raise ConfigError(f"{rest[0]!r} is not a flag; write --config.key=value")
        _leave_out(values.config, argv)
        return values.config, values.workdir if workdir else ""
    except ConfigError:
        raise
    except (AttributeError, KeyError) as error:
        key, near = re.search(r"\w+", str(error)), re.search(r'Did you mean "(\w+)"', str(error))
        flag = next(
            (a.split("=")[0][2:] for a in argv if key and f".{key[0]}" in a.split("=")[0]), str(error)
        )
        hint = f"did you mean {near[1]!r}?" if near else "the config file shows the keys"
        raise ConfigError(f"{flag} does not exist; {hint}") from error
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


@contextlib.contextmanager
def _blaming(file: str) -> Iterator[None]:
    """Turns what code in `file` raises, or a sys.exit there, into a ConfigError; other errors are the flags' own."""
    try:
        yield
    except (Exception, SystemExit) as error:
        cause: BaseException | None = error
        while cause is not None and (line := _line_of(file, cause)) is None:
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        if isinstance(cause, JaxalignError):
            raise ConfigError(f"--config={file}, line {line}: {cause}") from error
        raise ConfigError(
            f"--config={file}, line {line}: {type(cause).__name__}: {cause}; mend the config file"
        ) from error


def _line_of(file: str, error: BaseException) -> int | None:
    """The line of `file` where `error` arose, or None if that was elsewhere."""
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno))
    lines = [line for name, line in places if os.path.abspath(name) == os.path.abspath(file)]
    return lines[-1] if lines else None


# What a flag means that the config file cannot know. Of two keys one of which replaces the other, the one that is given
# by a flag; with training data by a flag, shares and held-out data that the file names for its own are not meant.
_REPLACED = {
    "data.train": ("data.weights", "data.eval"),
    "num_epochs": ("num_steps",),
    "optimizer.warmup": ("optimizer.warmup_steps",),
    "optimizer.warmup_steps": ("optimizer.warmup",),
    "ppo.reward_function": ("ppo.reward_model",),
    "ppo.reward_model": ("ppo.reward_function",),
    "data.eval": ("data.eval_fraction",),
    "data.eval_fraction": ("data.eval",),
}


def _given(argv: list[str]) -> set[str]:
    """The keys of the config that flags give."""
    return {arg.split("=")[0].removeprefix("--config.") for arg in argv if arg.startswith("--config.")}


def _leave_out(config: ConfigDict, argv: list[str]) -> None:
    """Takes out of a config what its file says in place of what flags say, and tells it."""
    given = _given(argv)
    for key, replaced in _REPLACED.items():
        # A warm-up of 0 is one, too; of the other keys, nothing means that the file's word holds.
        if key not in given or not (_get(config, key) or key.startswith("optimizer.warmup")):
            continue
        for other in replaced:
            value = _get(config, other)
            if other in given or not value:
                continue
            _tell(f"--config.{key} is yours: the config file's config.{other}={value!r} is left out")
            config.update_from_flattened_dict({other: type(value)()})
    _leave_out_architecture(config, given)


def _get(config: ConfigDict, key: str) -> Any:
    for part in key.split("."):
        if part not in config:
            return None
        config = config[part]
    return config


def _leave_out_architecture(config: ConfigDict, given: set[str]) -> None:
    """With a model to start from by a flag, tokenizer and sizes of a file that trains from scratch are not meant."""
    if "model.init_from" not in given or not _get(config, "model.init_from"):
        return
    if "data.tokenizer" in given or not _get(config, "data.tokenizer"):
        return
    from jaxalign.models.config import ARCHITECTURE_KEYS, ModelConfig

    config.data.tokenizer = ""
    for key in ARCHITECTURE_KEYS:
        if f"model.{key}" not in given:
            config.model[key] = getattr(ModelConfig, key)
    _tell("--config.model.init_from is yours: it brings its own architecture and tokenizer")


def _joined(argv: list[str]) -> list[str]:
    """Flags as `--name=value`, also those that were given as `--name value` or with one dash."""
    joined: list[str] = []
    for arg in argv:
        name = re.fullmatch(r"--?((?:config|workdir)(?:\..*|=.*)?)", arg)
        before = joined[-1] if joined else ""
        if name:
            joined.append(f"--{name[1]}")
        elif re.fullmatch(r"--(config|workdir)(\.[\w.]+)?", before) and not arg.startswith("-"):
            joined[-1] = f"{before}={arg}"
        else:
            joined.append(arg)
    return joined


def _for_model(argv: list[str]) -> list[str]:
    """The arguments, with the settings for fine-tuning chosen where a model from elsewhere meets a file without a word.

    Without a word of its own a stage's config file is the quickstart's, for a model of a million parameters. A file
    that knows others says so: it has `names_model`.
    """
    models = [arg.split("=", 1)[1] for arg in argv if arg.startswith("--config.model.init_from=")]
    files = [index for index, arg in enumerate(argv) if arg.startswith("--config=")]
    if not files or not models or not models[-1]:
        return argv
    path = argv[files[-1]].removeprefix("--config=")
    if not os.path.isfile(path) or not is_foreign(models[-1]):
        return argv
    with open(path, encoding="utf-8") as file:
        if "names_model" not in file.read():
            return argv
    _tell(f"{models[-1]} is no model of the quickstart: settings for fine-tuning are taken, {path}:finetune")
    return [*argv[: files[-1]], f"--config={path}:finetune", *argv[files[-1] + 1 :]]


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
