"""transformers reads an exported reward model's scores at our token, whatever its padding was."""

import json
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from data import hf_models
from models import hf_files

from jaxalign.data import DataConfig, Records, dataset_from_records, load_tokenizer
from jaxalign.data.packing import collate
from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig
from jaxalign.models.scoring import segment_rewards
from jaxalign.training.saved_model import save_model
from jaxalign.verbs.convert import ConvertRequest, convert
from jaxalign.verbs.padding import set_padding

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

CHATS = [
    [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]
    for ask, say in (("Who asks?", "The fox."), ("A question", "A long answer to the question."))
]


def chat_rows(tokenizer):
    data = DataConfig(max_length=64, row_length=64, packing=False)
    rows = [{"messages": chat} for chat in CHATS]
    return dataset_from_records([Records(rows, "rows")], data, tokenizer, "sft").rows


def sequences(tokenizer):
    return [item.ids.tolist() for item in chat_rows(tokenizer).items]


def write(folder, name, pad):
    """The folder of a tokenizer whose padding is as `pad` says; it has the same pieces whichever that is."""
    model = hf_models.MODELS[name]()
    model.tokenizer.add_special_tokens(["<pad>"] if pad == "own" or name == "zephyr" else [])
    tokens = {key: value for key, value in model.config.items() if key != "pad_token"}
    if pad != "none":
        tokens["pad_token"] = {"eos": tokens["eos_token"], "own": "<pad>"}[pad]
    return hf_models.Model(model.tokenizer, model.template, model.terminator, tokens).write(folder)


@pytest.mark.parametrize("pad", ["eos", "none", "own"])
@pytest.mark.parametrize("name", sorted(hf_models.MODELS))
def test_no_sequence_ends_with_the_padding(tmp_path, name, pad):
    folder = write(tmp_path, name, pad)
    before = (folder / "tokenizer_config.json").read_bytes()
    tokenizer = load_tokenizer(folder)
    values, notice = set_padding(folder, {"pad_token_id": tokenizer.pad_id}, tokenizer, tokenizer.vocab_size)
    padding = values["pad_token_id"]
    assert padding not in (row[-1] for row in sequences(tokenizer))
    assert padding != tokenizer.eos_ids[0]  # with which text ends
    again = load_tokenizer(folder)
    assert again.pad_id == padding and sequences(again) == sequences(tokenizer)
    assert (notice is None) == ((folder / "tokenizer_config.json").read_bytes() == before)
    assert (notice is None) == (pad == "own")


def test_a_published_padding_that_ends_nothing_stays(tmp_path):
    """Qwen's <|endoftext|> also stops generation, but no conversation ends with it."""
    folder = hf_models.MODELS["qwen2.5"]().write(tmp_path, generation_config={"eos_token_id": [422, 420]})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_id == 420 and tokenizer.pad_id in tokenizer.eos_ids
    assert set_padding(folder, {"pad_token_id": 420}, tokenizer, 425) == ({"pad_token_id": 420}, None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers and torch
def test_a_padded_batch_has_our_scores(tmp_path):
    ours = params = None
    for pad in ("eos", "none", "own"):
        tokenizer = load_tokenizer(write(tmp_path / pad, "zephyr", pad))
        config = ModelConfig(vocab_size=tokenizer.vocab_size + 3, num_layers=1, max_length=64)
        params = params or hf_files.random_params(config, scalar=True)
        rows = chat_rows(tokenizer)
        batch = collate(rows, range(len(rows)))
        if ours is None:
            arrays = map(jnp.asarray, (batch.tokens, batch.positions, batch.segment_ids))
            ours = np.asarray(segment_rewards(params, config, *arrays, 1)[:, 0])
        save_model(tmp_path / pad / "model", params, config, tokenizer, scalar=True, meta={})
        out = tmp_path / f"{pad}-hf"
        notices = convert(ConvertRequest(str(tmp_path / pad / "model"), str(out), "hf"))
        written = json.loads((out / "config.json").read_text())["pad_token_id"]
        assert [f"pad_token_id={written}" in notice for notice in notices] == [True] * (pad != "own")

        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32)
        pieces = transformers.AutoTokenizer.from_pretrained(out)
        assert pieces.pad_token_id == written
        for side in ("right", "left"):
            pieces.padding_side = side
            inputs = pieces.pad({"input_ids": sequences(tokenizer)}, return_tensors="pt")
            assert inputs["attention_mask"].min() == 0
            with torch.no_grad():
                given = {key: inputs[key] for key in ("input_ids", "attention_mask")}
                scores = theirs.eval()(**given).logits[:, 0]
            np.testing.assert_allclose(scores.numpy(), ours, rtol=0, atol=1e-5)


def test_a_tokenizer_without_a_token_to_spare_is_refused(tmp_path):
    made = hf_models.byte_level(["</s>"])
    model = hf_models.Model(made, None, "", {"eos_token": "</s>", "pad_token": "</s>"})
    tokenizer = load_tokenizer(model.write(tmp_path))
    with pytest.raises(ConfigError, match=r"none is left for padding.*add one to the tokenizer"):
        set_padding(tmp_path, {}, tokenizer, tokenizer.vocab_size)
