"""What is supervised is the answer, and nothing of the conversation is lost on the way to tokens."""

import re

import hf_models
import pytest
from tokenizers import normalizers

from jaxalign.data import load_tokenizer
from jaxalign.data.encode import encode_completion, encode_prompt, encode_text
from jaxalign.data.records import Chat, Message, Prompt, PromptCompletion, Text
from jaxalign.errors import DataError
from jaxalign.text.templates import compile_template

U, A = Message("user", "Who asks?"), Message("assistant", "The fox.")
S = Message("system", "Be brief.")
THOUGHT = Message("assistant", "<think>\n2 and 2 make 4.\n</think>\n\nThe answer is 4.")
LOOP = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(hf_models.chatml().write(tmp_path_factory.mktemp("model")))


def template(content):
    return compile_template(LOOP.replace("CONTENT", content) + OPEN, "t.jinja")


DROPS_ANSWER = "m.content if m.role != 'assistant' else ''"
DROPS_THOUGHT = "m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content"
UPPER = "m.content | upper if m.role == 'assistant' else m.content"
FIRST_LINE = "m.content.split('\n')[0]"


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (DROPS_ANSWER, A),
        (DROPS_THOUGHT, THOUGHT),
        (UPPER, A),
        (FIRST_LINE, Message("assistant", "One.\nTwo.")),
        ("m.content[:10]", Message("assistant", "Longer than ten characters.")),
    ],
)
def test_a_template_that_changes_an_answer_is_refused(tokenizer, content, answer):
    for record in (Chat((U, answer)), PromptCompletion((U,), (answer,))):
        with pytest.raises(
            DataError, match=r"t.jinja leaves out or rewrites part of the answer messages\[1\]"
        ):
            encode_completion(record, tokenizer, template(content))


def test_an_answer_that_the_template_leaves_alone_is_learned(tokenizer):
    for content in ("m.content", "m.content | trim", DROPS_THOUGHT):
        example = encode_completion(Chat((U, A)), tokenizer, template(content))
        assert tokenizer.decode(example.ids[example.mask > 0]) == "The fox."
    example = encode_completion(Chat((U, THOUGHT)), tokenizer, template("m.content"))
    assert tokenizer.decode(example.ids[example.mask > 0]) == THOUGHT.content


@pytest.mark.parametrize(("role", "turns"), [("system", (S, U, A)), ("user", (U, A))])
def test_a_template_that_drops_what_was_asked_is_refused(tokenizer, role, turns):
    dropping = template(f"m.content if m.role != '{role}' else ''")
    with pytest.raises(DataError, match=rf"leaves out or rewrites part of messages\[0\], of the {role}"):
        encode_completion(Chat(turns), tokenizer, dropping)
    with pytest.raises(DataError, match=rf"leaves out or rewrites part of messages\[0\], of the {role}"):
        encode_prompt(Prompt(turns[:-1]), tokenizer, dropping)


def test_a_thought_that_the_header_opens_is_part_of_the_answer(tokenizer):
    """As Qwen3-Thinking and its kin: generation begins inside the thought, which the stored answer has whole."""
    opens = OPEN.replace("assistant\n", "assistant\n<think>\n")
    opening = compile_template(LOOP.replace("CONTENT", "m.content") + opens, "t.jinja")
    example = encode_completion(Chat((U, THOUGHT)), tokenizer, opening)
    supervised = tokenizer.decode(example.ids[example.mask > 0])
    assert supervised == "2 and 2 make 4.\n</think>\n\nThe answer is 4."
    prompt = encode_prompt(Prompt((U,)), tokenizer, opening).ids
    assert example.ids[: len(prompt)].tolist() == prompt.tolist()


def test_line_breaks_around_a_thought_may_be_the_templates(tmp_path):
    qwen = load_tokenizer(hf_models.qwen(hf_models.QWEN3).write(tmp_path))
    squeezed = Message("assistant", "<think>2 and 2 make 4.</think>The answer is 4.")
    example = encode_completion(Chat((U, squeezed)), qwen)
    assert qwen.decode(example.ids[example.mask > 0]) == THOUGHT.content


@pytest.mark.parametrize(
    ("normalizer", "answer", "said"),
    [
        (normalizers.Replace("\n", " "), "One.\nTwo.", "One. Two."),
        (normalizers.Lowercase(), "The fox.", "the fox."),
        (normalizers.Replace("  ", " "), "if x:\n  y", "if x:\n y"),
    ],
)
def test_a_tokenizer_that_loses_part_of_an_answer_is_refused(tmp_path, normalizer, answer, said):
    model = hf_models.chatml()
    model.tokenizer.normalizer = normalizer
    tokenizer = load_tokenizer(model.write(tmp_path))
    message = f"{re.escape(repr(answer))} is decoded as {re.escape(repr(said))}"
    with pytest.raises(DataError, match=message):
        encode_completion(PromptCompletion("Who asks?", answer), tokenizer)
    with pytest.raises(DataError, match=message):
        encode_completion(Chat((U, Message("assistant", answer))), tokenizer)
    with pytest.raises(DataError, match=message):
        encode_text(Text(answer), tokenizer, 64)


def test_a_mark_that_sentencepiece_writes_for_a_space_does_not_stop_a_corpus(tmp_path):
    gemma = load_tokenizer(hf_models.gemma3().write(tmp_path))
    (example,) = encode_text(Text("a \u2581 fox"), gemma, 64)
    assert gemma.decode(example.ids) == "a   fox"


def test_composed_characters_are_the_same_text(tmp_path):
    """Qwen's tokenizers compose characters, as they document: e and an accent become one."""
    qwen = load_tokenizer(hf_models.qwen().write(tmp_path))
    example = encode_completion(PromptCompletion("Who?", " cafe\u0301"), qwen)
    assert qwen.decode(example.ids[example.mask > 0]) == " café"
