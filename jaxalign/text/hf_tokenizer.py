"""Hugging Face tokenizers through the `tokenizers` library: the ids of `transformers`, without a model's own code.

SentencePiece-style tokenizers begin a text with a space of their own: some only the very first (Metaspace "first"),
some every text after a control token (Prepend, Metaspace "always", ByteLevel's add_prefix_space). Text that goes on
from other text never gets one here, so that pieces cut apart spell what they spelled together.
"""

import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import tokenizers

from jaxalign.errors import ConfigError
from jaxalign.storage import to_path, write_whole
from jaxalign.text.hf_files import (
    CONFIG_NAME,
    GENERATION_CONFIG,
    JSON_NAME,
    MODEL_CONFIG,
    SOURCES,
    TEMPLATES,
    make_special,
    open_backend,
    own_template,
    read_settings,
)
from jaxalign.text.templates import ChatTemplate, turn_terminator
from jaxalign.text.token_roles import answer_tokens, find_roles


class HFTokenizer:
    """A tokenizer.json and the files beside it (see `hf_files`) as a `Tokenizer`.

    Args:
      path: the folder, or its tokenizer.json.
      choose: what becomes of the model's own chat template; by default it is used.

    Raises ConfigError where the files are missing, cannot be read or contradict one another.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        choose: Callable[[ChatTemplate | None], ChatTemplate | None] = lambda own: own,
    ):
        self.path = to_path(path)
        self._settings = settings = read_settings(self.path if self.path.is_dir() else self.path.parent)
        self._tokenizer = tokenizer = open_backend(self.path, settings)
        self.special_tokens = settings.named
        self.chat_template, own = own_template(settings)
        self.template = choose(own)
        # Ids may have gaps and a model's table may be longer; rows up to the last id are needed.
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1

        eos = [*self._role_ids("eos"), *settings.generation_ids("eos"), *settings.model_ids("eos")]
        roles = (*settings.named.values(), *settings.extra, *map(tokenizer.id_to_token, eos))
        make_special(tokenizer, filter(None, roles))
        named = tuple(settings.named.items())
        if self.template:  # whose marks of turns no text may spell, though their entries call them plain
            listed = tokenizer.get_added_tokens_decoder().values()
            names = tuple(token.content for token in listed if token.special or _is_mark(token.content))
            make_special(tokenizer, sorted(find_roles(self.template, named, names, ()).marks))
        added = tokenizer.get_added_tokens_decoder()
        # What stands for text without a piece comes out of plain text, so it is no control token.
        plain = {_unknown_token(tokenizer)} - {tokenizer.id_to_token(i) for i in eos}
        self.control_ids = {t.content: i for i, t in added.items() if t.special and t.content not in plain}
        if self.template and (end := turn_terminator(self.template, settings.named, self.control_ids)):
            eos.append(self.control_ids[end])
        self.eos_ids = tuple(dict.fromkeys(eos))
        self._check_eos()
        self.answer_tokens = answer_tokens(self, self.template)
        pads = [*self._role_ids("pad"), *settings.model_ids("pad")]
        # Masks come from lengths, so any id may fill the padding of a model trained without one.
        self.pad_id = next((i for i in pads if i < self.vocab_size), self.eos_ids[0])
        self.bos_id = self._opening()

        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._controls = frozenset(self.control_ids.values())
        self._strips_before = {i for i, token in added.items() if token.lstrip}
        self._strips_after = {i for i, token in added.items() if token.rstrip}
        self._prefix = _prefix_scheme(tokenizer)
        self._unprefixed = _without_prefix(tokenizer) if self._prefix else tokenizer

    @property
    def serialized(self) -> bytes:
        rules = [self._prefix, sorted(self._strips_before), sorted(self._strips_after)]
        models = (self._tokenizer.to_str(), self._unprefixed.to_str(), json.dumps(rules))
        return "\n".join(models).encode()

    def encode(self, text: str) -> list[int]:
        return self._encode(self._tokenizer, text)

    def encode_pieces(self, pieces: Sequence[str | int]) -> list[list[int]]:
        encoded: list[list[int]] = []
        before = None
        for piece, after in zip(pieces, [*pieces[1:], None], strict=True):
            if isinstance(piece, int):
                encoded.append([piece])
                before = piece
                continue
            text = piece.lstrip() if before in self._strips_after else piece
            text = text.rstrip() if after in self._strips_before else text
            prefixed = before is None or (isinstance(before, int) and self._prefix == "always")
            encoded.append(self._encode(self._tokenizer if prefixed else self._unprefixed, text))
            before = text or before
        return encoded

    def _encode(self, tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ids = encoding.ids
        if self._controls.isdisjoint(ids):
            return ids
        # Some vocabularies spell the name of a control token by merges; cut it after its first character.
        spans = [span for i, span in zip(ids, encoding.offsets, strict=True) if i in self._controls]
        if any(end - start < 2 for start, end in spans):
            raise ConfigError(
                f"{self.path}: makes a control token of {text[spans[0][0] : spans[0][1]]!r}; mark it special=false"
            )
        cuts = [0, *(start + 1 for start, _ in spans), len(text)]
        first, *rest = (text[start:end] for start, end in itertools.pairwise(cuts))
        return self._encode(tokenizer, first) + [
            i for part in rest for i in self._encode(self._unprefixed, part)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def decode_answer(self, ids: Iterable[int]) -> str:
        return self._speaking.decode([int(i) for i in ids], skip_special_tokens=True)

    @cached_property
    def _speaking(self) -> tokenizers.Tokenizer:
        """The same tokenizer, to which the answers' own control tokens are text."""
        if not self.answer_tokens:
            return self._tokenizer
        state = json.loads(self._tokenizer.to_str())
        for token in state["added_tokens"]:
            token["special"] = token["special"] and token["content"] not in self.answer_tokens
        return tokenizers.Tokenizer.from_str(json.dumps(state))

    def special_id(self, token: str) -> int:
        if token not in self.control_ids:
            names = list(self.control_ids)
            raise ConfigError(
                f"config.data.tokenizer={self.path}: has no control token {token}, only "
                f"{', '.join(names[:20])}{', …' if len(names) > 20 else ''}; give a chat template that uses these"
            )
        return self.control_ids[token]

    def save(self, path: str | os.PathLike) -> None:
        """Write all tokenizer files into the folder `path`, for `load_tokenizer` and `AutoTokenizer` to read.

        generation_config.json comes along with every id of `eos_ids`, which config.json may have held.
        """
        folder, own = to_path(path), self._settings.folder
        folder.mkdir(parents=True, exist_ok=True)
        if folder.resolve() != own.resolve():
            for file in (
                f for name in (JSON_NAME, CONFIG_NAME, *SOURCES, *TEMPLATES) for f in own.glob(name)
            ):
                write_whole(folder / file.relative_to(own), file.read_bytes())
            generation = {**self._settings.generation, "eos_token_id": list(self.eos_ids)}
            text = json.dumps(generation, indent=2) + "\n"
            write_whole(folder / GENERATION_CONFIG, text.encode())
        if not (folder / JSON_NAME).is_file():
            write_whole(folder / JSON_NAME, self._tokenizer.to_str(pretty=True).encode())

    def _role_ids(self, kind: str) -> list[int]:
        token = self._settings.named.get(f"{kind}_token")
        # Its own annotation allows None: `_check_eos` finds a token that has no id.
        ids: list[Any] = [self._tokenizer.token_to_id(token)] if token else []
        return ids

    def _check_eos(self) -> None:
        folder = self._settings.folder
        if not self.eos_ids:
            raise ConfigError(
                f"{self.path}: nothing names its end-of-sequence token; write {folder / CONFIG_NAME} with "
                '{"eos_token": "…"}'
            )
        if absent := [i for i in self.eos_ids if self._tokenizer.id_to_token(i) is None]:
            raise ConfigError(
                f"{folder}: eos_token_id {absent[0]} in {GENERATION_CONFIG} or {MODEL_CONFIG} is no token of "
                f"{JSON_NAME}, whose ids end at {self.vocab_size - 1}; remove it there, or use this model's tokenizer"
            )

    def _opening(self) -> int | None:
        """The id that the post-processor puts before every text; it counts, not `add_bos_token` in the config."""
        text = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a").ids
        starts = range(len(whole) - len(text) + 1)
        opening = whole[: next(at for at in starts if whole[at : at + len(text)] == text)]
        if len(opening) > 1:
            names = ", ".join(map(str, map(self._tokenizer.id_to_token, opening)))
            raise ConfigError(f"{self.path}: puts {names} before a text; at most one token can stand there")
        return opening[0] if opening else None


def _is_mark(name: str) -> bool:
    """Whether an added token can be a mark of turns: not white space, and not a word."""
    return len(name) > 2 and not name.isspace() and re.search(r"[^\w\s]", name) is not None


def _unknown_token(tokenizer: tokenizers.Tokenizer) -> str | None:
    if isinstance(tokenizer.model, tokenizers.models.Unigram):  # which does not tell
        ids = tokenizer.encode("\U0010fffd", add_special_tokens=False).ids
        return tokenizer.id_to_token(ids[-1]) if ids else None
    return getattr(tokenizer.model, "unk_token", None)


def _steps(state: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a serialised normalizer or pre-tokenizer, sequences taken apart."""
    if state is None:
        return []
    if state["type"] != "Sequence":
        return [state]
    parts = state.get("normalizers") or state["pretokenizers"]
    return [step for part in parts for step in _steps(part)]


def _prefix_scheme(tokenizer: tokenizers.Tokenizer) -> str | None:
    """Which texts begin with a space of the tokenizer's own: "first", "always" (after control tokens too) or None."""
    parts = filter(None, (tokenizer.normalizer, tokenizer.pre_tokenizer))
    steps = [step for part in parts for step in _steps(json.loads(part.__getstate__()))]
    if any(step["type"] == "Prepend" or step.get("add_prefix_space") for step in steps):
        return "always"
    schemes = {step["prepend_scheme"] for step in steps if step["type"] == "Metaspace"}
    return next((scheme for scheme in ("always", "first") if scheme in schemes), None)


def _without_prefix(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer, never beginning a text with a space of its own."""
    state = json.loads(tokenizer.to_str())
    normalizers = [step for step in _steps(state["normalizer"]) if step["type"] != "Prepend"]
    state["normalizer"] = {"type": "Sequence", "normalizers": normalizers} if normalizers else None
    for step in _steps(state["pre_tokenizer"]):
        if "add_prefix_space" in step:
            step["add_prefix_space"] = False
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
    copy = tokenizers.Tokenizer.from_str(json.dumps(state))
    copy.encode_special_tokens = True
    return copy
