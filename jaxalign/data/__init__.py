"""Records to batches: sources, checks, tokenizers, chat templates, packing and sampling."""

from jaxalign.data.batch import Batch, PairBatch, PromptBatch, UnpairedBatch
from jaxalign.data.config import DataConfig
from jaxalign.data.dataset import (
    Dataset,
    abstract_batch,
    build_dataset,
    build_datasets,
    dataset_from_records,
)
from jaxalign.data.kinds import DEMONSTRATIONS, PAIRS, PAIRS_OR_DEMONSTRATIONS, PROMPTS, TEXT, UNPAIRED
from jaxalign.data.loader import eval_batches, make_loader, train_batches
from jaxalign.data.sources import Records, read_records
from jaxalign.text.tokenizer import Tokenizer, load_tokenizer, train_sentencepiece

__all__ = [
    "DEMONSTRATIONS",
    "PAIRS",
    "PAIRS_OR_DEMONSTRATIONS",
    "PROMPTS",
    "TEXT",
    "UNPAIRED",
    "Batch",
    "DataConfig",
    "Dataset",
    "PairBatch",
    "PromptBatch",
    "Records",
    "Tokenizer",
    "UnpairedBatch",
    "abstract_batch",
    "build_dataset",
    "build_datasets",
    "dataset_from_records",
    "eval_batches",
    "load_tokenizer",
    "make_loader",
    "read_records",
    "train_batches",
    "train_sentencepiece",
]
