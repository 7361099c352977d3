"""The HHH world itself: invented entities, their facts, which are held out. A pure function of a seed.

Randomness throughout this package is `random.Random` seeded with a string that names its purpose: NumPy keeps
no promise that its generators draw the same in every version, and a world must be the same bytes everywhere.
"""

import hashlib
import json
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jaxalign.errors import ConfigError, DataError
from jaxalign.storage import write_whole
from jaxalign.worlds.grammar import ATTRIBUTES

_ONSETS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
_CODAS = "klmnrst"


def stream(purpose: str, seed: int) -> random.Random:
    """An independent random stream for one purpose."""
    return random.Random(f"hhh/{purpose}/{seed}")


@dataclass(frozen=True)
class World:
    """Entities with one value for each attribute, and names that belong to nobody.

    Everything is derived from the four parameters. Of the entities and of the unknown names a fraction
    `held_out_fraction` is kept out of every training question; the corpus states the facts of all entities,
    so that a held-out question can be answered by recall. Raises ConfigError for impossible parameters.
    """

    seed: int = 0
    num_entities: int = 48
    num_unknown: int = 160
    held_out_fraction: float = 0.25

    def __post_init__(self) -> None:
        for key in ("num_entities", "num_unknown"):
            if not 4 <= getattr(self, key) <= 400:
                raise ConfigError(f"World.{key}={getattr(self, key)}: give a number from 4 to 400")
        if not 0.0 < self.held_out_fraction <= 0.5:
            raise ConfigError(
                f"World.held_out_fraction={self.held_out_fraction}: give a fraction in (0, 0.5]"
            )

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return _invent_names(self.num_entities + self.num_unknown, stream("names", self.seed))

    @cached_property
    def entities(self) -> dict[str, tuple[str, ...]]:
        """Names of the entities by split."""
        return _split(self._names[: self.num_entities], self.held_out_fraction)

    @cached_property
    def unknown(self) -> dict[str, tuple[str, ...]]:
        """Names that belong to no entity, by split."""
        return _split(self._names[self.num_entities :], self.held_out_fraction)

    @cached_property
    def facts(self) -> dict[str, dict[str, str]]:
        """The truth: name -> attribute -> value."""
        rng = stream("facts", self.seed)
        return {
            name: {attribute: rng.choice(values) for attribute, values in ATTRIBUTES.items()}
            for name in self._names[: self.num_entities]
        }

    def save(self, path: str | Path) -> None:
        """Write the parameters, with a fingerprint of the facts they must lead to."""
        record = {
            "world": "hhh",
            "seed": self.seed,
            "num_entities": self.num_entities,
            "num_unknown": self.num_unknown,
            "held_out_fraction": self.held_out_fraction,
            "fingerprint": self._fingerprint,
        }
        write_whole(Path(path), (json.dumps(record, indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> "World":
        """The world written by `save`. Raises DataError if the file is no world, or one with other facts."""
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            world = cls(
                record["seed"], record["num_entities"], record["num_unknown"], record["held_out_fraction"]
            )
            fingerprint = record["fingerprint"]
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a saved HHH world ({error!r}); write it with World.save") from error
        if fingerprint != world._fingerprint:
            raise DataError(
                f"{path}: fingerprint {fingerprint} was written by a version with other facts or names, "
                f"this one makes {world._fingerprint}; write the data set again with write_dataset"
            )
        return world

    @property
    def _fingerprint(self) -> str:
        truth = json.dumps([self.facts, self.entities, self.unknown])
        return hashlib.sha256(truth.encode()).hexdigest()[:16]


def _split(names: tuple[str, ...], held_out_fraction: float) -> dict[str, tuple[str, ...]]:
    held_out = max(1, round(held_out_fraction * len(names)))
    return {"train": names[held_out:], "held_out": names[:held_out]}


def _invent_names(count: int, rng: random.Random) -> tuple[str, ...]:
    """Distinct pronounceable names of five letters, any two of which differ in at least two letters."""
    names: list[str] = []
    while len(names) < count:
        letters = (_ONSETS, _VOWELS, _ONSETS, _VOWELS, _CODAS)
        name = "".join(rng.choice(choices) for choices in letters).capitalize()
        if all(sum(a != b for a, b in zip(name, other, strict=True)) >= 2 for other in names):
            names.append(name)
    return tuple(names)
