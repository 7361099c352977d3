"""What makes a case: values and bytes that are sound, strange or damaged, all drawn from one generator."""

import copy
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Random = random.Random


class Surface(NamedTuple):
    """One thing that is read.

    Attributes:
      share: its part of all cases, beside that of the others.
      write: (generator, folder) -> what `read` is given; puts the files of a case into the folder, and reads nothing.
      read: what jaxalign makes of it.
      prepare: called once in each worker, for what takes long to load.
    """

    share: float
    write: Callable[[Random, Path], Any]
    read: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None


# Numbers at which something ends, and such as JSON cannot hold or Python reads slowly.
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    0.5,
    -0.0,
    1e-300,
    1e300,
    2**31,
    2**31 - 1,
    2**32,
    2**53,
    2**63,
    2**64,
    10**9,
    10**12,
)
STRANGE_NUMBERS = (float("nan"), float("inf"), float("-inf"), -(2**63), 10**30, 10**300)
WORDS = (
    "",
    " ",
    "a",
    "the fox",
    "user",
    "assistant",
    "system",
    "None",
    "null",
    "true",
    "1",
    "nan",
    "[]",
    "{}",
    "[[",
    "{'a'",
)
STRANGE_TEXTS = (
    "\x1b]0;title\x07",
    "\x1b[2J",
    "\0",
    "\ud800",
    "\u202e",
    "\ufeff",
    "\u2028",
    "é" * 50,
    "x" * 5_000,
    "[" * 3_000,
    "9" * 5_000,
    "../outside/secret.json",
    "/etc/passwd",
    "..",
    "file:///etc/passwd",
    "__class__",
    "{{ 7 * 7 }}",
    "%s%n",
    "<|im_end|>",
    "</s>",
    "\U0010fffc",
)


def chance(rng: Random, probability: float) -> bool:
    """True so often."""
    return rng.random() < probability


def any_value(rng: Random, depth: int = 0) -> Any:
    """A JSON value of any shape; rarely one that JSON has not, such as NaN."""
    kind = rng.randrange(10 if depth < 3 else 7)
    if kind < 2:
        return rng.choice(WORDS)
    if kind == 2:
        return rng.choice(STRANGE_TEXTS)
    if kind < 5:
        return rng.choice(NUMBERS) if chance(rng, 0.8) else rng.choice(STRANGE_NUMBERS)
    if kind < 7:
        return rng.choice((None, True, False))
    if kind == 7:
        return {rng.choice(WORDS): any_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return [any_value(rng, depth + 1) for _ in range(rng.randrange(4))]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a JSON value, its own among them."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def mutated(rng: Random, value: Any, times: int | None = None, more: Sequence[Any] = ()) -> Any:
    """A copy of a JSON value in which some values are others, missing, doubled, or stand under other names.

    `more`: values that are likely to matter here.
    """
    value = copy.deepcopy(value)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3)) if times is None else times):
        *above, last = rng.choice(places(value)) or ("",)
        container = value
        for key in above:
            container = container[key]
        if last == "" and container is value and not (isinstance(value, dict) and "" in value):
            if chance(rng, 0.1):
                return any_value(rng)
            continue
        kind = rng.randrange(8)
        if kind == 0:
            del container[last]
        elif kind == 1 and isinstance(container, dict):
            container[rng.choice(WORDS) + str(last)] = container.pop(last)
        elif kind == 2:
            container[last] = [container[last]]
        elif kind == 3:
            container[last] = rng.choice(STRANGE_TEXTS)
        elif kind == 4 and more:
            container[last] = copy.deepcopy(rng.choice(more))
        elif kind == 5:
            container[last] = rng.choice(NUMBERS)
        else:
            container[last] = any_value(rng)
    return value


def as_json(rng: Random, value: Any) -> bytes:
    """JSON of a value; now and then damaged, nested too deep, with a name twice, or in another encoding."""
    text = json.dumps(value, ensure_ascii=chance(rng, 0.5))
    data = text.encode("utf-8", "surrogatepass")
    if chance(rng, 0.75):
        return data
    kind = rng.randrange(9)
    if kind == 0:
        return b"[" * rng.choice((1_000, 100_000)) + data
    if kind == 1:
        depth = rng.choice((200, 2_000, 100_000))
        return data[:-1] + b', "deep": ' + b"[" * depth + b"]" * depth + b"}"
    if kind == 2:
        return data[:-1] + b', "digits": ' + b"9" * rng.choice((400, 5_000)) + b"}"
    if kind == 3:
        return (
            data[:-1]
            + b', "number": '
            + rng.choice((b"1e999", b"-1e999", b"NaN", b"Infinity", b"1E400"))
            + b"}"
        )
    if kind == 4 and isinstance(value, dict) and value:
        name = rng.choice(list(value))
        return data[:-1] + b", " + json.dumps({name: any_value(rng)})[1:].encode("utf-8", "surrogatepass")
    if kind == 5:
        return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1")), "replace")
    return damaged(rng, data)


def damaged(rng: Random, data: bytes) -> bytes:
    """Bytes with some of them changed, taken out, put in or cut off."""
    made = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(made) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            made[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del made[at : at + rng.randrange(1, 9)]
        elif kind == 2:
            made[at:at] = rng.choice(
                (b"\0", b"\xff", b'"', b"{", b"}", b"[", b"]", b",", b"\n", b"\\", b"\xed\xa0\x80")
            )
        elif kind == 3:
            del made[at:]
        elif kind == 4:
            made[at:at] = made[: rng.randrange(len(made) + 1)]
        elif made:
            made[at % len(made)] ^= 1 << rng.randrange(8)
    return bytes(made)
