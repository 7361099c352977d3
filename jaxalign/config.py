"""Between `ml_collections` at the edge and the frozen dataclasses that everything else sees.

A config file returns a ConfigDict; flags override single keys of it; `freeze` turns it once into a dataclass.
Defaults, types and comments live in the dataclasses alone.
"""

import dataclasses
import difflib
import re
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from jaxalign.config_files import call_get_config, find_config, load_get_config
from jaxalign.errors import ConfigError
from jaxalign.fields import check, replaced_by

_CLASS = "_jaxalign_class"  # the attribute of a ConfigDict that holds the dataclass it was made of


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
            value = thaw(typing.cast(type, hint))
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            value = field.default
        if value is None:
            value = _placeholder(typing.get_args(hint))
        out[field.name] = value
    object.__setattr__(out, _CLASS, cls)
    return out


def freeze(cls: type, values: ConfigDict, path: str = "config") -> Any:
    """Builds the dataclass `cls` from `values`.

    Raises:
      ConfigError: a key that `cls` lacks (with the nearest one), a value of another type or outside the limits of its
        field; names the key.
    """
    hints = typing.get_type_hints(cls)
    check_keys(list(values.keys()), list(hints), path)
    given = {}
    for key, value in values.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            given[key] = freeze(typing.cast(type, hint), value, f"{path}.{key}")
        else:
            given[key] = _typed(value, hint, f"{path}.{key}")
    check(cls, given, lambda key: f"{path}.{key}")
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


def load_config(name: str, arg: str | None = None, **given: Any) -> ConfigDict:
    """Calls `get_config` of a config file, which is named by its path or as one of jaxalign's own: "sft", "dpo", ...

    Args:
      arg: what stands after ":" in `--config=NAME:ARG`.
      given: single parameters of get_config, where it is a `config_argument`: `load_config("dpo", root="my,folder")`.
    """
    path = find_config(name)
    return call_get_config(load_get_config(path), path, arg, **given)


def read_config(config: str, settings: Sequence[str] = ()) -> ConfigDict:
    """Reads `--config=FILE[:ARG]` and what flags of the form `--config.key=value` change in it.

    Returns:
      The locked ConfigDict.

    Raises:
      ConfigError: a config file that does not exist or does not run, an unknown config key (with the nearest one), or a
        value that does not parse as the key's type.
    """
    name, colon, arg = config.partition(":")
    path = find_config(name)
    get_config = load_get_config(path)
    values = call_get_config(get_config, path, arg if colon else None)
    flag_values = flags.FlagValues()
    given_values, unset = _split_none(values, settings)
    argv = ["jaxalign", *given_values]
    try:
        config_flags.DEFINE_config_dict("config", values, flag_values=flag_values, sys_argv=argv)
        flag_values(argv)
    except (AttributeError, KeyError) as error:
        key, near = re.search(r"\w+", str(error)), re.search(r'Did you mean "(\w+)"', str(error))
        flag = next(
            (a.split("=")[0][2:] for a in settings if key and f".{key[0]}" in a.split("=")[0]), str(error)
        )
        hint = f"did you mean {near[1]!r}?" if near else "the config file shows the keys"
        raise ConfigError(f"{flag} does not exist; {hint}") from error
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    for section, name in unset:
        section[name] = None
    given = {arg.split("=")[0].removeprefix("--config.") for arg in settings}
    for line in _leave_out(values, given):
        _tell(line)
    return values


def _split_none(
    values: ConfigDict, settings: Sequence[str]
) -> tuple[list[str], list[tuple[ConfigDict, str]]]:
    """The flags that give a value, and the keys that others set to None: by `none`, in any case.

    Makes keys whose value is None ready for flags that give one.

    Raises:
      ConfigError: `None` for a key whose empty value is written otherwise.
    """
    fields = {
        f"--config.{path}{name}": (section, name, typing.get_args(hint), getattr(cls, name, None))
        for path, section, cls in sections(values)
        for name, hint in typing.get_type_hints(cls).items()
        if name in section
    }
    for section, name, kinds, _ in fields.values():
        if types.NoneType in kinds and section[name] is None:
            section[name] = _placeholder(kinds)
    last = {flag.partition("=")[0]: flag for flag in settings}
    left, unset = [], []
    for flag in settings:
        key, _, text = flag.partition("=")
        section, name, kinds, default = fields.get(key, (None, "", (), None))
        if section is None or text.lower() != "none":
            left.append(flag)
        elif types.NoneType in kinds:
            unset += [(section, name)] if last[key] is flag else []
        elif text == "None" and default == "":
            raise ConfigError(
                f"{flag} would be the text 'None'; {key}= (with nothing behind) leaves it empty"
            )
        else:
            left.append(flag)
    return left, unset


def _placeholder(kinds: tuple[Any, ...]) -> Any:
    """What stands for None in a ConfigDict, so that a value of the kinds may replace it."""
    kind = next(kind for kind in kinds if kind is not types.NoneType)
    return config_dict.placeholder(typing.get_origin(kind) or kind)


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
                section[other] = type(value)()
        if hasattr(cls, "leave_out"):
            lines += cls.leave_out(section, given)
    return lines


def sections(values: ConfigDict, path: str = "") -> Iterator[tuple[str, ConfigDict, type]]:
    """Yields a ConfigDict and those in it that `thaw` made: the beginning of its keys, itself, and its dataclass."""
    if hasattr(values, _CLASS):
        yield path, values, getattr(values, _CLASS)
    for key, value in values.items():
        if isinstance(value, ConfigDict):
            yield from sections(value, f"{path}{key}.")


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
