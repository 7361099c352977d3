"""Arguments of chat templates: in every render as transformers takes them, and kept with the model."""

import json
import warnings

import pytest
import tool_models

from jaxalign.data import DataConfig, Records, dataset_from_records, load_tokenizer
from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.text.template_args import choose_template, parse_template_args
from jaxalign.text.templates import compile_template

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import AutoTokenizer

Q, A = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The fox."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tool_models.qwen().write(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("text", "args"),
    [
        ("", {}),
        ("enable_thinking=False", {"enable_thinking": False}),
        ("enable_thinking=false, effort=low", {"enable_thinking": False, "effort": "low"}),
        ('a=[1, 2], b={"c": "x, y"}, d=null', {"a": [1, 2], "b": {"c": "x, y"}, "d": None}),
        ('{"a": 1.5, "b": "two words"}', {"a": 1.5, "b": "two words"}),
        ("date=26 Jul 2024,n=-1", {"date": "26 Jul 2024", "n": -1}),
    ],
)
def test_how_they_are_written(text, args):
    assert parse_template_args(text) == args


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("enable_thinking", "'enable_thinking' is no NAME=VALUE; write NAME=VALUE"),
        ("a=[1", r"'\[1' is not JSON; write"),
        ('{"a": ' + "[" * 100_000, r"not JSON \(.*recursion"),
        ('{"a"', r"not JSON \(.*\); write NAME=VALUE"),
        ("tools=[]", "tools is given to every template by jaxalign itself"),
        ("bos_token=x", "bos_token is given to every template"),
    ],
)
def test_what_cannot_be_read(text, message):
    with pytest.raises(ConfigError, match=f"^config.data.template_args: {message}"):
        parse_template_args(text)


def test_a_name_that_the_template_does_not_read(folder):
    with pytest.raises(ConfigError, match="reads no variable 'enable_thinkin'; it reads enable_thinking"):
        load_tokenizer(folder, template_args="enable_thinkin=False")


def encode(tokenizer, kind, row, **settings):
    data = DataConfig(max_length=512, row_length=1024, **settings)
    dataset = dataset_from_records([Records([row], "rows")], data, tokenizer, kind, "eval")
    return dataset.rows.items[0].ids.tolist(), dataset.fingerprint


def test_ids_of_transformers(folder):
    theirs = AutoTokenizer.from_pretrained(folder)
    want = theirs.apply_chat_template(
        [Q], enable_thinking=False, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    args = {"template_args": "enable_thinking=False"}
    assert encode(load_tokenizer(folder), "prompt", {"prompt": [Q]}, **args)[0] == want
    assert encode(load_tokenizer(folder, **args), "prompt", {"prompt": [Q]})[0] == want
    plain, fingerprint = encode(load_tokenizer(folder), "prompt", {"prompt": [Q]})
    assert plain == want[: len(plain)] and len(plain) < len(want)
    assert encode(load_tokenizer(folder), "prompt", {"prompt": [Q]}, **args)[1] != fingerprint
    # Training goes on from that very prompt: the empty thought is context.
    data = DataConfig(max_length=512, row_length=1024, **args)
    rows = [Records([{"messages": [Q, A]}], "rows")]
    (item,) = dataset_from_records(rows, data, load_tokenizer(folder), "sft").rows.items
    assert item.ids[: len(want)].tolist() == want and item.prompt_length == len(want)


def test_a_saved_template_has_them_as_defaults(folder, tmp_path):
    """For `jaxalign` and for `transformers`, whose callers may still say otherwise."""
    template = load_tokenizer(
        folder, template_args="enable_thinking=False", answer_tokens=["<|python_tag|>"]
    ).template
    copy = tool_models.qwen(template.saved()).write(tmp_path / "copy")
    wanted, _ = encode(
        load_tokenizer(folder, template_args="enable_thinking=False"), "prompt", {"prompt": [Q]}
    )
    thinking, _ = encode(load_tokenizer(folder), "prompt", {"prompt": [Q]})
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    theirs = AutoTokenizer.from_pretrained(copy)
    ours = load_tokenizer(copy)
    assert encode(ours, "prompt", {"prompt": [Q]})[0] == theirs.apply_chat_template([Q], **options) == wanted
    assert theirs.apply_chat_template([Q], enable_thinking=True, **options) == thinking
    again = load_tokenizer(copy, template_args="enable_thinking=True")
    assert encode(again, "prompt", {"prompt": [Q]})[0] == thinking
    assert "<|python_tag|>" in ours.answer_tokens
    # Saved twice, the last word counts.
    twice = compile_template(again.template.saved())
    assert twice.answer_tokens == ("<|python_tag|>",)
    turns = {"messages": [Q], "add_generation_prompt": True, "tools": None}
    assert twice.render(**turns) == compile_template(tool_models.QWEN3).render(**turns)


@pytest.mark.parametrize("value", [None, True, 1.5, "a \"b\" 'c' é\n", [1, "x"], {"a": {"b": [None]}}])
def test_any_value_survives_saving(value):
    source = "\n  {% if x %}{{ x | tojson }}{% endif %}{{ x is none }}"
    template = compile_template(source, args={"x": value})
    saved = compile_template(template.saved())
    assert saved.render() == template.render() == compile_template(source).render(x=value)


def test_the_built_in_format_takes_none(tokenizer):
    with pytest.raises(
        ConfigError, match="the built-in template reads no variable 'a'; it takes no arguments"
    ):
        choose_template(tokenizer.template, template_args="a=1")


@pytest.mark.slow
def test_a_run_keeps_them_with_its_model(tmp_path):
    """Training, what is loaded from it, and its export all render with them; going on without them is refused."""
    from jaxalign.stages import default_config, parse_config, train
    from jaxalign.training.saved_model import find_model
    from jaxalign.verbs.convert import ConvertRequest, convert

    folder = tool_models.qwen().write(tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": [Q], "completion": [A]}) + "\n")
    config = default_config("sft")
    config.data.train, config.data.tokenizer = str(rows), str(folder)
    config.data.template_args, config.data.answer_tokens = "enable_thinking=False", ("<|python_tag|>",)
    config.data.max_length = config.data.row_length = 64
    config.model.embed_dim, config.model.num_layers, config.model.num_heads = 16, 1, 4
    config.batch_size, config.num_steps, config.optimizer.warmup_steps = 8, 1, 0
    train(parse_config(config), tmp_path / "run", quiet=True)
    with pytest.raises(
        CheckpointError, match=r"began with config\.data\.template_args='enable_thinking=False'"
    ):
        config.data.template_args = "enable_thinking=True"
        train(parse_config(config), tmp_path / "run", quiet=True)
    convert(ConvertRequest(str(tmp_path / "run"), str(tmp_path / "out"), "hf"))
    wanted, _ = encode(
        load_tokenizer(folder, template_args="enable_thinking=False"), "prompt", {"prompt": [Q]}
    )
    for tokenizer in (find_model(str(tmp_path / "run"), "x").tokenizer(), load_tokenizer(tmp_path / "out")):
        assert encode(tokenizer, "prompt", {"prompt": [Q]})[0] == wanted
        assert "<|python_tag|>" in tokenizer.answer_tokens
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    assert theirs.apply_chat_template([Q], **options) == wanted
