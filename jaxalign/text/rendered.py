"""Plain text that a chat template has been applied to already, or that spells the end of a text.

Names of control tokens in a text are letters. That is meant where a text speaks of them; where it begins with a mark of
turns or of a text, or ends with one, it is a rendered conversation, whose names are to be the tokens themselves.
`config.data.control_tokens` says which: "refuse" such texts, read names as "ids", or as "letters".
"""

import functools
from collections.abc import Collection

from jaxalign.errors import DataError, shorten
from jaxalign.text.escape import control_names
from jaxalign.text.shown import check_decodes
from jaxalign.text.templates import ChatTemplate
from jaxalign.text.token_roles import find_roles, stop_names
from jaxalign.text.tokenizer import Tokenizer

CONTROL_TOKENS = ("refuse", "ids", "letters")
SPELLED = "names of control tokens within texts, read as letters"


def check_plain(
    text: str,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    control_tokens: str,
    what: str,
    answer_tokens: Collection[str] | None = None,
) -> None:
    """Refuse a text that begins or ends with the name of a token that belongs around turns and texts.

    Args:
      control_tokens: one of `CONTROL_TOKENS`.
      what: the text is, for errors.
      answer_tokens: what it may hold as control tokens, where it is what the assistant says in a conversation.

    Raises:
      DataError: it does, or an answer holds another control token that is none of turns.
    """
    if control_tokens == "letters":
        return
    marks, others, ends = _kinds(tokenizer, template or tokenizer.template)
    inner = text.strip()
    if control_tokens == "refuse" or answer_tokens is not None:
        begins, name = inner.startswith(marks), next((end for end in ends if inner.endswith(end)), "")
        if begins or name:
            where = (
                f"ends with {name}"
                if name
                else f"begins with {next(m for m in marks if inner.startswith(m))}"
            )
            if answer_tokens is not None:
                raise DataError(
                    f"{what} {where}, which the chat template writes itself ({shorten(text)}); take it off, or set "
                    "config.data.control_tokens=letters, which reads it as letters"
                )
            raise DataError(
                f"{what} {where}, as if a chat template had been applied already ({shorten(text)}); give messages "
                "instead, take the control tokens off, or set config.data.control_tokens=ids, which reads their names "
                "as control tokens, or =letters"
            )
    if answer_tokens is not None and others:
        found = next((n for n in control_names(others).findall(text) if n not in answer_tokens), None)
        if found is not None:
            raise DataError(
                f"{what} holds the control token {found}, which the chat template does not write in answers; if it is "
                f"meant as that token set config.data.answer_tokens={found}, and "
                "config.data.control_tokens=letters if as letters"
            )


def spelled(text: str, tokenizer: Tokenizer, answer_tokens: Collection[str] = ()) -> tuple[str, ...]:
    """A remark for a text that holds names of control tokens, which are read as letters."""
    names = control_names(tuple(tokenizer.control_ids))
    if names.search(text) is None:
        return ()
    return (SPELLED,) if any(name not in answer_tokens for name in names.findall(text)) else ()


def read_rendered(
    prompt: str, completion: str, tokenizer: Tokenizer, template: ChatTemplate | None
) -> tuple[list[int], list[int], list[int]] | None:
    """Ids of a rendered prompt and completion, names of control tokens as these; None where there are none.

    Returns:
      The prompt, what is learned of the completion (to its last stop token, which is added where it is missing), and
      what the format writes after that; without BOS at the beginning.

    Raises:
      DataError: the tokenizer loses part of the completion.
    """
    controls = tokenizer.control_ids
    names = control_names(tuple(controls))
    if names.search(prompt) is None and names.search(completion) is None:
        return None
    head = [controls.get(piece, piece) for piece in names.split(prompt) if piece]
    body = [controls.get(piece, piece) for piece in names.split(completion) if piece]
    encoded = tokenizer.encode_pieces([*head, *body])
    before, learned = encoded[: len(head)], encoded[len(head) :]
    written = "".join(piece for piece in body if isinstance(piece, str))
    check_decodes([i for ids in learned for i in ids], written, tokenizer, "the completion")
    rest: list[list[int]] = []
    if len(body) > 1 and isinstance(body[-1], str) and not body[-1].strip() and body[-2] in tokenizer.eos_ids:
        learned, rest = learned[:-1], learned[-1:]
    flat = [[i for ids in part for i in ids] for part in (before, learned, rest)]
    for part in flat[: 1 if flat[0] else 2]:
        del part[: tokenizer.bos_id is not None and part[:1] == [tokenizer.bos_id]]
    if completion and flat[1][-1] not in tokenizer.eos_ids:
        flat[1].append(tokenizer.eos_ids[0])
    return flat[0], flat[1], flat[2]


@functools.lru_cache(maxsize=32)
def _kinds(
    tokenizer: Tokenizer, template: ChatTemplate | None
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names of control tokens: marks that open, those that belong to no turn, and those that end turns or texts."""
    controls = tokenizer.control_ids
    ends, special = stop_names(tokenizer), tokenizer.special_tokens
    marks = {special["bos_token"]} & set(controls) if special.get("bos_token") else set()
    if template is not None:
        marks |= find_roles(template, tuple(special.items()), tuple(controls), ends).marks - {
            special.get(role, "")
            for role in ("unk_token", "pad_token", "mask_token", "sep_token", "cls_token")
        }
    elif "<|user|>" in controls:  # the built-in format
        marks |= set(controls) - set(special.values())
    roles = set(special.values()) | marks | set(ends)
    return tuple(sorted(marks)), tuple(sorted(set(controls) - roles)), ends
