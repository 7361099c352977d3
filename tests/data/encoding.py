"""A source encoded and collected, as a dataset of several sources does with each."""

from typing import Any

from jaxalign.data import Records, Tokenizer
from jaxalign.data.encode import encode_records
from jaxalign.data.encoded import Encoded
from jaxalign.data.report import EncodingReport, collect


def encode_dataset(
    records: Records, kind: str, tokenizer: Tokenizer, **options: Any
) -> tuple[list, EncodingReport]:
    """All items and the report."""
    return collect(Encoded.of(encode_records(records, kind, tokenizer, **options)), kind, records.name)
