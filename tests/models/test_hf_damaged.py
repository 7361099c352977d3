"""Files of models that were damaged, or made to do harm, are refused by file and key, quickly."""

import json
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.models import ModelConfig, abstract_params
from jaxalign.models.hf.importer import load_folder, open_folder
from jaxalign.models.hf.safetensors import find_tensors, read_header
from jaxalign.parallel import MeshConfig, make_mesh, use_mesh
from tests.models.hf_files import llama_config, make_tensors, write_folder


def header(path, text, data=b""):
    text = text.encode() if isinstance(text, str) else text
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(**changes):
    return json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "recursion"),
        ('{"a": ' + "9" * 5_000 + "}", "digits"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ("[]", "it is a list, not an object"),
        ('{"a": 1e999}', "'a': inf is no entry with a dtype"),
        (entry(dtype=5), "no entry with a dtype"),
        (entry(shape=[1.5, 2]), r"shape \[1.5, 2\] and data_offsets \[0, 8\] must be lists of sizes"),
        (entry(shape=[-1, -2]), "must be lists of sizes"),
        (entry(shape=2), "must be lists of sizes"),
        (entry(data_offsets=[0.0, 8.0]), "must be lists of sizes"),
        (entry(data_offsets=[0, 8, 8]), "must be lists of sizes"),
        (entry(shape=[10**30]), "must be lists of sizes"),
        (entry(shape=[2**40, 2**40]), "8 bytes for F32"),
    ],
)
def test_headers(tmp_path, text, reason):
    file = header(tmp_path / "model.safetensors", text, bytes(8))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: its header is not .*{reason}.*again"):
        read_header(file)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[" * 100_000, "not an index of shards .*recursion"),
        ("[]", "its weight_map must give the file of each tensor"),
        ('{"weight_map": 1e999}', "its weight_map must"),
        ('{"weight_map": {"a": ["b"]}}', "its weight_map must"),
        ('{"weight_map": {"a": "b", "a": "c"}}', "'a' stands twice"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', "a is in ../secret.safetensors, which is not in"),
        ('{"weight_map": {"a": "' + "x" * 5_000 + '"}}', "a is in x{200}, which is not in"),
    ],
)
def test_indices(tmp_path, index, message):
    header(tmp_path / "secret.safetensors", entry(), bytes(8))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=rf"index\.json: .*{message}"):
        find_tensors(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 must be at least 1 and at most 4096"),
        ({"vocab_size": 10**12}, "vocab_size=1000000000000 must be at least 1 and at most 16777216"),
        ({"hidden_size": 10**9}, "hidden_size=1000000000 must be at least 1 and at most 4194304"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 must be at least 1"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps=1000.* is larger than any number of that kind"),
        ({"architectures": 5}, "architectures=5, model_type='llama'"),
        ({"architectures": [["LlamaForCausalLM"]]}, "architectures=.*write the names of classes"),
        ({"hidden_act": ["silu"]}, r"hidden_act=\['silu'\] must be of type str"),
        ({"rope_scaling": "yarn"}, "rope_scaling='yarn' must be of type dict"),
    ],
)
def test_numbers_and_types_of_config_json(tmp_path, changes, message):
    config = llama_config()
    folder = write_folder(tmp_path / "hf", config, make_tensors(config))
    (folder / "config.json").write_text(json.dumps(config | changes))
    begun = time.process_time()
    with pytest.raises(ConfigError, match=rf"config\.json: {message}"):
        open_folder(folder)
    assert time.process_time() - begun < 1


def test_layers_that_only_the_types_tell(tmp_path):
    config = llama_config() | {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "layer_types": [[1], 2],
    }
    folder = write_folder(tmp_path / "hf", config, make_tensors(llama_config()))
    with pytest.raises(
        ConfigError, match=r"layer_types=\[\[1\], 2\] must name one of sliding_attention, full_att"
    ):
        open_folder(folder)


def test_limits_of_a_config_of_ours():
    with pytest.raises(
        ConfigError, match=r"config\.model\.num_layers=5000 must be at least 1 and at most 4096"
    ):
        ModelConfig(num_layers=5_000)
    with pytest.raises(
        ConfigError, match=r"num_experts=16384 in each of num_layers=64 layers are more than 524,288"
    ):
        ModelConfig(num_layers=64, num_experts=16_384)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, value):
    config = llama_config()
    tensors = make_tensors(config)
    folder = write_folder(tmp_path / "hf", config, tensors)
    name = "model.layers.1.mlp.up_proj.weight"

    def load():
        with use_mesh(make_mesh(MeshConfig(), jax.devices()[:1])) as mesh:
            model = open_folder(folder)
            return load_folder(model, abstract_params(model.config, mesh))

    load()
    tensors[name] = tensors[name].copy()
    tensors[name][3, 5] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor {name} holds NaN or infinity"):
        load()
    # Large numbers whose sum runs over are none.
    tensors[name][...] = 3e38
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load()
