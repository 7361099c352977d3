"""What became of the records of a dataset, in numbers."""

from collections import Counter
from dataclasses import dataclass, field, fields

import numpy as np

from jaxalign.data.encoded import Encoded
from jaxalign.data.invalid import NothingLeft
from jaxalign.data.kinds import PROMPTS
from jaxalign.data.parts import Items
from jaxalign.errors import amount


@dataclass(frozen=True)
class EncodingReport:
    """What became of the records. Sequences can outnumber records: chunks of long text, sides of a pair.

    Mismatched sequences are not counted: they are other records' completions once more.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)  # by reason
    truncated: int = 0
    split: int = 0
    tokens: int = 0
    supervised: int = 0
    blank: int = 0  # lines with nothing on them, which are no records
    unread: Counter = field(
        default_factory=Counter
    )  # rows by (source, field), of fields that nothing is made from
    remarks: Counter = field(default_factory=Counter)  # what rows say and tokens do not, as documented

    def __add__(self, other: "EncodingReport") -> "EncodingReport":
        names = (f.name for f in fields(self))
        return EncodingReport(*(getattr(self, name) + getattr(other, name) for name in names))

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        blank = f"; {amount(self.blank, 'blank line')} skipped" if self.blank else ""
        return (
            f"{amount(self.read, 'record')}: {self.kept} kept ({self.truncated} truncated, {self.split} split), "
            f"{self.dropped.total()} dropped{f' ({reasons})' if reasons else ''}; "
            f"{self.tokens} tokens, {self.supervised} supervised{blank}"
            f"{''.join(f'; {line}' for line in self.unread_lines())}"
            + "".join(f"; {count} {remark}" for remark, count in sorted(self.remarks.items()))
        )

    def unread_lines(self) -> list[str]:
        """What was not read of each source, field by field with the number of rows that have it."""
        by_source: dict[str, list[str]] = {}
        for (source, name), count in sorted(
            self.unread.items(), key=lambda item: (item[0][0], -item[1], item[0][1])
        ):
            by_source.setdefault(source, []).append(f"{name} ({count:,} {'row' if count == 1 else 'rows'})")
        # Nothing is supervised in prompts; a reward function, if there is one, takes the fields beside them.
        words = "not read" if self.supervised else "no part of the prompts"
        several = len(by_source) > 1
        return [
            f"{words}{f' of {source}' if several else ''}: {', '.join(names)}"
            for source, names in by_source.items()
        ]


def collect(encoded: Encoded, kind: str, name: str) -> tuple[Items, EncodingReport]:
    """All items of a source called `name`, and the report in which whatever was dropped, cut or split is counted.

    Raises:
      NothingLeft: no record is kept, or nothing is supervised; names the source.
    """
    items = encoded.items
    notes, dropped = encoded.count("note", with_tokens=True), encoded.count("note", with_tokens=False)
    if encoded.kept is not None and encoded.reason:
        dropped[encoded.reason] += len(encoded) - int(encoded.kept.sum())
    unread: Counter = Counter()
    for with_tokens in (True, False):
        for found, count in encoded.count("unread", with_tokens=with_tokens).items():
            for each in found:
                unread[name, each] += count
    remarks: Counter = Counter()
    for found, count in encoded.count_items("remarks").items():
        for remark in found:
            remarks[remark] += count
    report = EncodingReport(
        read=notes.total() + dropped.total(),
        kept=notes.total(),
        dropped=dropped,
        truncated=notes["truncated"],
        split=notes["split"],
        tokens=int(items.lengths.sum(dtype=np.int64)),
        supervised=int(items.column(lambda part: part.supervised).sum(dtype=np.int64)),
        unread=unread,
        remarks=remarks,
    )
    if not len(items):
        longer = "raise config.data.max_length or " if any("too long" in r for r in report.dropped) else ""
        raise NothingLeft(f"{name}: no record is left ({report}); {longer}take other data")
    if kind != PROMPTS and report.supervised == 0:
        raise NothingLeft(f"{name}: no token is supervised ({report}); check the completions")
    return items, report
