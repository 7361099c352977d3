"""Chat templates: put together at random, with loops, growing strings and ways out of a sandbox among them."""

from pathlib import Path
from typing import Any

from tests.faults.fuzz.cases import STRANGE_TEXTS, Random, Surface, any_value, chance, damaged, mutated

_CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is the fox?"},
    {
        "role": "assistant",
        "content": "In the den.",
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
    },
]
_VALUES = (
    *(
        "messages",
        "message",
        "message['role']",
        "message.content",
        "bos_token",
        "eos_token",
        "tools",
        "x",
        "loop.index",
    ),
    *(
        "messages[0]",
        "messages[-1]['content']",
        "messages[1:]",
        "undefined_name",
        "1",
        "'a'",
        "none",
        "[1, 2]",
        "{'a': 1}",
    ),
    *(
        "range(10)",
        "range(10 ** 9)",
        "'a' * 10 ** 9",
        "'ab' * 99999999",
        "[0] * 10 ** 9",
        "10 ** 10 ** 8",
        "2 ** 99999",
    ),
    *(
        "namespace(a=1)",
        "namespace(**message)",
        "dict(a=1)",
        "strftime_now('%Y')",
        "raise_exception('no')",
        "lipsum(99)",
    ),
    *(
        "''.__class__.__mro__",
        "cycler.__init__.__globals__",
        "messages.append",
        "self.__init__",
        "joiner('a')",
        "x.x.x",
    ),
    *(
        "message|tojson",
        "messages|tojson(indent=999999999)",
        "'%999999999d' % 1",
        "'{:>999999999}'.format(1)",
        "x ~ x",
    ),
    *(
        "'a'.center(10 ** 9)",
        "'a'.zfill(10 ** 9)",
        "'a'.ljust(10 ** 9)",
        "'%*d' % (10 ** 9, 1)",
        "'a\\n'.expandtabs(10 ** 9)",
    ),
    *(
        "'a'|center(10 ** 9)",
        "'a'|indent(10 ** 9)",
        "x|batch(10 ** 9, 'a')|list",
        "x|slice(10 ** 9)|list",
        "'a'|wordwrap(1)",
    ),
    *(
        "range(999)|list|string",
        "('x' * 9999).replace('x', 'y' * 99999)",
        "('x' * 9999)|replace('x', 'y' * 99999)",
    ),
    *(
        "'x'.join(['y' * 9999] * 9999)",
        "messages|sum(attribute='a')",
        "('a' * 999)|list|join('b' * 999999)",
        "'a'.encode()",
    ),
    *(
        "x|string|length",
        "x|map('upper')|list",
        "x|selectattr('a')|list",
        "x|sort|unique|list",
        "x|pprint",
        "x|xmlattr",
    ),
    *(
        "'a'.format_map(message)",
        "'{0.__class__}'.format(x)",
        "x|attr('__class__')",
        "caller()",
        "x|filesizeformat",
        "x|urlize",
    ),
    *(
        "x|truncate(3)",
        "x|round(999999)",
        "x|int(0, 37)",
        "x|float",
        "x|random",
        "x|tojson(separators=1)",
        "('a'*99)|urlencode",
    ),
)
_STATEMENTS = (
    "{{% for message in messages %}}{body}{{% endfor %}}",
    "{{% for i in range(9999) %}}{body}{{% endfor %}}",
    "{{% for i in {value} %}}{body}{{% endfor %}}",
    "{{% for i in {value} recursive %}}{{{{ loop({value}) }}}}{body}{{% endfor %}}",
    "{{% if {value} %}}{body}{{% else %}}{body}{{% endif %}}",
    "{{% set x = {value} %}}{body}",
    "{{% set x = x ~ x %}}{body}{{{{ x }}}}",
    "{{% set x = {value} + {value} %}}{body}",
    "{{% set n = namespace(s='a') %}}{{% for i in range(99) %}}{{% set n.s = n.s + n.s %}}{{% endfor %}}{{{{ n.s }}}}",
    "{{% set n = namespace(s='a') %}}{{% for i in range(99) %}}{{% set n.s = [n.s, n.s] %}}{{% endfor %}}{{{{ n.s }}}}",
    "{{% set n = namespace(s=[1]) %}}{{% for i in range(99) %}}{{% set n.s = n.s + n.s %}}{{% endfor %}}{body}",
    "{{% set n = namespace(s=9) %}}{{% for i in range(99) %}}{{% set n.s = n.s * n.s %}}{{% endfor %}}{{{{ n.s }}}}",
    "{{% macro f(a) %}}{body}{{{{ f(a) }}}}{{% endmacro %}}{{{{ f({value}) }}}}",
    "{{% call f() %}}{body}{{% endcall %}}",
    "{{% generation %}}{body}{{% endgeneration %}}",
    "{{% set x %}}{body}{{% endset %}}",
    "{{% filter upper %}}{body}{{% endfilter %}}",
    "{{% include '../outside/secret.json' %}}{body}",
    "{{% import 'os' as os %}}{body}",
    "{{% extends {value} %}}{body}",
    "{{% raw %}}{body}{{% endraw %}}",
    "{{% with x = {value} %}}{body}{{% endwith %}}",
    "{{{{ {value} }}}}{body}",
    "{{{{ {value} ~ {value} }}}}{body}",
    "{{{{ {value} * {value} }}}}",
    "{{{{ {value} ** {value} }}}}",
    "{{{{ {value} % {value} }}}}",
    "{{% break %}}{body}",
    "{{# {body} #}}",
    "{{%- {value} -%}}",
)
_DEEP = (
    "{{% for i in range(99) %}}{body}{{% endfor %}}",
    "{{% if x %}}{body}{{% endif %}}",
    "{{{{ ({body}) }}}}",
)
SOUND = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_template(rng: Random) -> bytes:
    """A template of the kinds above, as bytes of its file."""
    if chance(rng, 0.03):
        form, text = rng.choice(_DEEP), "x"
        for _ in range(rng.choice((3, 20, 21, 90, 500))):
            text = form.format(body=text)
    elif chance(rng, 0.1):
        text = SOUND
    else:
        text = _body(rng, 0)
    data = text.encode("utf-8", "surrogatepass" if chance(rng, 0.03) else "replace")
    if chance(rng, 0.15):
        return damaged(rng, data)
    return text.encode("latin-1", "replace") if chance(rng, 0.02) else data


def _body(rng: Random, depth: int) -> str:
    parts = []
    for _ in range(rng.randrange(1, 4)):
        if depth > 3 or chance(rng, 0.3):
            parts.append(
                rng.choice(("text", "\n", "{{ x }}", *(text for text in STRANGE_TEXTS if text != "\0")))
            )
            continue
        statement = rng.choice(_STATEMENTS)
        pieces = (
            statement.replace("{value}", "\0").format(body=_body(rng, depth + 1))
            if "{body}" in statement
            else ""
        )
        text = pieces or statement.replace("{value}", "\0").format()
        while "\0" in text:
            text = text.replace("\0", rng.choice(_VALUES), 1)
        parts.append(text)
    return "".join(parts)


def write(rng: Random, folder: Path) -> tuple[Path, Any, Any]:
    file = folder / "chat_template.jinja"
    file.write_bytes(make_template(rng))
    chat = _CHAT if chance(rng, 0.5) else mutated(rng, _CHAT)
    return file, chat, any_value(rng) if chance(rng, 0.2) else None


def read(given: tuple[Path, Any, Any]) -> None:
    from jaxalign.text.templates import load_template, render_marked, turn_terminator

    file, chat, tools = given
    template = load_template(file)
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    turn_terminator(template, special, ("</s>", "<|end|>"))
    template.saved()
    render_marked(template, chat, special, add_generation_prompt=True, tools=tools)


def prepare() -> None:
    from jaxalign.text.templates import compile_template, render_marked

    render_marked(compile_template(SOUND), _CHAT, {"bos_token": "<s>"}, add_generation_prompt=True)


SURFACE = Surface(16, write, read, prepare)
