"""Jinja chat templates, run in a sandbox with the names and rules that Hugging Face tokenizers give them.

A template reads `messages`, `add_generation_prompt`, the special tokens (`bos_token`, `eos_token`, …) and
`tools` and `documents`, which are none. It may call `raise_exception(message)` and `strftime_now(format)`. The
clock is read once per process, so that a conversation is rendered alike from its first turn to its last; set
SOURCE_DATE_EPOCH (seconds since 1970, UTC) to prepare data of templates that write the date again on another day.
"""

import functools
import json
import os
import traceback
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

from jaxalign.errors import ConfigError, DataError
from jaxalign.storage import to_path

TEMPLATE_NAME = "chat_template.jinja"
_PROBE = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]


def load_template(path: str | os.PathLike, key: str = "config.data.chat_template") -> jinja2.Template:
    """Compile a Jinja chat template file; ConfigError names the config `key` that gave it."""
    try:
        return compile_template(to_path(path).read_text("utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{key}={path}: {error.strerror or error}; correct the path") from None
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{key}={path}:{error.lineno}: {error.message}; fix it") from None


def compile_template(source: str, name: str = "<template>") -> jinja2.Template:
    """Compile the text of a chat template, called `name` in errors; jinja2.TemplateSyntaxError if it is none."""
    environment = _environment()
    code = environment.compile(source, name, name)
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


def render_template(
    template: jinja2.Template,
    messages: list[dict[str, str]],
    special_tokens: Mapping[str, str],
    *,
    add_generation_prompt: bool,
) -> str:
    """The text that a template makes of a conversation; DataError names the template's file and line."""
    try:
        return template.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **special_tokens,
        )
    except Exception as error:  # a template is someone else's program: it can raise anything
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == template.filename]
        line = f":{frames[-1].lineno}" if frames else ""
        verb = "rejects" if isinstance(error, jinja2.TemplateError) else "fails on"
        raise DataError(
            f"the chat template {template.filename}{line} {verb} the conversation: {error}; change the "
            "conversation, or the template (config.data.chat_template=FILE)"
        ) from None


def turn_terminator(
    template: jinja2.Template, special_tokens: Mapping[str, str], controls: Iterable[str]
) -> str | None:
    """The control token that a template writes right after an answer, if it does."""
    try:
        text = render_template(template, _PROBE, special_tokens, add_generation_prompt=False)
    except DataError:
        return None  # it may ask for other turns than the probe's; what the data has will be checked
    content = _PROBE[1]["content"]
    _, found, rest = text.rpartition(content)
    ends = [name for name in controls if found and rest.lstrip().startswith(name)]
    return max(ends, key=len, default=None)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda pattern: _now().strftime(pattern),
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),  # the type itself would be a way out
        "namespace": _Namespace,
    }
    return environment


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text in some templates; the spans here need no marks.

    The block is a scope of its own, as it is for Hugging Face: what is set inside is not seen outside.
    """

    tags = {"generation"}  # noqa: RUF012, jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Scope:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


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
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


@functools.cache
def _now() -> datetime:
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(seconds), UTC) if seconds else datetime.now()
