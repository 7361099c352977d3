"""Records to token sequences and supervision masks.

Plain text:          <bos> text <eos>                all but <bos> supervised
Prompt, completion:  <bos> prompt | completion <eos> the completion and <eos> supervised
Conversations:       see `jaxalign.text.chat`; as pretraining text all supervised but <bos>

Prompt and completion are tokenised apart and their ids concatenated, so that training sees the very prompt
ids sampling starts from. The first token of a sequence is never a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

import jinja2
import numpy as np

from jaxalign.data.records import (
    Chat,
    Message,
    Preference,
    Prompt,
    PromptCompletion,
    Ranking,
    Text,
    Transcript,
    Turns,
)
from jaxalign.errors import DataError
from jaxalign.text.chat import Segment, check_decodes, check_shown, render_chat
from jaxalign.text.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Example:
    """One sequence: `ids` int32 [N], `mask` float32 [N] with 1 on supervised targets.

    `ending`, of a prompt, is what ends an answer to it in training: the stop token and what the format writes after it.
    """

    ids: np.ndarray
    mask: np.ndarray
    row: int = -1
    ending: tuple[int, ...] = ()

    @property
    def prompt_length(self) -> int:
        """Tokens before the first supervised one; the whole length if none is."""
        return int(np.argmax(self.mask)) if self.mask.any() else len(self.ids)


@dataclass(frozen=True, eq=False)
class PairExample:
    """Sequences that share a prompt and a row; `pairs` holds (preferred, other) indices into `examples`."""

    examples: tuple[Example, ...]
    pairs: tuple[tuple[int, int], ...]
    margin: float = 0.0
    row: int = -1

    @property
    def weight(self) -> float:
        """Weight of each pair, 1 / (K choose 2) for K sequences (arXiv 2203.02155, equation 1)."""
        return 2.0 / (len(self.examples) * (len(self.examples) - 1))


def encode_text(
    record: Text | Transcript, tokenizer: Tokenizer, max_length: int, template: jinja2.Template | None = None
) -> list[Example]:
    """Encode text or a whole conversation for pretraining, split into sequences of at most `max_length` tokens.

    A further sequence begins with the last token of the one before it, as context that is not supervised:
    every token of the record but its first is a target exactly once. BOS opens only the first sequence, EOS
    closes only the last.
    """
    if isinstance(record, Transcript):
        ids = _chat(record.messages, tokenizer, template).ids
    else:
        body = tokenizer.encode(record.text)
        check_decodes(body, record.text, tokenizer, "the text")
        ids = _int32([*_bos(tokenizer), *body, tokenizer.eos_ids[0]])
    starts = range(0, max(len(ids) - 1, 1), max_length - 1)
    return [_example([(ids[start : start + max_length], True)]) for start in starts]


def encode_completion(
    record: PromptCompletion | Chat, tokenizer: Tokenizer, template: jinja2.Template | None = None
) -> Example:
    """Encode a supervised completion, or a conversation with its assistant turns supervised."""
    if isinstance(record, Chat):
        return _chat(record.messages, tokenizer, template)
    return _continuation(record.prompt, record.completion, tokenizer, template)


def encode_preference(
    record: Preference | Ranking, tokenizer: Tokenizer, template: jinja2.Template | None = None
) -> PairExample:
    """Encode every response after its prompt, chosen before rejected; ties of a ranking make no pair."""
    if isinstance(record, Preference):
        responses, pairs, margin = (record.chosen, record.rejected), ((0, 1),), record.margin
    else:
        responses, margin = record.responses, 0.0
        scores = record.scores
        pairs = tuple(
            (i, j) if scores[i] > scores[j] else (j, i)
            for i, j in combinations(range(len(scores)), 2)
            if scores[i] != scores[j]
        )
    examples = tuple(_continuation(record.prompt, response, tokenizer, template) for response in responses)
    return PairExample(examples, pairs, margin)


def encode_prompt(record: Prompt, tokenizer: Tokenizer, template: jinja2.Template | None = None) -> Example:
    """Encode a prompt up to where the reply begins; nothing is supervised."""
    if isinstance(record.prompt, str):
        prompt = _example([([*_bos(tokenizer), *tokenizer.encode(record.prompt)], False)])
        return replace(prompt, ending=tokenizer.eos_ids[:1])
    prompt = _chat(record.prompt, tokenizer, template, add_generation_prompt=True)
    return replace(prompt, ending=answer_ending(tuple(m.role for m in record.prompt), tokenizer, template))


@lru_cache(maxsize=64)
def answer_ending(
    roles: tuple[str, ...], tokenizer: Tokenizer, template: jinja2.Template | None
) -> tuple[int, ...]:
    """What a chat format writes after the answer to a conversation of these roles, from the stop token on.

    Many write a line break after it: `<|im_end|>\\n`. Nothing learns to predict that, but a sequence ends there.
    """
    probe = (*(Message(role, "question") for role in roles), Message("assistant", "answer"))
    try:
        segments = render_chat(probe, tokenizer, template, first_supervised=len(roles))
    except DataError:  # a format without a stop token, for instance: an answer in it can only be cut off
        return tokenizer.eos_ids[:1]
    last = max(index for index, segment in enumerate(segments) if segment.supervised)
    return (segments[last].ids[-1], *(token for segment in segments[last + 1 :] for token in segment.ids))


def members(item: Example | PairExample) -> tuple[Example, ...]:
    """The sequences of an item, in segment order."""
    return (item,) if isinstance(item, Example) else item.examples


def _continuation(
    prompt: Turns, completion: Turns, tokenizer: Tokenizer, template: jinja2.Template | None
) -> Example:
    if isinstance(prompt, str):
        head, body = tokenizer.encode_pieces([prompt, completion])
        check_decodes(body, completion, tokenizer, "the answer")
        return _example([([*_bos(tokenizer), *head], False), ([*body, tokenizer.eos_ids[0]], True)])
    return _chat(prompt + completion, tokenizer, template, first_supervised=len(prompt))


def _chat(
    messages: tuple[Message, ...], tokenizer: Tokenizer, template: jinja2.Template | None, **options: Any
) -> Example:
    """A conversation as `render_chat` renders it, with nothing of it lost."""
    segments: list[Segment] = render_chat(messages, tokenizer, template, **options)
    example = _example([(segment.ids, segment.supervised) for segment in segments])
    check_shown(example.ids.tolist(), messages, tokenizer, template)
    return example


def _example(parts: list[tuple[Sequence[int], bool]]) -> Example:
    ids = _int32([token for part, _ in parts for token in part])
    mask = np.repeat(np.float32([supervised for _, supervised in parts]), [len(part) for part, _ in parts])
    mask[:1] = 0.0  # nothing comes before the first token from which to predict it
    return Example(ids, mask)


def _int32(ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, np.int32)


def _bos(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]
