"""A small tokenizer, trained once, whose text is covered byte by byte."""

import datetime
from collections.abc import Iterator

import numpy as np
import pytest

from jaxalign.text.templates import clock
from jaxalign.text.tokenizer import SentencePieceTokenizer, train_sentencepiece

WORDS = "the quick brown fox jumps over a lazy dog and asks who wrote this reply to that question".split()


def corpus(lines: int = 200) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 12))) + ".\n" for _ in range(lines)]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> SentencePieceTokenizer:
    return train_sentencepiece(corpus(), tmp_path_factory.mktemp("tokenizer") / "small.model", 360)


class _OurTime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return clock()


@pytest.fixture(autouse=True, scope="session")
def _transformers_has_our_time() -> Iterator[None]:
    """Templates of `transformers` read the clock at every turn, ours once: tests may run past midnight."""
    from transformers.utils import chat_template_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", _OurTime)
        yield
