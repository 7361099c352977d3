"""Records to token sequences and supervision masks, with every length decision noted.

Plain text:          <bos> text <eos>                all but <bos> supervised
Prompt, completion:  <bos> prompt | completion <eos> the completion and <eos> supervised
Conversations:       see `jaxalign.text.chat`; as pretraining text all supervised but <bos>

Prompt and completion are tokenised apart and their ids concatenated, so that training sees the very prompt
ids sampling starts from. The first token of a sequence is never a target. Of plain text that a chat template has been
applied to already see `jaxalign.text.rendered`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from jaxalign.data.invalid import Invalid, MustFit, Noted
from jaxalign.data.items import Item, dropped, join
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
    Unpaired,
    account_for,
)
from jaxalign.data.sources import Dropped, Records
from jaxalign.errors import ConfigError, DataError, shorten
from jaxalign.text.chat import LEARN, render_chat
from jaxalign.text.rendered import CONTROL_TOKENS, check_plain, read_rendered, spelled
from jaxalign.text.shown import check_decodes, check_shown
from jaxalign.text.templates import ChatTemplate
from jaxalign.text.token_roles import answer_tokens
from jaxalign.text.tokenizer import Tokenizer

OVERLONG = ("error", "drop", "truncate")


@dataclass(frozen=True)
class Reading:
    """How records become tokens, beside tokenizer and template."""

    learn: str = LEARN[0]  # of a conversation, all answers or the last one
    control_tokens: str = CONTROL_TOKENS[0]  # what the names of control tokens in plain texts are


DEFAULT = Reading()


def encode_records(
    records: Records,
    kind: str,
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    *,
    max_length: int,
    overlong: str = "drop",
    group_length: int | None = None,
    first_row: int = 0,
    invalid: Invalid | Noted | None = None,
    reading: Reading = DEFAULT,
) -> list[list[Item]]:
    """Check and encode every record of a source; of one that is dropped there is one item that says why.

    Args:
      kind: see `parse_record`.
      max_length: most tokens of one sequence. Longer text is split, other records meet `overlong`.
      overlong: "error" raises, "drop" leaves the record out, "truncate" cuts the end of the completion and
        appends nothing. A prompt is never cut: one that leaves no room for a completion is dropped.
      group_length: most tokens of a pair or ranking together; a longer one is never cut but dropped.
      first_row: number given to the first record, where several sources make up one dataset.
      invalid: takes note of records that cannot be used, which are then dropped; None: the first of them raises.

    Raises:
      ConfigError: a length or `overlong` cannot work.
      DataError: a record cannot be used; names the row.
    """
    if overlong not in OVERLONG:
        raise ConfigError(f"config.data.overlong={overlong!r}: write one of {', '.join(OVERLONG)}")
    if max_length < 2:
        raise ConfigError(f"config.data.max_length={max_length}: must be at least 2, a context and a target")
    encoded = []
    for index in range(len(records)):
        number = first_row + index
        try:
            row = records.read(index)
            if isinstance(row, Dropped):
                encoded.append([dropped(number, row.reason)])
                continue
            record, unread = account_for(row, kind)
            if isinstance(record, Text | Transcript):
                items = encode_text(record, tokenizer, max_length, template, reading)
            else:
                whole = ENCODERS[type(record)](record, tokenizer, template, reading)
                items = [
                    fit(whole, max_length, overlong, group_length, answered=not isinstance(record, Prompt))
                ]
                if isinstance(record, Unpaired) and len(items[0].ids):
                    labels = zip(items[0].examples, record.desirable, strict=True)
                    remarks = items[0].remarks
                    items = [replace(e, desirable=float(label), note=items[0].note) for e, label in labels]
                    items[0] = replace(items[0], remarks=remarks)
        except DataError as error:
            if invalid is None:
                raise DataError(f"{records.where(index)}: {error}") from None
            items, unread = [dropped(number, invalid.note(records, index, error))], ()
        encoded.append([replace(item, row=number, unread=unread) for item in items])
        if invalid is not None and invalid.enough(records, index):
            break
    return encoded


def encode_text(
    record: Text | Transcript,
    tokenizer: Tokenizer,
    max_length: int,
    template: ChatTemplate | None = None,
    reading: Reading = DEFAULT,
) -> list[Item]:
    """Encode text or a whole conversation for pretraining, split into sequences of at most `max_length` tokens.

    A further sequence begins with the last token of the one before it, as context that is not supervised:
    every token of the record but its first is a target exactly once. BOS opens only the first sequence, EOS
    closes only the last.
    """
    if isinstance(record, Transcript):
        whole = _chat(record.messages, tokenizer, template, reading, tools=record.tools)
    else:
        whole = _plain("", record.text, tokenizer, template, reading, "the text")
    ids = whole.ids
    starts = range(0, max(len(ids) - 1, 1), max_length - 1)
    note = "split" if len(starts) > 1 else "whole"
    chunks = [ids[start : start + max_length] for start in starts]
    items = [Item(chunk, (np.arange(len(chunk)) > 0).astype(np.float32), note=note) for chunk in chunks]
    items[0] = replace(items[0], remarks=whole.remarks)
    return items


def encode_completion(
    record: PromptCompletion | Chat,
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    reading: Reading = DEFAULT,
) -> Item:
    """Encode a supervised completion, or a conversation with its assistant turns supervised."""
    if isinstance(record, Chat):
        return _chat(record.messages, tokenizer, template, reading, tools=record.tools, learn=reading.learn)
    return _continuation(record, record.completion, tokenizer, template, reading)


def encode_preference(
    record: Preference | Ranking,
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    reading: Reading = DEFAULT,
) -> Item:
    """Encode every response after its prompt, chosen before rejected; ties of a ranking make no pair.

    Of K responses every pair weighs 1 / (K choose 2) (arXiv 2203.02155, equation 1), or without the ties 1 / their
    number: every prompt counts once, whatever its ties.
    """
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
    parts = [_continuation(record, response, tokenizer, template, reading) for response in responses]
    return join(parts, pairs=pairs, margin=margin, weight=1.0 / max(1, len(pairs)))


def encode_unpaired(
    record: Unpaired,
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    reading: Reading = DEFAULT,
) -> Item:
    """Encode every completion after its prompt; both of a pair are kept or dropped together."""
    parts = [_continuation(record, turns, tokenizer, template, reading) for turns in record.completions]
    return join(parts, pairs=((0, 1 if len(parts) == 2 else None),))


def encode_prompt(
    record: Prompt,
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    reading: Reading = DEFAULT,
) -> Item:
    """Encode a prompt up to where the reply begins; nothing is supervised."""
    if isinstance(record.prompt, str):
        check_plain(record.prompt, tokenizer, template, reading.control_tokens, "the prompt")
        if reading.control_tokens == "ids" and (
            found := read_rendered(record.prompt, "", tokenizer, template)
        ):
            prompt = _sequence(found[0], [], tokenizer)
            return replace(prompt, ending=answer_ending(("user",), tokenizer, template))
        prompt = _sequence(tokenizer.encode(record.prompt), [], tokenizer)
        remarks = spelled(record.prompt, tokenizer)
        return replace(prompt, ending=tokenizer.eos_ids[:1], remarks=remarks)
    roles = tuple(message.role for message in record.prompt)
    if roles[-1] == "assistant":
        prompt = _begun(record, tokenizer, template, reading)
        return replace(prompt, ending=answer_ending(roles[:-1], tokenizer, template))
    options = {"add_generation_prompt": True, "first_supervised": len(record.prompt)}
    prompt = _chat(record.prompt, tokenizer, template, reading, tools=record.tools, **options)
    return replace(prompt, ending=answer_ending(roles, tokenizer, template))


ENCODERS: dict[type, Callable[..., Item]] = {
    Chat: encode_completion,
    PromptCompletion: encode_completion,
    Preference: encode_preference,
    Ranking: encode_preference,
    Unpaired: encode_unpaired,
    Prompt: encode_prompt,
}


@lru_cache(maxsize=64)
def answer_ending(
    roles: tuple[str, ...], tokenizer: Tokenizer, template: ChatTemplate | None
) -> tuple[int, ...]:
    """What a chat format writes after the answer to a conversation of these roles, from the stop token on.

    Many write a line break after it: `<|im_end|>\\n`. Nothing learns to predict that, but a sequence ends there.
    """
    for asked in (roles, ("user",)):  # a template may want calls before the results of tools
        probe = (*(Message(role, "question") for role in asked), Message("assistant", "answer"))
        try:
            ids, mask = render_chat(probe, tokenizer, template, first_supervised=len(asked))
        except DataError:  # a format without a stop token, for instance: an answer in it can only be cut off
            continue
        stop = next(i for i, token in enumerate(ids) if i >= mask.index(True) and token in tokenizer.eos_ids)
        return tuple(ids[stop:])
    return tokenizer.eos_ids[:1]


def fit(
    item: Item, max_length: int, overlong: str, group_length: int | None = None, *, answered: bool = True
) -> Item:
    """The item with sequences of at most `max_length` tokens, or what stands for a dropped one; see `encode_records`.

    Args:
      answered: its prompts have answers, of which room is left for a token at least.

    Raises:
      MustFit, without the place: it does not fit, and `overlong` is "error".
    """
    spans = []
    for start, end in pairwise((0, *item.cuts, len(item.ids))):
        mask = item.mask[start:end]
        prompt = int(np.argmax(mask)) if mask.any() else end - start
        kept = min(end, start + max_length) if answered and overlong == "truncate" else end
        for reason, length in (("prompt too long", prompt + answered), ("too long", kept - start)):
            if length > max_length:
                return _leave_out(reason, length, max_length, overlong)
        spans.append(slice(start, kept))
    pairs = [(item.ids[spans[i]], item.ids[spans[j]]) for i, j in item.pairs if j is not None]
    if any(np.array_equal(first, second) for first, second in pairs):
        shortened = sum(span.stop - span.start for span in spans) < len(item.ids)
        return dropped(item.row, "equal after truncation" if shortened else "equal as tokens")
    total = sum(span.stop - span.start for span in spans)
    if item.cuts and group_length is not None and total > group_length:
        return _leave_out("group too long", total, group_length, overlong)
    if total == len(item.ids):
        return item
    cut = join([Item(item.ids[span], item.mask[span]) for span in spans])
    return replace(item, ids=cut.ids, mask=cut.mask, cuts=cut.cuts, note="truncated")


def _leave_out(reason: str, length: int, room: int, overlong: str) -> Item:
    if overlong == "error":
        raise MustFit(
            f"{reason}: needs {length} tokens and has room for {room}; shorten or remove it, raise "
            "config.data.max_length or row_length, or set config.data.overlong to 'drop' or 'truncate'"
        )
    return dropped(-1, reason)


def _continuation(
    record: PromptCompletion | Preference | Ranking | Unpaired,
    completion: Turns,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    reading: Reading,
) -> Item:
    prompt = record.prompt
    if not isinstance(prompt, str) and not isinstance(completion, str):
        if prompt and prompt[-1].role == "assistant":
            return _continued(record, completion, tokenizer, template, reading)
        options = {"tools": record.tools, "first_supervised": len(prompt), "learn": reading.learn}
        return _chat(prompt + completion, tokenizer, template, reading, **options)
    assert isinstance(prompt, str) and isinstance(completion, str)  # a record has both in one form
    return _plain(prompt, completion, tokenizer, template, reading, "the answer")


def _plain(
    prompt: str,
    completion: str,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    reading: Reading,
    what: str,
) -> Item:
    """A completion of text after its prompt, or alone."""
    check_plain(prompt, tokenizer, template, reading.control_tokens, "the prompt")
    check_plain(completion, tokenizer, template, reading.control_tokens, what)
    if reading.control_tokens == "ids" and (found := read_rendered(prompt, completion, tokenizer, template)):
        head, body, rest = found
        item = _sequence(head, body, tokenizer)
        ids, mask = np.append(item.ids, np.asarray(rest, np.int32)), np.append(item.mask, np.zeros(len(rest)))
        return Item(ids, mask.astype(np.float32))
    head, body = tokenizer.encode_pieces([prompt, completion])
    check_decodes(body, completion, tokenizer, what)
    item = _sequence(head, [*body, tokenizer.eos_ids[0]], tokenizer)
    return replace(item, remarks=(*spelled(prompt, tokenizer), *spelled(completion, tokenizer)))


def _begun(
    record: Prompt | PromptCompletion | Preference | Ranking | Unpaired,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    reading: Reading,
) -> Item:
    """A prompt whose last turn is the beginning of the answer, up to where the answer goes on; nothing is supervised.

    These are the tokens of the whole conversation up to the stop token after that turn.

    Raises:
      DataError, without the place: the template changes the beginning, as those do that trim it.
    """
    prompt = record.prompt
    assert not isinstance(prompt, str)
    options = {"tools": record.tools, "first_supervised": len(prompt) - 1}
    whole = _chat(prompt, tokenizer, template, reading, **options)
    start, stop = whole.prompt_length, int(np.flatnonzero(whole.mask)[-1])
    content, said = prompt[-1].content, tokenizer.decode(whole.ids[start:stop].tolist())
    if not said.endswith(content):
        raise DataError(
            f"the prompt ends with the beginning of an answer, {shorten(content)}, and the chat template writes "
            f"{shorten(said)} for it; end the beginning as the template does, without white space"
        )
    return Item(whole.ids[:stop], np.zeros(stop, np.float32), remarks=whole.remarks)


def _continued(
    record: PromptCompletion | Preference | Ranking | Unpaired,
    completion: tuple[Message, ...],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    reading: Reading,
) -> Item:
    """A turn that the prompt begins and the completion, as a model samples it from there, ends."""
    if len(completion) != 1:
        raise DataError(
            "the prompt ends with the beginning of an answer, so the completion must be one message, its rest; "
            f"found {len(completion)}"
        )
    begun, prompt = _begun(record, tokenizer, template, reading), record.prompt
    assert not isinstance(prompt, str)
    rest = completion[0].content
    check_plain(rest, tokenizer, template, reading.control_tokens, "the answer")
    _, body = tokenizer.encode_pieces([prompt[-1].content, rest])
    check_decodes(body, rest, tokenizer, "the answer")
    ending = answer_ending(tuple(message.role for message in prompt[:-1]), tokenizer, template)
    ids = np.asarray([*begun.ids, *body, *ending], np.int32)
    learned = len(begun.ids) + np.arange(len(body) + 1)
    remarks = (*begun.remarks, *spelled(rest, tokenizer))
    return Item(ids, np.isin(np.arange(len(ids)), learned).astype(np.float32), remarks=remarks)


def _chat(
    messages: tuple[Message, ...],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    reading: Reading,
    **options: Any,
) -> Item:
    """A conversation as `render_chat` renders it, with nothing of it lost."""
    told: Counter = Counter()
    allowed = answer_tokens(tokenizer, template or tokenizer.template)
    for index, message in enumerate(messages):
        answers = message.role == "assistant"
        if answers:
            check_plain(
                message.content, tokenizer, template, reading.control_tokens, f"messages[{index}]", allowed
            )
        told.update(spelled(message.content, tokenizer, allowed if answers else ()))
        told.update(spelled(message.fields, tokenizer))
    ids, mask = render_chat(messages, tokenizer, template, told=told, **options)
    check_shown(ids, messages, tokenizer, template, allowed)
    remarks = tuple(sorted(told.elements()))
    return Item(np.asarray(ids, np.int32), np.asarray([False, *mask[1:]], np.float32), remarks=remarks)


def _sequence(context: Sequence[int], learned: Sequence[int], tokenizer: Tokenizer) -> Item:
    """BOS, where the tokenizer has one, then tokens that are not supervised, then those that are."""
    opening = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = np.asarray([*opening, *context, *learned], np.int32)
    # Nothing comes before the first token from which to predict it.
    return Item(ids, (np.arange(len(ids)) >= max(1, len(ids) - len(learned))).astype(np.float32))
