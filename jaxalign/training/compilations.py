"""How many programs this process has compiled: a step that compiles long after the first is a step that waits."""

import collections
import functools

import jax

# Once for each program, also where the persistent cache has it.
_EVENT = "/jax/core/compile/backend_compile_duration"
_seen: collections.Counter[str] = collections.Counter()


def count_compilations() -> int:
    """The programs compiled since the first call of this function."""
    _listen()
    return _seen[_EVENT]


@functools.cache
def _listen() -> None:
    def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _EVENT:
            _seen[_EVENT] += 1

    jax.monitoring.register_event_duration_secs_listener(note)
