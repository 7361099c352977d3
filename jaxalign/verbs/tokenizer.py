"""`jaxalign tokenizer`: a SentencePiece tokenizer from text."""

import dataclasses
from typing import Any

from jaxalign.verbs.requests import Request, flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerRequest(Request):
    """Train a SentencePiece tokenizer on rows {"text": ...}."""

    data: str = flag("rows with a field text", show="FILE")
    out: str = flag("the .model file to write", show="FILE.model")
    vocab: int = flag("pieces", default=4096, at_least=1)
    type: str = flag("bpe or unigram", default="bpe", choices=("bpe", "unigram"), show="TYPE")


def run(request: TokenizerRequest) -> int:
    """Writes the tokenizer."""
    from jaxalign.data import read_records, train_sentencepiece
    from jaxalign.data.records import parse_record

    records: Any = read_records(request.data)
    parsed: Any = (parse_record(row, "text", records.where(i)) for i, row in enumerate(records))
    texts = (record.text for record in parsed)
    tokenizer = train_sentencepiece(texts, request.out, request.vocab, request.type)
    print(f"{request.out}: {tokenizer.vocab_size} pieces")
    return 0
