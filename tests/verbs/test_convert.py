"""`jaxalign convert` both ways: models, tokenizers, and what it refuses."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import hf_files

from jaxalign import parallel
from jaxalign.cli import main
from jaxalign.data import load_tokenizer, train_sentencepiece
from jaxalign.data.records import Message
from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.models import ModelConfig
from jaxalign.text.chat import render_chat
from jaxalign.text.fast_tokenizer import write_fast_tokenizer
from jaxalign.training.saved_model import find_model, save_model
from jaxalign.verbs.convert import ConvertRequest, _new_folder, convert

WORDS = "the quick brown fox jumps over a lazy dog and asks who wrote this reply to that question".split()
LETTERS = "abc def  ghi,.\n\t<|>éß日本😀\u0301"


def text(rng):
    words = " ".join(rng.choice(WORDS) for _ in range(rng.randint(0, 9)))
    return words + "".join(rng.choice(LETTERS) for _ in range(rng.randint(0, 12)))


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """tokenizer.model as the quickstart makes it, with its tokenizer.json."""
    folder = tmp_path_factory.mktemp("tokenizer")
    rng = random.Random(0)
    train_sentencepiece((text(rng) + ".?\n" for _ in range(400)), folder / "tokenizer.model", 400)
    assert write_fast_tokenizer(folder, 64) is None
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer_folder):
    """What a run with its own tokenizer leaves: a language model, and a reward model with a bias."""
    folder = tmp_path_factory.mktemp("runs")
    alone = folder / "tokenizer.model"  # without the template beside it: runs use the built-in one
    alone.write_bytes((tokenizer_folder / "tokenizer.model").read_bytes())
    tokenizer = load_tokenizer(alone)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, num_kv_heads=2, max_length=64)
    for name in ("sft", "reward"):
        scalar = name == "reward"
        params = hf_files.random_params(config, scalar=scalar)
        if scalar:
            params["head"]["bias"] = jnp.float32(0.1)
        save_model(folder / name / "model", params, config, tokenizer, scalar=scalar, meta={})
    return folder


@pytest.fixture
def hf(tmp_path, tokenizer_folder):
    """A Hugging Face folder as somebody else would have it, in bfloat16."""
    config = hf_files.llama_config(vocab_size=512, torch_dtype="bfloat16", rope_scaling=None, use_cache=True)
    tensors = hf_files.make_tensors(config, jnp.bfloat16)
    folder = hf_files.write_folder(tmp_path / "hf", config, tensors, shards=2)
    for file in tokenizer_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def params_of(folder, key="--from"):
    model = find_model(str(folder), key)
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    with parallel.use_mesh(mesh):
        return model.load(mesh)


def assert_same(got, wanted):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.slow
def test_to_jaxalign_and_back_is_what_came_in(tmp_path, hf, capsys):
    out, back = tmp_path / "new" / "ours", tmp_path / "back"
    assert main(["convert", f"--from={hf}", f"--out={out}", "--to=jaxalign"]) == 0
    assert_same(params_of(out), params_of(hf))
    assert main(["convert", f"--from={out}", f"--out={back}", "--to=hf"]) == 0
    assert f"{back}: written" in capsys.readouterr().out
    hf_files.assert_same_tensors(hf_files.read_tensors(back), hf_files.read_tensors(hf))
    assert json.loads((back / "config.json").read_text()) == json.loads((hf / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (back / name).read_bytes() == (hf / name).read_bytes()
    assert {path.name[0] for path in tmp_path.iterdir()} == {"h", "n", "b"}, "no temporary folder is left"


def test_another_type_is_written_and_named(tmp_path, hf):
    convert(ConvertRequest(str(hf), str(tmp_path / "out"), "hf", dtype="float32", max_shard_size="30KB"))
    wanted = {name: x.astype(np.float32) for name, x in hf_files.read_tensors(hf).items()}
    hf_files.assert_same_tensors(hf_files.read_tensors(tmp_path / "out"), wanted)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers and torch
def test_what_rounding_takes_is_counted(tmp_path, hf, tokenizer_folder):
    """One weight in four moves by an eighth, one by a thousandth, which bfloat16 does not tell, and two stay."""
    base = find_model(str(hf), "base")
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    with parallel.use_mesh(mesh):
        params = base.load(mesh)

    def trained(x):
        number = jnp.arange(x.size).reshape(x.shape) % 4
        return x * jnp.where(number == 0, 1.125, jnp.where(number == 1, 1.0009765625, 1.0))

    folder = tmp_path / "run"
    tokenizer, moved = base.tokenizer(), jax.tree.map(trained, params)
    for name, origin in (("known", str(hf)), ("gone", str(tmp_path / "nowhere"))):
        meta = {"config": {"model": {"init_from": origin}}}
        save_model(folder / name / "model", moved, base.config, tokenizer, scalar=False, meta=meta)
    changed = sum(x.size // 2 for x in jax.tree.leaves(params))
    (said,) = convert(ConvertRequest(str(folder / "known"), str(tmp_path / "a"), "hf", "bfloat16"))
    assert said == (
        f"bfloat16: of the {changed:,} weights that training changed, 50.0% round back to what they were in {hf}; "
        "--dtype=float32 keeps them as they were trained"
    )
    (said,) = convert(ConvertRequest(str(folder / "gone"), str(tmp_path / "b"), "hf", "bfloat16"))
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(moved)]
    lost = sum(np.square(x - x.astype(jnp.bfloat16).astype(np.float64)).sum() for x in leaves)
    error = np.sqrt(lost / sum(np.square(x).sum() for x in leaves))
    assert f"bfloat16: weights are rounded, by {error:.2%} in the root mean square; --dtype=float32" in said
    for source, dtype in ((str(folder / "known"), "float32"), (str(hf), "bfloat16")):
        assert convert(ConvertRequest(source, str(tmp_path / dtype), "hf", dtype)) == []


@pytest.mark.slow
def test_a_run_loads_in_transformers(tmp_path, run):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    out = tmp_path / "hf"
    assert convert(ConvertRequest(str(run / "sft"), str(out), "hf")) == []
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert theirs.dtype == torch.float32
    ours = load_tokenizer(run / "sft" / "model")
    assert theirs.generation_config.eos_token_id == list(ours.eos_ids)
    state = theirs.state_dict()
    wanted = params_of(run / "sft")["layers"]["attention"]["query"]["kernel"][1]
    got = state["model.layers.1.self_attn.q_proj.weight"].numpy().T.reshape(wanted.shape)
    np.testing.assert_array_equal(got, wanted)
    assert_same(params_of(out), params_of(run / "sft"))


@pytest.mark.filterwarnings("ignore")
def test_its_tokenizer_gives_identical_ids_in_transformers(tmp_path, run):
    transformers = pytest.importorskip("transformers")
    convert(ConvertRequest(str(run / "sft"), str(tmp_path / "hf"), "hf"))
    ours = load_tokenizer(run / "sft" / "model" / "tokenizer.model")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    rng = random.Random(1)
    for _ in range(2000):
        sample = text(rng)
        ids = ours.encode(sample)
        assert theirs.encode(sample, add_special_tokens=False) == ids, sample
        assert theirs.decode(ids) == sample
    assert theirs.encode("the fox") == [ours.bos_id, *ours.encode("the fox")]
    assert (theirs.pad_token_id, theirs.eos_token_id) == (ours.pad_id, ours.eos_ids[0])

    messages = [
        ("system", "be  brief\n"),
        ("user", "who? 日本"),
        ("assistant", "the fox"),
        ("user", " & <b>"),
    ]
    ids, _ = render_chat([Message(*m) for m in messages], ours, add_generation_prompt=True)
    got = theirs.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert theirs.encode(got, add_special_tokens=False) == ids

    again = load_tokenizer(tmp_path / "hf")  # the folder as a source for us
    assert again.eos_ids == ours.eos_ids and again.encode("who? 日本") == ours.encode("who? 日本")


def test_a_tokenizer_that_tokenizer_json_cannot_express_goes_alone(tmp_path, tokenizer_folder):
    folder = tmp_path / "unigram"
    folder.mkdir()
    rng = random.Random(0)
    texts = (text(rng) + ".?\n" for _ in range(400))
    tokenizer = train_sentencepiece(texts, folder / "tokenizer.model", 320, "unigram")
    config = ModelConfig(vocab_size=tokenizer.vocab_size)
    params = hf_files.random_params(config)
    save_model(tmp_path / "run", params, config, tokenizer, scalar=False, meta={})
    assert (
        "it is not a BPE model"
        in convert(ConvertRequest(str(tmp_path / "run"), str(tmp_path / "out"), "hf"))[0]
    )
    assert (tmp_path / "out" / "tokenizer.model").is_file()
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_a_reward_model_keeps_its_bias_on_our_own_way(tmp_path, run):
    notices = convert(ConvertRequest(str(run / "reward"), str(tmp_path / "hf"), "hf"))
    assert "bias 0.1 has no place" in notices[0]
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and len(config["id2label"]) == 1
    assert config["pad_token_id"] == 0
    assert hf_files.read_tensors(tmp_path / "hf")["score.weight"].shape == (1, 64)
    back = params_of(tmp_path / "hf")
    assert_same(back, params_of(run / "reward"))
    assert back["head"]["bias"] == np.float32(0.1)


@pytest.mark.slow
def test_a_run_keeps_the_family_that_it_began_as(tmp_path, hf, run):
    """Mistral and Llama share their function here: without its origin, the model would leave as a Llama."""
    config = json.loads((hf / "config.json").read_text())
    config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}
    del config["rope_scaling"]
    (hf / "config.json").write_text(json.dumps(config))
    convert(ConvertRequest(str(hf), str(tmp_path / "ours"), "jaxalign"))
    convert(ConvertRequest(str(tmp_path / "ours"), str(tmp_path / "back"), "hf"))
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config
    convert(
        ConvertRequest(str(tmp_path / "ours"), str(tmp_path / "llama"), "hf", architecture="LlamaForCausalLM")
    )
    assert find_model(str(tmp_path / "llama"), "x").config == find_model(str(hf), "x").config
    assert_same(params_of(tmp_path / "llama"), params_of(hf))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"to": "hf", "dtype": "int8"}, "--dtype=int8: write one of float32, bfloat16, float16"),
        ({"to": "jaxalign", "dtype": "bfloat16"}, "--dtype=bfloat16: .* with --to=hf only"),
        ({"to": "jaxalign", "architecture": "LlamaForCausalLM"}, "goes with --to=hf only"),
        ({"to": "hf", "max_shard_size": "5"}, "--max-shard-size=5: write a number of KB, MB or GB"),
        ({"to": "hf", "architecture": "LamaForCausalLM"}, "LamaForCausalLM.*LlamaForCausalLM"),
        ({"to": "hf", "architecture": "GPT2LMHeadModel"}, "GPT2LMHeadModel cannot express .*norm='rms'"),
    ],
)
def test_flags_that_cannot_work(tmp_path, run, flags, message):
    with pytest.raises(ConfigError, match=message):
        convert(ConvertRequest(str(run / "sft"), str(tmp_path / "out"), **flags))
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_folder_that_is_in_use_is_not_touched(tmp_path, run):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"--out=.* exists and is not an empty folder; name a new one"):
        convert(ConvertRequest(str(run / "sft"), str(tmp_path), "hf"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    (tmp_path / "empty").mkdir()
    convert(ConvertRequest(str(run / "sft"), str(tmp_path / "empty"), "hf"))
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_sources_that_are_not_there_are_named(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"--from='.*nothing'"):
        convert(ConvertRequest(str(tmp_path / "nothing"), str(tmp_path / "out"), "hf"))

    def no_network(*args, **kwargs):
        raise OSError("name or service not known")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    with pytest.raises(ConfigError, match=r"--from='some-org/model'.*name or service not known"):
        convert(ConvertRequest("some-org/model", str(tmp_path / "out"), "hf"))


def test_the_origin_is_what_the_files_say(hf):
    model = find_model(str(hf), "config.model.init_from")
    assert model.meta["hf_config"] == json.loads((hf / "config.json").read_text())
    assert model.meta["hf_dtype"] == "bfloat16" and not model.scalar
    assert model.meta["model"] == dataclasses.asdict(model.config)
    (hf / "config.json").write_text('{"architectures": ["NoSuchModel"]}')
    with pytest.raises(ConfigError, match=r"config\.model\.init_from='.*hf'.*NoSuchModel"):
        find_model(str(hf), "config.model.init_from")


def test_a_signal_leaves_nothing_half_written(tmp_path):
    with pytest.raises(SystemExit) as ended, _new_folder(tmp_path / "hf") as folder:
        (folder / "model.safetensors").write_bytes(b"a part")
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_one_left_is_removed_by_the_next(tmp_path):
    """But not what looks like it, or a folder that another one is writing."""
    target = tmp_path / "h[f]"
    with _new_folder(tmp_path / "other") as other:
        program = "import os, pathlib, sys; from jaxalign.storage import temporary_folder as make\n"
        program += "print(make(pathlib.Path(sys.argv[1])), flush=True); os.kill(os.getpid(), 9)"
        killed = subprocess.run([sys.executable, "-c", program, target], capture_output=True, text=True)
        left = pathlib.Path(killed.stdout.strip())
        assert left.is_dir() and left.parent.parent == tmp_path
        (tmp_path / ".h[f].mine").mkdir()
        with _new_folder(target) as folder:
            assert not left.parent.exists() and other.exists()
            (folder / "config.json").write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".h[f].mine", "h[f]", "other"]
    assert (target / "config.json").read_text() == "{}"
