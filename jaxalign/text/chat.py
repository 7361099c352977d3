"""Conversations to token ids, cut where supervision begins and ends, so that masks never depend on finding text again.

The built-in template is `<bos>` and, for every message, `<|role|>` content `<|end|>`. Any other format is a
Jinja template (see `templates`). Control tokens come from templates alone: contents are `escape`d, the conversation is
rendered, names of control tokens found in the result are the template's own and become ids, and the text between them
is put back as it was and encoded as plain text. Only the answers of the assistant may hold control tokens, those that
answers are made of (see `token_roles`): marks of thoughts and of tool calls.

The rendered text is cut where an answer begins, which is where generation would begin, and the parts are encoded
apart: training sees the very prompt ids that sampling starts from. Where a control token stands at the cut, or the
tokenizer splits there (byte-level ones do after "\\n", unless the answer begins with white space itself), the ids are
those of the whole text encoded at once; elsewhere a token that would have crossed the cut becomes two, and the
text is the same.

Supervised are the answers from where generation would begin to the token that ends the turn. Where a template marks
what is generated with `{% generation %}`, that counts instead, as for transformers' `return_assistant_tokens_mask`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any

from jaxalign.errors import ConfigError, DataError
from jaxalign.text.escape import control_names, escape
from jaxalign.text.messages import REASONING, Message
from jaxalign.text.shown import (
    THOUGHTS,
    check_decodes,
    check_fields,
    check_tools,
    ends_with,
    lost,
    without_thought,
)
from jaxalign.text.templates import ChatTemplate, render_marked, render_template
from jaxalign.text.token_roles import answer_tokens, closing_of
from jaxalign.text.tokenizer import TURN_END, Tokenizer

LEARN = ("all", "last")


def render_chat(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    *,
    tools: str = "",
    add_generation_prompt: bool = False,
    first_supervised: int = 0,
    learn: str = "all",
    told: Counter | None = None,
) -> tuple[list[int], list[bool]]:
    """Render and tokenise a conversation: its ids, and of each whether it is supervised.

    Supervised are the assistant turns from message `first_supervised` on that are `learned`: thoughts, content, tool
    calls and turn terminator, neither the role header before nor anything after. Where the tokenizer has a BOS the
    result begins with one, put there if the template does not.

    Args:
      template: from `load_template`; None is the tokenizer's own, or else the built-in one.
      tools: the tools that the model may call, a JSON list.
      add_generation_prompt: end with the header of an assistant turn that is still to be written.
      learn: "all" of these turns, or the "last" one alone.
      told: counts, by what they are, things that the template documents to leave out.

    Raises DataError if a template rejects the conversation, leaves out or rewrites part of a supervised answer, of its
    tools or of what else a message says, changes a prompt or a supervised answer when later messages follow, writes a
    BOS that opens no turn, or leaves an assistant turn without an end, or if the tokenizer loses part of an answer;
    ConfigError if there is no template.
    """
    template = template or tokenizer.template
    learned = _learned(messages, first_supervised, learn)
    if template is None:
        return _render_builtin(messages, tokenizer, tools, add_generation_prompt, learned)
    assert isinstance(template, ChatTemplate)
    chat = _Conversation(messages, tools, tokenizer, template, Counter() if told is None else told)
    return _with_bos(*chat.tokens(add_generation_prompt, learned), tokenizer)


def _learned(messages: Sequence[Message], first: int, learn: str) -> list[int]:
    """The numbers of the messages that are supervised."""
    answers = [i for i, m in enumerate(messages) if m.role == "assistant" and i >= first]
    learned = [i for i in answers if messages[i].learned]
    if answers and not learned:
        raise DataError(
            "every answer of the conversation has weight 0, so there is nothing to learn; remove the row or the weights"
        )
    return learned[-1:] if learn == "last" else learned


def _render_builtin(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    tools: str,
    add_generation_prompt: bool,
    learned: list[int],
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
        for field in ("tools",) * bool(tools) + tuple(message.more):
            raise DataError(
                f"the built-in chat format has no place for {field}; use a template that writes it "
                f"(config.data.chat_template=FILE), or leave it out with config.data.ignore_fields={field}"
            )
        supervised = index in learned
        content = tokenizer.encode(message.content)
        if supervised:
            check_decodes(content, message.content, tokenizer, f"messages[{index}]")
        ids += [tokenizer.special_id(f"<|{message.role}|>"), *content, end]
        mask += [False, *[supervised] * (len(content) + 1)]
    if add_generation_prompt:
        ids.append(tokenizer.special_id("<|assistant|>"))
        mask.append(False)
    return ids, mask


@dataclass(frozen=True)
class _Answer:
    """A supervised answer: the number of its message, and where in the rendered text it begins and ends."""

    index: int
    start: int
    end: int


class _Conversation:
    """A conversation before a template: escaped, rendered as often as need be, and checked."""

    def __init__(
        self,
        messages: Sequence[Message],
        tools: str,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        told: Counter,
    ):
        self.messages, self.tools, self.told = messages, tools, told
        self.tokenizer, self.template = tokenizer, template
        controls = tuple(tokenizer.control_ids)
        self.names = control_names(controls)
        escaped = escape(messages, tools, controls, answer_tokens(tokenizer, template))
        self.turns, self.listed, self.originals = escaped.turns, escaped.tools, escaped.originals
        for turn in self.turns:
            _rename_reasoning(turn, template)

    def render(self, count: int, generation: bool) -> str:
        """The text of the first `count` messages."""
        return self._render(count, generation)[0]

    def _render(self, count: int, generation: bool) -> tuple[str, list[tuple[int, int]]]:
        """The same, and the spans that the template marks as generated."""
        return render_marked(
            self.template,
            self.turns[:count],
            self.tokenizer.special_tokens,
            add_generation_prompt=generation,
            tools=self.listed,
        )

    def tokens(self, add_generation_prompt: bool, learned: list[int]) -> tuple[list[int], list[bool]]:
        """The ids, and of each whether it is supervised; see `render_chat`."""
        for role in {message.role for message in self.messages} - {"system", "user", "assistant"}:
            _check_role(role, self.template, tuple(self.tokenizer.special_tokens.items()))
        count = len(self.turns)
        text, marked = self._render(count, add_generation_prompt)
        answers: list[_Answer] = []
        for index in learned:
            prompt, last = self.render(index, True), index == count - 1 and not add_generation_prompt
            if not text.startswith(prompt) and last and self._open_thought(index, prompt, text):
                text, marked = self._render(count, False)
            if not text.startswith(prompt):
                raise DataError(
                    _changed(f"the prompt before messages[{index}]", prompt, text, self.template, last)
                )
            alone = text if last else self.render(index + 1, False)
            answers.append(self._find_answer(index, text, prompt, alone))
        self._check_said(text, {answer.index: text[answer.start : answer.end] for answer in answers})
        spans = self._marked(answers, marked) if self.template.marks_answers else answers
        return self._encode(text, spans, [answer.start for answer in answers])

    def _open_thought(self, index: int, prompt: str, text: str) -> bool:
        """Begin an answer with its thought's mark, where it was stored as sampled: after a header that has it."""
        content = self.turns[index]["content"] or ""
        header = text[: text.rfind(content.strip())]
        opening = prompt.removeprefix(header)
        mark = opening.strip()
        thought, closing, _ = content.partition(closing_of(mark) or "\0")
        if opening == prompt or not closing or mark in thought:
            return False
        self.turns[index]["content"] = opening + content
        return True

    def _find_answer(self, index: int, text: str, prompt: str, alone: str) -> _Answer:
        """Where in `text` an answer lies, which is all there and ends with a stop token."""
        controls, eos_ids = self.tokenizer.control_ids, self.tokenizer.eos_ids
        start, kept = len(prompt), text.startswith(alone)
        matches = self.names.finditer(text, start)
        end = next((match for match in matches if controls[match[0]] in eos_ids), None)
        if end is None or (kept and end.end() > len(alone)):
            raise DataError(
                f"the chat template does not end messages[{index}] with a token that stops generation "
                f"(ids {eos_ids}), so a model trained on it would never stop; add one to the template"
            )
        found = _Answer(index, start, end.end())
        said, content = text[start : end.start()], self.turns[index]["content"] or ""
        # Tool calls may stand behind the content.
        says = _has if "tool_calls" in self.messages[index].more else ends_with
        # Where the header opens a thought, the answer begins in it: <think> stands before what is supervised.
        if says(said, content) or says(text[self._end_of(index, text, start) : end.start()], content):
            return found
        final = without_thought(content)
        if not kept and final != content and says(said, final) and _has(alone, content):
            self.told[THOUGHTS] += 1
            return found
        if not kept and not said.rstrip().endswith(content.strip()):
            raise DataError(_changed(f"messages[{index}]", alone, text, self.template))
        what = f"the answer messages[{index}]"
        raise DataError(lost(what, self.messages[index].content, self.template.filename))

    def _end_of(self, index: int, text: str, otherwise: int) -> int:
        """Where the text of the first `index` messages ends in `text`, before the header of the next one."""
        try:
            before = self.render(index, False) if index else ""
        except DataError:  # a template may refuse a conversation that ends with a question
            return otherwise
        return len(before) if text.startswith(before) else otherwise

    def _check_said(self, text: str, answers: dict[int, str]) -> None:
        """Check that tools, and what messages say beside their content, are in the text."""
        if self.tools:
            check_tools(self.tools, text.translate(self.originals), self.template, self.told)
        for index, message in enumerate(self.messages):
            if message.fields:

                def alone(count: int = index + 1) -> str:
                    return self.render(count, False).translate(self.originals)

                said = answers.get(index, text).translate(self.originals)
                check_fields(message, f"messages[{index}]", said, alone, self.template, self.told)

    def _marked(self, answers: list[_Answer], marked: list[tuple[int, int]]) -> list[_Answer]:
        """The spans that the template marks as generated, of those answers."""
        spans = [
            _Answer(answer.index, start, end)
            for start, end in marked
            for answer in answers
            if start < answer.end and end > answer.start
        ]
        if answers and not spans:
            raise DataError(
                f"the chat template {self.template.filename} marks nothing of messages[{answers[0].index}] as "
                "generated, though it has {% generation %}; put the marks around every answer, or take them out"
            )
        return spans

    def _encode(self, text: str, spans: list[_Answer], starts: list[int]) -> tuple[list[int], list[bool]]:
        """The ids of the text, encoded apart within and between spans that are supervised, and cut at `starts`."""
        controls = self.tokenizer.control_ids
        ends = {place for span in spans for place in (span.start, span.end)}
        pieces: list[tuple[str | int, int | None]] = []  # with the number of the message that it supervises
        for start, end in pairwise(sorted({0, len(text), *starts, *ends})):
            answer = next((span.index for span in spans if span.start <= start < span.end), None)
            for piece in self.names.split(text[start:end]):
                if piece:
                    pieces.append((controls.get(piece, piece.translate(self.originals)), answer))
        encoded = zip(self.tokenizer.encode_pieces([piece for piece, _ in pieces]), pieces, strict=True)
        ids: list[int] = []
        mask: list[bool] = []
        for answer, group in groupby(encoded, key=lambda item: item[1][1]):
            parts = list(group)
            span_ids = [token for part, _ in parts for token in part]
            if answer is not None:
                written = "".join(piece for _, (piece, _) in parts if isinstance(piece, str))
                check_decodes(span_ids, written, self.tokenizer, f"messages[{answer}]")
            ids += span_ids
            mask += [answer is not None] * len(span_ids)
        return ids, mask


def _has(said: str, content: str) -> bool:
    return content.strip() in said


def _rename_reasoning(turn: dict[str, Any], template: ChatTemplate) -> None:
    """Call a thought what the template calls it, where it knows it by another name only."""
    for name in REASONING if len(turn) > 2 else ():
        other = next((each for each in REASONING if each in template.words), name)
        if name in turn and name not in template.words and other not in turn:
            turn[other] = turn.pop(name)


@lru_cache(maxsize=256)
def _check_role(role: str, template: ChatTemplate, special_tokens: tuple[tuple[str, str], ...]) -> None:
    """Raises DataError for a role that the template does not tell from the assistant's."""
    question, words = {"role": "user", "content": "question"}, {"content": "words"}

    def render(role: str) -> str:
        turns = [question, words | {"role": role}]
        return render_template(template, turns, dict(special_tokens), add_generation_prompt=False)

    try:
        same = render(role) == render("assistant")
    except DataError:
        return  # what it says of the conversation itself counts
    if same:
        raise DataError(
            f"the chat template {template.filename} writes messages of role {role!r} as the assistant's own words; use "
            "a template that knows the role (config.data.chat_template=FILE), or another role"
        )


def _changed(what: str, alone: str, text: str, template: ChatTemplate, last: bool = False) -> str:
    at = next((i for i, (a, b) in enumerate(zip(alone, text, strict=False)) if a != b), len(text))
    return (
        f"the chat template {template.filename} is not prefix-preserving: it writes {what} as "
        f"{alone[max(at - 20, 0) : at + 30]!r} when nothing follows, but {text[max(at - 20, 0) : at + 30]!r} in the "
        "whole conversation, so a model would be trained on other text than it is asked to continue; "
        + (
            ""
            if last
            else "learn the last answer alone (config.data.learn=last), end the conversation there, "
        )
        + "take out what the template takes out, or use a template that only appends (config.data.chat_template=FILE)"
    )


def _with_bos(ids: list[int], mask: list[bool], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """With BOS at the start, where the tokenizer has one; later ones may stand where a turn has just ended."""
    bos = tokenizer.bos_id
    if bos is None:
        return ids, mask
    ambiguous = bos in tokenizer.eos_ids  # then it may also end turns
    if bos not in ids or (ambiguous and ids[0] != bos):
        return [bos, *ids], [False, *mask]
    if not ambiguous and (ids[0] != bos or extra_bos(ids, tokenizer)):
        at = [position for position, token in enumerate(ids) if token == bos]
        raise DataError(
            f"the chat template writes BOS at tokens {at}; write it once, first, or not at all, or right after "
            "the ends of turns"
        )
    return ids, mask


def extra_bos(ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """How many BOS stand neither first nor right after the end of a turn, where Llama 2's template has them."""
    bos = tokenizer.bos_id
    return sum(token == bos and before not in tokenizer.eos_ids for before, token in pairwise(ids))
