"""Conversations to token ids, one segment at a time, so that masks never depend on finding text again.

The built-in template is `<bos>` and, for every message, `<|role|>` content `<|end|>`. Any other format is a
Jinja template as used by Hugging Face tokenizers. Control tokens come from templates alone:

1. In every message, the first character of whatever could read as a control token, whole or together with
   neighbouring text, is replaced by a private-use character that occurs nowhere in the conversation. All
   else stays as it is, so a template may still trim, split or test its contents.
2. The conversation is rendered. Names of control tokens found in the result are the template's own and
   become ids; the text between them is put back as it was and encoded as plain text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.sandbox

from jaxalign.data.records import Message
from jaxalign.data.tokenizer import TURN_END, Tokenizer
from jaxalign.errors import ConfigError, DataError

_PRIVATE_USE = range(0xF0000, 0xFFFFE)


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens that are all supervised or all context."""

    ids: tuple[int, ...]
    supervised: bool


def render_chat(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: jinja2.Template | None = None,
    *,
    add_generation_prompt: bool = False,
    first_supervised: int = 0,
) -> list[Segment]:
    """Render and tokenise a conversation.

    Supervised are the assistant turns from message `first_supervised` on: content and turn terminator,
    neither the role header before nor anything after. Where the tokenizer has a BOS the result begins with
    exactly one, put there if the template does not.

    Args:
      template: from `load_template`; None is the built-in one.
      add_generation_prompt: end with the header of an assistant turn that is still to be written.

    Raises DataError if a template rejects the conversation, does not keep earlier turns as they were when
    later ones are added, writes BOS anywhere but at the start, or leaves an assistant turn without an end.
    """
    if template is None:
        return _render_builtin(messages, tokenizer, add_generation_prompt, first_supervised)
    return _render_template(messages, tokenizer, template, add_generation_prompt, first_supervised)


def load_template(path: str | Path) -> jinja2.Template:
    """Compile a Jinja chat template file in a sandbox, with the conventions of Hugging Face tokenizers."""
    try:
        return compile_template(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"config.data.chat_template={path}: {error.strerror}; correct the path") from None
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"config.data.chat_template={path}:{error.lineno}: {error.message}; fix it"
        ) from None


def compile_template(source: str) -> jinja2.Template:
    """Compile the text of a Jinja chat template; jinja2.TemplateSyntaxError if it is not one."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(source)


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text in some templates; the spans here need no marks."""

    tags = {"generation"}  # noqa: RUF012, jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _render_builtin(
    messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool, first_supervised: int
) -> list[Segment]:
    end = tokenizer.special_id(TURN_END)
    segments = [] if tokenizer.bos_id is None else [Segment((tokenizer.bos_id,), False)]
    for index, message in enumerate(messages):
        supervised = message.role == "assistant" and index >= first_supervised
        segments.append(Segment((tokenizer.special_id(f"<|{message.role}|>"),), False))
        segments.append(Segment((*tokenizer.encode(message.content), end), supervised))
    if add_generation_prompt:
        segments.append(Segment((tokenizer.special_id("<|assistant|>"),), False))
    return segments


def _render_template(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: jinja2.Template,
    add_generation_prompt: bool,
    first_supervised: int,
) -> list[Segment]:
    contents, originals = _escape([message.content for message in messages], tuple(tokenizer.control_ids))
    turns = [{"role": m.role, "content": content} for m, content in zip(messages, contents, strict=True)]
    names = {token_id: name for name, token_id in tokenizer.control_ids.items()}

    def render(count: int, generation: bool) -> str:
        try:
            return template.render(
                messages=turns[:count],
                add_generation_prompt=generation,
                bos_token=names.get(tokenizer.bos_id, ""),
                eos_token=names.get(tokenizer.eos_ids[0], ""),
            )
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template rejects the conversation: {error}") from None

    text = render(len(turns), add_generation_prompt)
    segments, done = [], 0
    for index, message in enumerate(messages):
        if message.role != "assistant" or index < first_supervised:
            continue
        before, after = render(index, True), render(index + 1, False)
        if not (text.startswith(after) and after.startswith(before)):
            raise DataError(
                f"the chat template is not prefix-preserving: what it writes up to messages[{index}] changes "
                "when later messages are added; use a template that only appends"
            )
        context = _encode_rendered(text[done : len(before)], tokenizer, originals)
        answer = _encode_rendered(text[len(before) : len(after)], tokenizer, originals)
        size = _through_terminator(answer, tokenizer, index)
        segments += [Segment(context, False), Segment(answer[:size], True), Segment(answer[size:], False)]
        done = len(after)
    segments.append(Segment(_encode_rendered(text[done:], tokenizer, originals), False))
    return _with_one_bos([segment for segment in segments if segment.ids], tokenizer)


def _escape(contents: list[str], controls: tuple[str, ...]) -> tuple[list[str], dict[int, str]]:
    """Contents that cannot make a control token, and the translation table that restores them."""
    used = set("".join(contents))
    free = (chr(point) for point in _PRIVATE_USE if chr(point) not in used)
    stand_in = {first: next(free) for first in sorted({c for control in controls for c in control})}
    parts = {control[:size] for control in controls for size in range(1, len(control))}
    tails = tuple(control[size:] for control in controls for size in range(1, len(control)))
    alternatives = [re.escape(c) for c in controls] + [rf"{re.escape(part)}\s*\Z" for part in sorted(parts)]
    # A lookahead, so that of two overlapping names both are found.
    begins = re.compile(f"(?=(?:{'|'.join(alternatives)})).", re.DOTALL) if controls else None

    def escape(content: str) -> str:
        if begins is None:
            return content
        escaped = begins.sub(lambda match: stand_in[match[0]], content)
        start = len(escaped) - len(escaped.lstrip())
        if content[start:].startswith(tails) and escaped[start] == content[start]:
            escaped = escaped[:start] + stand_in[escaped[start]] + escaped[start + 1 :]
        return escaped

    return [escape(content) for content in contents], {ord(new): old for old, new in stand_in.items()}


def _encode_rendered(text: str, tokenizer: Tokenizer, originals: dict[int, str]) -> tuple[int, ...]:
    controls = tokenizer.control_ids
    longest_first = sorted(controls, key=len, reverse=True)
    ids = []
    for part in re.split(f"({'|'.join(map(re.escape, longest_first))})", text) if controls else [text]:
        ids += [controls[part]] if part in controls else tokenizer.encode(part.translate(originals))
    return tuple(ids)


def _through_terminator(answer: tuple[int, ...], tokenizer: Tokenizer, index: int) -> int:
    ends = [position for position, token in enumerate(answer) if token in tokenizer.eos_ids]
    if not ends:
        raise DataError(
            f"the chat template does not end messages[{index}] with a token that stops generation "
            f"(ids {tokenizer.eos_ids}), so a model trained on it would never stop; add one to the template"
        )
    return ends[-1] + 1


def _with_one_bos(segments: list[Segment], tokenizer: Tokenizer) -> list[Segment]:
    if tokenizer.bos_id is None:
        return segments
    ids = [token for segment in segments for token in segment.ids]
    if tokenizer.bos_id not in ids:
        return [Segment((tokenizer.bos_id,), False), *segments]
    if ids.count(tokenizer.bos_id) > 1 or ids[0] != tokenizer.bos_id:
        at = [position for position, token in enumerate(ids) if token == tokenizer.bos_id]
        raise DataError(f"the chat template writes BOS at tokens {at}; write it once, first, or not at all")
    return segments
