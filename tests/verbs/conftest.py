"""Small untrained models with a tokenizer, in folders as runs leave them, and a file of prompts."""

import json
import pathlib

import jax
import pytest

from jaxalign.data import train_sentencepiece
from jaxalign.models import ModelConfig, init_params
from jaxalign.training.saved_model import save_model

TEXTS = [
    f"the {a} {b} asks who wrote this {c}." for a in ("old", "red") for b in "ox cat".split() for c in "abc"
]
PROMPTS = [{"prompt": f"who is the {name}"} for name in ("ox", "red cat", "old old ox", "cat", "one")]


def save(folder: pathlib.Path, tokenizer, *, seed: int = 0, scalar: bool = False) -> str:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, embed_dim=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=32,
        init_std=0.3,
    )  # fmt: skip
    params = init_params(jax.random.key(seed), config, scalar=scalar)
    save_model(folder, params, config, tokenizer, scalar=scalar, meta={})
    return str(folder)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_sentencepiece(TEXTS, folder / "t.model", 290)
    save(folder / "model", tokenizer)
    save(folder / "other", tokenizer, seed=2)
    save(folder / "reward", tokenizer, seed=1, scalar=True)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return folder
