"""Between `ml_collections` at the edge and the frozen dataclasses that everything else sees.

`thaw` makes of a dataclass a ConfigDict that knows what its keys are, for a config file to change; `freeze` turns it
once into the dataclass. Defaults, types and comments live in the dataclasses alone.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from jaxalign.errors import ConfigError
from jaxalign.fields import check
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
            value = placeholder(typing.get_args(hint))
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


def placeholder(kinds: tuple[Any, ...]) -> Any:
    """What stands for None in a ConfigDict, so that a value of the kinds may replace it."""
    kind = next(kind for kind in kinds if kind is not types.NoneType)
    return config_dict.placeholder(typing.get_origin(kind) or kind)


def sections(values: ConfigDict, path: str = "") -> Iterator[tuple[str, ConfigDict, type]]:
    """Yields a ConfigDict and those in it that `thaw` made: the beginning of its keys, itself, and its dataclass."""
    if isinstance(values, Section) and values.declared:
        yield path, values, values.declared
    for key, value in values.items():
        if isinstance(value, ConfigDict):
            yield from sections(value, f"{path}{key}.")
