"""Rows that cannot be used: all of them are found before anything is said, and they stop the run or are left out.

One `Invalid` goes through all sources of a dataset. What reads a row reports here what was wrong with it.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jaxalign.data.sources import Records
from jaxalign.errors import DataError, amount
from jaxalign.storage import Path, json_line, write_whole

RULES = ("stop", "drop")
MOST_DROPPED = 0.5  # share of the rows of a source
DROPPED_FILE = "dropped.jsonl"
_SHOWN = 20  # rows in an error
_REASONS = 10  # in an error
_ENOUGH = 1000  # bad rows at the beginning of a source, and nothing else: the rest need not be read
_QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(?!\w)""")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?\b")


class NothingLeft(DataError):
    """Of some records none is left to learn from."""


class MustFit(DataError):
    """A record is too long, where the config says that this is an error: no rule leaves it out."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and what is wrong with it."""

    records: Records
    index: int
    problem: str

    @property
    def where(self) -> str:
        """`file:row`."""
        return self.records.where(self.index)


class Noted:
    """The bad rows among some records, for an `Invalid` to take over: (index, problem, whether it is a `MustFit`).

    `first_only`: these are the first records of a source, which need not be read on when none can be used.
    """

    def __init__(self, *, first_only: bool = False) -> None:
        self.rows: list[tuple[int, str, bool]] = []
        self._first_only = first_only

    def note(self, records: Records, index: int, error: DataError) -> str:
        """As `Invalid.note`."""
        self.rows.append((index, str(error), isinstance(error, MustFit)))
        return _dropped_for(str(error))

    def enough(self, records: Records, index: int) -> bool:
        """As `Invalid.enough`."""
        return self._first_only and index + 1 == _ENOUGH == len(self.rows)


class Invalid:
    """The bad rows of some sources.

    `rule` is "stop", and `check` raises if there are any; or "drop", and it raises only if more than half of a source
    is bad. `rows` are then those that are left out.
    """

    def __init__(self, rule: str = "stop") -> None:
        self.rule = rule
        self.rows: list[BadRow] = []  # under "stop" only as many as an error shows
        self._must_fit: list[BadRow] = []
        self._reasons: Counter[str] = Counter()
        self._counts: Counter[int] = Counter()  # by the id of the source
        self._problems: dict[str, str] = {}  # a text is kept once, however many rows have it

    def note(self, records: Records, index: int, error: DataError) -> str:
        """Takes note of a row that cannot be used, because of an error that does not name the place.

        Returns:
          The reason, for counting: rows have it in common.
        """
        row = BadRow(records, index, self._problems.setdefault(str(error), str(error)))
        reason = reason_of(row.problem)
        self._reasons[reason] += 1
        self._counts[id(records)] += 1
        if isinstance(error, MustFit):
            self._must_fit.append(row)
        if self.rule == "drop" or len(self.rows) < _SHOWN:
            self.rows.append(row)
        return _dropped_for(row.problem)

    def take(self, records: Records, start: int, noted: Iterable[tuple[int, str, bool]]) -> None:
        """Takes over what a `Noted` has of records `start` and following."""
        for index, problem, must_fit in noted:
            self.note(records, start + index, (MustFit if must_fit else DataError)(problem))

    def enough(self, records: Records, index: int) -> bool:
        """Whether row `index` ends the reading of a source: no row so far could be used, and none will be wanted."""
        return self.rule == "stop" and index + 1 == _ENOUGH == self._counts[id(records)]

    def check(
        self,
        sources: Sequence[Records],
        advise: Callable[[BadRow, bool], str] | None = None,
        *,
        most: float = MOST_DROPPED,
    ) -> None:
        """Refuses bad rows, as the rule says, when all `sources` have been read.

        Args:
          advise: (row, whether no row of all can be used) -> what may be done, or "".
          most: the share of a source's rows that "drop" may leave out.

        Raises:
          DataError: names the first of them with what is wrong with each, and counts all by reason.
        """
        try:
            self._check(sources, most)
        except DataError as error:
            every = self._reasons.total() >= sum(map(len, sources))
            advice = advise(self.rows[0], every) if advise and self.rows else ""
            raise DataError(f"{error}{advice and f'. {advice}'}") from None

    def _check(self, sources: Sequence[Records], share: float) -> None:
        total = sum(map(len, sources))
        cut = next((s for s in sources if len(s) > _ENOUGH == self._counts[id(s)]), None)
        if self.rule == "stop" and cut is not None:
            raise DataError(
                f"{_listed(self.rows)}\nnone of the first {_ENOUGH:,} rows of {cut.name} can be used"
            )
        most = next((s for s in sources if self._counts[id(s)] > share * len(s)), None)
        if self.rule == "stop" and self._reasons:
            way_out = (
                "; mend such rows, or leave them out with config.data.invalid='drop', which counts them and lists them "
                f"in {DROPPED_FILE}"
            )
            raise DataError(self._describe(self.rows, total) + ("" if most else way_out))
        if self.rule == "drop" and self._must_fit:
            raise DataError(
                self._describe(self._must_fit, total)
                + "; config.data.invalid='drop' is not for what is too long: set config.data.overlong='drop' too"
            )
        if self.rule == "drop" and most is not None:
            raise DataError(
                f"{self._describe([row for row in self.rows if row.records is most], total)}; "
                f"config.data.invalid='drop' leaves out half of a source at most, and {most.name} is worse: so many "
                "are no accident; mend them, or write the good rows to a file of their own"
            )

    def _describe(self, rows: Sequence[BadRow], total: int) -> str:
        count = self._reasons.total()
        counts = [f"{number:,} {reason}" for reason, number in self._reasons.most_common(_REASONS)]
        if len(self._reasons) > _REASONS:
            counts.append(f"and {len(self._reasons) - _REASONS} reasons more")
        by_reason = f": {', '.join(counts)}" if count > 1 else ""
        return f"{_listed(rows)}\n{count:,} of {amount(total, 'row')} cannot be used{by_reason}"


def _dropped_for(problem: str) -> str:
    return f"invalid: {reason_of(problem)}"


def _listed(rows: Sequence[BadRow]) -> str:
    lines, seen = [], set()
    for row in rows[:_SHOWN]:
        lines.append(f"{row.where}: {'the same' if row.problem in seen else row.problem}")
        seen.add(row.problem)
    return "\n".join(lines)


def reason_of(problem: str) -> str:
    """What is wrong, without the way out, and without the texts and numbers that differ from row to row."""
    reason = _QUOTED.sub(lambda found: found[0] if re.fullmatch(r"\W[\w.]+\W", found[0]) else "…", problem)
    reason = reason.split("; ")[0].partition(", so ")[0]
    reason = re.sub(r"\[\d+\]", "[]", re.sub(r"\([^()]*\)", "", reason))
    return _NUMBER.sub("N", " ".join(reason.split()))


def write_dropped(path: Path, rows: Iterable[BadRow]) -> None:
    """Writes what was left out, one JSON object a line: its file, its number there, the reason, and the row itself."""
    lines = []
    for row in rows:
        file, _, number = row.where.rpartition(":")
        found = {"file": file, "row": int(number), "reason": row.problem, "data": row.records.raw(row.index)}
        lines.append(json_line(found))
    if lines:
        write_whole(path, "".join(lines).encode())
