"""Which chat template is used, with which arguments: what `config.data` and the flags of verbs say of it."""

import json
import os
import re
from collections.abc import Sequence
from typing import Any

from jaxalign.errors import ConfigError, shorten
from jaxalign.strict_json import NotJSON, parse_json
from jaxalign.text.templates import BUILTIN, GIVEN, ChatTemplate, compile_template, load_template

_ARGUMENT = re.compile(r"[\s,]*([A-Za-z_]\w*)\s*=\s*")
_CONSTANTS = {"True": True, "False": False, "None": None}


def choose_template(
    own: ChatTemplate | None,
    path: str | os.PathLike = "",
    template_args: str = "",
    answer_tokens: Sequence[str] = (),
) -> ChatTemplate | None:
    """The template in the file `path`, or else a tokenizer's own, with arguments and answer tokens; None: built-in.

    Raises:
      ConfigError: the file cannot be read, the arguments cannot be, or the template does not read them.
    """
    args = parse_template_args(template_args)
    answer_tokens = [name for names in answer_tokens for name in names.split(",")]
    if path:
        return load_template(path, args=args, answer_tokens=answer_tokens)
    if not args and not answer_tokens:
        return own
    if own is None:
        return compile_template(BUILTIN, "the built-in template", args=args, answer_tokens=answer_tokens)
    answer_tokens = [*own.answer_tokens, *answer_tokens]
    name = own.filename or "<template>"
    return compile_template(own.source, name, args={**own.args, **args}, answer_tokens=answer_tokens)


def parse_template_args(text: str, key: str = "config.data.template_args") -> dict[str, Any]:
    """Read arguments of a chat template: "enable_thinking=False, effort=low", JSON or bare words, or a JSON object.

    Raises:
      ConfigError: it cannot be read, or names what every template is given.
    """
    wanted = f"write NAME=VALUE, NAME=VALUE with values as in JSON, or one JSON object ({key}={shorten(text, 200)})"
    args: dict[str, Any] = {}
    if text.lstrip().startswith("{"):
        try:
            args = parse_json(text)
        except NotJSON as error:
            raise ConfigError(f"{key}: not JSON ({error}); {wanted}") from None
        text = ""
    at = 0
    while at < len(text.rstrip(", \n\t")):
        if (found := _ARGUMENT.match(text, at)) is None:
            raise ConfigError(f"{key}: {text[at:].strip()!r} is no NAME=VALUE; {wanted}")
        args[found[1]], at = _read_value(text, found.end(), key, wanted)
    for name in args:
        if name in GIVEN or name.endswith("_token"):
            raise ConfigError(f"{key}: {name} is given to every template by jaxalign itself; leave it out")
    return args


def _read_value(text: str, at: int, key: str, wanted: str) -> tuple[Any, int]:
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
        if not text[end:].strip() or text[end:].lstrip().startswith(","):
            return value, end
    except (ValueError, RecursionError):  # an integer of thousands of digits is a ValueError
        pass
    if text[at : at + 1] in ("[", "{", '"'):
        raise ConfigError(f"{key}: {text[at:]!r} is not JSON; {wanted}")
    end = at + len(text[at:].split(",")[0])
    word = text[at:end].strip()
    return _CONSTANTS.get(word, word), end
