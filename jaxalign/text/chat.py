"""Conversations to token ids, cut where supervision begins and ends, so that masks never depend on finding text again.

The built-in template is `<bos>` and, for every message, `<|role|>` content `<|end|>`. Any other format is a
Jinja template (see `templates`). Control tokens come from templates alone:

1. In every message, the first character of whatever could read as a control token, whole or together with
   neighbouring text, is replaced by a private-use character that occurs nowhere in the conversation. All
   else stays as it is, so a template may still trim, split or test its contents.
2. The conversation is rendered. Names of control tokens found in the result are the template's own and
   become ids; the text between them is put back as it was and encoded as plain text.

The rendered text is cut where an answer begins, which is where generation would begin, and the parts are encoded
apart: training sees the very prompt ids that sampling starts from. Where a control token stands at the cut, or the
tokenizer splits there (byte-level ones do after "\\n", unless the answer begins with white space itself), the ids are
those of the whole text encoded at once; elsewhere a token that would have crossed the cut becomes two, and the
text is the same.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby

import jinja2

from jaxalign.errors import ConfigError, DataError, shorten
from jaxalign.text.messages import Message
from jaxalign.text.templates import render_template
from jaxalign.text.tokenizer import TURN_END, Tokenizer, unknown_id

_PRIVATE_USE = range(0xF0000, 0xFFFFE)
_THOUGHT = re.compile(r"\s*(</?think>)\s*")


def render_chat(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: jinja2.Template | None = None,
    *,
    add_generation_prompt: bool = False,
    first_supervised: int = 0,
) -> tuple[list[int], list[bool]]:
    """Render and tokenise a conversation: its ids, and of each whether it is supervised.

    Supervised are the assistant turns from message `first_supervised` on: content and turn terminator,
    neither the role header before nor anything after. Where the tokenizer has a BOS the result begins with
    exactly one, put there if the template does not.

    Args:
      template: from `load_template`; None is the tokenizer's own, or else the built-in one.
      add_generation_prompt: end with the header of an assistant turn that is still to be written.

    Raises DataError if a template rejects the conversation, leaves out or rewrites part of a supervised answer,
    changes a prompt or a supervised answer when later messages follow, writes BOS anywhere but at the start, or
    leaves an assistant turn without an end, or if the tokenizer loses part of an answer; ConfigError if there is no
    template.
    """
    template = template or tokenizer.template
    if template is None:
        return _render_builtin(messages, tokenizer, add_generation_prompt, first_supervised)
    return _render_template(messages, tokenizer, template, add_generation_prompt, first_supervised)


def _render_builtin(
    messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool, first_supervised: int
) -> tuple[list[int], list[bool]]:
    if TURN_END not in tokenizer.control_ids:
        raise ConfigError(
            f"config.data.chat_template is empty, the tokenizer brings no chat template, and it has no {TURN_END}, "
            "which the built-in one writes; set config.data.chat_template=FILE, a Jinja template of the chat format"
        )
    end = tokenizer.special_id(TURN_END)
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    mask = [False] * len(ids)
    for index, message in enumerate(messages):
        supervised = message.role == "assistant" and index >= first_supervised
        content = tokenizer.encode(message.content)
        if supervised:
            check_decodes(content, message.content, tokenizer, f"messages[{index}]")
        ids += [tokenizer.special_id(f"<|{message.role}|>"), *content, end]
        mask += [False, *[supervised] * (len(content) + 1)]
    if add_generation_prompt:
        ids.append(tokenizer.special_id("<|assistant|>"))
        mask.append(False)
    return ids, mask


def _render_template(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: jinja2.Template,
    add_generation_prompt: bool,
    first_supervised: int,
) -> tuple[list[int], list[bool]]:
    controls = tokenizer.control_ids
    contents, originals = _escape([message.content for message in messages], tuple(controls))
    turns = [{"role": m.role, "content": content} for m, content in zip(messages, contents, strict=True)]

    def render(count: int, generation: bool) -> str:
        return render_template(
            template, turns[:count], tokenizer.special_tokens, add_generation_prompt=generation
        )

    text = render(len(turns), add_generation_prompt)
    names = _control_names(tuple(controls))
    stops = {name for name, token_id in controls.items() if token_id in tokenizer.eos_ids}
    pieces: list[tuple[str | int, int | None]] = []  # with the number of the message that it supervises

    def add(part: str, answer: int | None = None) -> None:
        for piece in names.split(part):
            if piece:
                pieces.append((controls.get(piece, piece.translate(originals)), answer))

    done = 0
    for index, message in enumerate(messages):
        if message.role != "assistant" or index < first_supervised:
            continue
        prompt, alone = render(index, True), render(index + 1, False)
        if not text.startswith(prompt):
            raise DataError(_changed(f"the prompt before messages[{index}]", prompt, text, template))
        start, kept = len(prompt), text.startswith(alone)
        end = next((match for match in names.finditer(text, start) if match[0] in stops), None)
        if end is None or (kept and end.end() > len(alone)):
            raise DataError(
                f"the chat template does not end messages[{index}] with a token that stops generation "
                f"(ids {tokenizer.eos_ids}), so a model trained on it would never stop; add one to the template"
            )
        if not kept and not text[start : end.start()].rstrip().endswith(contents[index].strip()):
            raise DataError(_changed(f"messages[{index}]", alone, text, template))
        # Where the header opens a thought, the answer begins in it: <think> stands before what is supervised.
        if not _ends_with(text[start : end.start()], contents[index]) and not _ends_with(
            text[_end_of(render, index, text, start) : end.start()], contents[index]
        ):
            raise DataError(_lost(f"the answer messages[{index}]", message.content, template.filename))
        add(text[done:start])
        add(text[start : end.end()], index)
        done = end.end()
    add(text[done:])
    encoded = zip(tokenizer.encode_pieces([piece for piece, _ in pieces]), pieces, strict=True)
    ids: list[int] = []
    mask: list[bool] = []
    for answer, group in groupby(encoded, key=lambda item: item[1][1]):
        parts = list(group)
        span = [token for part, _ in parts for token in part]
        if answer is not None:
            written = "".join(piece for _, (piece, _) in parts if isinstance(piece, str))
            check_decodes(span, written, tokenizer, f"messages[{answer}]")
        ids += span
        mask += [answer is not None] * len(span)
    return _with_one_bos(ids, mask, tokenizer)


def _end_of(render: Callable[[int, bool], str], index: int, text: str, otherwise: int) -> int:
    """Where the rendered text of the first `index` messages ends in `text`, before the header of the next one."""
    try:
        before = render(index, False) if index else ""
    except DataError:  # a template may refuse a conversation that ends with a question
        return otherwise
    return len(before) if text.startswith(before) else otherwise


def check_decodes(ids: Sequence[int], answer: str, tokenizer: Tokenizer, what: str) -> None:
    """Raises DataError unless the text of `ids`, or its end, is `answer`, so that it is what the model would say.

    What the tokenizer has no piece for is left to `audit`, which counts it.
    """
    said = tokenizer.decode(ids)
    if said == answer or _ends_with(said, answer) or _ends_with(_normal(said), _normal(answer)):
        return
    if unknown_id(tokenizer) in ids:
        return
    raise DataError(
        f"the tokenizer loses part of {what}: {shorten(answer)} is decoded as {shorten(said)}, which is what a model "
        "trained on it would say; take a tokenizer that keeps white space and characters as they are"
    )


def _ends_with(said: str, answer: str) -> bool:
    # Templates may open an answer with an empty thought, and set line breaks of their own around a thought's marks.
    said, answer = (_THOUGHT.sub(r"\1", text.strip()) for text in (said, answer))
    return said.endswith(answer)


def _normal(text: str) -> str:
    # Tokenizers of published models may write characters in their composed or compatible form, as documented, and
    # SentencePiece's mark of a space as a space.
    return unicodedata.normalize("NFKC", text).replace("\u2581", " ")


def check_shown(
    ids: Sequence[int],
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: jinja2.Template | None = None,
) -> None:
    """Raises DataError unless the text of `ids`, rendered by `template`, has what every system and user turn says."""
    template = template or tokenizer.template
    said = tokenizer.decode(ids)
    for index, message in enumerate(messages):
        content = message.content.strip()
        if message.role == "assistant" or content in said or _normal(content) in _normal(said):
            continue  # of earlier answers, templates take out thoughts, as documented
        if unknown_id(tokenizer) not in ids:
            name = template.filename if template else "in use"
            raise DataError(_lost(f"messages[{index}], of the {message.role}", content, name))


def _lost(what: str, content: str, template: str | None) -> str:
    return (
        f"the chat template {template} leaves out or rewrites part of {what}: {shorten(content)} is not in what it "
        "writes, so the model would be trained on something else; take out what the template takes out, or use a "
        "template that keeps it (config.data.chat_template=FILE)"
    )


def _changed(what: str, alone: str, text: str, template: jinja2.Template) -> str:
    at = next((i for i, (a, b) in enumerate(zip(alone, text, strict=False)) if a != b), len(text))
    return (
        f"the chat template {template.filename} is not prefix-preserving: it writes {what} as "
        f"{alone[max(at - 20, 0) : at + 30]!r} when nothing follows, but {text[max(at - 20, 0) : at + 30]!r} in the "
        "whole conversation, so a model would be trained on other text than it is asked to continue; end the "
        "conversation with that answer, take out what the template takes out, or use a template that only appends "
        "(config.data.chat_template=FILE)"
    )


def _escape(contents: Sequence[str], controls: tuple[str, ...]) -> tuple[list[str], dict[int, str]]:
    """Contents that cannot make a control token, and the translation table that restores them."""
    used = set("".join(contents))
    free = (chr(point) for point in _PRIVATE_USE if chr(point) not in used)
    stand_in = {first: next(free) for first in _letters(controls)}
    begins = _begins(controls)
    parts, tails, longest = _parts(controls)

    def escape(content: str) -> str:
        marked = {match.start() for match in begins.finditer(content)}
        inner = content.strip()
        start, end = content.find(inner), content.find(inner) + len(inner)
        sizes = range(1, min(longest, end - start) + 1)
        marked |= {end - size for size in sizes if content[end - size : end] in parts}
        if any(content[start : start + size] in tails for size in sizes):
            marked.add(start)
        return (
            "".join(stand_in[c] if i in marked else c for i, c in enumerate(content)) if marked else content
        )

    return [escape(content) for content in contents], {ord(new): old for old, new in stand_in.items()}


@lru_cache(maxsize=8)
def _control_names(controls: tuple[str, ...]) -> re.Pattern:
    """Matches, in its only group, a control token's name, of two that begin alike the longer one."""
    longest_first = sorted(controls, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


@lru_cache(maxsize=8)
def _begins(controls: tuple[str, ...]) -> re.Pattern:
    """Matches the first character of every name; a lookahead, so that of two overlapping names both are found."""
    return re.compile(f"(?={_control_names(controls).pattern}).", re.DOTALL)


@lru_cache(maxsize=8)
def _parts(controls: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str], int]:
    """Proper beginnings of names, proper endings of names, and the most characters of either."""
    heads = frozenset(control[:size] for control in controls for size in range(1, len(control)))
    tails = frozenset(control[size:] for control in controls for size in range(1, len(control)))
    return heads, tails, max(map(len, controls), default=0)


@lru_cache(maxsize=8)
def _letters(controls: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set("".join(controls))))


def _with_one_bos(ids: list[int], mask: list[bool], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    if tokenizer.bos_id is None:
        return ids, mask
    ambiguous = tokenizer.bos_id in tokenizer.eos_ids  # then it may also end turns
    if tokenizer.bos_id not in ids or (ambiguous and ids[0] != tokenizer.bos_id):
        return [tokenizer.bos_id, *ids], [False, *mask]
    if not ambiguous and (ids.count(tokenizer.bos_id) > 1 or ids[0] != tokenizer.bos_id):
        at = [position for position, token in enumerate(ids) if token == tokenizer.bos_id]
        raise DataError(f"the chat template writes BOS at tokens {at}; write it once, first, or not at all")
    return ids, mask
