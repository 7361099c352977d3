"""`config.data.fields`: which field of a row is which of ours, where its names are others.

prompt=question,chosen=good,rejected=bad       text that the answers go on from
question=data.ask,completion=data.reply        a chat: the question a user's turn; dots lead into objects
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.data.accounts import HISTORY, QUESTIONS, REPLIES, SYSTEM
from jaxalign.data.sources import Records
from jaxalign.errors import ConfigError, DataError, shorten
from jaxalign.fields import nearest_hint

KEY = "config.data.fields"
OWN = tuple(
    "text messages prompt completion chosen rejected responses scores margin label chosen_score rejected_score "
    "score_chosen score_rejected finished".split()
)
KNOWN = (*OWN, *SYSTEM, *HISTORY, *QUESTIONS, *REPLIES, "tools", "weight", "context", "ground_truth")


def parse_mapping(fields: str) -> dict[str, str]:
    """Our names, each with the row's.

    Raises:
      ConfigError: it is not of the form OURS=THEIRS,..., or a name of ours is not one, or is given twice.
    """
    mapping: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in fields.split(","))):
        ours, equals, theirs = (word.strip() for word in part.partition("="))
        if not (ours and equals and theirs):
            raise ConfigError(
                f"{KEY}={fields!r}: {part!r} is not of the form OURS=THEIRS, as in prompt=question,chosen=good"
            )
        if ours not in KNOWN:
            raise ConfigError(
                f"{KEY}={fields!r}: {ours!r} is no field that jaxalign reads{nearest_hint(ours, KNOWN)}; its own name "
                f"stands before the =, the row's after it. All: {', '.join(KNOWN)}"
            )
        if ours in mapping:
            raise ConfigError(f"{KEY}={fields!r}: {ours} is given twice; keep one")
        mapping[ours] = theirs
    return mapping


def map_fields(row: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """The row with our names; of an object that a path leads into, what is left has its path as its name.

    Raises:
      DataError, without the place: the row has another value under a name of ours already.
    """
    found = {ours: value for ours, path in mapping.items() if (value := _find(row, path)) is not None}
    made = _left(row, frozenset(mapping.values()))
    for ours, value in found.items():
        if made.get(ours) is not None and made[ours] != value:
            raise DataError(
                f"{mapping[ours]} is read as {ours} ({KEY}), but the row has a {ours}, too ({shorten(made[ours])}); "
                f"leave that out with config.data.ignore_fields={ours}, or say what it is"
            )
    return made | found


def check_mapping(sources: Sequence[Records], mapping: Mapping[str, str]) -> None:
    """Raises ConfigError, naming the nearest, for a name that no row of any source has."""
    for ours, path in mapping.items():
        rows = (row for source in sources for row in source.readable())
        if any(isinstance(row, Mapping) and _find(row, path) is not None for row in rows):
            continue
        names: dict[str, None] = {}
        for source in sources:
            names |= dict.fromkeys(_paths(next(source.readable(), None)))
        raise ConfigError(
            f"{KEY}: {ours}={path}, but no row of {', '.join(source.name for source in sources)} has {path!r}"
            f"{nearest_hint(path, tuple(names))}; the first rows have {', '.join(names) or 'no fields'}"
        )


def _find(row: Mapping[str, Any], path: str) -> Any:
    if path in row:  # a name may have a dot in it
        return row[path]
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


def _left(row: Mapping[str, Any], paths: frozenset[str], before: str = "") -> dict[str, Any]:
    """What no path leads to; objects that one leads into are taken apart."""
    left: dict[str, Any] = {}
    for name, value in row.items():
        path = before + name
        if path in paths:
            continue
        if isinstance(value, Mapping) and any(other.startswith(f"{path}.") for other in paths):
            left |= _left(value, paths, f"{path}.")
        else:
            left[path] = value
    return left


def _paths(row: Any, before: str = "") -> list[str]:
    if not isinstance(row, Mapping):
        return []
    paths = []
    for name, value in row.items():
        paths.append(before + name)
        paths += _paths(value, f"{before}{name}.")
    return paths
