"""Models of SentencePiece, sound and damaged."""

import functools
import io
from pathlib import Path

from tests.faults.fuzz.cases import Random, Surface, chance, damaged
from tests.faults.fuzz.templates import make_template
from tests.faults.fuzz.tokenizers import read


@functools.cache
def _sound() -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the fox sleeps in the den", "where is the fox"] * 20),
        model_writer=model,
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=4,
        num_threads=1,
    )
    return model.getvalue()


def write(rng: Random, folder: Path) -> Path:
    data = _sound()
    for _ in range(rng.randrange(3)):
        data = damaged(rng, data)
    if chance(rng, 0.03):
        data = b"aGVsbG8= 1\n" + data
    (folder / "tokenizer.model").write_bytes(data)
    if chance(rng, 0.05):
        (folder / "chat_template.jinja").write_bytes(make_template(rng))
    return folder


def prepare() -> None:
    import jaxalign.text.tokenizer  # noqa: F401

    _sound()


SURFACE = Surface(14, write, read, prepare)
