"""Tiny Hugging Face folders, made with the safetensors library alone."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxalign.models import ModelConfig, Params, init_params

V, D, F, H, K, L = 64, 32, 48, 4, 2, 3


def llama_config(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": V,
        "hidden_size": D,
        "intermediate_size": F,
        "num_attention_heads": H,
        "num_key_value_heads": K,
        "num_hidden_layers": L,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    } | changes


def llama_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors, as transformers has them."""
    D, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    small = D // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for i in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm": (D,),
            "self_attn.q_proj": (D, D),
            "self_attn.k_proj": (small, D),
            "self_attn.v_proj": (small, D),
            "self_attn.o_proj": (D, D),
            "post_attention_layernorm": (D,),
            "mlp.gate_proj": (F, D),
            "mlp.up_proj": (F, D),
            "mlp.down_proj": (D, F),
        }
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (D,)
    if config["architectures"] == ["LlamaForSequenceClassification"]:
        shapes["score.weight"] = (1, D)
    elif not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, D)
    return shapes


def make_tensors(config: Mapping[str, Any], dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in llama_shapes(config).items()}


def random_params(config: ModelConfig, *, scalar: bool = False) -> Params:
    """Parameters of which no two are alike; a score head's bias is 0."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda key: init_params(key, config, scalar=scalar), jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape) * (x.ndim > 0), x.dtype), shapes)


def write_folder(
    folder: pathlib.Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], shards: int = 1
) -> pathlib.Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = list(tensors)
    places = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        part = {name: tensors[name] for name in names if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Every tensor, as the safetensors library reads it."""
    out = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "numpy") as opened:
            assert opened.metadata()["format"] == "pt"
            out |= {name: opened.get_tensor(name) for name in opened.keys()}
    return out


def assert_same_tensors(got: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        assert got[name].tobytes() == tensor.tobytes(), name
