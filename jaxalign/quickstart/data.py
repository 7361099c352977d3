"""The files that a run in the HHH world begins with: its data set, and a tokenizer trained on that."""

import pathlib
from collections.abc import Iterator

from jaxalign.data import read_records, train_sentencepiece
from jaxalign.worlds import DatasetSizes, World, write_dataset

VOCABULARY = 768  # ids of the tokenizer in all


def make_data(world: World, folder: pathlib.Path, *, sizes: DatasetSizes | None, seed: int) -> None:
    """Writes the data set into `folder`, where it is not there yet."""
    if not (folder / "world.json").is_file():
        write_dataset(world, folder, sizes=sizes, seed=seed)


def make_tokenizer(folder: pathlib.Path, size: int = VOCABULARY) -> None:
    """Trains `folder`/tokenizer.model on the corpus and the demonstrations there, where it is not there yet."""
    if not (folder / "tokenizer.model").is_file():
        train_sentencepiece(_texts(folder), folder / "tokenizer.model", size)


def _texts(folder: pathlib.Path) -> Iterator[str]:
    for row in read_records(str(folder / "corpus.jsonl")):
        yield row["text"]
    for row in read_records(str(folder / "sft.jsonl")):
        yield from (message["content"] for message in row["messages"])
