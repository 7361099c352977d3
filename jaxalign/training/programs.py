"""Programs that runs with the same settings share: a process that trains twice traces and compiles them once."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from jaxalign.parallel.mesh import platform
from jaxalign.parallel.sharding import rules_in_force

KEPT = 16  # of each kind

F = TypeVar("F", bound=Callable[..., Any])

_made: list[dict[tuple, Any]] = []
_shared = True


@contextlib.contextmanager
def unshared() -> Iterator[None]:
    """Inside, programs are made anew, as they must be where the code that they are traced from is changed meanwhile."""
    global _shared
    before, _shared = _shared, False
    try:
        yield
    finally:
        _shared = before


def forget_programs() -> None:
    """Lets go of all that was made, for its memory; `jax.clear_caches` does the same for what JAX keeps."""
    for made in _made:
        made.clear()


def made_once(make: F) -> F:
    """A function of settings that returns again what it made for equal ones, and with it what JAX has compiled.

    Settings are equal as frozen dataclasses and dicts of them are, functions if they are the same; the layout rules and
    the kind of device in force, which JAX does not look at, belong to them. What cannot be compared is made anew.
    """
    made: dict[tuple, Any] = {}
    _made.append(made)

    @functools.wraps(make)
    def get(*settings: Any) -> Any:
        key = (platform(), rules_in_force(), *map(_comparable, settings))
        if not (_shared and _is_hashable(key)):
            return make(*settings)
        found = made.get(key)
        if found is None:
            if len(made) >= KEPT:
                made.pop(next(iter(made)), None)
            found = made[key] = make(*settings)
        return found

    out: Any = get
    return out


def _comparable(x: Any) -> Any:
    return tuple(sorted(x.items())) if isinstance(x, dict) else x


def _is_hashable(key: tuple) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True
