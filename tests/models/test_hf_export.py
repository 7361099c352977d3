"""Our parameters as Hugging Face folders: the same bits back, and the same function in transformers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import CheckpointError
from jaxalign.models import (
    ModelConfig,
    abstract_params,
    hidden_states,
    scalar_head,
    unembedding,
)
from jaxalign.models.config import RUNTIME_KEYS, best_on
from jaxalign.models.hf.config import architecture_for, classifier_of, config_to_hf
from jaxalign.models.hf.exporter import write_folder as export
from jaxalign.models.hf.importer import by_path, load_folder, open_folder
from jaxalign.parallel import MeshConfig, make_mesh, use_mesh

from . import hf_files

TINY = ModelConfig(vocab_size=96, num_layers=3, num_kv_heads=2, max_length=64)


def round_trip(folder, out, sizes, dtype, limit=10**9):
    devices = jax.devices()[: sizes.data * sizes.fsdp * sizes.tensor]
    out.mkdir()
    with use_mesh(make_mesh(sizes, devices)) as mesh:
        model = open_folder(folder)
        params = load_folder(model, abstract_params(model.config, mesh, scalar=model.scalar))
        leaf = by_path(params).__getitem__
        export(
            out,
            leaf,
            model.config,
            model.architecture,
            scalar=model.scalar,
            dtype=dtype,
            max_shard_size=limit,
        )
    return hf_files.read_tensors(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        ("float32", MeshConfig(data=1)),
        ("bfloat16", MeshConfig(data=1)),
        ("float16", MeshConfig(data=1)),
        ("bfloat16", MeshConfig(data=2, fsdp=2, tensor=2)),
    ],
)
def test_what_comes_in_goes_out_bit_for_bit(tmp_path, dtype, sizes):
    config = hf_files.llama_config()
    tensors = hf_files.make_tensors(config, jnp.dtype(dtype))
    folder = hf_files.write_folder(tmp_path / "hf", config, tensors)
    hf_files.assert_same_tensors(round_trip(folder, tmp_path / "out", sizes, dtype), tensors)


def test_shards_keep_to_their_size_and_the_index_names_each_tensor(tmp_path):
    config = hf_files.llama_config(tie_word_embeddings=True)
    tensors = hf_files.make_tensors(config)
    folder, out = hf_files.write_folder(tmp_path / "hf", config, tensors), tmp_path / "out"
    limit = 10_000  # two of the larger matrices do not fit, nor do all small ones
    hf_files.assert_same_tensors(round_trip(folder, out, MeshConfig(data=1), "float32", limit), tensors)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    for shard in shards:
        inside = [name for name, place in index["weight_map"].items() if place == shard]
        assert sum(tensors[name].nbytes for name in inside) <= limit
    assert load_again(out, folder) == load_again(folder, folder)


def load_again(folder, config_from):
    (folder / "config.json").write_text((config_from / "config.json").read_text())
    with use_mesh(make_mesh(MeshConfig(), jax.devices()[:1])) as mesh:
        model = open_folder(folder)
        params = load_folder(model, abstract_params(model.config, mesh))
    return {path: np.asarray(x).tobytes() for path, x in by_path(params).items()}


def test_a_number_too_large_for_float16_is_refused(tmp_path):
    params = hf_files.random_params(TINY)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[3].set(1e5)
    args = {"scalar": False, "max_shard_size": 10**9}
    with pytest.raises(
        CheckpointError, match=r"model\.norm\.weight holds 100000, too large for float16.*--dtype"
    ):
        export(tmp_path, by_path(params).__getitem__, TINY, "LlamaForCausalLM", dtype="float16", **args)


def tokens_and_positions():
    tokens = np.random.default_rng(0).integers(3, TINY.vocab_size, (2, 20)).astype(np.int32)
    positions = np.broadcast_to(np.arange(20, dtype=np.int32), tokens.shape)
    return tokens, positions, np.ones_like(tokens)


def export_here(folder, params, config, scalar):
    name = architecture_for(config)
    name = classifier_of(name) if scalar else name
    folder.mkdir()
    values = config_to_hf(config, name) | {"pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(values))
    leaf = by_path(params).__getitem__
    export(folder, leaf, config, name, scalar=scalar, dtype="float32", max_shard_size=50_000)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.filterwarnings("ignore")  # of transformers and torch
def test_transformers_computes_the_same_logits(tmp_path, tie):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = ModelConfig(**{**vars(TINY), "tie_embeddings": tie})
    params = hf_files.random_params(config)
    folder = export_here(tmp_path / "hf", params, config, scalar=False)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens, positions, segments = tokens_and_positions()
    hidden, _ = hidden_states(params, config, tokens, positions, segments)
    ours = np.einsum("btd,vd->btv", hidden, unembedding(params, config))
    with torch.no_grad():
        logits = theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-5 * max(1.0, np.abs(logits).max()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_transformers_gives_the_same_scores_and_they_come_back(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    params = hf_files.random_params(TINY, scalar=True)
    folder = export_here(tmp_path / "hf", params, TINY, scalar=True)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    tokens, positions, segments = tokens_and_positions()
    hidden, _ = hidden_states(params["transformer"], TINY, tokens, positions, segments)
    with torch.no_grad():
        scores = theirs(torch.tensor(tokens, dtype=torch.long)).logits[:, 0].numpy()
    np.testing.assert_allclose(scalar_head(params["head"], hidden)[:, -1], scores, atol=1e-5)

    with use_mesh(make_mesh(MeshConfig(), jax.devices()[:1])) as mesh:
        model = open_folder(folder)
        assert model.scalar
        back = load_folder(model, abstract_params(model.config, mesh, scalar=True))
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert back["head"]["bias"] == 0.0


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_how_a_model_is_computed_is_not_exported(platform):
    """Whatever a platform or a config chooses of it, a model is what it was."""
    chosen = best_on(platform, TINY.num_layers, TINY.head_dim)
    others = {"dtype": "bfloat16", "remat": "full", "attention_block": 1024}
    others |= {"router_balance_coef": 0.5, "router_z_coef": 0.5}
    assert {*chosen, *others} == set(RUNTIME_KEYS)
    computed = dataclasses.replace(TINY, **chosen, **others)
    assert config_to_hf(computed, architecture_for(computed)) == config_to_hf(TINY, architecture_for(TINY))
