"""Tools, tool calls, thoughts, roles and weights of messages: the ids of transformers, and what is learned of them."""

import json
import warnings

import pytest
import tool_models

from jaxalign.data import DataConfig, Records, dataset_from_records, load_tokenizer
from jaxalign.errors import DataError
from jaxalign.text.shown import NAMES, QUOTED, THOUGHTS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import AutoTokenizer

PARAMETERS = {"type": "object", "properties": {"animal": {"type": "string", "description": "its <name>"}}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "colour_of", "description": "of an animal", "parameters": PARAMETERS},
    }
]
CALLS = [
    {
        "type": "function",
        "id": "call12345",
        "function": {"name": "colour_of", "arguments": {"animal": "the fox"}},
    }
]
Q = {"role": "user", "content": "Who wrote this reply?"}
A = {"role": "assistant", "content": "Brown."}
CALL = {"role": "assistant", "content": None, "tool_calls": CALLS}
RESULT = {"role": "tool", "name": "colour_of", "tool_call_id": "call12345", "content": 'a "brown"\nfox'}
THINKS = A | {"reasoning_content": "The fox asks:\n12."}


@pytest.fixture(scope="module", params=tool_models.TOOL_MODELS)
def model(request, tmp_path_factory):
    folder = tool_models.TOOL_MODELS[request.param]().write(tmp_path_factory.mktemp("model"))
    return request.param, load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tool_models.qwen().write(tmp_path_factory.mktemp("model"))
    return load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


def encode(tokenizer, row, kind="sft", **settings):
    data = DataConfig(max_length=2048, row_length=4096, **settings)
    dataset = dataset_from_records([Records([row], "rows")], data, tokenizer, kind, "eval")
    (item,) = dataset.rows.items
    return item, dataset.report


def spans(tokenizer, item):
    """The text of each supervised span, the stop token by its name."""
    out, before = [], False
    names = {i: name for name, i in tokenizer.control_ids.items()}
    for token, learned in zip(item.ids.tolist(), item.mask > 0, strict=True):
        if learned and not before:
            out.append([])
        if learned:
            out[-1].append(token)
        before = learned
    return [tokenizer.decode(ids[:-1]).strip() + names[ids[-1]] for ids in out]


CONVERSATIONS = {
    "tools alone": [Q, A],
    "a call": [Q, CALL],
    "a call and its result": [Q, CALL, RESULT, A],
    "a question after tools": [Q, CALL, RESULT, A, Q],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("form", [list, json.dumps])
def test_ids_of_transformers(model, name, form):
    _, ours, theirs = model
    turns = CONVERSATIONS[name]
    asked = turns[-1]["role"] == "user"
    row = {"prompt" if asked else "messages": turns, "tools": form(TOOLS)}
    item, report = encode(ours, row, "prompt" if asked else "sft")
    want = theirs.apply_chat_template(
        turns, tools=TOOLS, add_generation_prompt=asked, tokenize=True, return_dict=False
    )
    assert item.ids.tolist() == want
    assert not {remark for remark in report.remarks if remark != NAMES}


def test_what_is_learned(model):
    name, ours, _ = model
    item, _ = encode(ours, {"messages": [Q, CALL, RESULT, A], "tools": TOOLS})
    call = '{"name": "colour_of", "arguments": {"animal": "the fox"}}'
    end = ours.control_ids
    if name == "llama3.1":
        wanted = [call.replace("arguments", "parameters") + "<|eot_id|>", "Brown.<|eot_id|>"]
    elif name == "mistral":
        wanted = [f'[{call[:-1]}, "id": "call12345"}}]</s>', "Brown.</s>"]
    elif name == "qwen3":
        wanted = [f"<tool_call>\n{call}\n</tool_call><|im_end|>", "<think>\n\n</think>\n\nBrown.<|im_end|>"]
    else:  # control tokens, which decoding leaves out
        wanted = [f"{call}<|im_end|>", "Brown.<|im_end|>"]
    assert spans(ours, item) == wanted
    if name == "mistral":
        assert item.ids[item.mask > 0][0] == end["[TOOL_CALLS]"]
    if name == "qwen3, special marks":
        assert item.ids[item.mask > 0][0] == end["<tool_call>"]


def test_older_forms_of_tools_and_calls(qwen):
    ours, _ = qwen
    wanted, _ = encode(ours, {"messages": [Q, CALL, RESULT, A], "tools": TOOLS})
    old = {"role": "assistant", "content": None, "function_call": CALLS[0]["function"]}
    functions = [TOOLS[0]["function"]]
    for row in (
        {"messages": [Q, old, RESULT, A], "functions": functions},
        {
            "messages": [Q, CALL | {"tool_calls": json.dumps(CALLS)}, RESULT, A],
            "functions": json.dumps(functions),
        },
        {
            "messages": [Q, CALL | {"reasoning_content": None}, RESULT, A | {"tool_calls": None}],
            "tools": TOOLS,
        },
        {"messages": [Q, CALL, RESULT, A | {"tool_calls": []}], "tools": [json.dumps(TOOLS[0])]},
    ):
        item, _ = encode(ours, row)
        assert item.ids.tolist() == wanted.ids.tolist() and item.mask.tolist() == wanted.mask.tolist()


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_are_learned_by_whatever_name(qwen, field):
    ours, theirs = qwen
    item, report = encode(ours, {"messages": [Q, A | {field: "The fox asks:\n12."}]})
    assert item.ids.tolist() == theirs.apply_chat_template([Q, THINKS], tokenize=True, return_dict=False)
    assert spans(ours, item) == ["<think>\nThe fox asks:\n12.\n</think>\n\nBrown.<|im_end|>"]
    assert not report.remarks


def test_thoughts_of_earlier_answers_go_and_are_counted(qwen):
    ours, theirs = qwen
    inline = A | {"content": "<think>\nThe fox asks:\n12.\n</think>\n\nBrown."}
    for first in (THINKS, inline):
        turns = [Q, first, Q, A]
        item, report = encode(ours, {"messages": turns})
        assert item.ids.tolist() == theirs.apply_chat_template(turns, tokenize=True, return_dict=False)
        assert spans(ours, item) == ["Brown.<|im_end|>", "<think>\n\n</think>\n\nBrown.<|im_end|>"]
        assert report.remarks == {THOUGHTS: 1} and THOUGHTS in str(report)
    context, report = encode(ours, {"prompt": [Q, THINKS, Q], "completion": [A]})
    assert len(spans(ours, context)) == 1 and report.remarks == {THOUGHTS: 1}


def test_a_pair_that_differs_in_its_calls_alone(model):
    _, ours, theirs = model
    row = {"prompt": [Q], "chosen": [CALL], "rejected": [A | {"content": "I look."}], "tools": TOOLS}
    item, _ = encode(ours, row, "preference")
    want = [
        theirs.apply_chat_template([Q, last], tools=TOOLS, tokenize=True, return_dict=False)
        for last in (CALL, A | {"content": "I look."})
    ]
    assert [example.ids.tolist() for example in item.examples] == want


def test_calls_beside_text(qwen):
    ours, theirs = qwen
    turns = [Q, CALL | {"content": "I look."}]
    item, _ = encode(ours, {"messages": turns, "tools": TOOLS})
    assert item.ids.tolist() == theirs.apply_chat_template(
        turns, tools=TOOLS, tokenize=True, return_dict=False
    )
    assert "I look.\n<tool_call>" in spans(ours, item)[0]
    same = {"prompt": [Q], "chosen": [turns[1]], "rejected": [A | {"content": "I look."}], "tools": TOOLS}
    first, second = encode(ours, same, "preference")[0].examples
    assert len(first.ids) > len(second.ids)


def test_text_that_a_format_drops_beside_calls_is_refused(tmp_path):
    ours = load_tokenizer(tool_models.llama31().write(tmp_path))
    with pytest.raises(
        DataError, match=r"leaves out or rewrites part of the answer messages\[1\]: 'I look.'"
    ):
        encode(ours, {"messages": [Q, CALL | {"content": "I look."}], "tools": TOOLS})


def test_arguments_in_a_string_that_is_quoted_again_are_counted(tmp_path, qwen):
    text = json.dumps(CALLS[0]["function"]["arguments"])
    calls = [CALLS[0] | {"function": CALLS[0]["function"] | {"arguments": text}}]
    row = {"messages": [Q, CALL | {"tool_calls": calls}], "tools": TOOLS}
    ours = load_tokenizer(tool_models.llama31().write(tmp_path))
    assert encode(ours, row)[1].remarks == {QUOTED: 1}
    item, report = encode(qwen[0], row)
    wanted, _ = encode(qwen[0], {"messages": [Q, CALL], "tools": TOOLS})
    assert item.ids.tolist() == wanted.ids.tolist() and not report.remarks


PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PLAIN += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [Q, A], "tools": TOOLS}, r"leaves out tools \(\['colour_of'\]\)"),
        ({"messages": [Q, THINKS]}, r"leaves out messages\[1\].reasoning_content \('The fox asks"),
        ({"messages": [Q, THINKS, Q, A]}, r"leaves out messages\[1\].reasoning_content"),
        ({"messages": [Q, CALL | {"content": "I look."}]}, r"leaves out messages\[1\].tool_calls"),
        ({"prompt": [Q], "tools": TOOLS}, "leaves out tools"),
        (
            {"messages": [Q, {"role": "critic", "content": "No."}, A]},
            r"messages\[1\] has unknown role 'critic'",
        ),
        ({"messages": [Q, A], "tools": "not JSON"}, "tools is 'not JSON', which is not JSON"),
        ({"messages": [Q, A], "tools": [1]}, r"tools is \[1\]; write a list of objects"),
        (
            {"messages": [Q, A], "tools": TOOLS, "functions": [{"name": "b"}]},
            "say different things; keep one",
        ),
        (
            {"messages": [Q, A | {"tool_calls": [{"name": 1}]}]},
            r"messages\[1\].tool_calls has {'name': 1}; write calls",
        ),
        (
            {"messages": [Q, A | {"reasoning": ["a", "b"]}]},
            r"messages\[1\].reasoning is a list; write the thought",
        ),
        ({"messages": [Q, {"role": "assistant", "content": None}]}, r"messages\[1\]: missing content"),
    ],
)
def test_what_is_refused(tmp_path, row, message):
    ours = load_tokenizer(tool_models.qwen(PLAIN).write(tmp_path))
    kind = "prompt" if "prompt" in row else "sft"
    with pytest.raises(DataError, match=f"^rows:1: .*{message}"):
        encode(ours, row, kind)


def test_a_role_that_would_become_the_assistants_words_is_refused(tmp_path):
    import hf_models

    ours = load_tokenizer(hf_models.MODELS["mistral"]().write(tmp_path))
    with pytest.raises(DataError, match="writes messages of role 'tool' as the assistant's own words"):
        encode(ours, {"messages": [Q, A, RESULT, A]})


def test_other_roles_and_fields_reach_the_template(tmp_path):
    """Whatever a template reads of a message, as transformers gives it."""
    source = PLAIN.replace("{{ m.role }}", "{{ m.role }}{{ m.name or '' }}{{ m.channel or '' }}")
    folder = tool_models.qwen(source).write(tmp_path)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "developer", "content": "Be brief."}, Q | {"name": "Zed", "channel": " final"}, A]
    item, report = encode(ours, {"messages": turns})
    assert item.ids.tolist() == theirs.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert not report.remarks
    plain = load_tokenizer(tool_models.qwen(PLAIN).write(tmp_path / "plain"))
    assert encode(plain, {"messages": turns})[1].remarks == {NAMES: 1}


def test_weights_choose_answers(qwen):
    ours, _ = qwen
    first, last = A | {"content": "Red."}, A | {"content": "Brown."}
    everything, _ = encode(ours, {"messages": [Q, first, Q, last]})
    brown = "<think>\n\n</think>\n\nBrown.<|im_end|>"
    assert spans(ours, everything) == ["Red.<|im_end|>", brown]
    for off, on in (({"weight": 0}, {"weight": 1}), ({"train": False}, {"train": True}), ({"loss": 0}, {})):
        one, _ = encode(ours, {"messages": [Q, first | off, Q, last | on]})
        assert spans(ours, one) == [brown] and one.ids.tolist() == everything.ids.tolist()
        other, _ = encode(ours, {"messages": [Q | {"weight": 0}, first | on, Q, last | off]})
        assert spans(ours, other) == ["Red.<|im_end|>"]
        with pytest.raises(DataError, match="every answer of the conversation has weight 0"):
            encode(ours, {"messages": [Q, first | off]})
    for wrong, message in (
        (last | {"weight": 0.5}, "weight=0.5; an answer is learned or it is not"),
        (last | {"weight": 1, "train": False}, "is to be learned by one of its fields and not by another"),
        (Q | {"weight": 1}, "only what the assistant says is learned"),
    ):
        with pytest.raises(DataError, match=message):
            encode(ours, {"messages": [Q, first, wrong, last]})


def test_the_last_answer_alone(qwen):
    ours, _ = qwen
    turns = [Q, A | {"content": "Red."}, Q, A]
    item, _ = encode(ours, {"messages": turns}, learn="last")
    wanted, _ = encode(ours, {"prompt": turns[:3], "completion": turns[3:]})
    assert item.ids.tolist() == wanted.ids.tolist() and item.mask.tolist() == wanted.mask.tolist()
    turns[3] = A | {"weight": 0}
    assert spans(ours, encode(ours, {"messages": turns}, learn="last")[0]) == ["Red.<|im_end|>"]


def test_the_built_in_format_has_no_place_for_them(tokenizer):
    for row, field in (
        ({"messages": [Q, A], "tools": TOOLS}, "tools"),
        ({"messages": [Q, THINKS]}, "reasoning_content"),
    ):
        with pytest.raises(DataError, match=f"the built-in chat format has no place for {field}"):
            encode(tokenizer, row)
