"""A chat template takes so much time and memory, and no more; what stays within is what plain Jinja makes of it."""

import resource
import time

import pytest

from jaxalign.errors import ConfigError, DataError
from jaxalign.text.template_budget import MIB, SECONDS
from jaxalign.text.templates import compile_template, load_template, render_template, turn_terminator

CHAT = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In the den, é."}]
GROWS = "{% set n = namespace(s=START) %}{% for i in range(99) %}{% set n.s = STEP %}{% endfor %}{{ n.s }}"


def render(source, messages=CHAT):
    template = compile_template(source)
    return render_template(template, messages, {"bos_token": "<s>"}, add_generation_prompt=False)


def grows(start, step):
    return GROWS.replace("START", start).replace("STEP", step)


TOO_MUCH, TOO_LONG = "it makes too much text and lists", "it takes too long"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", TOO_LONG),
        (
            "{% for i in range(9999) recursive %}{{ loop(range(9999)) if loop.depth < 3 }}{% endfor %}",
            TOO_LONG,
        ),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
            TOO_LONG,
        ),
        ("{% for m in range(99999) %}{{ range(9999)|map('upper')|list|length }}{% endfor %}", TOO_LONG),
        (grows("'ab'", "n.s + n.s"), TOO_MUCH),
        (grows("'ab'", "n.s ~ n.s"), TOO_MUCH),
        (grows("[1]", "n.s + n.s"), TOO_MUCH),
        (grows("'ab'", "[n.s, n.s]"), f"{TOO_LONG}|{TOO_MUCH}"),
        (grows("'ab'", "{'a': n.s, 'b': n.s}"), f"{TOO_LONG}|{TOO_MUCH}"),
        (grows("'ab'", "dict(a=n.s, b=n.s)"), f"{TOO_LONG}|{TOO_MUCH}"),
        (grows("'ab'", "([n.s] * 2)|batch(2)|list"), f"{TOO_LONG}|{TOO_MUCH}"),
        (grows("'ab'", "n.s.replace('a', n.s)"), TOO_MUCH),
        (grows("'ab'", "n.s|replace('a', n.s)"), TOO_MUCH),
        (grows("'ab'", "[n.s, n.s]|join"), TOO_MUCH),
        (grows("'ab'", "''.join([n.s, n.s])"), TOO_MUCH),
        (grows("'ab'", "'%s%s' % (n.s, n.s)"), TOO_MUCH),
        (grows("'ab'", "'{0}{0}'.format(n.s)"), TOO_MUCH),
        (grows("'ab'", "n.s.translate({97: n.s})"), TOO_MUCH),
        ("{% set x %}{% for i in range(99999) %}" + "text " * 999 + "{% endfor %}{% endset %}", TOO_MUCH),
        ("{% for i in range(99999) %}" + "text " * 999 + "{% endfor %}", TOO_MUCH),
        ("{{ 'a' * 10 ** 10 }}", TOO_MUCH),
        ("{{ 10 ** 10 * 'a' }}", TOO_MUCH),
        ("{{ 'a'.center(10 ** 10) }}", TOO_MUCH),
        ("{{ 'a'|center(10 ** 10) }}", TOO_MUCH),
        ("{{ 'a\n'|indent(10 ** 10) }}", TOO_MUCH),
        ("{{ 'a\t'.expandtabs(10 ** 10) }}", TOO_MUCH),
        ("{{ (5).to_bytes(10 ** 10, 'big') }}", TOO_MUCH),
        ("{{ '%9999999999d' % 1 }}", "it pads a value"),
        ("{{ '%*d' % (10 ** 9, 1) }}", "it pads a value"),
        ("{{ '{:>9999999999}'.format(1) }}", "it pads a value"),
        ("{{ '{:>{}}'.format(1, 10 ** 9) }}", "it pads a value"),
        ("{{ ('{0:9999}' * 10 ** 6).format(1) }}", TOO_MUCH),
        ("{{ ('%(a)9999d' * 10 ** 6) % {'a': 1} }}", TOO_MUCH),
        ("{{ ('%(a).9999f' * 10 ** 6)|format(a=1) }}", TOO_MUCH),
        ("{{ 10 ** (10 ** 9) }}", "it makes a whole number of more than"),
        (grows("99", "n.s * n.s"), "it makes a whole number of more than"),
        ("{{ 1.5|round(10 ** 9, 'ceil') }}", "it rounds a number"),
        ("{{ messages|tojson(indent=10 ** 9) }}", "it indents JSON"),
        ("{{ [[1], [2]]|sum(start=[]) }}", "it sums up lists"),
    ],
)
def test_what_would_never_end_is_refused_at_once(source, reason):
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(
        DataError, match=rf"the chat template <template>(:\d)? fails on the conversation: ({reason})"
    ):
        render(source)
    assert time.thread_time() - begun < 1.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_the_limits_are_said_and_can_be_set(monkeypatch):
    source = "{% for m in messages %}{{ m.content * 1000 }}{% endfor %}"
    assert render(source) == CHAT[0]["content"] * 1000 + CHAT[1]["content"] * 1000
    monkeypatch.setenv(MIB, "0.01")
    with pytest.raises(DataError, match=r"JAXALIGN_TEMPLATE_MIB=0\.01 is how many MiB it may make"):
        render(source)
    monkeypatch.setenv(MIB, "300")
    monkeypatch.setenv(SECONDS, "0.05")
    loops = "{% for i in range(9999) %}{% for j in range(100) %}{% endfor %}{% endfor %}"
    with pytest.raises(DataError, match=r"JAXALIGN_TEMPLATE_SECONDS=0\.05 is how many seconds"):
        render(loops)
    monkeypatch.setenv(SECONDS, "60")
    assert render(loops) == ""
    for value in ("0", "-1", "inf", "much"):
        monkeypatch.setenv(MIB, value)
        with pytest.raises(ConfigError, match=f"JAXALIGN_TEMPLATE_MIB='{value}' must be a number above 0"):
            compile_template(source)


def test_what_only_asks_how_a_template_writes_is_refused_for_it():
    """The probes that a tokenizer makes when it is loaded would each take the whole time."""
    template = compile_template(
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"
    )
    begun = time.thread_time()
    with pytest.raises(ConfigError, match=TOO_LONG):
        turn_terminator(template, {}, ["</s>"])
    assert time.thread_time() - begun < 1


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}",
        "{% for m in messages %}{{ loop.previtem.role if loop.previtem }}>{{ loop.changed(m.role) }}{% endfor %}",
        "{% for m in messages[::-1] if m.role == 'user' %}{{ m['content'][1:3] }}{% else %}none{% endfor %}",
        "{% for k, v in messages[0].items() %}{{ k ~ '=' ~ v }};{% endfor %}{{ messages[0]|items|list }}",
        "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is sequence else x + 1 }}{% endfor %}",
        "{% macro f(a, b=2) %}<{{ a * b }}{{ caller() if caller}}>{% endmacro %}{{ f('x') }}{% call f(3) %}{%endcall%}",
        "{% set x %}a{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}{{ x|upper|replace('A', 'b') }}",
        "{{ messages|map(attribute='role')|join(', ') }}{{ '-'.join(['a', 'b']) }}{{ '%s:%5.2f' % ('a', 1.5) }}",
        "{{ '{:>5}|{!r}'.format('a', 'b') }}{{ 'abc'.center(9) }}{{ 2 ** 10 }}{{ 7 // 2 }}{{ 'a,b'.split(',')[-1] }}",
        "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ [3, 1]|sort }}{{ {'a': [1]}.a[0] }}",
        "{{ none }}{{ true }}{{ 1.5 }}{{ unknown }}{{ unknown is defined }}{{ (1, 2) + (3,) }}{{ [0] * 3 }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ [1, 2, 3]|sum }}{{ 'a b'|title }}{{ 'x'|indent(2, true) }}{{ [1, 2, 3]|batch(2, 0)|list }}",
        "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}{{ messages|first|length }}",
    ],
)
def test_within_the_limits_it_is_jinja(source):
    import jinja2.sandbox

    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    assert render(source) == plain.from_string(source).render(messages=CHAT, bos_token="<s>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "{% for i in x %}" * 21 + "{% endfor %}" * 21,
            r":1: it cannot be compiled \(too many statically nested",
        ),
        ("{% break %}", r":1: it cannot be compiled \('break' outside loop"),
        ("{{ " + "9" * 5000 + " }}", r":1: it cannot be compiled \(Exceeds the limit"),
        ("{{ " + "(" * 3000, r":1: it cannot be compiled \(.*recursion"),
        ("x" * (1 << 20) + "y", r":1: it has 1,048,577 characters, and may have 1,048,576"),
        ("caf\u00e9".encode("latin-1"), r": not UTF-8 \(.*\); save the file as UTF-8"),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_file(tmp_path, content, message):
    file = tmp_path / "chat.jinja"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=rf"config\.data\.chat_template=.*chat\.jinja{message}"):
        load_template(file)


def test_what_a_template_says_is_cut():
    with pytest.raises(DataError) as error:
        render("{{ raise_exception('x' * 100000) }}")
    assert "x" * 1_000 + " …; change the conversation" in str(error.value) and len(str(error.value)) < 1_500
