"""Between `ml_collections` at the edge and the frozen dataclasses that everything else sees.

A config file returns a ConfigDict; flags override single keys of it; `freeze` turns it once into a dataclass.
Defaults, types and comments live in the dataclasses alone.
"""

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from jaxalign.config_files import call_get_config, find_config, load_get_config
from jaxalign.errors import ConfigError, UsageError
from jaxalign.fields import check, replaced_by
from jaxalign.keys import type_words
from jaxalign.peer_names import suggest

_CLASS = "_jaxalign_class"  # the attribute of a ConfigDict that holds the dataclass it was made of
_PARENT = "_jaxalign_parent"  # and that of the section above it, with its key there
_REQUIRED = "_jaxalign_required"  # and its keys for which a config file has `required_placeholder`


class UnknownKey(ConfigError, AttributeError):
    """A config file sets or reads a key that does not exist."""


class Section(ConfigDict):
    """A ConfigDict that knows its place in a config: of what it refuses, it says which key was meant.

    A field of several types, such as `str | tuple[str, ...]`, takes a value of any of them.
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.is_locked and key not in self.keys():
            raise UnknownKey(unknown_key(self, key, str(value)[:60]))
        if _is_required(value):  # what cannot be read is not kept: a flag, or the file itself, gives another
            object.__setattr__(self, _REQUIRED, self.required | {key})
            return
        object.__setattr__(self, _REQUIRED, self.required - {key})
        if isinstance(value, Section):
            object.__setattr__(value, _PARENT, (self, key))
        elif isinstance(self.get(key), Section) and self[key].declared:
            if not isinstance(value, dict):
                # Also a ConfigDict: of a copy with the other keys, what is set in it later would be lost.
                raise ConfigError(_no_section(f"config.{self.path}{key}", value, flat_keys(self[key])))
            # Its other keys have their defaults, and stay there for flags to set.
            section: Any = thaw(self[key].declared)
            self[key] = section
            section.lock()
            section.update(value)
            return
        try:
            super().__setitem__(key, value)
        except TypeError:
            hint = typing.get_type_hints(self.declared).get(key) if self.declared else None
            path = f"config.{self.path}{key}"
            if hint is None:
                raise ConfigError(f"{path}={value!r} is of another type than {self[key]!r}") from None
            referred = isinstance(value, config_dict.FieldReference)
            _typed(value.get() if referred else value, hint, path)
            if referred and isinstance(self.get(key), float):
                value = value.to_float()  # as a whole number is one, also where a flag changes it
            with self.ignore_type():
                super().__setitem__(key, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise UnknownKey(unknown_key(self, name)) from None

    def get_ref(self, key: str) -> Any:
        """A reference to the value that a key has once all are given."""
        required = self.required
        base: Any = super()
        found = base.get_ref(key)  # puts the reference in the place of the value, which gives nothing
        object.__setattr__(self, _REQUIRED, required)
        return found

    def __setstate__(self, state: dict[str, Any]) -> None:
        base: Any = super()
        base.__setstate__(state)
        for name in (_CLASS, _REQUIRED):
            if name in state:
                object.__setattr__(self, name, state[name])

    @property
    def declared(self) -> type | None:
        """The dataclass that says of its keys what they are."""
        return self.__dict__.get(_CLASS)

    @property
    def required(self) -> frozenset[str]:
        """The keys that the config file leaves to be given, and nobody has given yet."""
        return self.__dict__.get(_REQUIRED, frozenset())

    @property
    def path(self) -> str:
        """What its keys begin with below config: "optimizer."; of a whole config, nothing."""
        above = self.__dict__.get(_PARENT)
        return f"{above[0].path}{above[1]}." if above else ""

    @property
    def whole(self) -> ConfigDict:
        """The config that it is a section of."""
        above = self.__dict__.get(_PARENT)
        return above[0].whole if above else self


def _is_required(value: Any) -> bool:
    if not isinstance(value, config_dict.FieldReference):
        return False
    try:
        value.get()
    except config_dict.RequiredValueError:
        return True
    return False


def unknown_key(section: Section, key: str, value: str | None = None) -> str:
    """The error of a key that a section does not have."""
    whole = section.whole
    hint = suggest(section.path + str(key), value, flat_keys(whole), whole.get("stage", ""))
    return f"config.{section.path}{key} does not exist; {hint}"


def flat_keys(values: ConfigDict, path: str = "") -> list[str]:
    """The keys of a config below config: "seed", "optimizer.name"."""
    out: list[str] = []
    for key, value in values.items():
        inner = isinstance(value, ConfigDict) and len(value) > 0
        out += flat_keys(value, f"{path}{key}.") if inner else [f"{path}{key}"]
    return out


def thaw(cls: type, **given: Any) -> ConfigDict:
    """The ConfigDict of a dataclass's defaults, with fields of `given` in their place.

    Optional fields are placeholders that may be set later. The class's own checks run in `freeze` only, since
    defaults may have holes that a config file must fill.
    """
    out = Section()
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
      ConfigError: a key that `cls` lacks (with the nearest one), one that was to be given, a value of another type or
        outside the limits of its field; names the key.
    """
    check_given(values, path)
    hints = typing.get_type_hints(cls)
    check_keys(list(values.keys()), list(hints), path)
    given = {}
    for key, value in values.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            section = typing.cast(type, hint)
            if not isinstance(value, ConfigDict):
                raise ConfigError(_no_section(f"{path}.{key}", value, list(typing.get_type_hints(section))))
            given[key] = freeze(section, value, f"{path}.{key}")
        else:
            given[key] = _typed(value, hint, f"{path}.{key}")
    check(cls, given, lambda key: f"{path}.{key}")
    return cls(**given)


def check_given(values: ConfigDict, path: str) -> None:
    """Raises ConfigError for a key of a section that the config file leaves to be given, and nobody has given."""
    if isinstance(values, Section) and values.required:
        key = f"{path}.{min(values.required)}"
        raise ConfigError(f"{key}: the config file has no value for it and requires one; give --{key}=VALUE")


def _no_section(path: str, value: Any, keys: Sequence[str]) -> str:
    """The error of a section of a config that is given as something else."""
    shown = value.to_dict() if isinstance(value, ConfigDict) else value
    return (
        f"{path}={shown!r}: it is a section, and no value; set its keys, such as {path}.{keys[0]}, one by one"
    )


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
    if hint is Any or (value is None and types.NoneType in options):
        return value
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
    if default and not hasattr(values, _CLASS) and isinstance(values.get("stage"), str):
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
            section[leaf] = _placeholder(typing.get_args(hint))
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


def _placeholder(kinds: tuple[Any, ...]) -> Any:
    """What stands for None in a ConfigDict, so that a value of the kinds may replace it."""
    kind = next(kind for kind in kinds if kind is not types.NoneType)
    return config_dict.placeholder(typing.get_origin(kind) or kind)


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
    if isinstance(section[leaf], ConfigDict) and getattr(section[leaf], _CLASS, None) is not None:
        own = ", ".join(flat_keys(section[leaf]))
        raise UsageError(
            f"--config.{key} is a section; set one of its keys, as --config.{key}.KEY=VALUE: {own}"
        )
    return section, leaf


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


def sections(values: ConfigDict, path: str = "") -> Iterator[tuple[str, ConfigDict, type]]:
    """Yields a ConfigDict and those in it that `thaw` made: the beginning of its keys, itself, and its dataclass."""
    if hasattr(values, _CLASS):
        yield path, values, getattr(values, _CLASS)
    for key, value in values.items():
        if isinstance(value, ConfigDict):
            yield from sections(value, f"{path}{key}.")


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
