"""Each record format parses to what it says, and each fault is refused with its row and a way out."""

import re

import pytest

from jaxalign.data.records import (
    Chat,
    Message,
    Preference,
    Prompt,
    PromptCompletion,
    Ranking,
    Text,
    parse_record,
)
from jaxalign.errors import ConfigError, DataError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


U, A, B = Message("user", "hi"), Message("assistant", "yes"), Message("assistant", "no")
u, a, b = user("hi"), assistant("yes"), assistant("no")


@pytest.mark.parametrize(
    ("kind", "row", "record"),
    [
        ("text", {"text": " x\n", "id": 3}, Text(" x\n")),
        ("sft", {"prompt": "p", "completion": " c"}, PromptCompletion("p", " c")),
        ("sft", {"prompt": "", "completion": "c"}, PromptCompletion("", "c")),
        ("sft", {"prompt": [u], "completion": [a]}, PromptCompletion((U,), (A,))),
        ("sft", {"messages": [u, a], "prompt": None}, Chat((U, A))),
        ("prompt", {"prompt": "p"}, Prompt("p")),
        ("preference or sft", {"prompt": "p", "chosen": "c", "rejected": "r"}, Preference("p", "c", "r")),
        ("preference or sft", {"prompt": "p", "completion": " c"}, PromptCompletion("p", " c")),
        ("preference or sft", {"text": "c"}, Text("c")),
        ("prompt", {"prompt": [u, a, u]}, Prompt((U, A, U))),
        ("preference", {"prompt": "p", "chosen": "c", "rejected": "r"}, Preference("p", "c", "r")),
        (
            "preference",
            {
                "prompt": [u],
                "chosen": [a],
                "rejected": [b],
                "margin": 2,
                "chosen_score": 5,
                "rejected_score": 1.5,
            },
            Preference((U,), (A,), (B,), 2.0, (5.0, 1.5)),
        ),
        (
            "preference",
            {"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": 9.0, "score_rejected": 8.0},
            Preference("p", "c", "r", 0.0, (9.0, 8.0)),
        ),
        (
            "preference",
            {"prompt": "p", "chosen": "c", "rejected": "r", "chosen_score": 1.0, "margin": "2"},
            Preference("p", "c", "r", 2.0),
        ),
        (
            "preference",
            {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 2, 2]},
            Ranking("p", ("a", "b", "c"), (1.0, 2.0, 2.0)),
        ),
        # implicit prompts
        ("preference", {"chosen": [u, a], "rejected": [u, b]}, Preference((U,), (A,), (B,))),
        ("preference", {"chosen": [u, a, u, a], "rejected": [u, a, u, b]}, Preference((U, A, U), (A,), (B,))),
        ("preference", {"chosen": [u, a], "rejected": [u, a, u, b]}, Preference((U,), (A,), (A, U, B))),
        ("preference", {"prompt": "hi", "chosen": [u, a], "rejected": [u, b]}, Preference((U,), (A,), (B,))),
        (
            "preference",
            {"chosen": "Q: x A: yes", "rejected": "Q: x A: no"},
            Preference("Q: x A:", " yes", " no"),
        ),
        (
            "preference",
            {"chosen": "say years", "rejected": "say yeast"},
            Preference("say", " years", " yeast"),
        ),
        ("preference", {"chosen": "go on", "rejected": "go on now"}, Preference("go", " on", " on now")),
        ("preference", {"chosen": "x\n\nfoo", "rejected": "x\n\nbar"}, Preference("x", "\n\nfoo", "\n\nbar")),
        ("preference", {"chosen": "yes", "rejected": "no"}, Preference("", "yes", "no")),
    ],
)
def test_formats(kind, row, record):
    assert parse_record(row, kind, "f:1") == record


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("text", {"content": "x", "id": 1}, "missing text; expected text; found content, id"),
        ("text", {}, "missing text; expected text; found no fields"),
        ("text", {"text": " \n"}, "text is empty or only whitespace (' \\n')"),
        ("text", {"text": 5}, "text is a int, not a string"),
        ("text", {"text": "\ud800"}, "text is not Unicode text"),
        (
            "sft",
            {"prompt": "p"},
            "missing completion; expected prompt, completion (or messages); found prompt",
        ),
        ("sft", {"prompt": "p", "completion": " "}, "completion is empty or only whitespace"),
        ("sft", {"prompt": [u], "completion": [assistant("")]}, "completion[0].content is empty or only"),
        (
            "sft",
            {"prompt": "p", "completion": [a]},
            "prompt is text but completion is messages; write both alike",
        ),
        ("sft", {"prompt": [u], "completion": "c"}, "prompt is messages but completion is text"),
        (
            "sft",
            {"prompt": [u], "completion": [u]},
            "completion must begin and end with an assistant message",
        ),
        ("sft", {"prompt": [u], "completion": []}, "found no messages"),
        ("sft", {"messages": [u]}, "messages has no assistant turn"),
        ("sft", {"messages": []}, "messages has no assistant turn"),
        ("sft", {"messages": [u, assistant("  ")]}, "messages[1].content is empty or only whitespace"),
        (
            "sft",
            {"messages": [{"role": "narrator", "content": "x"}, a]},
            "messages[0] has unknown role 'narrator'; use system, developer, user, assistant, tool, function, ipython",
        ),
        (
            "sft",
            {"messages": [{"role": "user"}, a]},
            "messages[0]: missing content; expected role, content; found role",
        ),
        ("sft", {"messages": [user(3), a]}, "messages[0].content is a int, not a string"),
        ("sft", {"messages": ["hi", a]}, "messages[0] is a str; write an object with role and content"),
        ("sft", {"messages": "hi"}, "messages is a str; write a list of messages"),
        ("prompt", {"prompt": ""}, "prompt is empty or only whitespace"),
        ("prompt", {"prompt": [a]}, "prompt has no turn but an assistant's"),
        ("prompt", {"prompt": []}, "prompt has no turn but an assistant's"),
        ("prompt", {"prompt": 3}, "prompt is a int; write a list of messages"),
        (
            "preference",
            {"prompt": "p", "chosen": "c"},
            "missing rejected; expected chosen, rejected (or prompt, resp",
        ),
        ("preference", {"prompt": "p", "chosen": "c", "rejected": "c"}, "chosen equals rejected"),
        (
            "preference",
            {"prompt": "p", "chosen": "c", "rejected": ""},
            "rejected is empty or only whitespace",
        ),
        ("preference", {"prompt": "p", "chosen": "c", "rejected": [a]}, "one of chosen and rejected is text"),
        (
            "preference",
            {"prompt": "p", "chosen": [a], "rejected": [b]},
            "prompt is text but chosen is messages",
        ),
        (
            "preference",
            {"chosen": [u], "rejected": [a]},
            "chosen and rejected answer different prompts: 'hi' (user) and 'yes' (assistant)",
        ),
        (
            "preference",
            {"prompt": "p", "chosen": "c", "rejected": "r", "margin": float("nan")},
            "margin is nan; write a finite number",
        ),
        (
            "preference",
            {"prompt": "p", "chosen": "c", "rejected": "r", "margin": "two"},
            "margin is 'two', not a number",
        ),
        (
            "preference",
            {"prompt": "p", "responses": ["a", "b"], "scores": [1, None]},
            "scores has 1 numbers; a ranking needs at least 2",
        ),
        ("preference", {"prompt": "p", "responses": ["a"], "scores": [1]}, "a ranking needs at least 2"),
        ("preference", {"prompt": "p", "responses": ["a", "b"], "scores": [1]}, "2 responses but 1 scores"),
        ("preference", {"prompt": "p", "responses": ["a", "b"], "scores": [1, 1]}, "all scores equal 1.0"),
        (
            "preference",
            {"prompt": "p", "responses": ["a", "a"], "scores": [1, 2]},
            "same response has two different",
        ),
        (
            "preference",
            {"prompt": "p", "responses": ["a", " "], "scores": [1, 2]},
            "responses[1] is empty or only",
        ),
        (
            "preference",
            {"prompt": "p", "responses": "ab", "scores": [1, 2]},
            "responses is a str; write a list",
        ),
        (
            "preference",
            {"prompt": "p", "responses": ["a", "b"], "scores": [1, float("inf")]},
            "scores[1] is inf; write a finite number",
        ),
        (
            "preference",
            {"responses": ["a", "b"], "scores": [1, 2]},
            "missing prompt; expected prompt, responses, sc",
        ),
    ],
)
def test_refusals_name_row_and_reason(kind, row, message):
    with pytest.raises(
        DataError, match=rf"^file.jsonl:7: .*{re.escape(message)}|^file.jsonl:7: {re.escape(message)}"
    ):
        parse_record(row, kind, "file.jsonl:7")


def test_unknown_kind():
    with pytest.raises(
        ConfigError,
        match="unknown kind of data 'dpo'; write one of text, sft, preference, preference or sft, prompt",
    ):
        parse_record({}, "dpo", "f:1")
