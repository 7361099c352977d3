"""The padding token of an exported reward model: transformers scores the last token that is not this one.

Where it also ends sequences (many models have none of their own, and "pad = EOS" is common advice), transformers
would take the end for padding and read the score one token too early. Then another token has to be named.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from jaxalign.data.encode import answer_ending
from jaxalign.errors import ConfigError
from jaxalign.storage import write_whole
from jaxalign.text.hf_files import CONFIG_NAME as _CONFIG
from jaxalign.text.hf_files import JSON_NAME
from jaxalign.text.tokenizer import Tokenizer, unknown_id


def set_padding(
    folder: pathlib.Path, values: Mapping[str, Any], tokenizer: Tokenizer, vocab_size: int
) -> tuple[dict[str, Any], str | None]:
    """Gives a folder with a reward model's tokenizer a padding token that ends no sequence.

    Args:
      values: the config.json that is to be written.
      vocab_size: rows of the model's embedding.

    Returns:
      `values` with the id of that token, and what somebody should know where it is not the one it was.

    Raises:
      ConfigError: every token that could stand for padding ends sequences.
    """
    before = values.get("pad_token_id")
    ends = _ends(tokenizer)
    found = [each for each in _candidates(tokenizer, before) if each[1] < vocab_size and each[1] not in ends]
    if not found:
        raise ConfigError(
            "every control token of this reward model's tokenizer ends sequences, so that none is left for padding, "
            "and transformers would read scores at the wrong token; add one to the tokenizer "
            '(tokenizer.add_special_tokens({"pad_token": "<pad>"}), model.resize_token_embeddings) and train again'
        )
    name, index = found[0]
    changed = _name_in_files(folder, name)
    notice = None
    if changed or before not in (None, index):
        reason = f"{before} ends sequences" if before in ends else "the model names none, or two that differ"
        notice = (
            f"padding is {name} now, pad_token_id={index}, in config.json and {_CONFIG}: {reason}, and transformers "
            "reads a score at the last token that is not padding"
        )
    return {**values, "pad_token_id": index}, notice


def _ends(tokenizer: Tokenizer) -> set[int]:
    """The tokens after which nothing follows: of text, and of a conversation."""
    text = tokenizer.eos_ids[0]
    try:
        return {text, answer_ending(("user",), tokenizer, None)[-1]}
    except ConfigError:  # it has no chat format
        return {text}


def _candidates(tokenizer: Tokenizer, before: Any) -> Iterator[tuple[str, int]]:
    """Names and ids of tokens that could be padding, the most usual first."""
    names = {index: name for name, index in tokenizer.control_ids.items()}
    named, unknown = tokenizer.special_tokens.get("pad_token"), tokenizer.special_tokens.get("unk_token")
    unk = unknown_id(tokenizer)
    if unknown and unk is not None:
        names.setdefault(unk, unknown)
    ids = {name: index for index, name in names.items()}
    usual = [ids.get(named or ""), before, tokenizer.pad_id]
    padding = [index for index, name in names.items() if "pad" in name.lower()]
    spare = [index for index, name in names.items() if "reserved" in name.lower() or "unused" in name.lower()]
    for index in (*usual, *padding, unk, *spare, *names):
        if index in names:  # what has no name, no tokenizer can pad with
            yield names[index], index


def _name_in_files(folder: pathlib.Path, name: str) -> bool:
    """Writes the padding token where the files of a Hugging Face tokenizer name another or none; says if it did."""
    changed = False
    for file in (folder / _CONFIG, folder / "special_tokens_map.json"):
        values = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        pad = values.get("pad_token")
        needed = pad or (file.name == _CONFIG and (folder / JSON_NAME).is_file())
        if needed and (pad["content"] if isinstance(pad, dict) else pad) != name:
            text = json.dumps({**values, "pad_token": name}, indent=2, ensure_ascii=False) + "\n"
            write_whole(file, text.encode())
            changed = True
    return changed
