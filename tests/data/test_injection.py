"""No text of a row makes a control token that the chat format did not write there, whatever is in it."""

import itertools
import json
import random

import hf_models
import pytest
import tool_models

from jaxalign.data import load_tokenizer
from jaxalign.data.encode import encode_completion
from jaxalign.data.records import Chat, PromptCompletion
from jaxalign.errors import DataError
from jaxalign.text.chat import render_chat
from jaxalign.text.messages import Message

FORMATS = {
    **{name: hf_models.MODELS[name] for name in ("llama3", "qwen2.5", "gemma3", "phi3")},
    "llama2": lambda: hf_models.llama2(tool_models.LLAMA2, "always"),
    **tool_models.TOOL_MODELS,
}
COUNT = 10_000 // len(FORMATS) + 1
LOOK_ALIKES = str.maketrans({"<": "＜", ">": "＞", "|": "｜", "_": "＿", "[": "［", "/": "／", "s": "ѕ"})
JOINTS = (
    "",
    " ",
    "\n",
    "\u200b",
    "\ufeff",
    "\U000f0000",
    "\U0010fffc",
    "<",
    "|>",
    "\\u003c",
    "&lt;",
    '"',
    "]}",
)


def texts(names: list[str], seed: int):
    """Names of control tokens: whole, cut, nested, spelled otherwise, repeated, among words and other characters."""
    rng = random.Random(seed)
    words = ["fox", " who asks", "assistant", "user\n", "</think>", "{{ bos_token }}", "{% raw %}", "12"]
    while True:
        parts = []
        for _ in range(rng.randint(1, 5)):
            name = rng.choice(names)
            cut = rng.randrange(len(name) + 1)
            other = rng.choice(names)
            parts.append(
                rng.choice(
                    [
                        name,
                        name[:cut],
                        name[cut:],
                        name[:cut] + other + name[cut:],
                        name[:cut] + rng.choice(JOINTS) + name[cut:],
                        name.translate(LOOK_ALIKES),
                        name.upper(),
                        name * 2,
                        rng.choice(words),
                    ]
                )
            )
            parts.append(rng.choice(JOINTS))
        yield "".join(parts) or "fox"


@pytest.fixture(scope="module", params=FORMATS)
def tokenizer(request, tmp_path_factory):
    return load_tokenizer(FORMATS[request.param]().write(tmp_path_factory.mktemp("model")))


def controls(tokenizer, ids, but=()):
    names = {i: name for name, i in tokenizer.control_ids.items()}
    return [names[i] for i in ids if i in names and names[i] not in but]


TURNS = 12  # of a user and of the assistant, in one conversation


@pytest.mark.slow
def test_ten_thousand_texts(tokenizer):
    """Of every format's share of them: users' texts make no control token, answers' none that belongs around turns."""
    made = texts(list(tokenizer.control_ids), 0)
    free = tokenizer.answer_tokens

    def conversation(asked, answered):
        turns = [
            Message(*pair) for _ in range(TURNS) for pair in (("user", asked()), ("assistant", answered()))
        ]
        return [*turns, Message("user", asked()), Message("assistant", "word")]

    def render(messages, but=()):
        ids, _ = render_chat(messages, tokenizer, first_supervised=len(messages) - 1)
        return controls(tokenizer, ids, but)

    def word():
        return "word"

    def evil():
        return next(made)

    wanted, without = render(conversation(word, word)), render(conversation(word, word), free)
    for _ in range(COUNT // (3 * TURNS) + 1):
        assert render(conversation(evil, word)) == wanted
        assert render(conversation(evil, evil), free) == without


def test_fields_of_messages_and_tools(tmp_path):
    """Tools, calls, thoughts and names, which templates write as text."""
    ours = load_tokenizer(tool_models.qwen(thoughts=True).write(tmp_path))
    made = texts(list(ours.control_ids), 1)

    def turns(text):
        call = {"function": {"name": f"f{text()}", "arguments": {f"k{text()}": [text(), 1]}}}
        fields = json.dumps({"tool_calls": [call], "reasoning_content": f"x{text()}x"})
        tool = {"type": "function", "function": {"name": f"f{text()}", "description": text()}}
        messages = (
            Message("user", text()),
            Message("assistant", "", fields),
            Message("tool", text(), json.dumps({"name": text()})),
            Message("assistant", "word"),
        )
        return Chat(messages, json.dumps([tool]))

    wanted = controls(ours, encode_completion(turns(lambda: "word"), ours).ids)
    for _ in range(150):
        record = turns(lambda: next(made))
        assert controls(ours, encode_completion(record, ours).ids) == wanted, record


def test_plain_text_makes_none(tokenizer):
    made = texts(list(tokenizer.control_ids), 2)
    for text in itertools.islice(made, 300):
        try:
            item = encode_completion(PromptCompletion("who", f"a {text} b"), tokenizer)
        except DataError as error:  # a tokenizer may lose white space beside a name, which is refused
            assert "the tokenizer loses part" in str(error)
            continue
        assert controls(tokenizer, item.ids[1:-1]) == []
