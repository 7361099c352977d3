"""What rows say beside prompt and answer: read as turns, or refused by name; token for token."""

import json

import hf_models
import pytest

from jaxalign.data import DataConfig, build_dataset, load_tokenizer
from jaxalign.data.records import parse_record
from jaxalign.errors import DataError

A, B = "The fox is brown.", "The fox is blue."
Q = "What is the colour of the fox?"
TOOLS = [{"type": "function", "function": {"name": "colour_of", "parameters": {"type": "object"}}}]


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def user(content):
    return [turn("user", content)]


def said(content, **more):
    return [turn("assistant", content, **more)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(hf_models.chatml().write(tmp_path_factory.mktemp("model")))


@pytest.fixture
def show(tmp_path, tokenizer):
    """Every sequence of some rows as text, `{control}` and `[what is supervised]`."""

    def run(kind, *rows, **settings):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = DataConfig(eval=str(file), max_length=512, row_length=1024, **settings)
        dataset = build_dataset(config, tokenizer, kind, "eval")
        names = {i: f"{{{name}}}" for name, i in tokenizer.control_ids.items()}

        def text(example):
            out, on = "", False
            for token, supervised in zip(example.ids.tolist(), example.mask, strict=True):
                if bool(supervised) != on:
                    out, on = out + "[]"[on], not on
                out += names.get(token) or tokenizer.decode([token])
            return (out + "]" * on).replace("{<|im_start|>}", "<").replace("{<|im_end|>}", ">")

        return [text(example) for item in dataset.rows.items for example in item.examples]

    return run


def chat(*turns, answer):
    """The text of a conversation in ChatML that ends with a supervised answer."""
    return "".join(f"<{role}\n{text}>\n" for role, text in turns) + f"<assistant\n[{answer}>]\n"


@pytest.mark.parametrize("name", ["question", "instruction", "query", "input"])
@pytest.mark.parametrize("form", [str, said])
def test_a_question_beside_answers_is_the_prompt(show, name, form):
    row = {name: Q, "chosen": form(A), "rejected": form(B)}
    assert show("preference", row) == [chat(("user", Q), answer=text) for text in (A, B)]
    assert show("sft", {name: Q, "completion": form(A)}) == [chat(("user", Q), answer=A)]
    ranking = {name: Q, "responses": [form(B), form(A)], "scores": [1, 2]}
    assert show("preference", ranking) == [chat(("user", Q), answer=text) for text in (B, A)]
    assert show("prompt", {name: Q}) == [f"<user\n{Q}>\n<assistant\n"]


def test_an_empty_prompt_beside_a_question_is_none(show):
    row = {"prompt": "", "question": Q, "completion": A}
    assert show("sft", row) == [chat(("user", Q), answer=A)]


def test_input_follows_its_instruction(show):
    row = {"instruction": "Name it.", "input": "A red animal.", "chosen": A, "rejected": B}
    assert show("preference", row)[0] == chat(("user", "Name it.\n\nA red animal."), answer=A)


def test_a_question_is_one_though_the_answers_have_its_words(show):
    """Answers share a word of the question, and begin alike: that is no prompt."""
    for question in ("fox", "The fox is brown."):
        row = {
            "question": question,
            "chosen": "The fox is brown. Yes.",
            "rejected": "The fox? It is brown. No.",
        }
        assert show("preference", row)[0] == chat(("user", question), answer="The fox is brown. Yes.")
    assert show("sft", {"question": A, "completion": f"{A} Yes."}) == [chat(("user", A), answer=f"{A} Yes.")]


def test_a_question_that_the_answers_repeat_is_their_beginning(show):
    row = {"question": Q, "chosen": f"Q: {Q} A: yes", "rejected": f"Q: {Q} A: no"}
    assert show("preference", row) == [
        f"Q: {Q} A:[ yes{{<|endoftext|>}}]",
        f"Q: {Q} A:[ no{{<|endoftext|>}}]",
    ]
    whole = {"question": Q, "chosen": user(Q) + said(A), "rejected": user(Q) + said(B)}
    assert show("preference", whole)[0] == chat(("user", Q), answer=A)


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_system_is_the_first_turn(show, name):
    wanted = [chat(("system", "Be brief."), ("user", Q), answer=text) for text in (A, B)]
    told = {name: "Be brief."}
    pair = {"chosen": said(A), "rejected": said(B)}
    whole = {"chosen": user(Q) + said(A), "rejected": user(Q) + said(B)}
    assert show("sft", told | {"messages": user(Q) + said(A)}) == wanted[:1]
    assert show("sft", told | {"instruction": Q, "input": "", "output": A}) == wanted[:1]
    speech = [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]
    assert show("sft", told | {"conversations": speech}) == wanted[:1]
    assert show("sft", told | {"prompt": user(Q), "completion": said(A)}) == wanted[:1]
    assert show("preference", told | {"prompt": user(Q)} | pair) == wanted
    assert show("preference", told | whole) == wanted
    assert show("preference", told | {"prompt": Q} | whole) == wanted
    assert show("preference", told | {"question": Q, "chosen": A, "rejected": B}) == wanted
    assert show("prompt", told | {"prompt": user(Q)}) == [f"<system\nBe brief.>\n<user\n{Q}>\n<assistant\n"]
    assert show("text", told | {"messages": user(Q) + said(A)}) == [
        "<[" + wanted[0][1:].replace("[", "").replace("]", "") + "]"
    ]
    assert show("sft", {name: ""} | {"messages": user(Q) + said(A)}) == [chat(("user", Q), answer=A)]


def test_a_system_message_that_is_there_already_stays_one(show):
    row = {"system": "Be brief.", "messages": [turn("system", "Be brief."), *user(Q), *said(A)]}
    assert show("sft", row) == [chat(("system", "Be brief."), ("user", Q), answer=A)]
    row["system"] = "Be verbose."
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: system is 'Be verbose.', but the first message is another"
    ):
        show("sft", row)


def test_history_comes_before_the_question(show):
    earlier = [["Name an animal.", "A fox."], ["Is it quick?", "Yes."]]
    before = "<user\nName an animal.>\n<assistant\n[A fox.>]\n<user\nIs it quick?>\n<assistant\n[Yes.>]\n"
    row = {"instruction": Q, "input": "", "output": A, "history": earlier, "system": "Be brief."}
    assert show("sft", row) == ["<system\nBe brief.>\n" + before + chat(("user", Q), answer=A)]
    pair = {"question": Q, "chosen": A, "rejected": B, "history": earlier}
    learned = before.replace("[", "").replace("]", "") + chat(("user", Q), answer=A)
    assert show("preference", pair)[0] == learned  # of a pair, the last answer alone
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: history is \['Name an animal.'\]; write earlier turns as pairs"
    ):
        show("sft", row | {"history": ["Name an animal."]})


@pytest.mark.parametrize(
    ("kind", "row", "field"),
    [
        ("sft", {"system": "Be brief.", "prompt": Q, "completion": A}, "system"),
        ("sft", {"history": [["a", "b"]], "prompt": Q, "completion": A}, "history"),
        ("preference", {"system": "Be brief.", "prompt": Q, "chosen": A, "rejected": B}, "system"),
        ("prompt", {"system": "Be brief.", "prompt": Q}, "system"),
        ("sft", {"prompt": Q, "completion": A, "tools": TOOLS}, "tools"),
        ("prompt", {"prompt": Q, "tools": json.dumps(TOOLS)}, "tools"),
        ("sft", {"messages": user(Q) + said(A), "reasoning": "It looks so."}, "reasoning"),
        ("sft", {"prompt": Q, "completion": A, "label": False}, "label"),
        ("sft", {"prompt": Q, "completion": A, "weight": 0.5}, "weight"),
        (
            "preference",
            {"prompt": Q, "chosen": A, "rejected": B, "instruction": "Answer in verse."},
            "instruction",
        ),
        ("preference", {"prompt": Q, "chosen": A, "rejected": B, "context": "In the wood."}, "context"),
        ("sft", {"messages": user(Q) + said(A), "prompt": "another question"}, "prompt"),
        ("sft", {"prompt": Q, "completion": A, "images": ["a.png"]}, "images"),
        ("text", {"text": A, "loss_mask": [0, 1]}, "loss_mask"),
        (
            "sft",
            {"messages": user(Q) + said(A), "chat_template_kwargs": {"enable_thinking": False}},
            "chat_template_kwargs",
        ),
    ],
)
def test_what_means_something_and_is_not_read_is_refused_by_name(show, kind, row, field):
    harmless = {name: value for name, value in row.items() if name != field}
    wanted = show(kind, harmless)
    with pytest.raises(
        DataError, match=rf"rows.jsonl:2: the field '{field}' .*config.data.ignore_fields={field}"
    ):
        show(kind, harmless, row)
    assert show(kind, row, ignore_fields=(field,)) == wanted
    assert show(kind, row | {field: None}) == wanted


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"tool_calls": TOOLS}, "tool_calls"),
        ({"reasoning_content": "It looks so."}, "reasoning_content"),
        ({"thinking": "It looks so."}, "thinking"),
        ({"weight": 0.5}, "weight"),
        ({"train_detail": [{"begin_offset": 0, "train": True}]}, "train_detail"),
        ({"prefix": True}, "prefix"),
    ],
)
def test_more_in_a_message_than_a_format_has_room_for_is_refused_by_name(show, more, field):
    """ChatML, which writes role and content of a message and nothing else."""
    plain, rich = user(Q) + said(A), user(Q) + said(A, **more)
    speech = [{"from": "human", "value": Q}, {"from": "gpt", "value": A, **more}]
    for kind, row in (
        ("sft", {"messages": rich}),
        ("sft", {"conversations": speech}),
        ("preference", {"prompt": user(Q), "chosen": said(A, **more), "rejected": said(A)}),
    ):
        with pytest.raises(DataError, match=rf"rows.jsonl:1: .*{field}.*config.data.ignore_fields={field}"):
            show(kind, row)
    assert show("sft", {"messages": rich}, ignore_fields=(field,)) == show("sft", {"messages": plain})


def test_what_says_nothing_new_is_harmless(show):
    plain = user(Q) + said(A)
    wanted = show("sft", {"messages": plain})
    beside = {
        "prompt": Q,
        "prompt_id": "7",
        "question": Q,
        "tools": "[]",
        "system": "",
        "history": [],
        "label": None,
    }
    assert show("sft", {"messages": plain, **beside}) == wanted
    assert show("sft", {"messages": [turn("user", Q, weight=0), *said(A, weight=1, train=True)]}) == wanted
    alpaca = {"instruction": Q, "input": "", "output": A, "text": f"### {Q} ### {A}"}
    assert show("text", alpaca) == [f"#[## {Q} ### {A}{{<|endoftext|>}}]"]
    assert show("text", {"text": A, "label": 1}) == show("text", {"text": A})


def test_answers_to_nothing_are_refused(show):
    with pytest.raises(DataError, match=r"rows.jsonl:1: chosen and rejected are answers to nothing"):
        show("preference", {"chosen": said(A), "rejected": said(B)})


def test_messages_beside_answers_are_the_prompt(show):
    row = {"messages": user(Q), "chosen": turn("assistant", A), "rejected": turn("assistant", B)}
    assert show("preference", row) == [chat(("user", Q), answer=text) for text in (A, B)]


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (
            "preference",
            {
                "prompt": "Q: Who asks? A:",
                "chosen": "Q: Who asks? A: The fox.",
                "rejected": "Q: Who asks? A: No.",
            },
        ),
        (
            "preference",
            {
                "prompt": "Q: Who asks? A:\n",
                "chosen": "Q: Who asks? A: The fox.",
                "rejected": "Q: Who asks? A: No.",
            },
        ),
        ("sft", {"prompt": "Q: Who asks? A:", "completion": "Q: Who asks? A: The fox."}),
        (
            "preference",
            {
                "prompt": "Q: Who asks? A:",
                "responses": ["Q: Who asks? A: The fox.", "Q: Who asks? A: No."],
                "scores": [2, 1],
            },
        ),
    ],
)
def test_a_prompt_that_the_answers_repeat_is_there_once(show, kind, row):
    assert show(kind, row)[0] == "Q: Who asks? A:[ The fox.{<|endoftext|>}]"
    messages = {"prompt": user(Q), "chosen": user(Q) + said(A), "rejected": user(Q) + said(B)}
    assert show("preference", messages)[0] == chat(("user", Q), answer=A)


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("Good morning", "Good morning! How can I help?"),
        ("She goes to school", "She goes to school."),
        ("She goes to school.", "She goes to school."),
        ("Tell me a joke about Java", "Tell me a joke about JavaScript"),
    ],
)
def test_an_answer_that_begins_like_its_prompt_stays_whole(show, prompt, completion):
    assert show("sft", {"prompt": prompt, "completion": completion}) == [
        f"{prompt}[{completion}{{<|endoftext|>}}]"
    ]


def test_texts_without_a_prompt_beside_what_may_be_one_are_refused(show):
    pair = {"chosen": "Step 1: add them.", "rejected": "Step 1: take one away."}
    assert show("preference", pair)[0] == "Step 1:[ add them.{<|endoftext|>}]"
    assert show("preference", pair | {"id": "7", "source": "a-b"})[0] == "Step 1:[ add them.{<|endoftext|>}]"
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: chosen and rejected are texts without a prompt, and 'task' may"
    ):
        show("preference", pair | {"task": "What is one and one?"})
    asked = pair | {"context_messages": user("What is one and one?")}
    assert show("preference", asked)[0] == chat(("user", "What is one and one?"), answer=pair["chosen"])


def test_what_text_was_made_from_is_harmless(show):
    """As in Cosmopedia: the text is what is learned, and its prompt no part of it."""
    assert show("text", {"text": A, "prompt": "Write about a fox.", "label": 1}) == show("text", {"text": A})


@pytest.mark.parametrize(
    "beside",
    [
        {"label": {"ability": "maths"}},
        {"reasoning": "off"},
        {"thinking": False},
        {"images": [None], "tools": [""]},
        {"system": None, "preamble": ""},
    ],
)
def test_tags_and_switches_that_are_off_are_harmless(show, beside):
    row = {"messages": user(Q) + said(A, prefix=False)}
    assert show("sft", row | beside) == show("sft", row)


def test_a_judgement_of_an_answer_is_refused(show):
    for field in ("label", "kto_tag"):
        row = {"instruction": Q, "input": "", "output": A, field: False}
        with pytest.raises(DataError, match=f"the field '{field}'"):
            show("sft", row)


def test_messages_that_hold_a_prompt_of_text_are_the_prompt(show):
    row = {"prompt": Q, "messages": [turn("system", "Be brief."), *user(Q), *said(A)]}
    assert show("prompt", row) == [f"<system\nBe brief.>\n<user\n{Q}>\n<assistant\n"]


def test_fields_to_ignore_may_be_one_text_with_commas(show):
    row = {"messages": user(Q) + said(A), "tools": TOOLS, "label": True}
    assert show("sft", row, ignore_fields=("tools,label",)) == show("sft", {"messages": row["messages"]})


def test_a_named_recipe_reads_its_own_fields(tmp_path):
    from jaxalign.data.public.recipes import open_source

    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"instruction": Q, "input": "", "output": A, "text": f"### {Q} ### {A}"}))
    assert open_source(f"alpaca:{file}", "text")[0] == {"messages": user(Q) + said(A)}


def test_an_answer_may_begin_with_a_word_that_is_the_prompt(show):
    assert show("sft", {"prompt": "the", "completion": "the fox"}) == ["the[the fox{<|endoftext|>}]"]
    one = {"prompt": "Who asks? A:", "chosen": "Who asks? A: The fox.", "rejected": " No."}
    assert show("preference", one)[0].startswith("Who asks? A:[Who asks?")


UNFINISHED = {"prompt": "the dog", "completion": " jumps over the", "row": 0, "sample": 0, "finished": False}
HUMAN = {"prompt": "the fox", "completion": " is brown"}


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("sft", [UNFINISHED, HUMAN]),
        ("sft", [HUMAN, UNFINISHED]),
        ("sft", [HUMAN | {"finished": None}, UNFINISHED, HUMAN | {"prompt": "a fox", "finished": True}]),
        ("preference or sft", [{"prompt": "p", "chosen": " c", "rejected": " r"}, UNFINISHED, HUMAN]),
        ("sft", [{"messages": user(Q) + said(A)}, UNFINISHED]),
    ],
)
def test_what_a_model_did_not_finish_is_never_given_an_end(show, kind, rows):
    shown = show(kind, *rows)
    assert not any("jumps" in text for text in shown)
    assert len(shown) == len(rows) - 1 + (kind != "sft")


def test_every_row_has_its_own_shape(show):
    speech = {
        "messages": None,
        "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}],
    }
    rows = [{"conversations": []}, {"messages": user(Q) + said(A), "conversations": None}, speech]
    rows.append({"instruction": "Who?", "input": "", "output": "The fox."})
    assert show("sft", *rows) == [
        chat(("user", Q), answer=A),
        chat(("user", "Why?"), answer="So."),
        chat(("user", "Who?"), answer="The fox."),
    ]


def test_rows_in_memory_are_refused_alike():
    with pytest.raises(DataError, match="f:1: the field 'tools'"):
        parse_record({"prompt": Q, "completion": A, "tools": TOOLS}, "sft", "f:1")
