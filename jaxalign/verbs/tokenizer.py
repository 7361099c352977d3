"""`jaxalign tokenizer`: a SentencePiece tokenizer from text."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from jaxalign.data import train_sentencepiece
from jaxalign.data.kinds import PAIRS_OR_DEMONSTRATIONS
from jaxalign.errors import amount
from jaxalign.storage import to_path
from jaxalign.streams import say
from jaxalign.text.messages import Message
from jaxalign.verbs.requests import flag
from jaxalign.verbs.rows import SOURCES, RowsRequest, iterate_checked, open_checked, write_beside


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerRequest(RowsRequest):
    """Train a SentencePiece tokenizer on texts, and on what is said in conversations and preference pairs.

    jaxalign tokenizer --data=corpus.jsonl --out=tokenizer.model --vocab=32000
    """

    data: str = flag(SOURCES, show="SRC")
    out: str = flag("the .model file to write", show="FILE.model")
    vocab: int = flag("pieces", default=4096, at_least=1)
    type: str = flag("bpe or unigram", default="bpe", choices=("bpe", "unigram"), show="TYPE")


def run(request: TokenizerRequest) -> int:
    """Writes the tokenizer."""
    # A kind of data that takes conversations, pairs and plain text alike.
    config = request.data_config(request.data)
    with request.named(eval="--data"):
        opened = open_checked(config, PAIRS_OR_DEMONSTRATIONS)
    texts = (text for row in iterate_checked(opened) for text in said(row.record))
    tokenizer = train_sentencepiece(texts, request.out, request.vocab, request.type)
    say(f"{request.out}: {amount(tokenizer.vocab_size, 'piece')}")
    for reason, count in sorted(opened.dropped.items()):
        say(f"{amount(count, 'row')} left out: {reason}")
    if note := write_beside(to_path(request.out), opened.invalid):
        say(note)
    return 0


def said(record: Any) -> Iterator[str]:
    """Every text of a record: of messages what they say."""
    if isinstance(record, str):
        yield record
    elif isinstance(record, Message):
        yield record.content
    elif isinstance(record, tuple):
        for part in record:
            yield from said(part)
    elif dataclasses.is_dataclass(record):
        for each in dataclasses.fields(record):
            yield from said(getattr(record, each.name))
