"""What a config of data has to be, for the kind of data that a stage takes."""

from collections.abc import Sequence

from jaxalign.data.config import DataConfig
from jaxalign.data.encode_sources import IN_MEMORY
from jaxalign.data.public.recipes import needs_all_rows
from jaxalign.data.records import KINDS, known_kinds
from jaxalign.errors import ConfigError


def check_kind(config: DataConfig, kind: str, source_count: int, weights: tuple[float, ...]) -> None:
    """Raises ConfigError for lengths, held-out data and weights that do not go with a kind, or for one that is none."""
    if kind not in KINDS:
        raise ConfigError(f"config.data.kind={kind!r}: {known_kinds(kind)}")
    sequences = KINDS[kind].sequences
    what = "a pair" if sequences == 2 else "the longest sequence"
    shortest_row = sequences * config.max_length
    checks = [
        (
            not config.row_length or config.row_length >= shortest_row,
            f"row_length={config.row_length}: must be at least {sequences} x max_length={config.max_length}, "
            f"so that a row holds {what}",
        ),
        (
            config.segments >= sequences,
            f"max_segments={config.max_segments}: must be at least {sequences}",
        ),
        (
            not (config.eval and config.eval_fraction),
            f"eval_fraction={config.eval_fraction}: config.data.eval names held-out data already; set one of them",
        ),
        (
            not weights or (len(weights) == source_count and min(weights) > 0),
            f"weights={weights}: give one positive share for each of the {source_count} sources, or none",
        ),
    ]
    _require(checks)


def check_streaming(config: DataConfig, kind: str, name: str, more: Sequence[str]) -> None:
    """Raises ConfigError for what needs all of the data at once."""
    found = KINDS[kind]
    checks = [
        (
            not more,
            f"reads one source, and config.data.train names {len(more) + 1}; name files of one format by a pattern",
        ),
        (
            not (found.one_per_row or found.mismatched),
            f"is not for {kind} data, all of which is needed at once; leave it out",
        ),
        (
            not config.eval_fraction,
            f"holds nothing out by config.data.eval_fraction={config.eval_fraction}; name held-out data in "
            "config.data.eval",
        ),
        (
            config.store in ("", IN_MEMORY),
            f"keeps nothing, and config.data.store={config.store!r} names a place for it; leave out one of them",
        ),
        (
            config.max_length > 0,
            "needs config.data.max_length: nobody knows how long the longest record is",
        ),
        (
            not needs_all_rows(name, kind),
            f"reads rows that are records by themselves, and those of {name} are messages of trees; leave it out",
        ),
    ]
    _require([(holds, f"streaming=True {problem}") for holds, problem in checks])


def _require(checks: Sequence[tuple[bool, str]]) -> None:
    """Raises ConfigError for the first that does not hold: a key without config.data before it, and what is wrong."""
    for holds, problem in checks:
        if not holds:
            raise ConfigError(f"config.data.{problem}")
