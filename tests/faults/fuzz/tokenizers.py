"""Tokenizer folders of Hugging Face's form."""

import functools
import json
from pathlib import Path
from typing import Any

from tests.faults.fuzz.cases import STRANGE_TEXTS, Random, Surface, as_json, chance, mutated
from tests.faults.fuzz.templates import SOUND, make_template

_END = "<|end|>"
_CONFIG: dict[str, Any] = {
    "bos_token": "<s>",
    "eos_token": {"content": _END, "lstrip": False, "__type": "AddedToken"},
    "pad_token": None,
    "chat_template": SOUND,
    "additional_special_tokens": ["<|user|>", "<|assistant|>"],
    "added_tokens_decoder": {"0": {"content": "<s>", "special": True, "lstrip": False, "normalized": False}},
    "tokenizer_class": "PreTrainedTokenizerFast",
    "add_bos_token": True,
}
_FILES: dict[str, Any] = {
    "tokenizer_config.json": _CONFIG,
    "config.json": {"bos_token_id": 0, "eos_token_id": [1], "pad_token_id": 0, "vocab_size": 300},
    "generation_config.json": {"eos_token_id": [1], "temperature": 0.6},
    "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": _END}},
    "chat_template.json": {"chat_template": SOUND},
}
_LIKELY = (
    *STRANGE_TEXTS,
    0,
    1,
    -1,
    299,
    300,
    10**12,
    [0, 1],
    ["<s>"],
    {"content": "<s>"},
    {"default": SOUND},
    [{"name": "default", "template": SOUND}],
    "<s>",
    _END,
)


@functools.cache
def _sound() -> dict[str, Any]:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<s>", _END, "<|user|>", "<|assistant|>", *letters, "th", "the"]
    made = tokenizers.Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, [("t", "h"), ("th", "e")])
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(
        [tokenizers.AddedToken(name, special=True, normalized=False) for name in names[:4]]
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return json.loads(made.to_str())


def write(rng: Random, folder: Path) -> Path:
    model = _sound()
    if chance(rng, 0.4):
        small = {key: value for key, value in model.items() if key != "model"}
        small = mutated(rng, small, more=_LIKELY)
        model = {**small, "model": model["model"]} if isinstance(small, dict) else small
        if isinstance(model, dict) and chance(rng, 0.2):
            model["model"] = mutated(
                rng, {**model["model"], "vocab": {"a": 0, "b": 1}, "merges": []}, more=_LIKELY
            )
    (folder / "tokenizer.json").write_bytes(
        as_json(rng, model) if chance(rng, 0.1) else json.dumps(model).encode()
    )
    for name, values in _FILES.items():
        if chance(rng, 0.5 if name != "tokenizer_config.json" else 0.1):
            continue
        values = mutated(rng, values, more=_LIKELY) if chance(rng, 0.5) else values
        (folder / name).write_bytes(as_json(rng, values) if chance(rng, 0.2) else json.dumps(values).encode())
    if chance(rng, 0.15):
        (folder / "chat_template.jinja").write_bytes(make_template(rng))
    if chance(rng, 0.02):
        (folder / "config.json").unlink(missing_ok=True)
        (folder / "config.json").mkdir()
    return folder


def read(folder: Path) -> None:
    from jaxalign.text.tokenizer import load_tokenizer

    made = load_tokenizer(folder)
    ids = made.encode("the fox\n\u65e5 <s> " + _END)
    made.decode(ids)
    made.decode_answer(ids)
    made.encode_pieces(["the", made.eos_ids[0], " fox"])


def prepare() -> None:
    import jaxalign.text.tokenizer  # noqa: F401

    _sound()


SURFACE = Surface(14, write, read, prepare)
