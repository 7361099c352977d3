"""Rows of the shapes people have become the records written out here, or are refused in words, by name."""

import json

import hf_models
import numpy as np
import pytest

from jaxalign.data import DataConfig, build_dataset, load_tokenizer
from jaxalign.data.public.recipes import open_source
from jaxalign.data.records import (
    Chat,
    Message,
    Preference,
    Prompt,
    PromptCompletion,
    Ranking,
    Text,
    Transcript,
    Unpaired,
    account_for,
)
from jaxalign.data.sources import Dropped
from jaxalign.errors import ConfigError, DataError

Q, A, B = "What is the colour of the fox?", "The fox is brown.", "The fox is blue."
S = "Be brief."


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def user(content, **more):
    return turn("user", content, **more)


def said(content, **more):
    return turn("assistant", content, **more)


ASKED, GOOD, BAD, SYSTEM = (
    Message("user", Q),
    Message("assistant", A),
    Message("assistant", B),
    Message("system", S),
)
CHAT = Chat((ASKED, GOOD))
PAIR = Preference((ASKED,), (GOOD,), (BAD,))


@pytest.fixture
def read(tmp_path):
    """The record of each row of a file, or why it was dropped, and what is not read of all of them."""

    def run(kind, *rows, **options):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        records = open_source(str(file), kind, **options)
        made, unread = [], set()
        for index, row in enumerate(records):
            if isinstance(row, Dropped):
                made.append(row.reason)
                continue
            record, names = account_for(row, kind, records.where(index))
            made.append(record)
            unread |= set(names)
        return made, unread

    return run


GEMINI = [{"role": "user", "parts": [{"text": Q}]}, {"role": "model", "parts": [{"text": A}]}]
PARTS = [
    turn("user", [{"type": "text", "text": "What is the colour"}, {"type": "text", "text": " of the fox?"}]),
    turn("assistant", [{"type": "text", "text": A}]),
]


@pytest.mark.parametrize(
    "turns",
    [
        [user(Q), said(A)],
        [{"from": "human", "value": Q}, {"from": "gpt", "value": A}],
        [turn("Human", Q), turn("Assistant", A)],
        [turn("USER", Q), turn("bot", A)],
        [{"speaker": "user", "text": Q}, {"speaker": "ai", "text": A}],
        [
            {"role": "user", "content": Q, "from": None, "value": None},
            {"from": "gpt", "value": A, "role": None},
        ],
        GEMINI,
        PARTS,
        {"role": ["user", "assistant"], "content": [Q, A]},
        {"from": ["human", "gpt"], "value": [Q, A], "weight": None},
        [{"input": Q, "output": A}],
        [{"human": Q, "assistant": A}],
        [{"user": Q}, {"assistant": A}],
        json.dumps([user(Q), said(A)]),
        repr([user(Q), said(A)]),
    ],
)
@pytest.mark.parametrize("name", ["messages", "Messages", "conversations", "conversation", "contents"])
def test_forms_of_a_conversation(read, name, turns):
    assert read("sft", {name: turns}) == ([CHAT], set())
    assert read("text", {name: turns}) == ([Transcript((ASKED, GOOD))], set())
    made, unread = read("prompt", {name: turns})
    assert made == [Prompt((ASKED,))] and unread == {"reply"}
    assert read("unpaired", {name: turns, "kto_tag": True})[0] == [Unpaired((ASKED,), ((GOOD,),), (True,))]


@pytest.mark.parametrize(
    "row",
    [
        {"question": Q, "answer": A},
        {"Question": Q, "Answer": A},
        {"query": Q, "response": A},
        {"prompt": Q, "response": A},
        {"prompt": Q, "answer": A},
        {"prompt": [user(Q)], "response": A},
        {"messages": [user(Q)], "answer": A},
        {"instruction": Q, "response": A},
        {"INSTRUCTION": Q, "RESPONSE": A},
        {"instruction": Q, "output": A, "input": ""},
        {"instruction": Q, "context": "", "response": A},
        {"input": Q, "output": A},
        {"inputs": Q, "targets": A},
        {"source": Q, "target": A},
        {"problem": Q, "solution": A},
        {"user": Q, "assistant": A},
        {"question": Q, "answer": A, "response": "", "prompt": ""},
        {"prompt": f"\n\nHuman: {Q}\n\nAssistant:", "response": A},
    ],
)
def test_a_question_and_its_answer(read, row):
    def turns(record):
        return record.messages if isinstance(record, Chat) else record.prompt + record.completion

    made, unread = read("sft", row, row | {"system": S})
    assert [turns(record) for record in made] == [(ASKED, GOOD), (SYSTEM, ASKED, GOOD)] and not unread
    if "messages" not in row:
        asked = read("prompt", row)[0]
        assert asked == [Prompt((ASKED,))] or asked == [Prompt(row["prompt"])]
    judged, unread = read("unpaired", row | {"label": "undesirable"})
    assert judged == [Unpaired((ASKED,), ((GOOD,),), (False,))] and not unread


def test_what_an_instruction_is_about(read):
    about = Chat((Message("user", f"Name it.\n\n{B}"), GOOD))
    for name, answer in (("input", "output"), ("context", "response")):
        assert read("sft", {"instruction": "Name it.", name: B, answer: A})[0] == [about]
    with pytest.raises(DataError, match=r"rows.jsonl:1: the field 'context' .*ignore_fields=context"):
        read("sft", {"instruction": "Name it.", "input": B, "context": "In a wood.", "output": A})


def test_rows_without_an_answer_are_dropped_by_reason(read):
    rows = [{"question": Q, "answer": None}, {"question": Q, "answer": " "}, {"instruction": "", "output": A}]
    assert read("sft", *rows)[0] == ["no reply", "empty turn", "empty turn"]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("chosen", "rejected"),
        ("chosen_response", "rejected_response"),
        ("chosenResponse", "rejectedResponse"),
        ("response_j", "response_k"),
        ("preferred", "dispreferred"),
        ("better", "worse"),
        ("preferred_output", "non_preferred_output"),
    ],
)
def test_names_of_the_better_and_the_worse_answer(read, better, worse):
    for one, other in ((A, B), (said(A), said(B)), ([said(A)], [said(B)])):
        made, unread = read("preference", {"question": Q, better: one, worse: other})
        assert made == [PAIR] and not unread
        assert read("unpaired", {"question": Q, better: one, worse: other})[0] == [
            Unpaired((ASKED,), ((GOOD,), (BAD,)), (True, False))
        ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "response_a": A, "response_b": B, "preference": "A"},
        {"prompt": Q, "response_a": B, "response_b": A, "winner": "model_b"},
        {"prompt": Q, "response_0": B, "response_1": A, "better_response_id": 1},
        {"instruction": Q, "input": "", "output_1": A, "output_2": B, "preference": 1},
        {"prompt": Q, "answer_a": B, "answer_b": A, "choice": "answer_b"},
        {"prompt": Q, "response_1": B, "response_2": A, "preference_strength": 2},
        {"context": [user(Q)], "response1": A, "response2": B, "overall_preference": -3},
        {"winner": "model_a", "conversation_a": [user(Q), said(A)], "conversation_b": [user(Q), said(B)]},
        {"history": Q, "human_ref_A": B, "human_ref_B": A, "labels": 0},
        {"input": {"messages": [user(Q)]}, "preferred_output": [said(A)], "non_preferred_output": [said(B)]},
        {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {B}"},
        {"prompt": Q, "chosen": [said(A)], "rejected": [said(B)]},
        {"prompt": [user(Q)], "chosen": A, "rejected": B},
        {"conversations": [{"from": "human", "value": Q}], "chosen": A, "rejected": B},
    ],
)
def test_two_answers_of_which_one_is_better(read, row):
    assert read("preference", row) == ([PAIR], set())
    assert read("preference or sft", row) == ([PAIR], set())


def test_ties_are_dropped_and_a_verdict_that_can_be_read_two_ways_is_refused(read):
    two = {"prompt": Q, "response_a": A, "response_b": B}
    ties = [two | {"winner": "tie (bothbad)"}, {**two, "overall_preference": 0}]
    assert read("preference", *ties)[0] == ["tie", "tie"]
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: preference is 0, which does not say whether response_a"
    ):
        read("preference", two | {"preference": 0})
    with pytest.raises(
        DataError, match="response_a and response_b are there, but no field says which is better"
    ):
        read("preference", two)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "completions": [A, B], "ratings": ["4.5", 1]},
        {"prompt": [user(Q)], "answers": [A, B], "ranks": [-4.5, -1]},
        {"question": Q, "responses": [A, B, "None."], "scores": [4.5, 1, None]},
        {"prompt": Q, "answers": [{"answer": A, "rank": -4.5}, {"answer": B, "rank": -1}]},
        {"prompt": Q, "answers": {"answer": [A, B], "rank": [-4.5, -1.0]}},
        {
            "contents": GEMINI[:1],
            "completions": [
                {"score": 4.5, "completion": {"role": "model", "parts": [{"text": A}]}},
                {"score": 1, "completion": {"role": "model", "parts": [{"text": B}]}},
            ],
        },
    ],
)
def test_rankings(read, row):
    made, unread = read("preference", row)
    assert made == [Ranking((ASKED,), ((GOOD,), (BAD,)), (4.5, 1.0))]
    assert unread == ({"responses without a score"} if len(row.get("responses", ())) == 3 else set())


@pytest.mark.parametrize(
    ("good", "bad"), [(True, False), (1, 0), ("true", "False"), ("👍", "👎"), ("desirable", "undesirable")]
)
def test_labels(read, good, bad):
    rows = [{"prompt": "p", "completion": " c", "label": label} for label in (good, bad)]
    assert [record.desirable for record in read("unpaired", *rows)[0]] == [(True,), (False,)]


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        (
            "sft",
            {"question": Q, "answer": A, "solution": B},
            "answer and solution may each be the answer; .*fields",
        ),
        ("sft", {"question": Q, "choices": [A, B], "answer": "A"}, "the field 'choices'"),
        ("sft", {"Question": Q, "Complex_CoT": "I think of it.", "Response": A}, "the field 'Complex_CoT'"),
        (
            "sft",
            {"text": B, "question": Q, "answer": A},
            "the field 'text' .*config.data.fields=question=text",
        ),
        (
            "sft",
            {"text": Q, "code": A},
            "the field 'code' .*config.data.fields=question=FIELD,completion=code",
        ),
        (
            "sft",
            {"question": Q, "answer": A, "thinking_trajectories": ["I think."]},
            "'thinking_trajectories'",
        ),
        ("sft", {"messages": [user(Q), said(A)], "sampleWeight": 0.5}, "the field 'sampleWeight'"),
        ("sft", {"messages": [user(Q), said(A)], "toolCalls": "[{}, 1]"}, "the field 'toolCalls'"),
        ("sft", {"messages": [user(Q), said(A)], "conversations": [user("No?"), said(B)]}, "'conversations'"),
        ("sft", {"prompt": "p", "completion": "c", "SystemPrompt": S}, "the field 'system_prompt'"),
        ("text", {"text": A, "input_ids": [1, 2]}, "the field 'input_ids'"),
        (
            "sft",
            {"message_id": "1", "parent_id": "0", "text": Q, "role": "prompter"},
            "looks like oasst1 .*oasst1:",
        ),
        ("sft", {"mask": "Assistant", "conversations": [user(Q), said(A)]}, "the field 'mask' .'Assistant'"),
        (
            "sft",
            {"document": Q, "summary": A},
            "missing prompt, completion; .*config.data.fields=prompt=FIELD",
        ),
        (
            "sft",
            {"messages": [turn("user", [{"type": "image_url", "image_url": {"url": "a"}}]), said(A)]},
            r"messages\[0\].content\[0\] is a part of type 'image_url'",
        ),
        (
            "sft",
            {"conversations": {"from": ["human"], "value": [Q, A]}},
            "lists of different lengths .from 1, value 2",
        ),
        (
            "sft",
            {"conversation": [turn("narrator", Q), said(A)]},
            r"conversation\[0\] is by 'narrator'; write one of",
        ),
        (
            "preference",
            {"chosen": [user(Q), said(A)], "rejected": [user(B), said(B)]},
            "answer different prompts",
        ),
        ("prompt", {"prompt": [said(A)]}, "prompt has no turn but an assistant's"),
        ("unpaired", {"prompt": "p", "completion": "c", "label": 3}, "label is 3, a int; write true for"),
        (
            "preference",
            {"prompt": Q, "answers": [{"answer": A, "rank": 1}, {"rank": 2}]},
            r"answers\[1\] has no answer",
        ),
    ],
)
def test_what_cannot_be_read_one_way_is_refused_by_name(read, kind, row, message):
    with pytest.raises(DataError, match=rf"rows.jsonl:1: .*{message}"):
        read(kind, row)


def test_what_is_not_read_is_listed_and_bookkeeping_is_not(read):
    """The fields of WildChat, OpenR1-Math and Magpie; those of annotators and of where a row is from are harmless."""
    books = {
        "id": 1,
        "conversation_hash": "x",
        "source": "web",
        "language": "en",
        "score": 4.0,
        "created_at": "now",
    }
    books |= {
        "num_tokens": 3,
        "hashed_ip": "a",
        "chosen-rating": 5,
        "modelName": "m",
        "split": "train",
        "URL": "u",
    }
    assert (
        read("sft", {"messages": [user(Q, turn_identifier=1), said(A, language="en")], **books})[1] == set()
    )
    more = {"category": "maths", "correctness_check": [True], "Foo": {"bar": 1}, "nothing": None, "empty": ""}
    rows = [{"messages": [user(Q, mood="glad"), said(A)], **more}]
    assert read("sft", *rows)[1] == {"category", "correctness_check", "Foo", "messages[].mood"}
    assert read("sft", {"instruction": Q, "response": A, "messages": [user(Q), said(A)]})[1] == set()


def test_counts_of_what_is_not_read(tmp_path):
    tokenizer = load_tokenizer(hf_models.chatml().write(tmp_path / "model"))
    rows = [{"question": Q, "answer": A, "category": "a"} for _ in range(3)] + [
        {"question": B, "answer": A, "mood": 1}
    ]
    files = [tmp_path / name for name in ("one.jsonl", "two.jsonl")]
    files[0].write_text("".join(json.dumps(row) + "\n" for row in rows))
    files[1].write_text(json.dumps(rows[3]))

    def lines(kind, train):
        config = DataConfig(eval=train, max_length=128, row_length=256)
        report = build_dataset(config, tokenizer, kind, "eval").report
        assert all(line in str(report) for line in report.unread_lines())
        return report.unread_lines()

    assert lines("sft", str(files[0])) == ["not read: category (3 rows), mood (1 row)"]
    assert lines("sft", (str(files[0]), str(files[1]))) == [
        f"not read of {files[0]}: category (3 rows), mood (1 row)",
        f"not read of {files[1]}: mood (1 row)",
    ]
    assert lines("prompt", str(files[1])) == ["no part of the prompts: answer (1 row), mood (1 row)"]


def test_names_of_fields_can_be_said(read):
    def fields(**names):
        return {"fields": names}

    odd = {"ask": Q, "good": A, "bad": B, "said": S}
    pair = fields(question="ask", chosen="good", rejected="bad", system="said")
    assert read("preference", odd, **pair) == ([Preference((SYSTEM, ASKED), (GOOD,), (BAD,))], set())
    plain = fields(prompt="ask", completion="good")
    assert read("sft", odd, **plain) == ([PromptCompletion(Q, A)], {"bad", "said"})
    assert read("text", odd, **fields(text="good"))[0] == [Text(A)]
    assert read("prompt", odd, **fields(prompt="ask"))[0] == [Prompt(Q)]
    judged = fields(question="ask", completion="good", label="ok")
    assert read("unpaired", odd | {"ok": "yes"}, **judged)[0] == [Unpaired((ASKED,), ((GOOD,),), (True,))]
    deep = {"data": {"turns": [user(Q), said(A)], "mood": "glad", "inner": {"system": S}}}
    assert read("sft", deep, **fields(messages="data.turns", system="data.inner.system")) == (
        [Chat((SYSTEM, ASKED, GOOD))],
        {"data.mood"},
    )
    with pytest.raises(DataError, match=r"the field 'data.system' .*config.data.fields=system=data.system"):
        read(
            "sft",
            {"data": {"turns": [user(Q), said(A)], "inner": 1, "system": S}},
            **fields(messages="data.turns"),
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("prompt", "'prompt' is not of the form OURS=THEIRS"),
        ("promt=ask", "'promt' is no field that jaxalign reads; did you mean 'prompt'"),
        ("prompt=a,prompt=b", "prompt is given twice"),
        (
            "prompt=askk,completion=good",
            "prompt=askk, but no row of .*rows.jsonl has 'askk'; did you mean 'ask'",
        ),
        (
            "prompt=data.askk,completion=good",
            "did you mean 'data.ask'.; the first rows have ask, good, data, data.ask",
        ),
    ],
)
def test_names_of_fields_that_cannot_be(tmp_path, tokenizer, fields, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"ask": Q, "good": A, "data": {"ask": Q}}))
    with pytest.raises(ConfigError, match=message):
        build_dataset(DataConfig(eval=str(file), fields=fields), tokenizer, "sft", "eval")


def test_a_name_of_ours_that_is_there_already_is_not_overwritten(read):
    row = {"prompt": "other", "ask": Q, "completion": A}
    with pytest.raises(DataError, match=r"rows.jsonl:1: ask is read as prompt .*the row has a prompt, too"):
        read("sft", row, fields={"prompt": "ask"})
    made = read("sft", row, fields={"prompt": "ask"}, ignore_fields=("prompt",))[0]
    assert made == [PromptCompletion(Q, A)]


def test_fields_to_ignore_are_left_out_of_messages_in_any_form(read):
    turns = [user(Q), said(A, reasoning_content="I think of it.")]
    for value in (turns, json.dumps(turns), [{"from": t["role"], **t} for t in turns]):
        row = {"messages": value, "prompt": "another question"}
        assert read("sft", row, ignore_fields=("reasoning_content", "prompt", "from"))[0] == [CHAT]


@pytest.fixture(scope="module", params=["chatml", "llama3", "qwen2.5"])
def model(request, tmp_path_factory):
    folder = hf_models.MODELS[request.param]().write(tmp_path_factory.mktemp(request.param.replace(".", "")))
    import transformers

    return load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)


def encode(tokenizer, tmp_path, kind, row):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    config = DataConfig(eval=str(file), max_length=512, row_length=1024)
    (item,) = build_dataset(config, tokenizer, kind, "eval").rows.items
    return item


def test_the_beginning_of_an_answer_goes_on_where_transformers_goes_on(model, tmp_path):
    tokenizer, reference = model
    prompt = [user(Q), said("The fox")]
    begun = encode(tokenizer, tmp_path, "prompt", {"prompt": prompt})
    expected = reference.apply_chat_template(prompt, continue_final_message=True, return_dict=False)
    assert begun.ids.tolist() == expected and not begun.mask.any()
    row = {"prompt": prompt, "completion": [said(" is brown.")]}
    item = encode(tokenizer, tmp_path, "sft", row)
    whole = reference.apply_chat_template([user(Q), said("The fox is brown.")], return_dict=False)
    assert item.ids.tolist() == whole and item.prompt_length == len(expected)
    learned = tokenizer.decode(item.ids[item.mask > 0].tolist())
    assert (
        learned.startswith(" is brown.") and int(item.ids[np.flatnonzero(item.mask)[-1]]) in tokenizer.eos_ids
    )


def test_answers_that_differ_in_white_space_alone_are_told_from_answers_that_were_cut(tmp_path):
    tokenizer = load_tokenizer(hf_models.llama3().write(tmp_path / "model"))
    rows = [{"question": Q, "chosen": A, "rejected": other} for other in (f"{A} ", B)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(eval=str(file), max_length=512, row_length=1024)
    report = build_dataset(config, tokenizer, "preference", "eval").report
    assert report.dropped == {"equal as tokens": 1} and report.kept == 1


def test_a_beginning_that_the_template_changes_is_refused(tmp_path):
    tokenizer = load_tokenizer(hf_models.llama3().write(tmp_path / "model"))
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: the prompt ends with the beginning of an answer, 'The fox '"
    ):
        encode(tokenizer, tmp_path, "prompt", {"prompt": [user(Q), said("The fox ")]})


def test_forms_of_a_conversation_give_the_tokens_of_transformers(model, tmp_path):
    tokenizer, reference = model
    expected = reference.apply_chat_template(
        [turn("system", S), user(Q), said(A)], tokenize=True, return_dict=False
    )
    for row in (
        {"systemInstruction": {"role": "system", "parts": [{"text": S}]}, "contents": GEMINI},
        {"system": [{"text": S}], "messages": PARTS},
        {
            "mask": "User",
            "system": S,
            "conversations": [{"from": "User", "value": Q}, {"from": "Assistant", "value": A}],
        },
        {"systemPrompt": S, "Question": Q, "Answer": A},
    ):
        item = encode(tokenizer, tmp_path, "sft", row)
        assert item.ids.tolist() == expected
        assert tokenizer.decode(item.ids[item.mask > 0].tolist()).strip() == A
