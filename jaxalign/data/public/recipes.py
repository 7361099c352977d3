"""How the rows of known public datasets become records, and how a config names a dataset.

    [RECIPE[/SUBSET]:]PLACE[/SUBSET][@SPLIT]

    data.jsonl                                 a file of our own fields, or of a shape known by its fields
    data/train-*.parquet                       files of one format as one source
    Anthropic/hh-rlhf                          a hub dataset that has a recipe
    Anthropic/hh-rlhf/harmless-base@test       one part of it, another split
    OpenAssistant/oasst1/ja                    its messages in one language
    hh-rlhf:copies/train.jsonl                 a local copy of it, or data of the same shape

Rows that a recipe leaves out are counted by reason in `EncodingReport.dropped`; any other bad row stops the run.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from jaxalign.data.accounts import Watched
from jaxalign.data.fields import complete_prompt, without_fields, without_inner_fields
from jaxalign.data.files import kind_of
from jaxalign.data.kinds import (
    DEMONSTRATIONS,
    PAIRS,
    PAIRS_OR_DEMONSTRATIONS,
    PROMPTS,
    TEXT,
    UNPAIRED,
)
from jaxalign.data.mapping import map_fields
from jaxalign.data.public import oasst, shapes
from jaxalign.data.public.rows import compared, read_shape
from jaxalign.data.sources import Records, is_pattern, read_records
from jaxalign.data.tables import MOST_ROW_BYTES
from jaxalign.errors import DataError
from jaxalign.storage import is_remote, to_path

Adapt = Callable[
    [Records, str], Records
]  # records as the dataset has them, subset -> records as we read them


@dataclass(frozen=True)
class Recipe:
    """`kinds` it can serve, and how; see `parse_record` for the kinds."""

    kinds: Mapping[str, Adapt]
    hub: tuple[str, ...] = ()
    splits: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # kind -> (train, eval); "" for none
    subset: str = ""  # what a subset is: "data_dir" or "name" of `load_dataset`, "language", or nothing
    subsets: tuple[str, ...] = ()  # the only ones that have these rows; () for any
    options: Mapping[str, str] = field(default_factory=dict)  # of `load_dataset`
    whole: bool = False  # a record is made of several rows


PARSED = frozenset("text messages prompt completion chosen rejected responses scores margin".split())


def _adapt_row(
    row: Mapping[str, Any], adapt: shapes.Adapter, left_out: tuple[str, ...] = ()
) -> shapes.Fields:
    """What `adapt` makes of a row, with the fields that it did not look at: a system message may be among them."""
    watched = Watched(row)
    made = adapt(watched)
    # Of fields that are parsed, the recipe's own are meant.
    known = {*watched.read, *left_out, *PARSED}
    return {name: value for name, value in row.items() if name not in known} | made


def _adapted(records: Records, adapt: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Records:
    return replace(records, adapters=(*records.adapters, adapt))


def _each(adapt: shapes.Adapter, *left_out: str) -> Adapt:
    return lambda records, _: _adapted(records, partial(_adapt_row, adapt=adapt, left_out=left_out))


def _rows(adapters: Mapping[str, shapes.Adapter]) -> dict[str, Adapt]:
    return {kind: _each(adapt) for kind, adapt in adapters.items()}


def _chat(adapt: shapes.Adapter) -> dict[str, shapes.Adapter]:
    return {DEMONSTRATIONS: adapt, TEXT: adapt, PROMPTS: shapes.only_prompt(adapt)}


_TLDR = ("train", "validation")
_ULTRAFEEDBACK = {
    PAIRS: ("train_prefs", "test_prefs"),
    DEMONSTRATIONS: ("train_sft", "test_sft"),
    TEXT: ("train_sft", "test_sft"),
    PROMPTS: ("train_gen", "test_gen"),
}
RECIPES = {
    "hh-rlhf": Recipe(
        _rows(compared(shapes.hh_dialogues)),
        hub=("Anthropic/hh-rlhf",),
        splits=dict.fromkeys((PAIRS, DEMONSTRATIONS, PROMPTS), ("train", "test")),
        subset="data_dir",
        subsets=("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"),
    ),
    "ultrafeedback_binarized": Recipe(
        _rows(compared(shapes.binarized) | _chat(shapes.as_messages) | {PROMPTS: shapes.prompt_text}),
        hub=("HuggingFaceH4/ultrafeedback_binarized",),
        splits=_ULTRAFEEDBACK,
    ),
    "ultrachat_200k": Recipe(
        _rows(_chat(shapes.as_messages) | {PROMPTS: shapes.prompt_text}),
        hub=("HuggingFaceH4/ultrachat_200k",),
        splits={kind: splits for kind, splits in _ULTRAFEEDBACK.items() if kind != PAIRS},
    ),
    "UltraFeedback": Recipe(_rows(compared(shapes.ultrafeedback)), hub=("openbmb/UltraFeedback",)),
    "tldr": Recipe(
        _rows(
            {DEMONSTRATIONS: shapes.prompt_completion, PROMPTS: shapes.only_prompt(shapes.prompt_completion)}
        ),
        hub=("trl-lib/tldr",),
        splits=dict.fromkeys((DEMONSTRATIONS, PROMPTS), _TLDR),
    ),
    "tldr-preference": Recipe(
        _rows(compared(shapes.text_pair)),
        hub=("trl-lib/tldr-preference",),
        splits=dict.fromkeys((PAIRS, DEMONSTRATIONS, PROMPTS), _TLDR),
    ),
    "summarize_from_feedback": Recipe(
        _rows(compared(shapes.summaries)),
        hub=("openai/summarize_from_feedback",),
        splits=dict.fromkeys((PAIRS, DEMONSTRATIONS, PROMPTS), _TLDR),
        # The dataset itself is a script, which `datasets` has not run since its version 4.
        options={"revision": "refs/convert/parquet", "data_dir": "comparisons"},
    ),
    "imdb": Recipe(
        {
            kind: _each(adapt, "label")
            for kind, adapt in (
                (TEXT, shapes.review),
                (DEMONSTRATIONS, shapes.review),
                (PROMPTS, shapes.review_opening),
            )
        },
        hub=("stanfordnlp/imdb",),
        splits=dict.fromkeys((TEXT, DEMONSTRATIONS, PROMPTS), ("train", "test")),
    ),
    "dolly": Recipe(
        _rows(_chat(shapes.instruction("context", "response"))),
        hub=("databricks/databricks-dolly-15k", "llm-jp/databricks-dolly-15k-ja"),
    ),
    "oasst1": Recipe(
        {
            DEMONSTRATIONS: oasst.chats,
            TEXT: oasst.chats,
            PAIRS: oasst.rankings,
            PROMPTS: oasst.prompts,
        },
        hub=("OpenAssistant/oasst1", "OpenAssistant/oasst2"),
        splits=dict.fromkeys((DEMONSTRATIONS, TEXT, PAIRS, PROMPTS), ("train", "validation")),
        subset="language",
        whole=True,
    ),
    "hh-rlhf-12k-ja": Recipe(_rows(compared(shapes.sharegpt_pair)), hub=("llm-jp/hh-rlhf-12k-ja",)),
    "kto-mix-14k": Recipe(
        _rows({UNPAIRED: shapes.labelled}),
        hub=("trl-lib/kto-mix-14k",),
        splits={UNPAIRED: ("train", "test")},
    ),
    "sharegpt": Recipe(
        _rows(
            _chat(shapes.sharegpt)
            | dict.fromkeys((PAIRS, UNPAIRED), shapes.sharegpt_pair)
            | {PAIRS_OR_DEMONSTRATIONS: shapes.sharegpt_either}
        )
    ),
    "generated": Recipe(
        _rows(dict.fromkeys((DEMONSTRATIONS, PAIRS_OR_DEMONSTRATIONS, UNPAIRED), shapes.generated))
    ),
    "alpaca": Recipe(_rows(_chat(shapes.instruction("input", "output"))), hub=("tatsu-lab/alpaca",)),
}
_BY_HUB_NAME = {hub: name for name, recipe in RECIPES.items() for hub in recipe.hub}


@dataclass(frozen=True)
class Source:
    """The parts of what a config names."""

    place: str
    recipe: str = ""
    subset: str = ""
    split: str = ""


def open_source(
    source: str,
    kind: str,
    part: str = "train",
    *,
    split: str = "",
    take: int | None = None,
    ignore_fields: Sequence[str] = (),
    fields: Mapping[str, str] = MappingProxyType({}),
    max_row_bytes: int = MOST_ROW_BYTES,
    read: Callable[..., Records] = read_records,
) -> Records:
    """The records of `kind` in a source: by its recipe where it has one, else each row by its own shape.

    Args:
      part: "train" or "eval": which of its splits a hub dataset gives, where neither `source` nor `split` says.
      split: of a folder or hub dataset; what `source` itself names comes first.
      take: see `read_records`; of oasst1 it counts messages.
      ignore_fields: fields of rows and of messages that are taken for absent.
      fields: our names of fields, each with the row's; see `mapping`.
      max_row_bytes: see `read_records`.
      read: (name, split=, take=, hub_options=, max_row_bytes=) -> the rows, as `read_records` gives them.

    Raises DataError for a source that cannot be read, a recipe that has no records of `kind` and a part that the
    dataset has not.
    """
    named, served, split = locate(source, kind, part, split)
    recipe = RECIPES.get(named.recipe)
    if recipe is None:
        options = {"name": named.subset} if named.subset else {}
    else:
        options = dict(recipe.options) if named.place in recipe.hub else {}
        if named.subset and recipe.subset != "language":
            options[recipe.subset] = named.subset
    records = read(named.place, split=split, take=take, hub_options=options, max_row_bytes=max_row_bytes)
    ignored = tuple(ignore_fields)
    if ignored:
        records = _adapted(records, partial(without_fields, names=ignored))
    if fields:
        records = _adapted(records, partial(map_fields, mapping=fields))
    if recipe is None:
        records = _adapted(records, partial(read_shape, kind=kind))
    else:
        records = recipe.kinds[served](records, named.subset)
    if ignored:  # messages may have been stored as text
        records = _adapted(records, partial(without_inner_fields, names=ignored))
    return _adapted(records, partial(complete_prompt, kind=kind))


def needs_all_rows(source: str, kind: str) -> bool:
    """Whether records of a source are made of several rows, so that some of these alone are no data."""
    named, _, _ = locate(source, kind)
    return named.recipe in RECIPES and RECIPES[named.recipe].whole


def locate(source: str, kind: str, part: str = "train", split: str = "") -> tuple[Source, str, str]:
    """What a source names, which kind of data its recipe has for `kind`, and the split; see `open_source`.

    Raises DataError for a recipe that has no records of `kind` and a part that the dataset has not.
    """
    named = parse_source(source)
    recipe = RECIPES.get(named.recipe)
    if recipe is None:
        return named, kind, named.split or split or "train"
    if (served := _served(recipe, kind)) is None:
        raise DataError(
            f"{source}: recipe {named.recipe} has {', '.join(recipe.kinds)} data, but no {kind} data"
        )
    if not (to_path(named.place).is_file() or is_pattern(named.place)):
        split = named.split or split or _default_split(recipe, served, part, source)
    return named, served, split


def parse_source(source: str) -> Source:
    """Take `[RECIPE[/SUBSET]:]PLACE[/SUBSET][@SPLIT]` apart; a path that exists is a path, whatever is in it."""
    if to_path(source).exists():
        return Source(source)
    recipe = subset = split = ""
    head, colon, place = source.partition(":")
    if colon and not is_remote(source):
        recipe, _, subset = head.partition("/")
        if recipe not in RECIPES:
            raise DataError(
                f"{source}: no such file, and {recipe!r} is no recipe; correct the path, or write one of "
                f"{', '.join(RECIPES)} before the colon"
            )
    else:
        place = source
    if not to_path(place).exists() and "@" in place:
        place, _, split = place.rpartition("@")
    local = to_path(place).exists() or is_pattern(place)
    if split and (to_path(place).is_file() or is_pattern(place)):
        raise DataError(f"{source}: a file has no splits; leave out @{split}")
    if not local and (hub := re.fullmatch(r"([\w.-]+/[\w.-]+)/([\w.-]+)", place)):
        if not kind_of(place) and not place.startswith("."):
            place, subset = hub[1], hub[2]
    if not recipe and not local:
        recipe = _BY_HUB_NAME.get(place, "")
    if recipe and subset:
        _check_subset(RECIPES[recipe], subset, local, source)
    return Source(place, recipe, subset, split)


def _check_subset(recipe: Recipe, subset: str, local: bool, source: str) -> None:
    if recipe.subset == "language":
        return
    if not recipe.subset or local:
        raise DataError(f"{source}: there is no part {subset!r} of it to choose; leave it out")
    if recipe.subsets and subset not in recipe.subsets:
        raise DataError(f"{source}: {subset!r} is not one of {', '.join(recipe.subsets)}")


def _served(recipe: Recipe, kind: str) -> str | None:
    # Pairs are also completions to be judged one by one.
    wanted = {PAIRS_OR_DEMONSTRATIONS: (kind, PAIRS, DEMONSTRATIONS), UNPAIRED: (kind, PAIRS)}.get(
        kind, (kind,)
    )
    return next((name for name in wanted if name in recipe.kinds), None)


def _default_split(recipe: Recipe, kind: str, part: str, source: str) -> str:
    train, held_out = recipe.splits.get(kind, ("train", ""))
    if part == "eval" and not held_out:
        raise DataError(
            f"{source}: the dataset has no held-out split; leave config.data.eval empty and set "
            "config.data.eval_fraction, or name a split as in NAME@SPLIT"
        )
    return held_out if part == "eval" else train
