"""What a claim is about: a number for each seed, made of what its runs measured.

    value("score", method="dpo") - value("score", method="ppo")     paired by seed
    value("score", method="dpo", beta=0.1) / value("score", method="sft")

An effect is written down, not computed, until `per_seed` is asked: so it can be compared, shown and hashed.
"""

import dataclasses
import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any


def _divided(a: float, b: float) -> float:
    """NaN where there is nothing to divide by: such a seed is there, and its claim cannot be decided."""
    return a / b if b else math.nan


_WAYS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": _divided}

Arm = Mapping[str, Any]
# What a run measured: by seed and name of the arm, then by measure.
Table = Mapping[tuple[int, str], Mapping[str, float]]


def arm_name(arm: Arm) -> str:
    """A name from which the factors can be read: "beta=0.1,method=dpo"."""
    return ",".join(f"{name}={value}" for name, value in sorted(arm.items()))


class Effect:
    """A number for each seed; effects add, subtract, multiply and divide, with each other and with numbers."""

    def __add__(self, other: "Effect | float") -> "Effect":
        return Combined("+", self, as_effect(other))

    def __sub__(self, other: "Effect | float") -> "Effect":
        return Combined("-", self, as_effect(other))

    def __mul__(self, other: "Effect | float") -> "Effect":
        return Combined("*", self, as_effect(other))

    def __truediv__(self, other: "Effect | float") -> "Effect":
        return Combined("/", self, as_effect(other))

    def of_seed(self, table: Table, seed: int) -> float:
        """The number of a seed; KeyError where one of its runs is not there."""
        raise NotImplementedError

    def values(self) -> "Iterator[Value]":
        """The measurements that it is made of."""
        yield from ()

    def per_seed(self, table: Table, seeds: tuple[int, ...]) -> dict[int, float]:
        """The number of each seed whose runs are all there."""
        found = {}
        for seed in seeds:
            try:
                found[seed] = self.of_seed(table, seed)
            except KeyError:
                continue
        return found


@dataclasses.dataclass(frozen=True)
class Number(Effect):
    """A constant."""

    number: float

    def of_seed(self, table: Table, seed: int) -> float:
        return self.number

    def __str__(self) -> str:
        return f"{self.number:g}"


@dataclasses.dataclass(frozen=True)
class Value(Effect):
    """What the run of an arm measured."""

    measure: str
    arm: str

    def of_seed(self, table: Table, seed: int) -> float:
        return float(table[seed, self.arm][self.measure])

    def values(self) -> Iterator["Value"]:
        yield self

    def __str__(self) -> str:
        return f"{self.measure}[{self.arm}]"


@dataclasses.dataclass(frozen=True)
class Combined(Effect):
    """Two effects, seed by seed."""

    way: str
    left: Effect
    right: Effect

    def of_seed(self, table: Table, seed: int) -> float:
        return _WAYS[self.way](self.left.of_seed(table, seed), self.right.of_seed(table, seed))

    def values(self) -> Iterator[Value]:
        yield from self.left.values()
        yield from self.right.values()

    def __str__(self) -> str:
        left, right = (
            f"({x})" if isinstance(x, Combined | Weighted) else str(x) for x in (self.left, self.right)
        )
        return f"{left} {self.way} {right}"


@dataclasses.dataclass(frozen=True)
class Weighted(Effect):
    """A weighted sum of measurements, seed by seed."""

    terms: tuple[tuple[float, Value], ...]

    def of_seed(self, table: Table, seed: int) -> float:
        return sum(weight * each.of_seed(table, seed) for weight, each in self.terms)

    def values(self) -> Iterator[Value]:
        for _, each in self.terms:
            yield each

    def __str__(self) -> str:
        return " ".join(f"{weight:+.4g} {each}" for weight, each in self.terms)


def value(measure: str, **arm: Any) -> Effect:
    """What the arm with these levels of the factors measured."""
    return Value(measure, arm_name(arm))


def as_effect(x: Effect | float) -> Effect:
    """An effect, or a number as one."""
    return x if isinstance(x, Effect) else Number(float(x))
