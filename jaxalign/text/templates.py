"""Jinja chat templates, run in a sandbox with the names and rules that Hugging Face tokenizers give them.

A template reads `messages`, `tools`, `add_generation_prompt`, the special tokens (`bos_token`, `eos_token`, …),
arguments of its own (see `template_args`) and `documents`, which is none. It may call
`raise_exception(message)` and `strftime_now(format)`. The clock is read once per process, so that a conversation is
rendered alike from its first turn to its last; set SOURCE_DATE_EPOCH (seconds since 1970, UTC) to prepare data of
templates that write the date again on another day.
"""

import contextlib
import functools
import json
import os
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.utils

from jaxalign.errors import ConfigError, DataError
from jaxalign.storage import to_path
from jaxalign.text.bounded_jinja import LONGEST_SOURCE, BoundedEnvironment, bound, render, weighed
from jaxalign.text.template_budget import OverLimit, limited

TEMPLATE_NAME = "chat_template.jinja"
# The built-in format, for tokenizers with its control tokens.
BUILTIN = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Around what a template marks as generated: the last characters for private use, which `escape` keeps out of contents.
OPEN, CLOSE = "\U0010fffc", "\U0010fffd"
ANSWER_TOKENS = "jaxalign_answer_tokens"  # the variable in which a saved template has these
GIVEN = ("messages", "tools", "documents", "add_generation_prompt", ANSWER_TOKENS)
_PROBE = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]


_COMPILING = 0.5  # of what a rendering may take: what may its constants that are computed once
PROBES = 0.25  # of what a rendering may take: what all those may that only find out how a template writes
_LONGEST_REASON = 1_000  # characters of what a template itself may say


class Costly(DataError):
    """A template takes more time or memory for a conversation than it may."""


class ChatTemplate(jinja2.Template):
    """A compiled chat template with values for the variables that it leaves to the caller."""

    source: str
    args: Mapping[str, Any]  # such as {"enable_thinking": False}
    answer_tokens: tuple[str, ...]  # control tokens that answers may hold beside those that it writes in them

    def __reduce__(self) -> tuple[Any, ...]:
        # What Jinja has compiled cannot go to another process.
        return partial(compile_template, args=self.args, answer_tokens=self.answer_tokens), (
            self.source,
            self.filename or "<template>",
        )

    @functools.cached_property
    def words(self) -> frozenset[str]:
        """All names and words in its source."""
        return frozenset(re.findall(r"\w+", self.source))

    @functools.cached_property
    def marks_answers(self) -> bool:
        """Whether it marks what is generated with `{% generation %}`."""
        return re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", self.source) is not None

    def saved(self) -> str:
        """Its source with the arguments as defaults, which every reader of the file takes, `transformers` included."""
        lines = [
            f"{{%- set {n} = {n} if {n} is defined else {_literal(v)} %}}\n" for n, v in self.args.items()
        ]
        if self.answer_tokens != tuple(_saved_answer_tokens(_environment().parse(self.source))):
            lines.append(f"{{%- set {ANSWER_TOKENS} = {_literal(list(self.answer_tokens))} %}}\n")
        return "".join(lines) + self.source


def load_template(
    path: str | os.PathLike,
    key: str = "config.data.chat_template",
    *,
    args: Mapping[str, Any] | None = None,
    answer_tokens: Sequence[str] = (),
) -> ChatTemplate:
    """Compile a Jinja chat template file; ConfigError names the config `key` that gave it."""
    try:
        source = to_path(path).read_text("utf-8")
        return compile_template(source, str(path), args=args, answer_tokens=answer_tokens)
    except OSError as error:
        raise ConfigError(f"{key}={path}: {error.strerror or error}; correct the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}={path}: not UTF-8 ({error}); save the file as UTF-8") from None
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{key}={path}:{error.lineno}: {error.message}; fix it") from None


def compile_template(
    source: str,
    name: str = "<template>",
    *,
    args: Mapping[str, Any] | None = None,
    answer_tokens: Sequence[str] = (),
) -> ChatTemplate:
    """Compile the text of a chat template, called `name` in errors.

    Args:
      args: values of variables that it reads beside those that all templates get.
      answer_tokens: further control tokens that answers may hold.

    Raises:
      jinja2.TemplateSyntaxError: it is none, or one that is too large to be compiled. ConfigError: it reads no variable
        of such a name.
    """
    if len(source) > LONGEST_SOURCE:
        raise jinja2.TemplateSyntaxError(
            f"it has {len(source):,} characters, and may have {LONGEST_SOURCE:,}", 1
        )
    try:
        with limited(_COMPILING):
            return _compile(source, name, dict(args or {}), answer_tokens)
    # What Python's own compiler says of what Jinja has made of it, and what a constant expression raised.
    except (SyntaxError, RecursionError, MemoryError, ValueError, ArithmeticError, OverLimit) as error:
        if isinstance(error, ConfigError):
            raise
        raise jinja2.TemplateSyntaxError(f"it cannot be compiled ({_first_line(error)})", 1) from None


def _first_line(error: BaseException) -> str:
    """What an error says, without the source that Python shows of it."""
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return said.splitlines()[0] if said.strip() else type(error).__name__


def _compile(source: str, name: str, args: dict[str, Any], answer_tokens: Sequence[str]) -> ChatTemplate:
    environment = _environment()
    tree = environment.parse(source)
    read = jinja2.meta.find_undeclared_variables(tree) | _with_default(tree)
    if unread := [each for each in args if each not in read]:
        known = sorted(read - {*GIVEN, *environment.globals} - {n for n in read if n.endswith("_token")})
        raise ConfigError(
            f"config.data.template_args: {name} reads no variable {unread[0]!r}"
            + (f"; it reads {', '.join(known)}" if known else "; it takes no arguments")
        )
    marked = _saved_answer_tokens(tree)
    code = environment.compile(bound(tree), name, name)
    template: Any = ChatTemplate.from_code(environment, code, environment.make_globals(args))
    template.source, template.args = source, args
    template.answer_tokens = tuple(dict.fromkeys((*marked, *answer_tokens)))
    return template


def _with_default(tree: jinja2.nodes.Template) -> set[str]:
    """Names that a template sets unless its caller does: `set a = a if a is defined else 1`."""
    tests = (node for node in tree.find_all(jinja2.nodes.Test) if node.name in ("defined", "undefined"))
    return {node.node.name for node in tests if isinstance(node.node, jinja2.nodes.Name)}


def _saved_answer_tokens(tree: jinja2.nodes.Template) -> Sequence[str]:
    for node in tree.find_all(jinja2.nodes.Assign):
        if isinstance(node.target, jinja2.nodes.Name) and node.target.name == ANSWER_TOKENS:
            with contextlib.suppress(jinja2.nodes.Impossible):
                assert isinstance(node.node, jinja2.nodes.Expr)
                found = node.node.as_const()
                if isinstance(found, list) and all(isinstance(name, str) for name in found):
                    return found
    return ()


def _literal(value: Any) -> str:
    """A JSON value as Jinja writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value)


def render_template(
    template: jinja2.Template,
    messages: list[dict[str, Any]],
    special_tokens: Mapping[str, str],
    *,
    add_generation_prompt: bool,
    tools: list[dict[str, Any]] | None = None,
) -> str:
    """The text that a template makes of a conversation; DataError names the template's file and line."""
    options: Any = {"add_generation_prompt": add_generation_prompt, "tools": tools}
    return render_marked(template, messages, special_tokens, **options)[0]


def render_marked(
    template: jinja2.Template,
    messages: list[dict[str, Any]],
    special_tokens: Mapping[str, str],
    *,
    add_generation_prompt: bool,
    tools: list[dict[str, Any]] | None = None,
) -> tuple[str, list[tuple[int, int]]]:
    """The same, and the spans of it that the template marks as generated, of which none lies in another."""
    try:
        given = {"messages": messages, "tools": tools, "documents": None}
        text = render(template, {**given, "add_generation_prompt": add_generation_prompt, **special_tokens})
    except Exception as error:  # a template is someone else's program: it can raise anything
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == template.filename]
        line = f":{frames[-1].lineno}" if frames else ""
        verb = "rejects" if isinstance(error, jinja2.TemplateError) else "fails on"
        kind = Costly if isinstance(error, OverLimit) else DataError
        said = str(error) if len(str(error)) < _LONGEST_REASON else f"{str(error)[:_LONGEST_REASON]} …"
        raise kind(
            f"the chat template {template.filename}{line} {verb} the conversation: {said}; change the "
            "conversation, or the template (config.data.chat_template=FILE)"
        ) from None
    return _without_marks(text) if OPEN in text else (text, [])


def _without_marks(text: str) -> tuple[str, list[tuple[int, int]]]:
    spans: list[tuple[int, int]] = []
    size, depth, start = 0, 0, 0
    parts = []
    for part in re.split(f"([{OPEN}{CLOSE}])", text):
        if part == OPEN:
            start = size if depth == 0 else start
            depth += 1
        elif part == CLOSE:
            depth -= 1
            if depth == 0 and size > start:
                spans.append((start, size))
        else:
            parts.append(part)
            size += len(part)
    return "".join(parts), spans


def turn_terminator(
    template: jinja2.Template, special_tokens: Mapping[str, str], controls: Iterable[str]
) -> str | None:
    """The control token that a template writes right after an answer, if it does."""
    try:
        with limited(PROBES):
            text = render_template(template, _PROBE, special_tokens, add_generation_prompt=False)
    except Costly as error:
        raise ConfigError(str(error)) from None
    except DataError:
        return None  # it may ask for other turns than the probe's; what the data has will be checked
    content = _PROBE[1]["content"]
    _, found, rest = text.rpartition(content)
    ends = [name for name in controls if found and rest.lstrip().startswith(name)]
    return max(ends, key=len, default=None)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = weighed("tojson", _to_json)
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda pattern: clock().strftime(pattern),
        "namespace": _Namespace,
    }
    return environment


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text in some templates.

    The block is a scope of its own, as it is for Hugging Face: what is set inside is not seen outside.
    """

    tags = {"generation"}  # noqa: RUF012, jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Scope:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        before, after = (
            jinja2.nodes.Output([jinja2.nodes.TemplateData(mark)], lineno=line) for mark in (OPEN, CLOSE)
        )
        return jinja2.nodes.Scope([before, *body, after], lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without names that mean something to Python."""

    def __init__(*args: Any, **kwargs: Any):
        self, *values = args  # a template may well call an attribute `self`
        jinja2.utils.Namespace.__init__(self)
        for name, value in dict(*values, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace's {name!r} may not begin with an underscore")
        super().__setitem__(name, value)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML.
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    # Characters for private use stand for others, see `escape`, so they are left as they are.
    return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text) if ensure_ascii else text


_NOT_ASCII = re.compile("[^\x00-\x7f\U000f0000-\U0010ffff]")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


_clock: list[datetime] = []  # one, once it has been read


def clock() -> datetime:
    """What templates take for the time, from the first of them on."""
    if not _clock:
        seconds = os.environ.get("SOURCE_DATE_EPOCH")
        _clock.append(datetime.fromtimestamp(int(seconds), UTC) if seconds else datetime.now())
    return _clock[0]


def set_clock(now: datetime) -> None:
    """Has templates take `now` for the time, as in the process that this one works for."""
    _clock[:] = [now]
