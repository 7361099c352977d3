"""The parts of a dataset that are measured apart: one for each of its sources."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from jaxalign.data.dataset import Dataset

# What ends the names of files with data.
_SUFFIX = re.compile(r"\.(jsonl?|ndjson|parquet|arrow|csv|txt)(\.(gz|zst))?$", re.IGNORECASE)


def find_sets(dataset: Dataset, names: Sequence[str] = ()) -> dict[str, range]:
    """The rows of each source of a dataset, by a short name; nothing where all rows are of one source.

    Args:
      names: what the sources are called, one each; by default their own names.
    """
    bounds = [pair for pair in pairwise(dataset.rows.bounds) if pair[0] < pair[1]]
    if len(bounds) < 2:
        return {}
    if len(names) != len(dataset.sources):
        names = [source.name for source in dataset.sources]
    rows = dataset.rows
    # Of a source from which nothing is held out there are no rows: a row's first record tells whose it is.
    owners = [dataset.source_of(rows.items[rows.bins[start][0]].row) for start, _ in bounds]
    short = short_names([names[owner] for owner in owners])
    return {name: range(*pair) for name, pair in zip(short, bounds, strict=True)}


def short_names(sources: Sequence[str]) -> list[str]:
    """Names for sources, each another: the stem of a file, or the end of a dataset's name.

    Where two are alike, the folder before it stands in front (`old/test.jsonl`: old-test), and in the end a number
    behind it.
    """
    parts = [[_clean(part) for part in _SUFFIX.sub("", name).split("/") if part] for name in sources]
    depth = [1] * len(parts)

    def joined() -> list[str]:
        return ["-".join(own[-count:]) or "data" for own, count in zip(parts, depth, strict=True)]

    while True:
        names = joined()
        counts = Counter(names)
        growing = [i for i, name in enumerate(names) if counts[name] > 1 and depth[i] < len(parts[i])]
        if not growing:
            break
        for i in growing:
            depth[i] += 1
    unique: list[str] = []
    for name in names:
        taken, number = name, 1
        while taken in unique or (number > 1 and taken in names):
            number += 1
            taken = f"{name}-{number}"
        unique.append(taken)
    return unique


def _clean(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-")
