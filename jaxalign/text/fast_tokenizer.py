"""Our SentencePiece tokenizers as `tokenizer.json`, which `transformers.AutoTokenizer` reads."""

import json
import pathlib
from typing import Any

import sentencepiece
import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model
import tokenizers
from tokenizers import decoders, models, normalizers, processors

from jaxalign.text.templates import BUILTIN, TEMPLATE_NAME
from jaxalign.text.tokenizer import CONTROL, MODEL_NAME

_SPACE_MARK = "\u2581"
_PROBES = (
    "The quick brown fox, 3.14; it's  two   spaces\n\tand lines.\r\n ",
    " leading and trailing ",
    "Zażółć gęślą jaźń. ﬁ № ½ Å Å が が",
    "日本語の文章、한국어 текст 😀👩‍👩‍👧",
    "aaaaaaaa bbbb abababab !!!!???? ----==== 0000 1234567890",
    "\x00\x01\x7f\u200b\ufeff\ue000",
)


def write_fast_tokenizer(folder: pathlib.Path, max_length: int) -> str | None:
    """Writes tokenizer.json, tokenizer_config.json and the built-in chat template beside tokenizer.model.

    Texts that hold the character U+2581 itself are encoded as if it were a space, and names of control tokens
    in a text become these tokens: files of this kind cannot say otherwise.

    Returns:
      None, or why it wrote nothing: the model is not of the kind that `train_sentencepiece` makes.
    """
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / MODEL_NAME))
    # Protobuf makes this class when it is imported, where no type checker sees it.
    model_proto: Any = getattr(sentencepiece_model, "ModelProto")  # noqa: B009
    proto = model_proto.FromString(model.serialized_model_proto())
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type != trainer.BPE:
        return "it is not a BPE model"
    if normalizer.name != "identity" or normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces:
        return "it changes texts before it cuts them"
    if tuple(piece.piece for piece in proto.pieces if piece.type == piece.CONTROL) != CONTROL:
        return f"its control tokens are not {', '.join(CONTROL)}"
    fast = _convert(proto, model.unk_id(), model.bos_id())
    if any(fast.encode(text, add_special_tokens=False).ids != model.encode(text) for text in _PROBES):
        return "its merges cannot be told from its pieces"
    fast.save(str(folder / "tokenizer.json"))
    pad, bos, eos = CONTROL[:3]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": model.id_to_piece(model.unk_id()),
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    if not (folder / TEMPLATE_NAME).exists():  # else the model was trained on a template of its own
        (folder / TEMPLATE_NAME).write_text(BUILTIN)
    return None


def _convert(proto: Any, unk_id: int, bos_id: int) -> tokenizers.Tokenizer:
    vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    texts = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(texts, key=lambda piece: -texts[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in texts and piece[cut:] in texts
    ]
    unknown = proto.pieces[unk_id].piece
    fast = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    fast.normalizer = normalizers.Replace(" ", _SPACE_MARK)
    fast.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    bos = proto.pieces[bos_id].piece
    fast.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, bos_id)]
    )
    fast.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in CONTROL])
    return fast
