"""Ids are those of transformers; no text becomes a control token; files that contradict one another are refused."""

import io
import json
import warnings

import hf_models
import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, models, processors

from jaxalign.data.encode import encode_completion, encode_text
from jaxalign.data.records import Message, PromptCompletion, Text
from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig
from jaxalign.text.chat import render_chat
from jaxalign.text.hf_tokenizer import HFTokenizer
from jaxalign.text.tokenizer import load_tokenizer
from jaxalign.training.saved_model import check_vocabulary

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import AutoTokenizer

KINDS = {
    "byte level": hf_models.llama3,
    "normalised": hf_models.qwen,
    "no prefix": hf_models.gemma3,
    "prefix first": lambda: hf_models.llama2(None, "first"),
    "prefix always": lambda: hf_models.llama2(None, "always"),
    "strips": hf_models.phi3,
}
TEXTS = [
    "the quick brown fox",
    " leading, and  two spaces\n\n\ttabs and lines\r\n ",
    "富士山の高さは 12345 メートル。🙂 é é",
    "a < b > c [INST] <|user|>\n",
    "",
]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return KINDS[request.param]().write(tmp_path_factory.mktemp("model"))


def write(folder, **files):
    """A Qwen-like model with these JSON files; tokenizer_config is added to what it has."""
    model = hf_models.qwen()
    config = {"tokenizer_config": {**model.config, **files.pop("tokenizer_config", {})}}
    return model.write(folder, **config, **files)


def test_ids_of_transformers(folder):
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        if "<|user|>" in ours.control_ids and "<|user|>" in text:
            continue  # which theirs takes for the control token
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        opening = [] if ours.bos_id is None else [ours.bos_id]
        assert opening + ours.encode(text) == theirs.encode(text)
    assert ours.vocab_size == len(theirs)


def test_decode_inverts_encode(folder):
    tokenizer = load_tokenizer(folder)
    for text in TEXTS[:1] + TEXTS[3:]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        ids = [*tokenizer.encode(text), *tokenizer.control_ids.values()]
        assert tokenizer.decode(ids) == text


def test_text_never_makes_control_tokens(folder):
    tokenizer = load_tokenizer(folder)
    names = [*tokenizer.control_ids, "<|im_end|>", "<eos>", "</s>"]
    for text in ("".join(names), " ".join(names), *names, *(f"a{name}b" for name in names)):
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.control_ids.values())
        assert tokenizer.decode(ids) == text


def test_pieces_spell_what_they_spelled_together(folder):
    tokenizer = load_tokenizer(folder)
    for a in TEXTS:
        for b in TEXTS:
            first, second = tokenizer.encode_pieces([a, b])
            assert first == tokenizer.encode(a)
            assert tokenizer.decode(first + second) == tokenizer.decode(tokenizer.encode(a + b))


def test_pieces_and_control_tokens(folder):
    tokenizer = load_tokenizer(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    text = "the fox"
    for name, control in tokenizer.control_ids.items():
        pieces = tokenizer.encode_pieces([text, control, " asks\n", control, text])
        whole = theirs.encode(f"{text}{name} asks\n{name}{text}", add_special_tokens=False)
        assert [i for ids in pieces for i in ids] == whole
        assert pieces[1] == pieces[3] == [control]


def test_a_completion_goes_on_from_its_prompt(folder):
    tokenizer = load_tokenizer(folder)
    example = encode_completion(PromptCompletion("the quick", " fox asks"), tokenizer)
    whole = encode_text(Text("the quick fox asks"), tokenizer, 100)[0]
    assert tokenizer.decode(example.ids) == "the quick fox asks"
    assert example.ids.tolist() == whole.ids.tolist()
    assert example.ids[-1] == tokenizer.eos_ids[0]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_vocabularies_that_spell_control_tokens(tmp_path, kind):
    letters = ["<", "/", "s", ">", "a", "</", "s>", "</s>"]
    if kind == "bpe":
        merges = [("<", "/"), ("s", ">"), ("</", "s>")]
        model = models.BPE({name: i for i, name in enumerate(letters)}, merges)
    else:
        model = models.Unigram([(name, -1.0) for name in ("<unk>", *letters)], unk_id=0)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.encode_special_tokens = True
    assert tokenizer.token_to_id("</s>") in tokenizer.encode("a</s>").ids  # the trap is set
    hf_models.Model(tokenizer, None, config={"eos_token": "</s>"}).write(tmp_path)
    ours = load_tokenizer(tmp_path)
    for text in ("</s>", "a</s></s>a", "</s>" * 1500):
        ids = ours.encode(text)
        assert ours.eos_ids[0] not in ids
        assert "".join(tokenizer.id_to_token(i) for i in ids) == text


def test_added_tokens_that_are_not_special_stay(tmp_path):
    ours, theirs = load_tokenizer(write(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)
    text = "<think>\nthe fox\n</think>\n"
    think = theirs.convert_tokens_to_ids("<think>")
    assert ours.encode(text) == theirs.encode(text)
    assert ours.encode(text)[0] == think and think not in ours.control_ids.values()


def test_tokens_with_a_role_are_special_whatever_their_entry_says(tmp_path):
    model = hf_models.qwen()
    model.tokenizer.add_tokens([AddedToken("<|call|>"), AddedToken("<|stop|>")])
    stop = model.tokenizer.token_to_id("<|stop|>")
    config = {**model.config, "additional_special_tokens": ["<|call|>"]}
    ours = load_tokenizer(
        model.write(tmp_path, tokenizer_config=config, generation_config={"eos_token_id": [stop]})
    )
    assert {"<|call|>", "<|stop|>"} <= set(ours.control_ids)
    assert not {stop, ours.special_id("<|call|>")} & set(ours.encode("<|call|><|stop|>"))


def test_added_tokens_of_the_config_alone(tmp_path):
    entry = {"content": "<|new|>", "special": True, "normalized": False}
    base = load_tokenizer(write(tmp_path / "base")).vocab_size
    ours = load_tokenizer(
        write(tmp_path / "new", tokenizer_config={"added_tokens_decoder": {str(base): entry}})
    )
    assert ours.special_id("<|new|>") == base == ours.vocab_size - 1
    theirs = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert theirs.convert_tokens_to_ids("<|new|>") == base
    wrong = {"added_tokens_decoder": {str(base + 5): entry}}
    with pytest.raises(
        ConfigError,
        match=rf"added_tokens_decoder gives '<\|new\|>' the id {base + 5}, tokenizer.json {base}; correct",
    ):
        load_tokenizer(write(tmp_path / "wrong", tokenizer_config=wrong))


def opening(tmp_path, special, single, **config):
    model = hf_models.byte_level(["<s>", "</s>"])
    ids = [(name, model.token_to_id(name)) for name in ("<s>", "</s>")]
    if single:
        model.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    hf_models.Model(model, None, config={**special, **config}).write(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    plain = theirs.encode("the fox", add_special_tokens=False)
    bos = [] if ours.bos_id is None else [ours.bos_id]
    assert theirs.encode("the fox")[: len(plain) + len(bos)] == bos + plain
    return dict(ids), ours


def test_what_stands_before_a_text(tmp_path):
    both, same = {"bos_token": "<s>", "eos_token": "</s>"}, {"bos_token": "</s>", "eos_token": "</s>"}
    ids, ours = opening(tmp_path / "llama", both, "<s> $A")
    assert ours.bos_id == ids["<s>"]
    _, ours = opening(tmp_path / "no post-processor", both, None)
    assert ours.bos_id is None
    _, ours = opening(tmp_path / "pythia", same, None)
    assert ours.bos_id is None and ours.special_tokens["bos_token"] == "</s>"
    ids, ours = opening(tmp_path / "opt", same, "</s> $A")
    assert ours.bos_id == ours.eos_ids[0] == ids["</s>"]
    ids, ours = opening(tmp_path / "both ends", both, "<s> $A </s>")
    assert ours.bos_id == ids["<s>"]
    ids, ours = opening(tmp_path / "config", both, "<s> $A", add_bos_token=False)
    assert ours.bos_id == ids["<s>"]  # the post-processor counts
    with pytest.raises(ConfigError, match="puts <s>, <s> before a text; at most one token"):
        opening(tmp_path / "two", both, "<s> <s> $A")


def test_bos_that_is_also_eos_stands_once_at_the_start(tmp_path):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content + eos_token }}{% endfor %}"
    model = hf_models.byte_level(["</s>"], "</s>")
    tokens = {"bos_token": "</s>", "eos_token": "</s>"}
    ours = load_tokenizer(hf_models.Model(model, template, config=tokens).write(tmp_path))
    turns = [Message("user", "who"), Message("assistant", "the fox")]
    ids, _ = render_chat(turns, ours)
    assert [position for position, i in enumerate(ids) if i == ours.bos_id] == [
        0,
        ids.index(ids[-1], 1),
        len(ids) - 1,
    ]


def test_every_end_is_known(tmp_path):
    """The tokenizer's own first; then those of generation_config, config and the template."""
    model = hf_models.llama3()
    eos, eot = (model.tokenizer.token_to_id(name) for name in ("<|end_of_text|>", "<|eot_id|>"))
    header = model.tokenizer.token_to_id("<|end_header_id|>")
    assert load_tokenizer(model.write(tmp_path / "template")).eos_ids == (eos, eot)
    without = hf_models.Model(model.tokenizer, None, config=model.config)
    assert load_tokenizer(without.write(tmp_path / "without")).eos_ids == (eos,)
    given = tmp_path / "given.jinja"
    given.write_text(model.template)
    assert load_tokenizer(tmp_path / "without", given).eos_ids == (eos, eot)
    listed = without.write(tmp_path / "listed", config={"eos_token_id": [header, eos, eot]})
    assert load_tokenizer(listed).eos_ids == (eos, header, eot)
    generation = {"eos_token_id": [eos, eot]}
    extended = without.write(
        tmp_path / "generation", config={"eos_token_id": eot}, generation_config=generation
    )
    assert load_tokenizer(extended).eos_ids == (eos, eot)


def test_padding(tmp_path):
    ours = load_tokenizer(write(tmp_path / "own"))
    assert ours.pad_id == ours.special_id("<|endoftext|>")
    ours = load_tokenizer(write(tmp_path / "none", tokenizer_config={"pad_token": None}))
    assert ours.pad_id == ours.eos_ids[0]
    ours = load_tokenizer(
        write(tmp_path / "config", tokenizer_config={"pad_token": None}, config={"pad_token_id": 3})
    )
    assert ours.pad_id == 3


def test_a_model_may_have_more_rows_than_the_tokenizer_ids(tmp_path, tokenizer):
    ours = load_tokenizer(write(tmp_path))
    size = ours.vocab_size
    for rows in (size, size + 100):
        check_vocabulary(ModelConfig(vocab_size=rows), ours, "here")
    message = rf"here: the model has vocab_size={size - 1}, but its tokenizer has {size} pieces"
    with pytest.raises(ConfigError, match=message):
        check_vocabulary(ModelConfig(vocab_size=size - 1), ours, "here")
    with pytest.raises(ConfigError, match="use the tokenizer that the model was trained with"):
        check_vocabulary(ModelConfig(vocab_size=tokenizer.vocab_size + 1), tokenizer, "here")


def test_agreement_of_config_and_tokenizer(tmp_path):
    fine = {"bos_token_id": 7, "eos_token_id": [5, 422], "pad_token_id": None}  # it has no BOS to contradict
    load_tokenizer(write(tmp_path / "fine", config=fine, generation_config={"eos_token_id": 422}))
    load_tokenizer(write(tmp_path / "none", config={"eos_token_id": None, "pad_token_id": -1}))
    message = r"/config.json: eos_token_id is 420, but eos_token in .*_config.json is '<\|im_end\|>' with id 422; find"
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(write(tmp_path / "eos", config={"eos_token_id": 420}))


def test_another_padding_in_config_json_is_harmless(tmp_path):
    """No mask and no position depends on what fills a row up."""
    ours = load_tokenizer(write(tmp_path, config={"pad_token_id": 5}))
    assert ours.pad_id == 420 and ours.eos_ids == (422,)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"tokenizer_config": {"pad_token": "[PAD]"}},
            r"tokenizer_config.json: pad_token is '\[PAD\]', which tokenizer.json does not have",
        ),
        (
            {"generation_config": {"eos_token_id": [422, 999]}},
            r"eos_token_id 999 in generation_config.json .* is no token of tokenizer.json, whose ids end at 424",
        ),
        ({"config": [1, 2]}, r"config.json: a list, not an object; write an object"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, files, message):
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(write(tmp_path, **files))


def test_a_tokenizer_needs_an_end(tmp_path):
    hf_models.qwen().tokenizer.save(str(tmp_path / "tokenizer.json"))
    message = (
        r'nothing names its end-of-sequence token; write .*tokenizer_config.json with {"eos_token": "…"}'
    )
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    assert load_tokenizer(tmp_path / "tokenizer.json").eos_ids == (422,)


def test_files_that_are_broken(tmp_path):
    write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer_config.json: not JSON \(.*line 1"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer.json: not a tokenizer \(.*\); write it again"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    message = (
        r"has no tokenizer.json, only tokenizer_config.json, and transformers could not .*save_pretrained\("
    )
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "tokenizer_config.json",
            {"eos_token": 5},
            "eos_token=5 must be a token, or an object with its content",
        ),
        ("tokenizer_config.json", {"eos_token": {"text": "a"}}, "eos_token={'text': 'a'} must be a token"),
        ("tokenizer_config.json", {"eos_token": "\ud800"}, "eos_token=.* must be a token"),
        (
            "tokenizer_config.json",
            {"additional_special_tokens": 5},
            "additional_special_tokens=5 must be a list of",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": [1]},
            r"added_tokens_decoder=\[1\] must be an object with",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"x": {}}},
            "added_tokens_decoder=.* by their numbers",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"0": {"content": "a", "special": "yes"}}},
            r"added_tokens_decoder\[0\]\.special='yes' must be true or false",
        ),
        (
            "tokenizer_config.json",
            {"chat_template": 5},
            "chat_template=5 must be a text, or a list of objects",
        ),
        ("tokenizer_config.json", {"chat_template": [{"name": 1}]}, "chat_template=.* must be a text"),
        (
            "config.json",
            {"eos_token_id": "1"},
            "eos_token_id='1' must be the number of a token, or a list of them",
        ),
        (
            "generation_config.json",
            {"eos_token_id": [10**12]},
            r"eos_token_id=\[1000000000000\] must be the number",
        ),
        ("chat_template.jinja", b"caf\xe9", r"not UTF-8 \(.*\); save the file as UTF-8"),
        ("tokenizer_config.json", b"[" * 100_000, r"not JSON \(.*recursion"),
        ("config.json", b'{"a": ' + b"9" * 5_000 + b"}", r"not JSON \(.*digits"),
        ("config.json", b'{"eos_token_id": 1, "eos_token_id": 2}', "the field 'eos_token_id' stands twice"),
    ],
)
def test_values_of_other_types_are_refused_by_file_and_key(tmp_path, file, values, message):
    write(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)  # which would come first
    (tmp_path / file).write_bytes(values if isinstance(values, bytes) else json.dumps(values).encode())
    with pytest.raises(ConfigError, match=rf"{file}: .*{message}"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_whose_own_program_fails(tmp_path):
    """The library panics where the post-processor names a token that it does not define."""
    write(tmp_path)
    file = tmp_path / "tokenizer.json"
    state = json.loads(file.read_text("utf-8"))
    single = [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": {},
    }
    file.write_text(json.dumps(state), "utf-8")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: not a tokenizer \(.*\); write it again"):
        load_tokenizer(tmp_path)


def test_truncation_and_padding_are_off(tmp_path):
    model = hf_models.qwen()
    model.tokenizer.enable_truncation(3)
    model.tokenizer.enable_padding(length=50)
    ours = load_tokenizer(model.write(tmp_path))
    text = "the quick brown fox asks " * 5
    assert ours.decode(ours.encode(text)) == text


def test_save_and_load(folder, tmp_path):
    (folder / "vocab.json").write_text("{}")  # an older tokenizer's, carried along
    ours = load_tokenizer(folder)
    ours.save(tmp_path)
    again, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for name in (
        "eos_ids",
        "bos_id",
        "pad_id",
        "vocab_size",
        "control_ids",
        "special_tokens",
        "chat_template",
    ):
        assert getattr(again, name) == getattr(ours, name)
    text = "the fox asks 富士山"
    assert again.encode(text) == ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert theirs.chat_template == ours.chat_template
    assert (tmp_path / "vocab.json").exists()
    again.save(tmp_path)  # onto itself
    assert load_tokenizer(tmp_path / "tokenizer.json").encode(text) == ours.encode(text)


def test_what_config_said_of_ends_is_saved(tmp_path):
    ours = load_tokenizer(
        write(tmp_path / "a", config={"eos_token_id": [422, 420]}, generation_config={"top_k": 3})
    )
    ours.save(tmp_path / "b")
    assert not (tmp_path / "b" / "config.json").exists()  # the model's
    assert load_tokenizer(tmp_path / "b").eos_ids == ours.eos_ids == (422, 420)
    assert json.loads((tmp_path / "b" / "generation_config.json").read_text()) == {
        "top_k": 3,
        "eos_token_id": [422, 420],
    }


def test_sentencepiece_folder_of_hugging_face(tmp_path):
    """A Llama 2 folder without tokenizer.json: transformers' conversion, written out on saving."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(hf_models.CORPUS).splitlines()),
        model_writer=model,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    file = tmp_path / "hf" / "tokenizer.model"
    file.parent.mkdir()
    file.write_bytes(model.getvalue())
    with pytest.raises(
        ConfigError, match=r"puts a space before every text \(add_dummy_prefix\).*tokenizer_config.json"
    ):
        load_tokenizer(file)
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": True,
    }
    (file.parent / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(file.parent)
    slow = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    text = "the quick fox: 富士山🙂\nand"
    assert ours.encode(text) == slow.encode(text)
    assert ours.encode(text) == AutoTokenizer.from_pretrained(file.parent).encode(
        text, add_special_tokens=False
    )
    assert (ours.bos_id, ours.eos_ids) == (slow.bos_id(), (slow.eos_id(),))
    assert ours.decode([i for ids in ours.encode_pieces([text, "text"]) for i in ids]) == text + "text"
    ours.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    assert load_tokenizer(tmp_path / "saved").encode(text) == slow.encode(text)


def test_tokenizer_json_wins_over_a_model_beside_it(tmp_path, tokenizer):
    tokenizer.save(write(tmp_path))
    assert isinstance(load_tokenizer(tmp_path), HFTokenizer)
    assert load_tokenizer(tmp_path / "tokenizer.model").vocab_size == tokenizer.vocab_size


def test_control_tokens_by_name(tmp_path):
    model = hf_models.qwen()
    model.tokenizer.add_special_tokens([f"<|reserved_{i}|>" for i in range(30)])
    ours = load_tokenizer(model.write(tmp_path))
    assert ours.special_id("<|reserved_3|>") == model.tokenizer.token_to_id("<|reserved_3|>")
    with pytest.raises(
        ConfigError, match=r"has no control token <\|user\|>, only <\|endoftext\|>, .*, …; give a chat"
    ):
        ours.special_id("<|user|>")


def test_hub_names(tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot(name, **options):
        asked[name] = options
        if name != "maker/model":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nat all")
        return str(write(tmp_path))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load_tokenizer("maker/model").encode("fox") == load_tokenizer(tmp_path).encode("fox")
    assert not any("safetensors" in pattern for pattern in asked["maker/model"]["allow_patterns"])
    assert asked["maker/model"]["etag_timeout"] <= 5
    message = (
        r"config.data.tokenizer='maker/other': no such path.* \(no network\); .*`hf download maker/other"
    )
    with pytest.raises(ConfigError, match=message):
        load_tokenizer("maker/other")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"config.data.tokenizer=here/none: no such file"):
        load_tokenizer("here/none")  # a path of this machine, misspelt
    assert set(asked) == {"maker/model", "maker/other"}
