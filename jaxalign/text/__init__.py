"""Text and tokens: tokenizers, chat templates, and conversations rendered with what is supervised of them."""

from jaxalign.text.tokenizer import Tokenizer, load_tokenizer, train_sentencepiece

__all__ = ["Tokenizer", "load_tokenizer", "train_sentencepiece"]
