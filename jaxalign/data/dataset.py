"""From a data config to packed rows: read, check, render, tokenise, pack."""

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from typing import Any

import numpy as np

from jaxalign.data.apart import drop_shared, find_shared, hold_out
from jaxalign.data.batch import ARRAYS
from jaxalign.data.config import DataConfig
from jaxalign.data.encode import Reading
from jaxalign.data.encode_sources import (
    Asked,
    Place,
    StoredSource,
    encode_records_of,
    encode_sources,
    find_stores,
    note_bad,
)
from jaxalign.data.encoded import Encoded
from jaxalign.data.encoder import Encoder
from jaxalign.data.invalid import MOST_DROPPED, BadRow, Invalid, NothingLeft
from jaxalign.data.mapping import check_mapping, parse_mapping
from jaxalign.data.mismatched import add_mismatched
from jaxalign.data.packing import AnyBatch, Keeper, Rows, build_rows, saves_enough
from jaxalign.data.parts import Items
from jaxalign.data.public.advice import advise
from jaxalign.data.public.recipes import open_source
from jaxalign.data.records import KINDS
from jaxalign.data.report import EncodingReport, collect
from jaxalign.data.requirements import check_kind, check_streaming
from jaxalign.data.sources import Records, split_names
from jaxalign.data.store import Store, rows_name
from jaxalign.data.stream import Emptied, Reader, Stream
from jaxalign.errors import ConfigError, DataError, amount
from jaxalign.text.template_args import choose_template
from jaxalign.text.templates import ChatTemplate
from jaxalign.text.tokenizer import Tokenizer

LONGEST = 2**20  # tokens that no prompt reaches
FULL_ROW = 8  # so many records of mean length leave little of a row empty
FEWEST_ROWS = 64  # of little data, so that a step need not take it all
ROW_UNIT = 128  # tokens, of which rows are multiples: what accelerators compute with at once
SHORT_ROW, SHORT_UNIT = 512, 16  # up to so many tokens, a multiple of so many


@dataclass(frozen=True, eq=False)
class Dataset:
    """Packed rows, what became of every record, and where to look one up.

    Record numbers, as in `Batch.rows`, run through all sources in order, starting at 0.
    """

    rows: Rows
    report: EncodingReport
    sources: tuple[Records, ...]
    invalid: tuple[BadRow, ...] = ()  # rows that could not be used and were left out
    stores: tuple[Store, ...] = ()  # that the tokens are in
    stream: Stream | None = None  # of which these rows are the first window

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over digests of all token ids, masks, pairs, margins and labels: equal data, equally tokenised."""
        return self.rows.items.fingerprint

    def record(self, number: int) -> Mapping[str, Any]:
        """The fields of a record, as its recipe made them or raw, also those no stage reads."""
        source, index = self._find(number)
        row: Any = source[index]  # none that was dropped: such a row has become no item
        return row

    def where(self, number: int) -> str:
        """`file:row` of a record; of a stream the name and number."""
        if self.stream is not None:
            return f"{self.stream.name}, record {number + 1}"
        source, index = self._find(number)
        return source.where(index)

    def source_of(self, number: int) -> int:
        """Which of the sources a record is from."""
        source, _ = self._find(number)
        return next(i for i, each in enumerate(self.sources) if each is source)

    def _find(self, number: int) -> tuple[Records, int]:
        index = number
        for source in self.sources:
            if 0 <= index < len(source):
                return source, index
            index -= len(source)
        raise IndexError(f"record {number} of {sum(map(len, self.sources))}")


def build_datasets(config: DataConfig, tokenizer: Tokenizer, kind: str) -> tuple[Dataset, Dataset | None]:
    """Training and held-out rows, nothing on both sides unless `config.data.overlap` allows it.

    The second is None without `config.data.eval` and `eval_fraction`. Raises as `dataset_from_records` does, and
    DataError with overlap="error" for a training record that is also in eval.
    """
    if config.streaming:
        return _stream(config, tokenizer, kind)
    invalid = Invalid(config.invalid)
    sources, encoded = _read(config, tokenizer, kind, "train", invalid)
    if config.eval:
        eval_sources, held = _read(config, tokenizer, kind, "eval", invalid)
        invalid.check([*sources, *eval_sources], partial(advise, kind=kind))
        if config.overlap != "allow":
            encoded = _keep_apart(encoded, held, sources, eval_sources, config)
        return (
            _pack(sources, encoded, config, tokenizer, kind, invalid=invalid),
            _pack(eval_sources, held, config, tokenizer, kind, "eval", invalid=invalid),
        )
    invalid.check(sources, partial(advise, kind=kind))
    if not config.eval_fraction:
        return _pack(sources, encoded, config, tokenizer, kind, invalid=invalid), None
    parts = [hold_out(records, config.eval_fraction) for records in encoded]
    if not any(len(held.items) for _, held in parts):
        raise DataError(
            f"config.data.eval_fraction={config.eval_fraction}: holds out none of "
            f"{amount(sum(map(len, encoded)), 'record')}; raise it"
        )
    return (
        _pack(sources, [kept for kept, _ in parts], config, tokenizer, kind, invalid=invalid),
        _pack(sources, [held for _, held in parts], config, tokenizer, kind, "eval", sparse=True),
    )


def build_dataset(config: DataConfig, tokenizer: Tokenizer, kind: str, part: str = "train") -> Dataset:
    """Read the sources of `config.data.<part>` alone and make rows of them; see `dataset_from_records`.

    Of a stream, of its first window.
    """
    if config.streaming and part == "train":
        return _stream(replace(config, eval=""), tokenizer, kind)[0]
    invalid = Invalid(config.invalid)
    sources, encoded = _read(config, tokenizer, kind, part, invalid)
    invalid.check(sources, partial(advise, kind=kind))
    return _pack(sources, encoded, config, tokenizer, kind, part, invalid=invalid)


def _stream(config: DataConfig, tokenizer: Tokenizer, kind: str) -> tuple[Dataset, Dataset | None]:
    """The first window of the training source, with the stream that it begins, and the held-out rows."""
    asked = _asked(config, kind, "train")
    (name, *more), key = asked.names, "config.data.streaming=True"
    check_streaming(config, kind, name, more)
    held_sources, held, held_out = list[Records](), list[Encoded](), None
    if config.eval:
        invalid = Invalid(config.invalid)
        held_sources, held = _read(config, tokenizer, kind, "eval", invalid)
        invalid.check(held_sources, partial(advise, kind=kind))
        held_out = _pack(held_sources, held, config, tokenizer, kind, "eval", invalid=invalid)
    # As long as the longest record may be: nobody knows what comes.
    length = config.row_length or KINDS[kind].sequences * config.max_length
    config = replace(config, row_length=length)
    check_kind(config, kind, 1, ())
    encoder, reader = _encoder(config, tokenizer, kind), Reader()

    def read(start: int, count: int) -> Records:
        options = {**asked.options, "take": count, "read": partial(reader.read, start=start)}
        with _from_key("train"):
            return open_source(name, kind, "train", **options)

    def make(records: Records, start: int) -> Dataset | Emptied:
        invalid = Invalid(config.invalid)
        with _from_key("train"):
            encoded = [encode_records_of(records, encoder, invalid, first_row=start)]
        note_bad(encoded[0], records, invalid)
        # What is left at the end of a source is too little to be judged by the share that is bad.
        most = 1.0 if start and len(records) < config.stream_buffer else MOST_DROPPED
        invalid.check([records], partial(advise, kind=kind), most=most)
        try:
            if held and config.overlap != "allow":
                encoded = _keep_apart(encoded, held, [records], held_sources, config)
            return _pack([records], encoded, config, tokenizer, kind, invalid=invalid)
        except NothingLeft as error:
            if not start:
                raise
            return Emptied(str(error), tuple(invalid.rows))

    stream = Stream(name, read, make, config.stream_buffer, config.take or None)
    first = stream.window(0)
    if first is None or isinstance(first, Emptied):
        raise DataError(f"{name}: holds no records; give a source with at least one (from {key})")
    check_mapping(first.sources, asked.options["fields"])
    return replace(first, stream=stream), held_out


def open_sources(config: DataConfig, kind: str, part: str) -> list[Records]:
    """The records that `config.data.<part>` names."""
    asked = _asked(config, kind, part)
    with _from_key(part):
        sources = [asked.open(name) for name in asked.names]
        check_mapping(sources, asked.options["fields"])
        return sources


def _asked(config: DataConfig, kind: str, part: str) -> Asked:
    names = getattr(config, part)
    names = split_names(names) if isinstance(names, str) else tuple(names)
    if not all(names) or not names:
        raise ConfigError(
            f"config.data.{part}={getattr(config, part)!r}: names no data; write a file, folder or hub name"
        )
    options = {
        "split": config.split,
        "take": config.take or None,
        "ignore_fields": tuple(field for fields in config.ignore_fields for field in fields.split(",")),
        "fields": parse_mapping(config.fields),
        "max_row_bytes": config.max_row_bytes,
    }
    return Asked(names, kind, part, options)


@contextlib.contextmanager
def _from_key(part: str) -> Iterator[None]:
    """Adds the key of the config to errors about its sources."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{error} (from config.data.{part})") from error


def _read(
    config: DataConfig, tokenizer: Tokenizer, kind: str, part: str, invalid: Invalid
) -> tuple[list[Records], list[Encoded]]:
    """The sources that `config.data.<part>` names, and their tokens."""
    with _from_key(part):
        asked = _asked(config, kind, part)
        check_kind(config, kind, len(asked.names), config.weights if part == "train" else ())
        return encode_sources(asked, _encoder(config, tokenizer, kind), invalid, Place(config.store))


def dataset_from_records(
    sources: Sequence[Records], config: DataConfig, tokenizer: Tokenizer, kind: str, part: str = "train"
) -> Dataset:
    """Check, encode and pack records of `kind` (see `parse_record`), from files or made in memory.

    Weights apply to the training part; held-out data is always taken once.
    """
    check_kind(config, kind, len(sources), config.weights if part == "train" else ())
    invalid = Invalid(config.invalid)
    encoder, encoded = _encoder(config, tokenizer, kind), list[Encoded]()
    for source in sources:
        encoded.append(encode_records_of(source, encoder, invalid, first_row=sum(map(len, encoded))))
        note_bad(encoded[-1], source, invalid)
    invalid.check(sources, partial(advise, kind=kind))
    return _pack(sources, encoded, config, tokenizer, kind, part, invalid=invalid)


def abstract_batch(
    kind: str, config: DataConfig, batch_size: int, make: Callable[[tuple[int, ...], np.dtype], Any]
) -> AnyBatch:
    """A batch of the shapes that data of `kind` has under a config, when no ranking of more than two is in it.

    Args:
      make: (shape, dtype) -> what stands for each array, such as a jax.ShapeDtypeStruct. The ending of prompts is None.
    """
    found = KINDS[kind]
    segments = config.segments if config.packing else found.sequences
    length = config.slots(kind)
    sizes = {"B": batch_size, "T": length, "S": segments, "P": segments // 2}
    arrays = {
        name: make(tuple(sizes[axis] for axis in axes), dtype)
        for name, (axes, dtype) in ARRAYS[found.batch].items()
        if "L" not in axes
    }
    return found.batch(**arrays)


def find_template(config: DataConfig, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template of a config; None: that of the tokenizer, or else the built-in one.

    Raises:
      ConfigError: it cannot be read, or an argument or an answer token cannot be.
    """
    if not (config.chat_template or config.template_args or config.answer_tokens):
        return None
    given = (config.chat_template, config.template_args, config.answer_tokens)
    return choose_template(tokenizer.template, *given)


def stored_sources(
    config: DataConfig, tokenizer: Tokenizer, kind: str, part: str
) -> tuple[Encoder, list[StoredSource]]:
    """The sources that `config.data.<part>` names, each with its store, and what makes their tokens.

    Raises:
      ConfigError: a source has no store.
    """
    encoder = _encoder(config, tokenizer, kind)
    with _from_key(part):
        return encoder, find_stores(_asked(config, kind, part), encoder, Place(config.store))


def _encoder(config: DataConfig, tokenizer: Tokenizer, kind: str) -> Encoder:
    return Encoder(
        kind,
        tokenizer,
        find_template(config, tokenizer),
        max_length=config.max_length or LONGEST,
        overlong=config.overlong,
        group_length=config.row_length or None,
        reading=Reading(config.learn, config.control_tokens),
    )


def _with_row_length(config: DataConfig, kind: str, encoded: Sequence[Encoded]) -> DataConfig:
    """A config that says how long rows are: where it left that open, so long that these records fill them well.

    That is as long as the longest record. Where most are much shorter, up to `FULL_ROW` mean ones share a row, but
    none is longer than the longest record could be, and there are at least `FEWEST_ROWS`.
    """
    lengths = [each.items.lengths for each in encoded]
    count = sum(map(len, lengths))
    if config.row_length or not count:
        return config
    found = KINDS[kind]
    longest, total = (
        max(int(each.max(initial=0)) for each in lengths),
        sum(int(each.sum()) for each in lengths),
    )
    if found.one_per_row:
        return replace(config, row_length=max(2, longest))
    # A mismatched sequence will be beside each completion.
    copies = found.sequences if found.mismatched else 1
    longest, total = copies * longest, copies * total
    if config.packing:
        mean = total / count
        most = found.sequences * config.max_length if config.max_length else longest
        longest = max(longest, int(min(FULL_ROW * mean, total / FEWEST_ROWS, most)))
    unit = ROW_UNIT if longest > SHORT_ROW else SHORT_UNIT
    return replace(config, row_length=-(-longest // unit) * unit)


def _keep_apart(
    encoded: list[Encoded],
    held: list[Encoded],
    sources: Sequence[Records],
    eval_sources: Sequence[Records],
    config: DataConfig,
) -> list[Encoded]:
    shared = find_shared(encoded, held, config.overlap_by)
    if config.overlap == "drop":
        kept = drop_shared(encoded, shared)
        if config.overlap_by == "prompt" and not any(len(each.items) for each in kept):
            raise NothingLeft(
                f"every training record of {', '.join(s.name for s in sources)} has a prompt that is also in eval; "
                "take other data, or set config.data.overlap_by='record' if they all share one instruction"
            )
        return kept
    for source, found in zip(sources, shared, strict=True):
        for index, (number, other) in found.items():
            raise DataError(
                f"{source.where(index)}: the same {config.overlap_by} is in eval, at "
                f"{eval_sources[number].where(other)} ({sum(map(len, shared))} train records also in eval); remove "
                "them, or set config.data.overlap to 'drop' or 'allow'"
            )
    return encoded


def _pack(
    sources: Sequence[Records],
    encoded: Sequence[Encoded],
    config: DataConfig,
    tokenizer: Tokenizer,
    kind: str,
    part: str = "train",
    *,
    sparse: bool = False,
    invalid: Invalid | None = None,
) -> Dataset:
    """`sparse`: sources of which nothing is there are left out. `invalid` has what was left out of them."""
    config = _with_row_length(config, kind, encoded)
    present = [each for each in zip(sources, encoded, strict=True) if len(each[1].items) or not sparse]
    collected = [collect(each, kind, source.name) for source, each in present]
    encoded, items = [each for _, each in present], [own for own, _ in collected]
    if KINDS[kind].mismatched:
        if part == "train":
            _check_labels(items, sources)
        items = [add_mismatched(own, config.max_length or LONGEST) for own in items]
    most = max(int(own.segments.max()) for own in items)
    if config.packing and most > config.segments:
        raise ConfigError(
            f"config.data.max_segments={config.max_segments}: must be {most} or more, for so long a ranking"
        )
    # Windows of a stream are to have one shape.
    sharing = config.share_prompts and not config.streaming and saves_enough(items)
    keepers = [_keeper(own, each, config, kind, sharing) for own, each in zip(items, encoded, strict=True)]
    rows = build_rows(
        items,
        kind,
        keepers=keepers,
        row_length=config.slots(kind),
        max_segments=config.segments,
        packing=config.packing,
        sharing=sharing,
        seed=config.seed,
        weights=tuple(config.weights) if part == "train" else (),
        pad_id=tokenizer.pad_id,
    )
    report = replace(
        reduce(operator.add, [report for _, report in collected]),
        blank=sum(source.blank for source in sources),
    )
    # By identity: records compare by all their rows.
    bad = [] if invalid is None else [row for row in invalid.rows if any(row.records is s for s in sources)]
    stores = tuple(each.store for each in encoded if each.store is not None)
    return Dataset(rows, report, tuple(sources), tuple(bad), stores)


def _keeper(items: Items, encoded: Encoded, config: DataConfig, kind: str, sharing: bool) -> Keeper:
    """Keeps the rows of a source that is in a store there."""
    store = encoded.store
    if store is None:
        return lambda find: find()
    more = (items.max_length if KINDS[kind].mismatched else 0, sharing)
    name = rows_name(config.slots(kind), config.segments, config.seed, items.chosen, more)
    return partial(store.rows, name)


def _check_labels(items: Sequence[Items], sources: Sequence[Records]) -> None:
    """Raises DataError for training data of one label only, from which there is nothing to tell good and bad by."""
    labels = [own.column(lambda part: part.desirable) for own in items]
    count = sum(map(len, labels))
    for label, name, other in ((1.0, "desirable", "undesirable"), (0.0, "undesirable", "desirable")):
        if all((each == label).all() for each in labels):
            raise DataError(
                f"{', '.join(source.name for source in sources)}: {count} {name} completions (label "
                f"{'true' if label else 'false'}) and 0 {other} ones: training needs both; add rows with the other "
                "label, or pairs of chosen and rejected"
            )
