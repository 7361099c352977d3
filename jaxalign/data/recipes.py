"""How the rows of known public datasets become records, and how a config names a dataset.

    [RECIPE[/SUBSET]:]PLACE[/SUBSET][@SPLIT]

    data.jsonl                                 a file of our own fields, or of a shape known by its fields
    Anthropic/hh-rlhf                          a hub dataset that has a recipe
    Anthropic/hh-rlhf/harmless-base@test       one part of it, another split
    OpenAssistant/oasst1/ja                    its messages in one language
    hh-rlhf:copies/train.jsonl                 a local copy of it, or data of the same shape

Rows that a recipe leaves out are counted by reason in `EncodingReport.dropped`; any other bad row stops the run.
"""

import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxalign.data import oasst, shapes
from jaxalign.data.sources import SUFFIXES, Dropped, Records, read_records
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


class Adapted(Sequence):
    """Rows turned into our fields when asked for, so that memory does not grow with the dataset."""

    def __init__(self, records: Records, adapt: shapes.Adapter):
        self._records, self._adapt = records, adapt

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Mapping[str, Any] | Dropped:
        row = self._records[index]
        try:
            return self._adapt(row)
        except shapes.Unusable as reason:
            return Dropped(str(reason))
        except DataError as error:
            raise DataError(f"{self._records.where(index)}: {error}") from None


def _each(adapt: shapes.Adapter) -> Adapt:
    return lambda records, _: Records(Adapted(records, adapt), records.name, records.numbers)


def _chat(adapt: shapes.Adapter) -> dict[str, Adapt]:
    return {"sft": _each(adapt), "text": _each(adapt), "prompt": _each(shapes.only_prompt(adapt))}


def _compared(adapt: shapes.Adapter) -> dict[str, Adapt]:
    return {
        "preference": _each(adapt),
        "sft": _each(shapes.preferred(adapt)),
        "prompt": _each(shapes.only_prompt(adapt)),
    }


_TLDR = ("train", "validation")
_ULTRAFEEDBACK = {
    "preference": ("train_prefs", "test_prefs"),
    "sft": ("train_sft", "test_sft"),
    "text": ("train_sft", "test_sft"),
    "prompt": ("train_gen", "test_gen"),
}
RECIPES = {
    "hh-rlhf": Recipe(
        _compared(shapes.hh_dialogues),
        hub=("Anthropic/hh-rlhf",),
        splits=dict.fromkeys(("preference", "sft", "prompt"), ("train", "test")),
        subset="data_dir",
        subsets=("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"),
    ),
    "ultrafeedback_binarized": Recipe(
        _compared(shapes.binarized) | _chat(shapes.as_messages) | {"prompt": _each(shapes.prompt_text)},
        hub=("HuggingFaceH4/ultrafeedback_binarized",),
        splits=_ULTRAFEEDBACK,
    ),
    "ultrachat_200k": Recipe(
        _chat(shapes.as_messages) | {"prompt": _each(shapes.prompt_text)},
        hub=("HuggingFaceH4/ultrachat_200k",),
        splits={kind: splits for kind, splits in _ULTRAFEEDBACK.items() if kind != "preference"},
    ),
    "UltraFeedback": Recipe(_compared(shapes.ultrafeedback), hub=("openbmb/UltraFeedback",)),
    "tldr": Recipe(
        {
            "sft": _each(shapes.prompt_completion),
            "prompt": _each(shapes.only_prompt(shapes.prompt_completion)),
        },
        hub=("trl-lib/tldr",),
        splits=dict.fromkeys(("sft", "prompt"), _TLDR),
    ),
    "tldr-preference": Recipe(
        _compared(shapes.text_pair),
        hub=("trl-lib/tldr-preference",),
        splits=dict.fromkeys(("preference", "sft", "prompt"), _TLDR),
    ),
    "summarize_from_feedback": Recipe(
        _compared(shapes.summaries),
        hub=("openai/summarize_from_feedback",),
        splits=dict.fromkeys(("preference", "sft", "prompt"), _TLDR),
        # The dataset itself is a script, which `datasets` has not run since its version 4.
        options={"revision": "refs/convert/parquet", "data_dir": "comparisons"},
    ),
    "imdb": Recipe(
        {"text": _each(shapes.review), "sft": _each(shapes.review), "prompt": _each(shapes.review_opening)},
        hub=("stanfordnlp/imdb",),
        splits=dict.fromkeys(("text", "sft", "prompt"), ("train", "test")),
    ),
    "dolly": Recipe(
        _chat(shapes.instruction("context", "response")),
        hub=("databricks/databricks-dolly-15k", "llm-jp/databricks-dolly-15k-ja"),
    ),
    "oasst1": Recipe(
        {
            "sft": oasst.chats,
            "text": oasst.chats,
            "preference": oasst.rankings,
            "prompt": oasst.prompts,
        },
        hub=("OpenAssistant/oasst1", "OpenAssistant/oasst2"),
        splits=dict.fromkeys(("sft", "text", "preference", "prompt"), ("train", "validation")),
        subset="language",
    ),
    "hh-rlhf-12k-ja": Recipe(_compared(shapes.sharegpt_pair), hub=("llm-jp/hh-rlhf-12k-ja",)),
    "sharegpt": Recipe(
        _chat(shapes.sharegpt)
        | {"preference": _each(shapes.sharegpt_pair), "preference or sft": _each(shapes.sharegpt_either)}
    ),
    "generated": Recipe(dict.fromkeys(("sft", "preference or sft"), _each(shapes.generated))),
    "alpaca": Recipe(_chat(shapes.instruction("input", "output")), hub=("tatsu-lab/alpaca",)),
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
    source: str, kind: str, part: str = "train", *, split: str = "", take: int | None = None
) -> Records:
    """The records of `kind` in a source, by its recipe where it has one.

    Args:
      part: "train" or "eval": which of its splits a hub dataset gives, where neither `source` nor `split` says.
      split: of a folder or hub dataset; what `source` itself names comes first.
      take: see `read_records`; of oasst1 it counts messages.

    Raises DataError for a source that cannot be read, a recipe that has no records of `kind` and a part that the
    dataset has not.
    """
    named = parse_source(source)
    recipe = RECIPES.get(named.recipe)
    if recipe is None:
        options = {"name": named.subset} if named.subset else {}
        split = named.split or split or "train"
        records = read_records(named.place, split=split, take=take, hub_options=options)
        shape = recognise(records[0], kind)
        return RECIPES[shape].kinds[kind](records, "") if shape else records
    if (served := _served(recipe, kind)) is None:
        raise DataError(
            f"{source}: recipe {named.recipe} has {', '.join(recipe.kinds)} data, but no {kind} data"
        )
    if not to_path(named.place).is_file():
        split = named.split or split or _default_split(recipe, served, part, source)
    options = dict(recipe.options) if named.place in recipe.hub else {}
    if named.subset and recipe.subset != "language":
        options[recipe.subset] = named.subset
    records = read_records(named.place, split=split, take=take, hub_options=options)
    return recipe.kinds[served](records, named.subset)


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
    local = to_path(place).exists()
    if split and to_path(place).is_file():
        raise DataError(f"{source}: a file has no splits; leave out @{split}")
    if not local and (hub := re.fullmatch(r"([\w.-]+/[\w.-]+)/([\w.-]+)", place)):
        if pathlib.PurePath(place).suffix.lower() not in (*SUFFIXES, ".json") and not place.startswith("."):
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


def recognise(row: Mapping[str, Any], kind: str) -> str:
    """The recipe of a row that has a well-known shape instead of our own fields, or ""."""
    if {"prompt", "completion", "finished"} <= row.keys() and kind in RECIPES["generated"].kinds:
        return "generated"
    turns = row.get("conversations")
    if isinstance(turns, Sequence) and turns and isinstance(turns[0], Mapping) and "from" in turns[0]:
        shape = "sharegpt"
    elif row.get("instruction") is not None and row.get("output") is not None:
        shape = "alpaca"
    else:
        return ""
    own = {"text": ("text", "messages"), "prompt": ("prompt",)}.get(kind, ("messages", "prompt"))
    has_own = any(row.get(name) is not None for name in own)
    return shape if kind in RECIPES[shape].kinds and not has_own else ""


def _served(recipe: Recipe, kind: str) -> str | None:
    wanted = (kind, "preference", "sft") if kind == "preference or sft" else (kind,)
    return next((name for name in wanted if name in recipe.kinds), None)


def _default_split(recipe: Recipe, kind: str, part: str, source: str) -> str:
    train, held_out = recipe.splits.get(kind, ("train", ""))
    if part == "eval" and not held_out:
        raise DataError(
            f"{source}: the dataset has no held-out split; leave config.data.eval empty and set "
            "config.data.eval_fraction, or name a split as in NAME@SPLIT"
        )
    return held_out if part == "eval" else train
