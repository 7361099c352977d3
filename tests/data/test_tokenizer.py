"""Encoding is exact, additive and cannot be talked into control tokens."""

import re

import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.text.tokenizer import CONTROL, load_tokenizer, train_sentencepiece

TEXTS = [
    "",
    "the fox",
    "  two  spaces\tand\n\nlines \r\n",
    "日本語 é é 🙂 \ufeff \x00",
    "▁ a literal mark▁▁",
    "<bos><eos><pad><unk><|user|>hi<|end|><0x0A>⁇",
]
SENTENCES = ["some words to learn from, with enough of them", "and a second line of words"] * 20


@pytest.mark.parametrize("text", TEXTS)
def test_decode_inverts_encode(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_encoding_in_parts_loses_nothing(tokenizer):
    for a in TEXTS:
        for b in TEXTS:
            assert tokenizer.decode(tokenizer.encode(a) + tokenizer.encode(b)) == a + b


def test_random_unicode_round_trips(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(200):
        points = rng.integers(0, 0x3000, 20)
        text = "".join(map(chr, points))
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.control_ids.values())


def test_text_never_makes_control_tokens(tokenizer):
    ids = tokenizer.encode("".join(CONTROL))
    assert not set(ids) & set(tokenizer.control_ids.values())
    assert tokenizer.decode(ids) == "".join(CONTROL)


def test_ids_beyond_the_vocabulary_say_nothing(tokenizer):
    """A model may have more rows than there are tokens, and sample one of them."""
    ids = tokenizer.encode("the fox")
    more = [tokenizer.vocab_size, *ids[:2], tokenizer.vocab_size + 9, *ids[2:], 2**20]
    assert tokenizer.decode(more) == tokenizer.decode_answer(more) == "the fox"


def test_control_tokens(tokenizer):
    assert set(tokenizer.control_ids) == set(CONTROL)
    assert tokenizer.pad_id == 0
    assert tokenizer.bos_id == tokenizer.special_id("<bos>")
    assert tokenizer.eos_ids == (tokenizer.special_id("<eos>"), tokenizer.special_id("<|end|>"))
    user, end = tokenizer.special_id("<|user|>"), tokenizer.special_id("<|end|>")
    assert tokenizer.decode([tokenizer.bos_id, user, *tokenizer.encode("the fox"), end]) == "the fox"
    with pytest.raises(ConfigError, match=re.escape("no control token <|im_end|>, only <pad>, <bos>")):
        tokenizer.special_id("<|im_end|>")


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_training_is_deterministic(tmp_path, model_type, capfd):
    files = [tmp_path / "a.model", tmp_path / "sub" / "b.model"]
    for file in files:
        tokenizer = train_sentencepiece(iter(SENTENCES), file, 285, model_type)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert tokenizer.vocab_size == 285
    assert tokenizer.decode(tokenizer.encode("  ünï words")) == "  ünï words"
    assert capfd.readouterr() == ("", "")


def test_training_reads_long_texts_whole(tmp_path):
    long = "x" * 5000 + "qzqzqzqzqz" * 500
    tokenizer = train_sentencepiece([long, *SENTENCES], tmp_path / "a.model", 300)
    assert len(tokenizer.encode("qzqzqzqz")) < 4


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_vocabulary_sizes_that_cannot_be(tmp_path, model_type):
    path = tmp_path / "a.model"
    with pytest.raises(
        ConfigError, match="vocab_size=5000: the corpus is too small for it; write at most"
    ) as e:
        train_sentencepiece(SENTENCES, path, 5000, model_type)
    largest = int(re.search(r"at most (\d+)", str(e.value))[1])
    assert train_sentencepiece(SENTENCES, path, largest, model_type).vocab_size == largest
    with pytest.raises(
        ConfigError, match="vocab_size=100: too small for the corpus's characters; write at least"
    ) as e:
        train_sentencepiece(SENTENCES, path, 100, model_type)
    with pytest.raises(ConfigError, match="the corpus holds no text"):
        train_sentencepiece([], path, 300, model_type)
    with pytest.raises(ConfigError, match="model_type='word': write 'bpe' or 'unigram'"):
        train_sentencepiece(SENTENCES, path, 300, "word")


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "saved")
    for path in (tmp_path / "saved", tmp_path / "saved" / "tokenizer.model"):
        assert load_tokenizer(path).encode("the fox 🙂") == tokenizer.encode("the fox 🙂")
    load_tokenizer(tmp_path / "saved").save(tmp_path / "saved")  # onto itself


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"config.data.tokenizer=.*none.model: no such file; train one"):
        load_tokenizer(tmp_path / "none.model")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        ConfigError, match=r"needs a tokenizer.json or exactly one .model file, found notes.txt; name"
    ):
        load_tokenizer(tmp_path)
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"found a.model, b.model, notes.txt; name the file"):
        load_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path / "a.model")


def test_files_of_others_and_of_the_quickstart_are_told(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(
        ConfigError, match=r"a vocabulary of tiktoken, .* name a folder with the tokenizer.json"
    ):
        load_tokenizer(path)
    for missing in ("quickstart/sft", "quickstart/data/tokenizer.model"):
        with pytest.raises(ConfigError, match=rf"{missing}.*no such .*`jaxalign quickstart` makes it"):
            load_tokenizer(missing)
