"""Text to token ids and back, without surprises: encoding adds nothing and can never make a control token."""

import io
import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any, Protocol, cast

import sentencepiece

from jaxalign.errors import ConfigError
from jaxalign.hub import download, is_hub_name, way_to
from jaxalign.storage import to_path, write_whole
from jaxalign.text.hf_tokenizer import JSON_NAME, HFTokenizer
from jaxalign.text.template_args import choose_template
from jaxalign.text.templates import TEMPLATE_NAME, ChatTemplate, load_template
from jaxalign.text.token_roles import answer_tokens

MODEL_NAME = "tokenizer.model"
TURN_END = "<|end|>"
CONTROL = ("<pad>", "<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>", TURN_END)
_HUB_FILES = ("*.json", "*.jinja", "merges.txt", "vocab.txt", "*.model")  # but for weights, what a model has
_SPACE_MARK = "\u2581"  # SentencePiece writes a space as this character
_PROBES = ("a  b", " a", "a ", "a\n\n    b\tc", "A Z\r\n", "\u00e9\u200b\u3000x")


class Tokenizer(Protocol):
    """What the rest of jaxalign asks of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a completion; the first one ends plain text."""
        ...

    @property
    def control_ids(self) -> Mapping[str, int]:
        """Control tokens by name. `encode` never returns one of these ids."""
        ...

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Control tokens by the role that chat templates know them by: `bos_token`, `eos_token`, …"""
        ...

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template that came with it."""
        ...

    @property
    def answer_tokens(self) -> Collection[str]:
        """Control tokens that answers may hold; see `token_roles.answer_tokens`."""
        ...

    @property
    def serialized(self) -> bytes:
        """The model behind it, as its library writes it: what other bytes are, encodes otherwise."""
        ...

    def encode(self, text: str) -> list[int]: ...
    def encode_pieces(self, pieces: Sequence[str | int]) -> list[list[int]]:
        """The ids of each piece of one text, cut where the caller likes; an int is a control token."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` without control tokens and without ids beyond the last token, as models have."""
        ...

    def decode_answer(self, ids: Iterable[int]) -> str:
        """The text of an answer that was sampled, of control tokens those of `answer_tokens` by their names."""
        ...

    def special_id(self, token: str) -> int: ...
    def save(self, path: str | os.PathLike) -> None: ...


class SentencePieceTokenizer:
    """A SentencePiece model file as a `Tokenizer`.

    Args:
      choose: what becomes of the chat_template.jinja beside it, or None; by default it is used.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        choose: Callable[[ChatTemplate | None], ChatTemplate | None] = lambda own: own,
    ):
        self.path = to_path(path)
        self._choose = choose
        if not self.path.is_file():
            raise ConfigError(
                f"config.data.tokenizer={path}: no such file; train one, or {way_to(str(path))}"
            )
        model = self.path.read_bytes()
        if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", model):
            raise ConfigError(
                f"config.data.tokenizer={path}: a vocabulary of tiktoken, which does not say how text is cut or which "
                "tokens are special; name a folder with the tokenizer.json of the model, which transformers writes: "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
            for number in range(self._model.get_piece_size()):
                self._model.id_to_piece(number)
        except (RuntimeError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"config.data.tokenizer={path}: not a SentencePiece model ({error}); write it again"
            ) from None
        if self._model.eos_id() < 0:
            raise ConfigError(f"config.data.tokenizer={path}: has no end-of-sequence token; add one")
        if self._model.encode("a", out_type=str)[0].startswith(_SPACE_MARK):
            raise ConfigError(
                f"config.data.tokenizer={path}: puts a space before every text (add_dummy_prefix), so texts cannot be "
                f"tokenised in parts; put it into a folder with a tokenizer_config.json that names its class, such as "
                f'{{"tokenizer_class": "LlamaTokenizer"}}, and name that folder'
            )
        self._check_keeps_text()
        self.answer_tokens = answer_tokens(self, self.template)

    def _check_keeps_text(self) -> None:
        """Raises ConfigError for a model that changes texts before it cuts them, but for composing characters."""
        for probe in _PROBES:
            said = self._model.normalize(probe).replace(_SPACE_MARK, " ")
            if unicodedata.normalize("NFKC", said) != unicodedata.normalize("NFKC", probe):
                raise ConfigError(
                    f"config.data.tokenizer={self.path}: changes texts before it cuts them: {probe!r} becomes {said!r} "
                    "(normalization_rule_name, remove_extra_whitespaces), so a model could never say what it reads; "
                    "train one with normalization_rule_name=identity and remove_extra_whitespaces=false, as `jaxalign "
                    "tokenizer` does"
                )

    @property
    def serialized(self) -> bytes:
        return self._model.serialized_model_proto()

    @cached_property
    def vocab_size(self) -> int:
        return self._model.get_piece_size()

    @cached_property
    def control_ids(self) -> dict[str, int]:
        ids = range(self.vocab_size)
        return {self._model.id_to_piece(i): i for i in ids if self._model.is_control(i)}

    @cached_property
    def pad_id(self) -> int:
        # Masks come from lengths, so any id may fill the padding of a model trained without one.
        return self._model.pad_id() if self._model.pad_id() >= 0 else self._model.eos_id()

    @cached_property
    def bos_id(self) -> int | None:
        return self._model.bos_id() if self._model.bos_id() >= 0 else None

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        turn_end = self.control_ids.get(TURN_END)
        return (self._model.eos_id(),) if turn_end is None else (self._model.eos_id(), turn_end)

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        ids = {"bos_token": self.bos_id, "eos_token": self._model.eos_id()}
        return {name: self._model.id_to_piece(i) for name, i in ids.items() if i is not None}

    @cached_property
    def template(self) -> ChatTemplate | None:
        file = self.path.parent / TEMPLATE_NAME
        return self._choose(load_template(file) if file.is_file() else None)

    @cached_property
    def _space_mark_ids(self) -> list[int]:
        return [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]

    def encode(self, text: str) -> list[int]:
        return self.encode_pieces([text])[0]

    def encode_pieces(self, pieces: Sequence[str | int]) -> list[list[int]]:
        encoded = []
        for piece in pieces:
            if isinstance(piece, int):
                encoded.append([piece])
                continue
            first, *rest = piece.split(_SPACE_MARK)
            ids = self._model.encode(first)
            for part in rest:  # as bytes, or the mark would come back as a space
                ids += self._space_mark_ids + self._model.encode(part)
            encoded.append(ids)
        return encoded

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode([i for i in map(int, ids) if i < self.vocab_size])

    def decode_answer(self, ids: Iterable[int]) -> str:
        names = {self.control_ids[name]: name for name in self.answer_tokens}
        groups = itertools.groupby(map(int, ids), key=names.get)
        return "".join(name * len(list(part)) if name else self.decode(part) for name, part in groups)

    def special_id(self, token: str) -> int:
        if token not in self.control_ids:
            raise ConfigError(
                f"config.data.tokenizer={self.path}: has no control token {token}, only "
                f"{', '.join(self.control_ids)}; give a chat template that uses these, or train a tokenizer"
            )
        return self.control_ids[token]

    def save(self, path: str | os.PathLike) -> None:
        """Write the model, and the chat template beside it, into the folder `path` for `load_tokenizer`."""
        folder = to_path(path)
        folder.mkdir(parents=True, exist_ok=True)
        for source, name in ((self.path, MODEL_NAME), (self.path.parent / TEMPLATE_NAME, TEMPLATE_NAME)):
            if source.is_file() and (target := folder / name).resolve() != source.resolve():
                write_whole(target, source.read_bytes())


@lru_cache(maxsize=8)
def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id that stands for whatever the tokenizer cannot spell; None if it can spell everything."""
    # Two private-use characters that no vocabulary has: alike once encoded means that both are lost.
    first, second = (tokenizer.encode(character) for character in ("\U000f5a3c", "\U000f9e27"))
    return first[-1] if first and first == second else None


def load_tokenizer(
    path: str | os.PathLike,
    chat_template: str | os.PathLike = "",
    template_args: str = "",
    answer_tokens: Sequence[str] = (),
) -> Tokenizer:
    """Load a tokenizer.

    Args:
      path: a SentencePiece .model file; a tokenizer.json; a folder with a tokenizer.json, with other tokenizer files
        of Hugging Face's and a tokenizer_config.json, or with one .model (the first of these that it has); or the
        name of a model on the hub, `org/name`.
      chat_template: a Jinja file to be used instead of the tokenizer's own template.
      template_args: values for variables of the template; see `parse_template_args`.
      answer_tokens: further control tokens that answers may hold; see `token_roles.answer_tokens`.

    Raises ConfigError where there is no such thing or it cannot be used.
    """
    choose = partial(
        choose_template, path=chat_template, template_args=template_args, answer_tokens=answer_tokens
    )
    if not to_path(path).exists() and is_hub_name(str(path)):
        path = download(str(path), _HUB_FILES, "config.data.tokenizer")
    path = to_path(path)
    if not path.is_dir():
        kind: Any = HFTokenizer if path.name.endswith(".json") else SentencePieceTokenizer
        return kind(path, choose)
    if (path / JSON_NAME).is_file() or (path / "tokenizer_config.json").is_file():
        return HFTokenizer(path, choose)
    models = sorted(path.glob("*.model"))
    if len(models) == 1:
        # To a type checker, a cached_property is no property.
        return cast(Any, SentencePieceTokenizer)(models[0], choose)
    files = ", ".join(sorted(file.name for file in path.iterdir())[:20]) or "nothing"
    raise ConfigError(
        f"config.data.tokenizer={path}: needs a {JSON_NAME} or exactly one .model file, found {files}; name the file, "
        "or another folder"
    )


def train_sentencepiece(
    texts: Iterable[str], path: str | os.PathLike, vocab_size: int, model_type: str = "bpe"
) -> SentencePieceTokenizer:
    """Train a tokenizer with byte fallback whose `decode(encode(a) + encode(b)) == a + b` for any text.

    Args:
      texts: the corpus; read once.
      path: the .model file to write.
      vocab_size: ids in all, among them 256 bytes, the unknown token and the 7 of `CONTROL`.
      model_type: "bpe" or "unigram" (Kudo and Richardson 2018, arXiv 1808.06226).

    The same texts give the same file. Raises ConfigError, with the nearest size that works, where the
    corpus is too small for `vocab_size` or `vocab_size` too small for the corpus.
    """
    if model_type not in ("bpe", "unigram"):
        raise ConfigError(f"model_type={model_type!r}: write 'bpe' or 'unigram'")
    pad, bos, eos, *roles = CONTROL
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_pieces(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece=pad,
            bos_piece=bos,
            eos_piece=eos,
            control_symbols=roles,
            num_threads=4,  # part of what the result depends on, so not the machine's core count
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(_training_advice(str(error), vocab_size)) from None
    write_whole(to_path(path), model.getvalue())
    return SentencePieceTokenizer(path)


def _pieces(texts: Iterable[str], size: int = 1000) -> Iterator[str]:
    # SentencePiece skips, without a word, anything longer than 4192 bytes.
    for text in texts:
        for start in range(0, len(text), size):
            yield text[start : start + size]


def _training_advice(message: str, vocab_size: int) -> str:
    if largest := re.search(r"value <= (\d+)", message):
        return f"vocab_size={vocab_size}: the corpus is too small for it; write at most {largest[1]}"
    if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return f"vocab_size={vocab_size}: too small for the corpus's characters; write at least {smallest[1]}"
    if "!sentences_.empty()" in message:
        return f"vocab_size={vocab_size}: the corpus holds no text; give at least a few sentences"
    return f"vocab_size={vocab_size}: SentencePiece could not train: {message}"
