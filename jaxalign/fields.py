"""Fields of settings: beside a default stands which values it may take, and one function checks them.

    @dataclasses.dataclass(frozen=True)
    class SamplingConfig(Checked, at="config.sampling"):
        temperature: float = field(1.0, at_least=0)

A value that cannot work is refused wherever the object comes from: `freeze` names the key of the config file, an
object that is made by hand the key that its class is `at`.
"""

import dataclasses
import difflib
import math
import numbers
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxalign.errors import ConfigError

DOC = "doc"
_LIMITS = "limits"
_REPLACES = "replaces"


@dataclasses.dataclass(frozen=True)
class Limits:
    """Which values a field may take. Numbers must be finite as well, also those of fields without limits."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    choices: tuple[Any, ...] = ()
    says: str = ""

    def allow(self, value: Any) -> bool:
        """Whether `value`, a scalar, lies within the limits; NaN and infinity never do."""
        if self.choices:
            return value in self.choices
        try:
            return (
                (self.above is None or bool(value > self.above))
                and (self.at_least is None or bool(value >= self.at_least))
                and (self.below is None or bool(value < self.below))
                and (self.at_most is None or bool(value <= self.at_most))
                and math.isfinite(value)
            )
        except TypeError:
            return False

    def wanted(self, value: Any) -> str:
        """What stands after "key=value" in an error."""
        if self.says:
            return self.says
        if self.choices:
            return f" is not one of {', '.join(map(str, self.choices))}{nearest_hint(value, self.choices)}"
        low = self.at_least if self.above is None else self.above
        high = self.at_most if self.below is None else self.below
        if high is None and low == 0:
            return " must be 0 or more" if self.above is None else " must be a positive number"
        words = (
            ("at least", self.at_least),
            ("above", self.above),
            ("at most", self.at_most),
            ("below", self.below),
        )
        return f" must be {' and '.join(f'{word} {bound}' for word, bound in words if bound is not None)}"


def field(
    default: Any = dataclasses.MISSING,
    *,
    default_factory: Any = dataclasses.MISSING,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: Sequence[Any] = (),
    says: str = "",
    doc: str = "",
    replaces: Sequence[str] = (),
    zero_replaces: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """Makes a dataclass field with the values that it may take.

    Args:
      above, at_least, below, at_most: bounds of a number. None passes where the field's type allows it.
      choices: all values there are.
      says: what an error says after "key=value", in place of " must be at least 1" and the like.
      doc: what the field means, for `--help`.
      replaces: fields of the same dataclass that a config file's word on is dropped when a flag gives this one.
      zero_replaces: so does a flag that gives 0; otherwise an empty value leaves the file's word alone.
      metadata: more, for whoever reads the field.
    """
    limits = Limits(above, at_least, below, at_most, tuple(choices), says)
    made: dict[str, Any] = {DOC: doc, **(metadata or {})}
    if limits != Limits(says=says):
        made[_LIMITS] = limits
    if replaces:
        made[_REPLACES] = (tuple(replaces), zero_replaces)
    return dataclasses.field(default=default, default_factory=default_factory, metadata=made)


def like(cls: type, name: str, **changes: Any) -> Any:
    """Makes a field with the default, limits and doc of field `name` of `cls`; `changes` are arguments of `field`."""
    found = {each.name: each for each in dataclasses.fields(cls)}[name]
    limits = limits_of(found) or Limits()
    given = {key.name: getattr(limits, key.name) for key in dataclasses.fields(Limits)}
    return field(**{"default": found.default, "doc": found.metadata.get(DOC, ""), **given, **changes})


def limits_of(found: dataclasses.Field) -> Limits | None:
    """The limits that a dataclass field was given."""
    return found.metadata.get(_LIMITS)


def replaced_by(cls: type) -> dict[str, tuple[tuple[str, ...], bool]]:
    """By each field of `cls` that replaces others: their names, and whether 0 does so, too."""
    return {
        each.name: each.metadata[_REPLACES] for each in dataclasses.fields(cls) if _REPLACES in each.metadata
    }


def check(cls: type, values: Mapping[str, Any], key: Callable[[str], str]) -> None:
    """Checks the values of the fields of dataclass `cls`, by name; those that jax traces are taken as they are.

    Args:
      key: gives the name by which the user knows a field.

    Raises:
      ConfigError: names the first key whose value lies outside its limits, the value, and what it may be.
    """
    hints = typing.get_type_hints(cls)
    for each in dataclasses.fields(cls):
        if each.name not in values:
            continue
        limits, value, kinds = limits_of(each), values[each.name], _kinds(hints[each.name])
        numbers_in = value if isinstance(value, tuple) else (value,)
        if limits is None:
            if any(isinstance(x, float) and not math.isfinite(x) for x in numbers_in):
                raise ConfigError(f"{key(each.name)}={value!r} must be finite")
            continue
        if _traced(value) or (value is None and types.NoneType in kinds):
            continue
        whole = int not in kinds or float in kinds or isinstance(value, numbers.Integral)
        if not (whole and limits.allow(value)):
            raise ConfigError(f"{key(each.name)}={value!r}{limits.wanted(value)}")


class Checked:
    """Base of dataclasses whose fields are checked as soon as one is made.

    `at` is the key under which errors speak of it: `class SamplingConfig(Checked, at="config.sampling")`; without,
    they have the name of the class. A class with checks of its own calls `super().__post_init__()` first.
    """

    _at = ""

    def __init_subclass__(cls, at: str = "", **more: Any) -> None:
        super().__init_subclass__(**more)
        if at:
            cls._at = at

    @classmethod
    def key(cls, name: str) -> str:
        """The name by which the user knows a field."""
        return f"{cls._at or cls.__name__}.{name}"

    def __post_init__(self) -> None:
        check(type(self), vars(self), self.key)


def nearest(word: Any, known: Sequence[Any]) -> str:
    """The one of `known` that `word` was probably meant to be, in whatever case; "" when none is near."""
    by_lower = {str(each).lower(): str(each) for each in known}
    near = difflib.get_close_matches(str(word).lower(), list(by_lower), 1)
    return by_lower[near[0]] if near else ""


def nearest_hint(word: Any, known: Sequence[Any]) -> str:
    """`; did you mean 'x'?`, or nothing when no word is near."""
    near = nearest(word, known)
    return f"; did you mean {near!r}?" if near else ""


def _kinds(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _traced(value: Any) -> bool:
    # Nothing is traced before jax is imported, which takes a second that a wrong flag need not wait for.
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)
