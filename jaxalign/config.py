"""Config files, and the flags that change single keys of what they return."""

import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxalign.config_files import call_get_config, find_config, load_get_config
from jaxalign.errors import UsageError
from jaxalign.fields import replaced_by
from jaxalign.keys import type_words
from jaxalign.peer_names import suggest
from jaxalign.sections import Section, flat_keys, placeholder, sections


def load_config(name: str, arg: str | None = None, **given: Any) -> ConfigDict:
    """Calls `get_config` of a config file, which is named by its path or as one of jaxalign's own: "sft", "dpo", ...

    Args:
      arg: what stands after ":" in `--config=NAME:ARG`.
      given: single parameters of get_config, where it is a `config_argument`: `load_config("dpo", root="my,folder")`.
    """
    path = find_config(name)
    return call_get_config(load_get_config(path), path, arg, **given)


def read_config(
    config: str, settings: Sequence[str] = (), default: Callable[[str], ConfigDict] | None = None
) -> ConfigDict:
    """Reads `--config=FILE[:ARG]` and what flags of the form `--config.key=value` change in it.

    Args:
      default: gives the config of a stage. With it a plain ConfigDict that the file returns, such as a copy by
        `ConfigDict(config)` or one made of JSON, takes the same flags as the config that it was made of.

    Returns:
      The locked ConfigDict.

    Raises:
      UsageError: a config file or a key that does not exist (with the nearest one), or a value that does not parse as
        the key's type.
      ConfigError: a config file that does not run.
    """
    name, colon, arg = config.partition(":")
    path = find_config(name)
    get_config = load_get_config(path)
    values = call_get_config(get_config, path, arg if colon else None)
    if default and not _knows_its_keys(values) and isinstance(values.get("stage"), str):
        values = _declared(values, default(values.stage))
    given = {key for key, _ in map(_split, settings)}
    _set(values, settings)
    for line in _leave_out(values, given):
        _tell(line)
    return values


def _declared(values: ConfigDict, into: ConfigDict) -> ConfigDict:
    """Gives the values of a ConfigDict that does not know what its keys are to one that does, and returns that."""
    # References between keys stay, so that a flag for one of them holds for all; `update` takes none.
    for key, value in values.items(preserve_field_references=True):
        if isinstance(value, ConfigDict) and isinstance(into.get(key), Section):
            _declared(value, into[key])
        else:
            into[key] = value
    return into


def _split(setting: str) -> tuple[str, str | None]:
    """The key of `--config.key=value`, and its value; None where there is none."""
    flag, equals, value = setting.partition("=")
    return flag.removeprefix("--no").removeprefix("--").removeprefix("config."), value if equals else None


def _set(values: ConfigDict, settings: Sequence[str]) -> None:
    """Gives keys the values that flags say.

    Raises:
      UsageError: a key that does not exist, a section, or a value that cannot be read; names the flag.
    """
    others = []
    last = {_split(setting)[0]: setting for setting in settings}  # of several values the last one holds
    for setting in last.values():
        key, value = _split(setting)
        section, leaf = _find(values, key, value)
        hint = _hints(section).get(leaf)
        if value is None and not isinstance(section[leaf], bool):
            raise UsageError(f"--config.{key} has no value; write --config.{key}={section[leaf]} or another")
        if section[leaf] is None and hint is not None:
            section[leaf] = placeholder(typing.get_args(hint))
        if isinstance(section[leaf], list):  # flags know of tuples alone
            _replace(section, leaf, tuple(section[leaf]))
        if (value or "").lower() == "none" and hint is not None and types.NoneType in typing.get_args(hint):
            section[leaf] = None
        elif value == "None" and section[leaf] == "":
            raise UsageError(
                f"{setting} would be the text 'None'; --config.{key}= (with nothing behind) leaves it empty"
            )
        else:
            others.append(setting)
    argv = ["jaxalign", *others]
    flag_values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", values, flag_values=flag_values, sys_argv=argv)
    try:
        flag_values(argv)
    except (flags.Error, TypeError, ValueError, KeyError) as error:
        raise UsageError(_unreadable(values, others) or str(error)) from error


def _replace(section: ConfigDict, key: str, value: Any) -> None:
    """Gives a key a value that is not made of the type of the one before, and that no reference to that one sees."""
    with section.unlocked():
        del section[key]
        section[key] = value


def _find(values: ConfigDict, key: str, value: str | None) -> tuple[ConfigDict, str]:
    """The section that has a key, and the last part of its name there.

    Raises:
      UsageError: there is no such key, or it is a section.
    """
    section: Any = values
    *above, leaf = key.split(".")
    for part in above:
        section = section[part] if isinstance(section, ConfigDict) and part in section else None
    keys = flat_keys(values)
    if not isinstance(section, ConfigDict) or leaf not in section:
        hint = suggest(key, value, keys, values.get("stage", ""), "--config.")
        raise UsageError(f"--config.{key} does not exist; {hint}")
    if _knows_its_keys(section[leaf]):
        own = ", ".join(flat_keys(section[leaf]))
        raise UsageError(
            f"--config.{key} is a section; set one of its keys, as --config.{key}.KEY=VALUE: {own}"
        )
    return section, leaf


def _knows_its_keys(values: Any) -> bool:
    return isinstance(values, Section) and values.declared is not None


def _hints(section: ConfigDict) -> dict[str, Any]:
    cls = section.declared if isinstance(section, Section) else None
    return typing.get_type_hints(cls) if cls else {}


def _unreadable(values: ConfigDict, settings: Sequence[str]) -> str:
    """Which of the settings cannot be read, and what would be; "" where each alone can."""
    for setting in settings:
        key, _ = _split(setting)
        section, leaf = _find(values, key, None)
        flag_values = flags.FlagValues()
        argv = ["jaxalign", setting]
        try:
            config_flags.DEFINE_config_dict("config", values, flag_values=flag_values, sys_argv=argv)
            flag_values(argv)
        except (flags.Error, TypeError, ValueError, KeyError):
            hint = _hints(section).get(leaf)
            kind = type_words(hint) if hint is not None else type(section[leaf]).__name__
            return f"{setting} cannot be read; it must be of type {kind}"
    return ""


def _leave_out(values: ConfigDict, given: set[str]) -> list[str]:
    """Takes out of a config what its file says in place of what flags say; returns what there is to tell.

    Of two keys one of which replaces the other, the one holds that is given by a flag. The dataclasses say which keys
    these are: a field by `replaces`, a class by a method `leave_out(values, given)` of its own.
    """
    lines = []
    for path, section, cls in sections(values):
        for name, (replaced, zero_replaces) in replaced_by(cls).items():
            # Of a key that is given empty, nothing means that the file's word holds.
            if path + name not in given or not (section[name] or zero_replaces):
                continue
            for other in replaced:
                value = section[other]
                if path + other in given or not value:
                    continue
                lines.append(
                    f"--config.{path}{name} is yours: the config file's config.{path}{other}={value!r} is left out"
                )
                # What the file counts from it by a reference stays as it is.
                _replace(section, other, type(value)())
        if hasattr(cls, "leave_out"):
            lines += cls.leave_out(section, given)
    return lines


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
