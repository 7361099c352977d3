"""What both sides of a comparison do: the same rows, tokenizer and weights, as files that both read.

Texts are made of 4,000 words of one token each, so that lengths are what they are asked to be, and any machine can make
them. Natural lengths are those of short reviews: prompts of 2 to 8 tokens, answers of 26 on average, few above 100.
"""

import json
import pathlib
import random
import shutil
from typing import Any

import jax

from jaxalign.models import init_head, init_params
from jaxalign.models.hf.config import config_from_hf
from jaxalign.text.tokenizer import load_tokenizer
from jaxalign.training.saved_model import save_model
from jaxalign.verbs.convert import ConvertRequest, convert

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
VOCABULARY = 4096
ROWS = 2048
LONGEST = 256  # tokens of a sequence
PROMPT = 8  # of a prompt
LENGTHS = ("natural", "dense")
# What config.json of a Llama says.
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_work(
    folder: pathlib.Path, lengths: str, shape: dict | None = None, *, longest: int = LONGEST
) -> None:
    """Writes tokenizer, rows and the models that training starts from into `folder`.

    `start` is a language model and `scorer` a reward model on it, both Hugging Face folders with random weights.
    sft.jsonl has {prompt, completion}, preference.jsonl {prompt, chosen, rejected}, unpaired.jsonl {prompt, completion,
    label}, prompts.jsonl {prompt}.

    Args:
      lengths: "natural", or "dense": every sequence has exactly `longest` tokens.
      shape: changes to `SHAPE`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    read = load_tokenizer(str(folder / "tokenizer"))
    config = config_from_hf(SHAPE | (shape or {}), "SHAPE")
    params = init_params(jax.random.key(0), config)
    head = init_head(jax.random.key(1), config)
    scorer = {"transformer": params, "head": head}
    for name, each, scalar in (("start", params, False), ("scorer", scorer, True)):
        save_model(folder / "made" / name, each, config, read, scalar=scalar, meta={})
        convert(ConvertRequest(from_=str(folder / "made" / name), out=str(folder / name), to="hf"))
    shutil.rmtree(folder / "made")
    draw = random.Random(0)
    pairs = [_pair(draw, lengths, longest) for _ in range(ROWS)]
    rows = {
        "sft": [{"prompt": x["prompt"], "completion": x["chosen"]} for x in pairs],
        "preference": pairs,
        "unpaired": [
            {"prompt": x["prompt"], "completion": x[side], "label": side == "chosen"}
            for i, x in enumerate(pairs)
            for side in (("chosen", "rejected")[i % 2],)
        ],
        "prompts": [{"prompt": x["prompt"]} for x in pairs],
    }
    for name, some in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in some)
        (folder / f"{name}.jsonl").write_text(text)
        first = "".join(json.dumps(row) + "\n" for row in some[:32])
        (folder / f"{name}_first.jsonl").write_text(first)  # those on which losses are compared


def make_tokenizer() -> Any:
    """A word for every token; every word of a text has a space before it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"▁w{i}" for i in range(VOCABULARY - len(SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _pair(draw: random.Random, lengths: str, longest: int) -> dict[str, str]:
    # A sequence ends with <eos>; some formats begin with <bos>.
    prompt = draw.randint(2, PROMPT)
    room = longest - 2 - prompt

    def answer() -> str:
        count = room if lengths == "dense" else min(room, max(2, round(draw.lognormvariate(3.1, 0.6))))
        return _words(draw, count)

    return {"prompt": _words(draw, prompt), "chosen": answer(), "rejected": answer()}


def _words(draw: random.Random, count: int) -> str:
    # Some words are frequent, as in a language: the numbers of words fall off as 1 / rank.
    size = VOCABULARY - len(SPECIAL)
    return "".join(f" w{int(size ** draw.random()) - 1}" for _ in range(count))
