"""The files of a Hugging Face tokenizer folder, read and checked against one another.

tokenizer.json: pieces, added tokens, and what stands before every text (the post-processor).
tokenizer_config.json, special_tokens_map.json: which tokens are BOS, EOS, padding.
config.json, generation_config.json: further ids that end a completion; must not contradict the above.
chat_template.jinja, tokenizer_config.json, chat_template.json: the chat template; the first that has one counts.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
import tokenizers

from jaxalign.errors import ConfigError, shorten
from jaxalign.storage import Path, local_copy, read_json
from jaxalign.text.templates import TEMPLATE_NAME, ChatTemplate, compile_template

JSON_NAME, CONFIG_NAME = "tokenizer.json", "tokenizer_config.json"
MODEL_CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
SOURCES = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "*.model")
TEMPLATES = (TEMPLATE_NAME, "chat_template.json", "additional_chat_templates/*.jinja")
_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")  # of an added token
_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclass(frozen=True)
class Settings:
    """What the small files say."""

    folder: Path
    tokenizer: Mapping[str, Any]  # tokenizer_config.json
    model: Mapping[str, Any]  # config.json
    generation: Mapping[str, Any]  # generation_config.json
    named: Mapping[str, str]  # special tokens by their role: `bos_token`, …
    extra: tuple[str, ...]  # special tokens without one

    def model_ids(self, kind: str) -> list[int]:
        """`<kind>_token_id` of config.json."""
        return _ids(self.model, kind)

    def generation_ids(self, kind: str) -> list[int]:
        """`<kind>_token_id` of generation_config.json."""
        return _ids(self.generation, kind)


def read_settings(folder: Path) -> Settings:
    """Read the files that are there; ConfigError names one that is not JSON."""
    names = (CONFIG_NAME, MODEL_CONFIG, GENERATION_CONFIG, "special_tokens_map.json")
    tokenizer, model, generation, tokens = (_read_optional(folder / name) for name in names)
    files = dict.fromkeys(tokens, folder / "special_tokens_map.json")
    files |= {name: folder / CONFIG_NAME for name, value in tokenizer.items() if value}
    tokens |= {name: value for name, value in tokenizer.items() if value}
    extra: list[str] = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = tokens.get(name) or []
        more = list(more.values()) if isinstance(more, dict) and name.startswith("extra") else more
        if not isinstance(more, list):
            raise wrong(files[name], name, more, "a list of tokens")
        extra += [_content(token, files[name], f"{name}[{i}]") for i, token in enumerate(more)]
    named = {name: _content(tokens[name], files[name], name) for name in _NAMED if tokens.get(name)}
    for values, file in ((model, MODEL_CONFIG), (generation, GENERATION_CONFIG)):
        for kind in ("bos", "eos", "pad"):
            _check_ids(values, f"{kind}_token_id", folder / file)
    return Settings(folder, tokenizer, model, generation, named, tuple(extra))


def wrong(file: Path, key: str, value: Any, wanted: str) -> ConfigError:
    """What to raise for a value of another type than it must be."""
    return ConfigError(f"{file}: {key}={shorten(value)} must be {wanted}; correct it, or remove it")


def _check_ids(values: Mapping[str, Any], key: str, file: Path) -> None:
    found = values.get(key)
    if not all(
        i is None or (type(i) is int and abs(i) < 2**31)
        for i in (found if isinstance(found, list) else [found])
    ):
        raise wrong(file, key, found, "the number of a token, or a list of them")


def open_backend(path: Path, settings: Settings) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json, or of a folder, with all its tokens.

    Without a tokenizer.json `transformers` makes one of the files that are there (SentencePiece .model, vocab.json).
    Raises ConfigError where that fails, or where the files name tokens or ids that do not agree.
    """
    file = path / JSON_NAME if path.is_dir() else path
    if file.is_file():
        try:
            tokenizer = tokenizers.Tokenizer.from_str(file.read_text("utf-8"))
            tokenizer.encode("a")
        # The library raises plain Exception, and where its own program fails, what is not even one.
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ConfigError(f"{file}: not a tokenizer ({str(error)[:300]}); write it again") from None
    else:
        tokenizer = _converted(settings.folder)
    unknown = getattr(tokenizer.model, "unk_token", None)
    if unknown is not None and tokenizer.model.token_to_id(unknown) is None:
        raise ConfigError(
            f"{file}: unk_token is {unknown!r}, which its model does not have; correct the name"
        )
    _add_listed(tokenizer, settings)
    for role, token in settings.named.items():
        if tokenizer.token_to_id(token) is None:
            raise ConfigError(
                f"{settings.folder / CONFIG_NAME}: {role} is {token!r}, which {JSON_NAME} does not have; correct the "
                "name, or save the tokenizer again with the token added"
            )
    _check_agreement(tokenizer, settings)
    return tokenizer


def own_template(settings: Settings) -> tuple[str | None, ChatTemplate | None]:
    """The default chat template, as source and compiled; ConfigError names the file and line that are wrong."""
    source, file = _template_source(settings)
    if source is None:
        return None, None
    try:
        return source, compile_template(source, str(file))
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"{file}: line {error.lineno} of the chat template: {error.message}; fix it, or move it away and give "
            "another with config.data.chat_template=FILE"
        ) from None


def make_special(tokenizer: tokenizers.Tokenizer, names: Iterable[str]) -> None:
    """Mark as special what has a role, whatever its entry says: no text may spell it."""
    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    for name in dict.fromkeys(names):
        if tokenizer.token_to_id(name) is not None and not (name in added and added[name].special):
            token = added.get(name, tokenizers.AddedToken(name, normalized=False))
            token.special = True
            tokenizer.add_special_tokens([token])


def _template_source(settings: Settings) -> tuple[str | None, Path]:
    if (file := settings.folder / TEMPLATE_NAME).is_file():
        try:
            return file.read_text("utf-8"), file
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file}: not UTF-8 ({error}); save the file as UTF-8") from None
    file, source = settings.folder / CONFIG_NAME, settings.tokenizer.get("chat_template")
    if not source:
        file = settings.folder / "chat_template.json"
        source = _read_optional(file).get("chat_template")
    given = source
    if isinstance(source, list):
        if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in source):
            raise wrong(file, "chat_template", given, "a text, or a list of objects with name and template")
        source = {entry["name"]: entry.get("template") for entry in source}
    source = source.get("default") if isinstance(source, dict) else source
    if not isinstance(source, str | None):
        raise wrong(file, "chat_template", given, "a text, or a list of objects with name and template")
    return source, file


def _converted(folder: Path) -> tokenizers.Tokenizer:
    """What `transformers` makes of a folder without tokenizer.json."""
    found = sorted(file.name for pattern in (CONFIG_NAME, *SOURCES) for file in folder.glob(pattern))
    try:
        from transformers import AutoTokenizer  # slow to import and rarely needed

        files = local_copy(folder, CONFIG_NAME, MODEL_CONFIG, *SOURCES)
        loaded = AutoTokenizer.from_pretrained(str(files), local_files_only=True, trust_remote_code=False)
        return tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # whatever the tokenizer class of a model may raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"config.data.tokenizer={folder}: has no {JSON_NAME}, only {', '.join(found)}, and transformers could not "
            f"make one of these ({reason}); where the model's own tokenizer class loads, write it with "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        ) from None


def _add_listed(tokenizer: tokenizers.Tokenizer, settings: Settings) -> None:
    """Add tokens that only tokenizer_config.json has, or has with other flags: those count."""
    added = tokenizer.get_added_tokens_decoder()
    listed, file = settings.tokenizer.get("added_tokens_decoder") or {}, settings.folder / CONFIG_NAME
    if not isinstance(listed, dict) or not all(re.fullmatch(r"[0-9]{1,9}", key) for key in listed):
        raise wrong(file, "added_tokens_decoder", listed, "an object with tokens by their numbers")
    for key, entry in sorted(listed.items(), key=lambda item: int(item[0])):
        token = _added_token(entry, f"added_tokens_decoder[{key}]", file)
        if int(key) in added and repr(added[int(key)]) == repr(token):
            continue
        tokenizer.add_tokens([token])
        if (mine := tokenizer.token_to_id(token.content)) != int(key):
            raise ConfigError(
                f"{settings.folder / CONFIG_NAME}: added_tokens_decoder gives {token.content!r} the id {key}, "
                f"{JSON_NAME} {mine}; correct the one that the model was not trained with"
            )


def _added_token(entry: Any, key: str, file: Path) -> tokenizers.AddedToken:
    if not isinstance(entry, dict):
        raise wrong(file, key, entry, "an object with the content of the token")
    if flags := [name for name in _FLAGS if type(entry.get(name, False)) is not bool]:
        raise wrong(file, f"{key}.{flags[0]}", entry[flags[0]], "true or false")
    return tokenizers.AddedToken(
        _content(entry, file, key), **{name: entry[name] for name in _FLAGS if name in entry}
    )


def _check_agreement(tokenizer: tokenizers.Tokenizer, settings: Settings) -> None:
    """The ids in config.json must be those of the tokenizer, where both name one; of padding nothing depends on it."""
    for kind in ("bos", "eos"):
        token, theirs = settings.named.get(f"{kind}_token"), settings.model_ids(kind)
        also = settings.generation_ids("eos") if kind == "eos" else []
        if token and theirs and (mine := tokenizer.token_to_id(token)) not in (*theirs, *also):
            raise ConfigError(
                f"{settings.folder / MODEL_CONFIG}: {kind}_token_id is {', '.join(map(str, theirs))}, but {kind}_token "
                f"in {CONFIG_NAME} is {token!r} with id {mine}; find out which the model was trained with and correct "
                "the other (null in config.json leaves it to the tokenizer)"
            )


def _read_optional(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return read_json(path, lambda reason: ConfigError(f"{path}: {reason}; write an object of settings"))


def _content(token: Any, file: Path, key: str) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str) or not is_unicode(content):
        raise wrong(file, key, token, "a token, or an object with its content")
    return content


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON may hold halves of characters."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _ids(settings: Mapping[str, Any], kind: str) -> list[int]:
    value = settings.get(f"{kind}_token_id")
    values = value if isinstance(value, list) else [value]
    return [i for i in values if i is not None and i >= 0]  # -1 is how some files say none
