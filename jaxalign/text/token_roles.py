"""Which control tokens a chat template writes around turns, and which within answers.

Found by rendering short conversations whose texts are known: plain ones, one with a thought, one with a tool call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jaxalign.errors import ConfigError, DataError
from jaxalign.fields import nearest_hint
from jaxalign.text.escape import control_names
from jaxalign.text.messages import REASONING
from jaxalign.text.template_budget import limited
from jaxalign.text.templates import PROBES, ChatTemplate, Costly, render_template

THOUGHT = ("<think>", "</think>")  # written within answers by models whose templates never do
_CLOSING = {"<": "</", "[": "[/", "<|": "<|/"}
_CALL = {"name": "tool_name", "arguments": {"tool_key": "tool_value"}}
_TOOL = {
    "name": "tool_name",
    "description": "of the tool",
    "parameters": {"type": "object", "properties": {}},
}
_ID = "call00000"  # Mistral's templates want nine letters and digits


@dataclass(frozen=True)
class TokenRoles:
    """Names of control tokens by where a template writes them."""

    marks: frozenset[str]  # around turns: headers, ends, what opens the conversation
    answers: frozenset[str]  # within the assistant's answers: thoughts, tool calls


@lru_cache(maxsize=64)
def find_roles(
    template: ChatTemplate,
    special_tokens: tuple[tuple[str, str], ...],
    names: tuple[str, ...],
    ends: tuple[str, ...],
) -> TokenRoles:
    """The roles of `names` in what a template writes.

    Args:
      special_tokens: names by their role, as items: `bos_token`, …
      ends: what ends a turn or a text, as far as is known beforehand.
    """
    with limited(PROBES):
        return _find_roles(template, special_tokens, names, ends)


def _find_roles(
    template: ChatTemplate,
    special_tokens: tuple[tuple[str, str], ...],
    names: tuple[str, ...],
    ends: tuple[str, ...],
) -> TokenRoles:
    probe = _Probe(template, dict(special_tokens), control_names(names))
    marks, within = set(ends) | {name for role, name in special_tokens}, set()
    system, asked, said = (
        _turn("system", "Instruction"),
        _turn("user", "Question one"),
        _turn("assistant", "Reply"),
    )
    asked_again, last = _turn("user", "Question two"), _turn("assistant", "Answer")
    for head in ([system], []):
        whole = probe.render([*head, asked, said, asked_again, last])
        marks |= probe.names(whole.partition("Question one")[0])
        marks |= probe.names(_between(whole, "Reply", "Question two")) | probe.names(_after(whole, "Answer"))
        question = [*head, asked, said, asked_again]
        bare, prompt = probe.render(question), probe.render(question, generation=True)
        header = probe.names(_after(prompt, "Question two"))
        opened = {name for name in header if closing_of(name) in names and closing_of(name) not in header}
        marks |= (header - opened) | probe.names(_after(bare, "Question two"))
        within |= opened | {closing_of(name) for name in opened}
        within |= probe.names(_continued(prompt, whole).partition("Answer")[0])
        ended = probe.names(_after(whole, "Answer"))
        for thought in REASONING:
            turns = [asked, {**last, thought: "Thought"}]
            within |= probe.names(
                _continued(probe.render([asked], generation=True), probe.render(turns)).partition("Answer")[0]
            )
        for call, result in _tool_turns():
            tools = [{"type": "function", "function": _TOOL}]
            start = probe.render([asked], generation=True, tools=tools)
            called = _continued(start, probe.render([asked, call, result, last], tools=tools))
            if "tool_name" not in called:
                continue
            rest = called.partition("tool_name")[2]
            at = min((rest.find(name) for name in ended if name in rest), default=-1)
            if at < 0 or "Result" not in rest[at:]:
                continue
            within |= probe.names(called[: len(called) - len(rest) + at])
            before_answer = rest[at:].partition("Result")
            marks |= probe.names(before_answer[0] + before_answer[2].partition("Answer")[0]) - set(THOUGHT)
            break
    thoughts = {name for name in THOUGHT if name in names}
    answers = (within | thoughts) - (marks - thoughts) - set(ends)
    return TokenRoles(frozenset(marks & set(names)) - answers, frozenset(answers & set(names)))


def stop_names(tokenizer: Any) -> tuple[str, ...]:
    """The names of the control tokens that end turns or texts."""
    return tuple(name for name, number in tokenizer.control_ids.items() if number in tokenizer.eos_ids)


def answer_tokens(tokenizer: Any, template: ChatTemplate | None) -> frozenset[str]:
    """The control tokens that the content of assistant messages may hold: those that the template writes in answers
    itself, marks of thoughts, and what `config.data.answer_tokens` adds.

    Raises:
      ConfigError: one that was added is none, or is a mark of turns, BOS or EOS.
    """
    if template is None:
        return frozenset()
    controls, ends = tokenizer.control_ids, stop_names(tokenizer)
    roles = find_roles(template, tuple(tokenizer.special_tokens.items()), tuple(controls), ends)
    for name in template.answer_tokens:
        if name not in controls:
            hint = nearest_hint(name, tuple(controls))
            raise ConfigError(
                f"config.data.answer_tokens={name!r} is no control token of the tokenizer{hint}; what is no control "
                "token needs no leave"
            )
        if name in roles.marks or name in ends or name in tokenizer.special_tokens.values():
            raise ConfigError(
                f"config.data.answer_tokens={name!r} begins or ends turns or texts, so an answer that holds it would "
                "forge one; leave it out"
            )
    return roles.answers | set(template.answer_tokens)


@dataclass(frozen=True)
class _Probe:
    template: ChatTemplate
    special_tokens: Mapping[str, str]
    pattern: Any

    def render(self, turns: Sequence[dict[str, Any]], *, generation: bool = False, tools: Any = None) -> str:
        """What the template writes, or nothing where it refuses such a conversation.

        Raises:
          ConfigError: it takes too long for it, or too much memory.
        """
        try:
            return render_template(
                self.template, list(turns), self.special_tokens, add_generation_prompt=generation, tools=tools
            )
        except Costly as error:
            raise ConfigError(str(error)) from None
        except DataError:
            return ""

    def names(self, text: str) -> set[str]:
        return set(self.pattern.findall(text))


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _tool_turns() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """A tool call and its result, in the forms that templates ask for."""
    calls = [{"type": "function", "id": _ID, "function": _CALL}]
    result = {"role": "tool", "name": "tool_name", "tool_call_id": _ID, "content": "Result"}
    return [
        ({"role": "assistant", "content": content, "tool_calls": calls}, result) for content in ("", None)
    ]


def _between(text: str, before: str, after: str) -> str:
    return text.partition(before)[2].partition(after)[0]


def _after(text: str, content: str) -> str:
    return text.rpartition(content)[2] if content in text else ""


def _continued(prompt: str, text: str) -> str:
    """What stands after the prompt, in a text that begins with it."""
    return text[len(prompt) :] if prompt and text.startswith(prompt) else ""


def closing_of(name: str) -> str:
    """What closes a mark that opens: `</x>` of `<x>`, `[/X]` of `[X]`, `<|/x|>` of `<|x|>`; "" of anything else."""
    opening = next((mark for mark in ("<|", "<", "[") if name.startswith(mark)), "")
    return _CLOSING[opening] + name.removeprefix(opening) if opening else ""
