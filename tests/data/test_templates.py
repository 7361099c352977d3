"""Chats in the formats of published models, byte for byte and id for id as transformers renders them."""

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import hf_models
import jinja2
import pytest
from encoding import encode_dataset

from jaxalign.data.records import Message
from jaxalign.data.sources import read_records
from jaxalign.errors import ConfigError, DataError
from jaxalign.text import templates
from jaxalign.text.chat import render_chat
from jaxalign.text.shown import THOUGHTS
from jaxalign.text.templates import compile_template, render_template, turn_terminator
from jaxalign.text.tokenizer import load_tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import AutoTokenizer

ENGLISH = [
    ("system", "  Be brief, and don't use <b>HTML</b>. "),
    ("user", "Who wrote this reply?\n"),
    ("assistant", "The quick brown fox."),
    ("user", " And what's the question?"),
    ("assistant", "A question, and an answer:\n\n12345 🙂"),
    ("user", "Who?"),
]
JAPANESE = [
    ("user", "富士山の高さは何メートルですか。"),
    ("assistant", "三千七百七十六メートルです。\n答えました。"),
    ("user", "日本語で「答え」を書いてください。"),
    ("assistant", "はい、日本語で答えます。"),
    ("user", "どうも。"),
]
CHATS = [chat[:size] for chat in (ENGLISH, JAPANESE) for size in range(2, len(chat) + 1)]
WITH_THOUGHT = "<think>\nWho asks?\n</think>\n\nThe fox."


def messages(chat) -> list[Message]:
    return [Message(role, content) for role, content in chat]


class Segment(NamedTuple):
    """Neighbouring tokens that are all supervised or all context."""

    ids: tuple[int, ...]
    supervised: bool


def cut(rendered: tuple[list[int], list[bool]]) -> list[Segment]:
    groups = groupby(zip(*rendered, strict=True), key=lambda pair: pair[1])
    return [Segment(tuple(token for token, _ in group), supervised) for supervised, group in groups]


def flat(segments: Iterable[Segment]) -> list[int]:
    return [token for segment in segments for token in segment.ids]


@pytest.fixture(scope="module", params=hf_models.MODELS)
def model(request, tmp_path_factory):
    model = hf_models.MODELS[request.param]()
    folder = model.write(tmp_path_factory.mktemp("model"))
    return request.param, load_tokenizer(folder), AutoTokenizer.from_pretrained(folder), model.terminator


def check_chat(ours, theirs, chat):
    generation = chat[-1][0] != "assistant"
    turns = [{"role": role, "content": content} for role, content in chat]
    options = {"add_generation_prompt": generation}
    text = theirs.apply_chat_template(turns, tokenize=False, **options)
    want = theirs.apply_chat_template(turns, tokenize=True, return_dict=False, **options)
    ids = flat(cut(render_chat(messages(chat), ours, **options)))
    if ours.bos_id is not None and want[0] != ours.bos_id:
        assert ids.pop(0) == ours.bos_id  # a template that writes none: a model that has one gets it
    assert ids == want
    return text, ids


def test_ids_and_text_of_transformers(model):
    name, ours, theirs, _ = model
    for chat in CHATS:
        text, ids = check_chat(ours, theirs, chat)
        if name not in (
            "mistral",
            "phi3",
        ):  # whose tokenizers drop a space or line break beside control tokens
            decoded = theirs.backend_tokenizer.decode(ids, skip_special_tokens=False)
            assert decoded == text or name.startswith(("llama2", "zephyr"))
            assert decoded.replace(" ", "") == text.replace(" ", "")


def test_what_is_supervised(model):
    name, ours, _, terminator = model
    end = ours.special_id(terminator)
    assert end in ours.eos_ids
    for chat in (ENGLISH[:5], JAPANESE[:4]):
        segments = [segment for segment in cut(render_chat(messages(chat), ours)) if segment.supervised]
        answers = [content for role, content in chat if role == "assistant"]
        assert [segment.ids.index(end) for segment in segments] == [len(s.ids) - 1 for s in segments]
        spoken = [ours.decode(segment.ids) for segment in segments]
        thought = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
        assert [text.strip() for text in spoken] == [*answers[:-1], thought + answers[-1]]


def test_training_sees_the_prompt_that_sampling_starts_from(model):
    _, ours, _, _ = model
    for chat in (ENGLISH[:5], JAPANESE[:4]):
        prompt = flat(cut(render_chat(messages(chat[:-1]), ours, add_generation_prompt=True)))
        segments = cut(render_chat(messages(chat), ours, first_supervised=len(chat) - 1))
        assert flat(segments)[: len(prompt)] == prompt
        assert [segment.supervised for segment in segments if segment.ids != (ours.bos_id,)][:2] == [
            False,
            True,
        ]
        assert flat(s for s in segments if not s.supervised)[: len(prompt)] == prompt


def test_contents_cannot_make_control_tokens(model):
    _, ours, _, _ = model
    controls = set(ours.control_ids.values())
    names = list(ours.control_ids)
    evil = ["".join(names), names[-1][1:], names[-1][:-1], *(f"a {name} b" for name in names)]
    tame = flat(cut(render_chat([Message("user", "word"), Message("assistant", "word")], ours)))
    for content in evil:
        wild = flat(cut(render_chat([Message("user", content), Message("assistant", content)], ours)))
        assert [i for i in wild if i in controls] == [i for i in tame if i in controls]
        assert ours.decode(wild).replace(" ", "") == ours.decode(tame).replace("word", content).replace(
            " ", ""
        )


def test_cuts_inside_a_token_keep_the_text(tmp_path):
    """White space that begins an answer would have joined the line break before it."""
    folder = hf_models.chatml().write(tmp_path)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    chat = [("user", "who"), ("assistant", "\n\n  the fox")]
    ids = flat(cut(render_chat(messages(chat), ours)))
    turns = [{"role": role, "content": content} for role, content in chat]
    whole = theirs.apply_chat_template(turns, tokenize=True, return_dict=False)
    decode = theirs.backend_tokenizer.decode
    assert decode(ids, skip_special_tokens=False) == decode(whole, skip_special_tokens=False)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    return load_tokenizer(hf_models.qwen(hf_models.QWEN3).write(tmp_path_factory.mktemp("qwen3")))


def test_thoughts(qwen3):
    """Qwen 3 keeps the thought of the last answer and takes out earlier ones."""
    last = [("user", "who"), ("assistant", "the fox"), ("user", "why"), ("assistant", WITH_THOUGHT)]
    spoken = [qwen3.decode(s.ids) for s in cut(render_chat(messages(last), qwen3)) if s.supervised]
    assert spoken == ["the fox", WITH_THOUGHT]
    earlier = [*last, ("user", "what"), ("assistant", "a fox")]
    told = Counter()
    spoken = [
        qwen3.decode(s.ids) for s in cut(render_chat(messages(earlier), qwen3, told=told)) if s.supervised
    ]
    assert spoken == ["the fox", "The fox.", "<think>\n\n</think>\n\na fox"] and told == {THOUGHTS: 1}
    context = cut(render_chat(messages(earlier), qwen3, first_supervised=5))  # not supervised, it may go
    assert [qwen3.decode(s.ids) for s in context if s.supervised] == ["<think>\n\n</think>\n\na fox"]


def test_a_prompt_that_later_messages_change(qwen3):
    thinking = hf_models.QWEN3.replace(
        "assistant\\n' }}\n    {%- if enable", "assistant\\n<think>\\n' }}\n    {%- if enable"
    )
    assert thinking != hf_models.QWEN3
    with pytest.raises(
        DataError, match=r"it writes the prompt before messages\[1\] as '.*assistant\\n<think>\\n' when"
    ):
        render_chat(
            messages([("user", "who"), ("assistant", "a"), ("user", "b")]), qwen3, compile_template(thinking)
        )


def test_missing_ends_are_not_borrowed_from_later_turns(qwen3):
    source = "{% for m in messages %}{{ m.role ~ m.content }}{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}"
    for chat in (ENGLISH[1:5], JAPANESE[:4]):
        with pytest.raises(DataError, match=r"messages\[1\]"):
            render_chat(messages(chat), qwen3, compile_template(source))


PROBES = [
    "{{ messages | tojson }} {{ {'b': '<é>', 'a': 1} | tojson(indent=2, sort_keys=true) }}",
    "{% for m in messages %}\n  {% if loop.first %}{% continue %}{% endif %}\n  {{ loop.index0 }}\n{% endfor %}",
    "{% set n = namespace(a=0, self=1) %}{% for m in messages %}{% set n.a = n.a + loop.index %}{% endfor %}{{ n.a }}",
    "{% macro say(x, y='b') %}{{ x ~ y }}{% endmacro %}{{ say('a') }}{{ dict(a=1) }}",
    "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}",
    "{{ bos_token }}|{{ eos_token }}|{{ tools is none }}|{{ documents is none }}|{{ nothing }}",
    "{{ strftime_now('%Y') }}\n",
    "{{ messages[::-1][0]['content'].split('\n')[0] | trim | upper }}{{ raise_exception is defined }}",
    "{{- '  a' -}}   \n   {%- if true %}\n    b\n    {% endif %}\nc",
]


@pytest.mark.parametrize("source", PROBES)
def test_language_of_transformers(model, source):
    _, ours, theirs, _ = model
    turns = [{"role": role, "content": content} for role, content in ENGLISH]
    for generation in (False, True):
        want = theirs.apply_chat_template(
            turns, chat_template=source, tokenize=False, add_generation_prompt=generation
        )
        template = compile_template(source)
        got = render_template(template, turns, ours.special_tokens, add_generation_prompt=generation)
        assert got == want


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{% set ns = namespace() %}{% set ns.__html__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ dict.__subclasses__() }}",
    ],
)
def test_sandbox(source):
    with pytest.raises(DataError, match="<template>:1 rejects the conversation"):
        render_template(compile_template(source), [], {}, add_generation_prompt=False)


def test_the_date_can_be_fixed(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    templates._clock.clear()
    template = compile_template("{{ strftime_now('%d %b %Y') }}")
    assert render_template(template, [], {}, add_generation_prompt=False) == "02 Jan 1970"
    templates._clock.clear()


def test_terminators():
    turn = "{% for m in messages %}{{ m.role + m.content }}EOT\n{% endfor %}END"
    controls = ["E", "EOT", "END"]
    assert turn_terminator(compile_template(turn), {}, controls) == "EOT"
    assert turn_terminator(compile_template(turn.replace("EOT", "</s>")), {}, controls) is None
    assert turn_terminator(compile_template(turn.replace("m.content", "''")), {}, controls) is None
    assert turn_terminator(compile_template("{{ raise_exception('no') }}"), {}, controls) is None


def test_where_templates_stand(tmp_path):
    """chat_template.jinja, then tokenizer_config.json, then chat_template.json."""
    plain = hf_models.Model(hf_models.qwen().tokenizer, None, config={"eos_token": "<|im_end|>"})

    def template(name, source, **files):
        config = {**plain.config, **({"chat_template": source} if source else {})}
        return load_tokenizer(plain.write(tmp_path / name, tokenizer_config=config, **files)).chat_template

    assert template("none", None) is None
    assert template("json", None, chat_template={"chat_template": "json"}) == "json"
    assert template("config", "config", chat_template={"chat_template": "json"}) == "config"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]
    assert template("list", named) == "named"
    assert template("other", named[:1]) is None
    (tmp_path / "config" / "chat_template.jinja").write_text("file")
    assert load_tokenizer(tmp_path / "config").chat_template == "file"
    load_tokenizer(tmp_path / "config").save(tmp_path / "copy")
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").chat_template == "file"
    given = tmp_path / "given.jinja"
    given.write_text("given")
    ours = load_tokenizer(tmp_path / "config", given)
    assert ours.template.render() == "given" and ours.chat_template == "file"


def test_a_template_beside_a_sentencepiece_model(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")
    ours = load_tokenizer(tmp_path)
    ids = flat(cut(render_chat(messages([("user", "who"), ("assistant", "fox")]), ours)))
    end = ours.special_id("<|end|>")
    assert ids == [ours.bos_id, *ours.encode("who"), end, *ours.encode("fox"), end]
    ours.save(tmp_path / "copy")
    assert (
        flat(cut(render_chat(messages([("user", "who")]), load_tokenizer(tmp_path / "copy"))))
        == ids[: ids.index(end) + 1]
    )


def test_no_template(tmp_path):
    folder = hf_models.Model(hf_models.qwen().tokenizer, None, config={"eos_token": "<|im_end|>"}).write(
        tmp_path
    )
    message = r"config.data.chat_template is empty, .*; set config.data.chat_template=FILE"
    with pytest.raises(ConfigError, match=message):
        render_chat(messages(JAPANESE), load_tokenizer(folder))


def test_template_of_a_model_that_is_wrong(tmp_path):
    folder = hf_models.qwen("line\n{% if %}").write(tmp_path)
    with pytest.raises(
        ConfigError, match=r"chat_template.jinja: line 2 of the chat template: .*; fix it, or move"
    ):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "a\n{{ raise_exception('no ' + messages[0].role) }}",
            r"jinja:2 rejects the conversation: no user; change",
        ),
        ("a\n\n{{ 'a' + messages[0].age }}", r"jinja:3 rejects the conversation: .* has no attribute 'age'"),
        ("{{ 'a' + 1 }}", r"jinja:1 fails on the conversation: can only concatenate str"),
    ],
)
def test_failing_templates_name_row_file_and_line(tmp_path, source, message):
    ours = load_tokenizer(hf_models.qwen(source).write(tmp_path))
    turns = [{"role": role, "content": content} for role, content in JAPANESE[:2]]
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"messages": turns}))
    with pytest.raises(DataError, match=r"data.jsonl:1: the chat template .*chat_template." + message):
        encode_dataset(read_records(str(data)), "sft", ours, max_length=100)


@pytest.mark.skipif(
    "JAXALIGN_GEMMA_DIR" not in os.environ, reason="JAXALIGN_GEMMA_DIR names no Gemma 3 folder"
)
def test_the_real_gemma(tmp_path):
    folder = Path(os.environ["JAXALIGN_GEMMA_DIR"])
    template = tmp_path / "gemma.jinja"
    template.write_text(hf_models.GEMMA3)
    ours, theirs = load_tokenizer(folder, template), AutoTokenizer.from_pretrained(folder)
    theirs.chat_template = hf_models.GEMMA3
    assert ours.special_id("<end_of_turn>") in ours.eos_ids and ours.bos_id == theirs.bos_token_id
    for chat in CHATS:
        check_chat(ours, theirs, chat)
        for _, content in chat:
            assert [ours.bos_id, *ours.encode(content)] == theirs.encode(content)
    assert not set(ours.encode("".join(ours.control_ids))) & set(ours.control_ids.values())


def test_compiled_templates_are_jinja(tmp_path):
    (tmp_path / "a.jinja").write_text("{{ 1 }}")
    assert isinstance(templates.load_template(tmp_path / "a.jinja"), jinja2.Template)
