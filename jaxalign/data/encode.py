"""Records to token sequences and supervision masks, once, with every length decision counted.

Plain text:          <bos> text <eos>                all but <bos> supervised
Prompt, completion:  <bos> prompt | completion <eos> the completion and <eos> supervised
Conversations:       see `jaxalign.data.chat`; as pretraining text all supervised but <bos>

Prompt and completion are tokenised apart and their ids concatenated, so that training sees the very prompt
ids sampling starts from. The first token of a sequence is never a target.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import combinations

import jinja2
import numpy as np

from jaxalign.data.chat import Segment, render_chat
from jaxalign.data.records import (
    Chat,
    Preference,
    Prompt,
    PromptCompletion,
    Ranking,
    Record,
    Text,
    Transcript,
    Turns,
    parse_record,
)
from jaxalign.data.sources import Dropped, Records
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import ConfigError, DataError

OVERLONG = ("error", "drop", "truncate")


@dataclass(frozen=True, eq=False)
class Example:
    """One sequence: `ids` int32 [N], `mask` float32 [N] with 1 on supervised targets."""

    ids: np.ndarray
    mask: np.ndarray
    row: int = -1

    @property
    def prompt_length(self) -> int:
        """Tokens before the first supervised one; the whole length if none is."""
        return int(np.argmax(self.mask)) if self.mask.any() else len(self.ids)


@dataclass(frozen=True, eq=False)
class PairExample:
    """Sequences that share a prompt and a row; `pairs` holds (preferred, other) indices into `examples`."""

    examples: tuple[Example, ...]
    pairs: tuple[tuple[int, int], ...]
    margin: float = 0.0
    row: int = -1

    @property
    def weight(self) -> float:
        """Weight of each pair, 1 / (K choose 2) for K sequences (arXiv 2203.02155, equation 1)."""
        return 2.0 / (len(self.examples) * (len(self.examples) - 1))


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


def encode_text(
    record: Text | Transcript, tokenizer: Tokenizer, max_length: int, template: jinja2.Template | None = None
) -> list[Example]:
    """Encode text or a whole conversation for pretraining, split into sequences of at most `max_length` tokens.

    A further sequence begins with the last token of the one before it, as context that is not supervised:
    every token of the record but its first is a target exactly once. BOS opens only the first sequence, EOS
    closes only the last.
    """
    if isinstance(record, Transcript):
        segments = render_chat(record.messages, tokenizer, template)
        ids = _int32([token for segment in segments for token in segment.ids])
    else:
        ids = _int32([*_bos(tokenizer), *tokenizer.encode(record.text), tokenizer.eos_ids[0]])
    starts = range(0, max(len(ids) - 1, 1), max_length - 1)
    return [_example([(ids[start : start + max_length], True)]) for start in starts]


def encode_completion(
    record: PromptCompletion | Chat, tokenizer: Tokenizer, template: jinja2.Template | None = None
) -> Example:
    """Encode a supervised completion, or a conversation with its assistant turns supervised."""
    if isinstance(record, Chat):
        return _from_segments(render_chat(record.messages, tokenizer, template))
    return _continuation(record.prompt, record.completion, tokenizer, template)


def encode_preference(
    record: Preference | Ranking, tokenizer: Tokenizer, template: jinja2.Template | None = None
) -> PairExample:
    """Encode every response after its prompt, chosen before rejected; ties of a ranking make no pair."""
    if isinstance(record, Preference):
        responses, pairs, margin = (record.chosen, record.rejected), ((0, 1),), record.margin
    else:
        responses, margin = record.responses, 0.0
        scores = record.scores
        pairs = tuple(
            (i, j) if scores[i] > scores[j] else (j, i)
            for i, j in combinations(range(len(scores)), 2)
            if scores[i] != scores[j]
        )
    examples = tuple(_continuation(record.prompt, response, tokenizer, template) for response in responses)
    return PairExample(examples, pairs, margin)


def encode_prompt(record: Prompt, tokenizer: Tokenizer, template: jinja2.Template | None = None) -> Example:
    """Encode a prompt up to where the reply begins; nothing is supervised."""
    if isinstance(record.prompt, str):
        return _example([([*_bos(tokenizer), *tokenizer.encode(record.prompt)], False)])
    return _from_segments(render_chat(record.prompt, tokenizer, template, add_generation_prompt=True))


@dataclass(frozen=True, eq=False)
class Encoded:
    """A record's items and what was done to them; without items, why it was dropped."""

    row: int
    items: list[Example | PairExample]
    note: str


def encode_dataset(
    records: Records,
    kind: str,
    tokenizer: Tokenizer,
    template: jinja2.Template | None = None,
    *,
    max_length: int,
    overlong: str = "drop",
    group_length: int | None = None,
    first_row: int = 0,
) -> tuple[list[Example | PairExample], EncodingReport]:
    """`encode_records`, then `collect`."""
    encoded = encode_records(
        records,
        kind,
        tokenizer,
        template,
        max_length=max_length,
        overlong=overlong,
        group_length=group_length,
        first_row=first_row,
    )
    return collect(encoded, kind, records.name)


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


def members(item: Example | PairExample) -> tuple[Example, ...]:
    """The sequences of an item, in segment order."""
    return (item,) if isinstance(item, Example) else item.examples


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


def _continuation(
    prompt: Turns, completion: Turns, tokenizer: Tokenizer, template: jinja2.Template | None
) -> Example:
    if isinstance(prompt, str):
        head, body = tokenizer.encode_pieces([prompt, completion])
        return _example([([*_bos(tokenizer), *head], False), ([*body, tokenizer.eos_ids[0]], True)])
    segments = render_chat(prompt + completion, tokenizer, template, first_supervised=len(prompt))
    return _from_segments(segments)


def _from_segments(segments: list[Segment]) -> Example:
    return _example([(segment.ids, segment.supervised) for segment in segments])


def _example(parts: list[tuple[Sequence[int], bool]]) -> Example:
    ids = _int32([token for part, _ in parts for token in part])
    mask = np.repeat(np.float32([supervised for _, supervised in parts]), [len(part) for part, _ in parts])
    mask[:1] = 0.0  # nothing comes before the first token from which to predict it
    return Example(ids, mask)


def _int32(ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, np.int32)


def _bos(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]
