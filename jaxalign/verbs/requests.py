"""What a verb of the command line is asked for: one frozen dataclass, from which flags, help and errors are made.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class TokenizerRequest(Request):
        '''Train a SentencePiece tokenizer on rows {"text": ...}.'''

        data: str = flag("rows with a field text", show="FILE")
        vocab: int = flag("pieces", default=4096, at_least=1)

Its docstring is what `--help` says of the verb, a field `max_new_tokens` is the flag `--max-new-tokens`, a
field without a default must be given, and a value that cannot work is refused under the name of its flag, also when a
program makes the request.
"""

import argparse
import dataclasses
import inspect
import itertools
import os
import re
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Any, NoReturn, Self

from ml_collections import ConfigDict

from jaxalign.errors import ConfigError, JaxalignError, UsageError
from jaxalign.fields import DOC, Checked, field, nearest

WIDTH = 100
_SHOW = "show"
_ONE_OF = "one_of"
_UNLESS = "unless"
_PLACE = "place"
_SETTINGS = "settings"


def flag(
    doc: str,
    *,
    default: Any = dataclasses.MISSING,
    show: str = "",
    one_of: str = "",
    unless: str = "",
    place: bool = False,
    **constraints: Any,
) -> Any:
    """Makes a field of a request that is a flag.

    Args:
      doc: what `--help` says of it.
      show: what its value is, in capitals, as in `--out=FILE`.
      one_of: of all flags with the same word here, exactly one is to be given.
      unless: it must be given unless this field, or one of these (with spaces between), is set.
      place: it is given without a name: all that stands among the flags, one or more, as a tuple.
      constraints: as for `fields.field`.
    """
    metadata = {_SHOW: show, _ONE_OF: one_of, _UNLESS: unless, _PLACE: place}
    return field(default, doc=doc, metadata=metadata, **constraints)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request(Checked):
    """Base of all requests."""

    @classmethod
    def key(cls, name: str) -> str:
        """The flag of a field: `from_` is `--from`, `max_new_tokens` is `--max-new-tokens`."""
        return "--" + name.rstrip("_").replace("_", "-")

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Self:
        """Makes the request that flags ask for; `--help` prints its help and ends the program.

        Raises:
          UsageError: a flag that does not exist (with the nearest), is missing, or has a value that cannot work.
        """
        known, unknown = _parser(cls).parse_known_args(_joined(cls, argv))
        given = {key: value for key, value in vars(known).items() if value is not None}
        for each in _flags(cls):
            if each.metadata.get(_PLACE):
                if words := tuple(arg for arg in unknown if not arg.startswith("-")):
                    given[each.name] = words
                unknown = [arg for arg in unknown if arg.startswith("-")]
        settings = tuple(arg for arg in unknown if re.match(r"--(no)?config\.", arg))
        refused, before = [], ""
        for arg, after in itertools.pairwise([*unknown, ""]):
            # A word behind a flag that is none is its value.
            if (arg not in settings or not _takes_settings(cls)) and not (before and not arg.startswith("-")):
                refused.append(_unknown(cls, arg, after, getattr(known, "config", None)))
            before = arg if refused and arg.startswith("-") and "=" not in arg else ""
        if refused:
            raise UsageError("\n  ".join(refused))
        if settings:
            given[_SETTINGS] = settings
        for each in _flags(cls):
            if isinstance(given.get(each.name), str):
                given[each.name] = _typed(cls, each, given[each.name])
            elif each.default is dataclasses.MISSING and each.name not in given:
                raise UsageError(_missing(cls, each))
        try:
            return cls(**given)
        except ConfigError as error:
            raise UsageError(str(error)) from error

    def __post_init__(self) -> None:
        super().__post_init__()
        for each in _flags(type(self)):
            unless = each.metadata.get(_UNLESS)
            spared = any(getattr(self, name) for name in (unless or "").split())
            if unless and not getattr(self, each.name) and not spared:
                raise ConfigError(_missing(type(self), each))
        for word in {each.metadata.get(_ONE_OF, "") for each in _flags(type(self))} - {""}:
            names = [each.name for each in _flags(type(self)) if each.metadata.get(_ONE_OF) == word]
            given = [self.key(name) for name in names if getattr(self, name)]
            if len(given) != 1:
                said = f"{' and '.join(given)} are given" if given else "none is given"
                raise ConfigError(f"give one of {', '.join(map(self.key, names))}; {said}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigRequest(Request):
    """Base of the requests that are about a stage's config."""

    config: str = flag(
        "a config file, or the name of one that comes with jaxalign, and its argument; for instance --config=sft",
        show="FILE[:ARG]",
    )
    settings: tuple[str, ...] = ()  # of the form "--config.key=value"

    def read(self) -> ConfigDict:
        """The config with its settings, locked; raises as `read_config` does."""
        from jaxalign.config import read_config

        return read_config(self.config, self.settings, _default_config)


def _default_config(stage: str) -> ConfigDict:
    # Whoever needs it has loaded them; help and wrong flags need not wait for it.
    from jaxalign.stages import default_config

    return default_config(stage)


def summary(cls: type[Request]) -> str:
    """The first paragraph of what a request says of its verb, in one line."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def synopsis(verb: str, cls: type[Request]) -> str:
    """A verb with the flags that must be given: `tokenizer --data=FILE --out=FILE.model [FLAGS]`."""
    groups: dict[str, list[str]] = {}
    for each in _flags(cls):
        shown = f"{cls.key(each.name)}={show_value(each)}"
        if word := each.metadata.get(_ONE_OF):
            groups.setdefault(word, []).append(shown)
        elif each.metadata.get(_PLACE):
            groups[each.name] = [f"{show_value(each)} ..."]
        elif _required(each):
            groups[each.name] = [shown]
    parts = [parts[0] if len(parts) == 1 else f"({' | '.join(parts)})" for parts in groups.values()]
    if _takes_settings(cls):
        parts.append("[--config.KEY=VALUE ...]")
    more = len(_flags(cls)) > sum(map(len, groups.values()))
    return " ".join([verb, *parts, *(["[FLAGS]"] if more else [])])


def help_text(verb: str, cls: type[Request]) -> str:
    """What `jaxalign VERB --help` prints: each flag once, with its default."""
    usage = f"usage: jaxalign {synopsis(verb, cls)}"
    lines = [textwrap.fill(usage, WIDTH, subsequent_indent=" " * 16, break_on_hyphens=False), ""]
    for paragraph in (inspect.getdoc(cls) or "").split("\n\n"):
        # A command is left as it is. One that all else stands above has lost its indentation.
        command = paragraph.startswith((" ", f"jaxalign {verb} "))
        lines += [
            textwrap.indent(paragraph.strip(), "    ") if command else textwrap.fill(paragraph, WIDTH),
            "",
        ]
    for each in _flags(cls):
        shown = cls.key(each.name)
        if each.metadata.get(_PLACE):
            shown = f"{show_value(each)} ..."
        elif each.type is not bool:
            shown += f"={show_value(each)}"
        said = each.metadata[DOC]
        if each.metadata.get(_ONE_OF):
            said += " (one of these must be given)" if said else ""
        elif unless := each.metadata.get(_UNLESS):
            said += f" (required, but for {' and '.join(map(cls.key, unless.split()))})"
        elif _required(each):
            said += " (required)"
        elif each.default is not False and each.default != "":
            said += f" (default: {each.default})"
        lines += _entry(shown, said)
    if _takes_settings(cls):
        lines += _entry("--config.KEY=VALUE", "set a key of the config; train --print-config shows them all")
    return "\n".join([*lines, *_entry("--help", "show this")])


def _entry(shown: str, said: str) -> list[str]:
    said_lines = textwrap.wrap(said, WIDTH - 30) or [""]
    if len(shown) > 26:
        return [f"  {shown}", *(" " * 30 + line for line in said_lines)]
    return [f"  {shown:<26}  {said_lines[0]}", *(" " * 30 + line for line in said_lines[1:])]


def show_value(each: dataclasses.Field) -> str:
    """What stands for a flag's value in help."""
    kind = _kind(each)
    return each.metadata.get(_SHOW) or {int: "N", float: "X"}.get(kind, "TEXT")


def _flags(cls: type[Request]) -> list[dataclasses.Field]:
    """The fields that are flags: what must be given, then what the class itself adds, then the rest."""
    found = [each for each in dataclasses.fields(cls) if DOC in each.metadata]
    own = list(inspect.get_annotations(cls))

    def place(each: dataclasses.Field) -> tuple[bool, int]:
        where = own.index(each.name) if each.name in own else len(own)
        return not _required(each), 0 if _required(each) else where

    return sorted(found, key=place)


def _required(each: dataclasses.Field) -> bool:
    return each.default is dataclasses.MISSING or bool(each.metadata.get(_UNLESS))


def _missing(cls: type[Request], each: dataclasses.Field) -> str:
    shown = show_value(each).split("[")[0]
    if each.metadata.get(_PLACE):
        return f"{shown} is missing: {each.metadata[DOC]}"
    return f"{cls.key(each.name)}={shown} is missing: {each.metadata[DOC]}"


def _takes_settings(cls: type[Request]) -> bool:
    return issubclass(cls, ConfigRequest)


def _kind(each: dataclasses.Field) -> type:
    """The type of a flag's value."""
    kinds: typing.Any = typing.get_args(each.type) or (each.type,)
    return next(kind for kind in kinds if kind is not types.NoneType)


class _Parser(argparse.ArgumentParser):
    """Finds flags and their values; all else is said by this module."""

    def __init__(self, text: str) -> None:
        super().__init__(allow_abbrev=False, argument_default=None)
        self.text = text

    def format_help(self) -> str:
        return f"{self.text}\n"

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def _parser(cls: type[Request]) -> _Parser:
    verb = cls.__name__.removesuffix("Request").lower()
    parser = _Parser(help_text(verb, cls))
    for each in _flags(cls):
        if each.metadata.get(_PLACE):
            continue
        if each.type is bool:
            parser.add_argument(cls.key(each.name), dest=each.name, action="store_const", const="True")
        else:
            parser.add_argument(cls.key(each.name), dest=each.name)
    return parser


def _joined(cls: type[Request], argv: Sequence[str]) -> list[str]:
    """Flags with two dashes and dashes for underscores, and settings of the config as `--config.key=value`."""
    flags = [cls.key(each.name) for each in _flags(cls)]
    joined: list[str] = []
    for arg in argv:
        before = joined[-1] if joined else ""
        is_flag = re.match(r"--?[A-Za-z]", arg)
        if re.fullmatch(r"--config\.[\w.]+", before) and not is_flag:
            joined[-1] = f"{before}={arg}"
            continue
        if re.match(r"-[A-Za-z][\w-]+", arg):
            arg = f"-{arg}"
        name, equals, value = arg.partition("=")
        dashed = name.replace("_", "-")
        joined.append(f"{dashed}{equals}{value}" if dashed in flags else arg)
    return joined


def _unknown(cls: type[Request], arg: str, after: str, config: str | None) -> str:
    """What to say of an argument that is no flag: the flag or the key of the config that was meant.

    Args:
      after: what stands behind it.
      config: the config file that was named.
    """
    flags = [cls.key(each.name) for each in _flags(cls)]
    name, equals, value = arg.partition("=")
    name = name.lstrip("-")
    said = repr(arg) if not arg.startswith("-") else arg
    if not equals and after and not after.startswith("-"):
        value, equals = after, " "
    if _takes_settings(cls):
        if not config and _is_config(arg):
            return f"{said} is not a flag; did you mean --config={arg}?"
        hint, certain = _meant_key(config or "", name, value if equals else None)
        near = nearest(f"--{name}", flags)
        if certain or (hint and not near):
            return f"{said} is not a flag; {hint}"
        if not near and (equals == "=" or "." in name):
            return f"{said} is not a flag; write --config.KEY=VALUE, or one of {', '.join(flags)}"
    near = nearest(f"--{name}", flags) if arg.startswith("-") else ""
    hint = f"did you mean {near}?" if near else f"the flags are {', '.join(flags)}"
    return f"{said} is not a flag; {hint}"


def _is_config(arg: str) -> bool:
    from jaxalign.config_files import own_configs

    path = arg.partition(":")[0]
    return path in own_configs() or (path.endswith(".py") and os.path.isfile(path))


def _meant_key(config: str, name: str, value: str | None) -> tuple[str, bool]:
    """What to say of a flag that may be meant for a key of the config; whether it is surely one."""
    from jaxalign.config import read_config
    from jaxalign.peer_names import is_known, suggest
    from jaxalign.sections import flat_keys

    if not config:
        return "", False
    try:
        values = read_config(config)
    except JaxalignError:  # which is told once the flags are right
        return "", False
    keys = flat_keys(values)
    hint = suggest(name, value, keys, values.get("stage", ""), "--config.")
    return (hint if hint.startswith("did you mean") or is_known(name, keys) else ""), is_known(name, keys)


def _typed(cls: type[Request], each: dataclasses.Field, text: str) -> Any:
    kind = _kind(each)
    if kind is bool:
        return text == "True"
    try:
        return kind(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}[kind]
        raise UsageError(f"{cls.key(each.name)}={text} must be {wanted}") from None
