"""A small tokenizer, trained once, whose text is covered byte by byte."""

import numpy as np
import pytest

from jaxalign.text.tokenizer import SentencePieceTokenizer, train_sentencepiece

WORDS = "the quick brown fox jumps over a lazy dog and asks who wrote this reply to that question".split()


def corpus(lines: int = 200) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 12))) + ".\n" for _ in range(lines)]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> SentencePieceTokenizer:
    return train_sentencepiece(corpus(), tmp_path_factory.mktemp("tokenizer") / "small.model", 360)
