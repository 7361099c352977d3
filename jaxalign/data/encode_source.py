"""The records of a source to sequences of at most so many tokens, once, with every length decision counted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import jinja2
import numpy as np

from jaxalign.data.encode import (
    Example,
    PairExample,
    encode_completion,
    encode_preference,
    encode_prompt,
    encode_text,
    members,
)
from jaxalign.data.records import Chat, Prompt, PromptCompletion, Record, Text, Transcript, parse_record
from jaxalign.data.sources import Dropped, Records
from jaxalign.errors import ConfigError, DataError
from jaxalign.text.tokenizer import Tokenizer

OVERLONG = ("error", "drop", "truncate")


@dataclass(frozen=True)
class EncodingReport:
    """What became of the records. Sequences can outnumber records: chunks of long text, sides of a pair."""

    read: int = 0
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)  # by reason
    truncated: int = 0
    split: int = 0
    tokens: int = 0
    supervised: int = 0

    def __add__(self, other: "EncodingReport") -> "EncodingReport":
        names = (f.name for f in fields(self))
        return EncodingReport(*(getattr(self, name) + getattr(other, name) for name in names))

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        return (
            f"{self.read} records: {self.kept} kept ({self.truncated} truncated, {self.split} split), "
            f"{self.dropped.total()} dropped{f' ({reasons})' if reasons else ''}; "
            f"{self.tokens} tokens, {self.supervised} supervised"
        )


@dataclass(frozen=True, eq=False)
class Encoded:
    """A record's items and what was done to them; without items, why it was dropped."""

    row: int
    items: list[Example | PairExample]
    note: str


def encode_records(
    records: Records,
    kind: str,
    tokenizer: Tokenizer,
    template: jinja2.Template | None = None,
    *,
    max_length: int,
    overlong: str = "drop",
    group_length: int | None = None,
    first_row: int = 0,
) -> list[Encoded]:
    """Check and encode every record of a source.

    Args:
      kind: see `parse_record`.
      max_length: most tokens of one sequence. Longer text is split, other records meet `overlong`.
      overlong: "error" raises, "drop" leaves the record out, "truncate" cuts the end of the completion and
        appends nothing. A prompt is never cut: one that leaves no room for a completion is dropped.
      group_length: most tokens of a pair or ranking together; a longer one is never cut but dropped.
      first_row: number given to the first record, where several sources make up one dataset.

    Raises DataError naming the row for a record that cannot be used.
    """
    if overlong not in OVERLONG:
        raise ConfigError(f"config.data.overlong={overlong!r}: write one of {', '.join(OVERLONG)}")
    if max_length < 2:
        raise ConfigError(f"config.data.max_length={max_length}: must be at least 2, a context and a target")
    encoded = []
    for index, row in enumerate(records):
        if isinstance(row, Dropped):
            encoded.append(Encoded(first_row + index, [], row.reason))
            continue
        where = records.where(index)
        record = parse_record(row, kind, where)
        try:
            items, note = _encode(record, tokenizer, template, max_length, overlong, group_length)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        items = [_numbered(item, first_row + index) for item in items]
        encoded.append(Encoded(first_row + index, items, note))
    return encoded


def collect(
    encoded: Sequence[Encoded], kind: str, name: str
) -> tuple[list[Example | PairExample], EncodingReport]:
    """All items of a source called `name`, and the report in which whatever was dropped, cut or split is counted.

    Raises DataError, naming the source, if no record is kept or nothing is supervised.
    """
    items = [item for record in encoded for item in record.items]
    sequences = [example for item in items for example in members(item)]
    notes = Counter(record.note for record in encoded if record.items)
    report = EncodingReport(
        read=len(encoded),
        kept=notes.total(),
        dropped=Counter(record.note for record in encoded if not record.items),
        truncated=notes["truncated"],
        split=notes["split"],
        tokens=sum(len(example.ids) for example in sequences),
        supervised=sum(int(example.mask.sum()) for example in sequences),
    )
    if not items:
        raise DataError(
            f"{name}: no record is left ({report}); raise config.data.max_length or take other data"
        )
    if kind != "prompt" and report.supervised == 0:
        raise DataError(f"{name}: no token is supervised ({report}); check the completions")
    return items, report


def _encode(
    record: Record,
    tokenizer: Tokenizer,
    template: jinja2.Template | None,
    max_length: int,
    overlong: str,
    group_length: int | None,
) -> tuple[list[Example | PairExample], str]:
    """Items of a record and what was done to them; without items, why it was dropped."""
    if isinstance(record, Text | Transcript):
        chunks = encode_text(record, tokenizer, max_length, template)
        return chunks, "split" if len(chunks) > 1 else "whole"
    if isinstance(record, Prompt):
        prompt = encode_prompt(record, tokenizer, template)
        return _drop("prompt too long", len(prompt.ids), max_length, overlong) or ([prompt], "whole")
    if isinstance(record, PromptCompletion | Chat):
        example, note = _fit(encode_completion(record, tokenizer, template), max_length, overlong)
        return [example] if example else [], note
    group = encode_preference(record, tokenizer, template)
    fitted, notes = zip(*(_fit(example, max_length, overlong) for example in group.examples), strict=True)
    if None in fitted:
        return [], next(note for example, note in zip(fitted, notes, strict=True) if example is None)
    if any(np.array_equal(fitted[chosen].ids, fitted[rejected].ids) for chosen, rejected in group.pairs):
        return [], "equal after truncation"
    if refused := _drop("group too long", sum(len(e.ids) for e in fitted), group_length, overlong):
        return refused
    return [replace(group, examples=fitted)], "truncated" if "truncated" in notes else "whole"


def _fit(example: Example, max_length: int, overlong: str) -> tuple[Example | None, str]:
    if refused := _drop("prompt too long", example.prompt_length + 1, max_length, overlong):
        return None, refused[1]
    if len(example.ids) > max_length and overlong == "truncate":
        return replace(example, ids=example.ids[:max_length], mask=example.mask[:max_length]), "truncated"
    if refused := _drop("too long", len(example.ids), max_length, overlong):
        return None, refused[1]
    return example, "whole"


def _drop(reason: str, length: int, limit: int | None, overlong: str) -> tuple[list, str] | None:
    if limit is None or length <= limit:
        return None
    if overlong == "error":
        raise DataError(
            f"{reason}: needs {length} tokens and has room for {limit}; shorten or remove it, raise "
            "config.data.max_length or row_length, or set config.data.overlong to 'drop' or 'truncate'"
        )
    return [], reason


def _numbered(item: Example | PairExample, row: int) -> Example | PairExample:
    if isinstance(item, PairExample):
        item = replace(item, examples=tuple(replace(example, row=row) for example in item.examples))
    return replace(item, row=row)
