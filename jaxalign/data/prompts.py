"""Where a prompt ends and its answers begin, in rows that store them together."""

from typing import Any

from jaxalign.data.values import blank
from jaxalign.errors import DataError
from jaxalign.text.messages import Message, Turns


def split_common_prompt(chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    """(prompt, chosen, rejected): the longest common beginning is the prompt.

    It is cut back to where both can go on: before an assistant turn or a space.
    """
    differ = (index for index, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    size = next(differ, min(len(chosen), len(rejected)))
    begins: Any = _begins_word if isinstance(chosen, str) else _begins_answer
    while size and not (begins(chosen, size) and begins(rejected, size)):
        size -= 1
    return chosen[:size], chosen[size:], rejected[size:]


def without_repeated_prompt(prompt: Turns, answers: tuple[Turns, ...]) -> tuple[Turns, tuple[Turns, ...]]:
    """Take the prompt off answers that all begin with it: many data sets store prompt and answer in one field.

    An answer may also begin like its prompt (a corrected sentence, a greeting): the prompt is taken off only where it
    ends with white space or a colon, or white space follows it, and where something is left. A single short word is
    left as it is.
    """
    if isinstance(prompt, str) and len(prompt.split()) < 2 and len(prompt.strip()) < 8:
        return prompt, answers
    shorter = prompt.rstrip() if isinstance(prompt, str) else prompt
    for start in (prompt, shorter):
        size = len(start)
        if not size or not all(
            isinstance(answer, type(start)) and answer[:size] == start for answer in answers
        ):
            continue
        rests: tuple[Any, ...] = tuple(answer[size:] for answer in answers)
        if not isinstance(start, str):
            return start, rests
        ends = start[-1].isspace() or start[-1] in ":："
        if all(rest.strip() and (ends or rest[0].isspace()) for rest in rests):
            return start, rests
    return prompt, answers


def as_completion(turns: Turns, name: str, prompt: Turns) -> Turns:
    """A completion in the prompt's form: text that is not blank, or messages from and to assistant.

    Raises:
      DataError, without the place: it is of another form.
    """
    if isinstance(turns, str) != isinstance(prompt, str):
        forms = ("text", "messages") if isinstance(prompt, str) else ("messages", "text")
        raise DataError(f"prompt is {forms[0]} but {name} is {forms[1]}; write both alike")
    if isinstance(turns, str):
        if not turns.strip():
            raise blank(turns, name)
    elif not turns or turns[0].role != "assistant" or turns[-1].role != "assistant":
        roles = ", ".join(message.role for message in turns) or "no messages"
        raise DataError(
            f"{name} must begin and end with an assistant message after its prompt; found {roles}"
        )
    return turns


def _begins_word(text: str, index: int) -> bool:
    return text[index : index + 1].isspace() and not text[index - 1].isspace()


def _begins_answer(messages: tuple[Message, ...], index: int) -> bool:
    before = messages[index - 1].role if index else ""
    return index < len(messages) and messages[index].role == "assistant" != before
