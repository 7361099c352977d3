"""Every field of a row accounted for: read, refused by name, known to be harmless, or listed.

A field that its record does not read is refused if its name carries meaning for training and it says something
that the record does not say already; it is passed over if its name is one of those that data sets keep their books
with (`is_harmless`); any other is listed, with the number of rows that have it, by `audit` and at the start of a run.
Names count in any case and style: `systemPrompt`, `System Prompt` and `system_prompts` are `system_prompt`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from jaxalign.data.conversations import read_turns
from jaxalign.errors import DataError, shorten

Row = Mapping[str, Any]


@lru_cache(maxsize=4096)
def canonical(name: str) -> str:
    """A field's name in lower case, without what joins its words, in the singular."""
    name = re.sub(r"[\W_]+", "", name).lower()
    if name in _LISTS or name.endswith(("ss", "us", "is")):
        return name
    return name[:-3] + "y" if name.endswith("ies") else name.removesuffix("s")


def canonicals(names: Iterable[str]) -> frozenset[str]:
    """The canonical forms of some names."""
    return frozenset(map(canonical, names))


# Words whose singular is another field.
_LISTS = frozenset("completions responses answers outputs scores sys".split())
SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "sys_prompt")
HISTORY = ("history", "chat_history", "conversation_history")
QUESTIONS = ("question", "instruction", "query", "problem", "input")
# An assistant's words to a question or prompt; `completion`, our own name, may be plain text as well.
REPLIES = ("response", "answer", "output", "solution", "target", "reply", "assistant")
# What the model is shown.
CONTEXT = canonicals((*SYSTEM, *HISTORY, *QUESTIONS)) | canonicals(
    "context context_messages prompt messages preamble sys persona custom_instructions developer developer_message "
    "initial_reason_steps tools functions documents prefix suffix prefill response_prefix chat_template_kwargs "
    "images audio video".split()
)
# What a question may be about. A reward function may take it, which is why prompts may have it beside them.
MATERIAL = canonicals(
    "passage paragraph article story background evidence facts premise hypothesis choices options table schema "
    "dialogue dialog conversation conversations text".split()
)
# How an answer is to be learned.
TEACHING = canonicals(
    "tool_calls function_call reasoning reasoning_content thinking thinking_trajectories thoughts cot complex_cot "
    "chain_of_thought label kto_tag weight sample_weight example_weight train_detail loss_weight mask loss_mask "
    "completion_mask assistant_masks train trainable input_ids".split()
)
# Beside text that is to be learned with prompts and completions, what may be the completion of it.
COUNTERPARTS = canonicals((*REPLIES, "completion", "summary", "highlights", "code", "translation"))
# Switches are harmless where they say what happens anyway.
SWITCHES = canonicals("weight loss_weight mask loss_mask loss train training trainable".split())
_QUESTION_LIKE = canonicals((*QUESTIONS, "prompt", "text"))
_OPENING = canonicals((*SYSTEM, *HISTORY))
_THOUGHTS = canonicals("reasoning thinking thought cot".split())
# Fields that say something in words alone.
_TEXTS = (CONTEXT | MATERIAL | COUNTERPARTS | _THOUGHTS) - {"prefix"}
# Of words joined by underscores.
_HARMLESS = re.compile(
    r"(.*_)?(q?ids?|uuid|guid|uid|hash|sha|idx|index|urls?|uri|links?|sources?|origin|datasets?|subset|split|license|"
    r"lang|languages?|lang(uage)?_code|locale|country|date|time|timestamp|tstamp|version|length|len|count|tokens|"
    r"models?|model_[ab]|model_name|generator|annotators?|worker|author|username|scores?|ratings?|rewards?|metadata|"
    r"meta|sample|row|finished|ip|header|identifier|moderation)|(num|n|created|updated|score|rating|reward|model)_.*|"
    r"helpfulness|correctness|coherence|complexity|verbosity|toxicity|toxic|redacted|difficulty|quality|"
    r"attention_mask|token_type_ids|__index_level_\d+__|unnamed.*"
)


class Watched(Mapping):
    """A row whose fields are found by any spelling of their name, null ones not at all, and which remembers them.

    Attributes:
      read: the fields that have been asked for, as the row spells them.
    """

    def __init__(self, row: Row):
        self.row = row
        self._names = {
            canonical(name): name for name, value in reversed(list(row.items())) if value is not None
        }
        self.read: set[str] = set()

    def name(self, name: str) -> str | None:
        """How the row spells a field; None if it has it not. An exact name comes first."""
        if self.row.get(name) is not None:
            return name
        return self._names.get(canonical(name))

    def __getitem__(self, name: str) -> Any:
        found = self.name(name)
        if found is None:
            raise KeyError(name)
        self.read.add(found)
        return self.row[found]

    def peek(self, name: str) -> Any:
        """The value of a field, or None, without reading it."""
        found = self.name(name)
        return None if found is None else self.row[found]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.name(name) is not None

    def __iter__(self) -> Iterator[str]:
        return (name for name, value in self.row.items() if value is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def first(self, names: Iterable[str]) -> str | None:
        """The first of `names` that the row has, as it is given here."""
        return next((name for name in names if name in self), None)

    @property
    def rest(self) -> dict[str, Any]:
        """What has not been read."""
        return {name: self.row[name] for name in self if name not in self.read}


@lru_cache(maxsize=4096)
def is_harmless(name: str) -> bool:
    """Whether a name is one that data sets keep their books with: ids, sources, dates, lengths, scores."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return _HARMLESS.fullmatch(re.sub(r"[\s.\-]+", "_", words).lower()) is not None


def check_unread(row: Row, meaning: frozenset[str], read: Iterable[str], record: Any) -> tuple[str, ...]:
    """Refuse a row one of whose fields carries meaning, unless the record says the same.

    Args:
      meaning: canonical names that carry it.
      read: the fields that made the record.

    Returns:
      The fields that are neither read nor said nor harmless, which are to be listed.

    Raises:
      DataError, without the place: names the field.
    """
    read, listed, said = tuple(read), [], None
    for name, value in row.items():
        if name in read or is_empty(value):
            continue
        word = canonical(name.rpartition(".")[2])
        if word not in meaning and (is_harmless(name) or word not in COUNTERPARTS):
            if not is_harmless(name):
                listed.append(name)
            continue
        if word in meaning and says_nothing(word, value):
            continue
        said = "\n".join(strings(record)) if said is None else said
        # Of another conversation, what the model is shown.
        turns = read_turns(value, name) if word in CONTEXT | MATERIAL else None
        shown = value if turns is None else [turn for turn in turns if turn["role"] != "assistant"]
        texts = [text.strip() for text in strings(shown) if text.strip()]
        if texts and all(_is_said(text, said) for text in texts):
            continue
        if word == "text" and all(text.strip() in value for text in strings(record)):
            continue  # the record, written out
        if word not in meaning:
            listed.append(name)
            continue
        made = ", ".join(name for name in read if name in row)
        raise DataError(
            f"the field {name!r} ({shorten(value)}) means something for training, and rows of this shape ({made}) do "
            f"not read it; {_way_out(word, name)}, or leave it out on purpose with config.data.ignore_fields={name}"
        )
    return tuple(listed)


def _way_out(word: str, name: str) -> str:
    if "." in name:
        return f"say which field of ours it is, as in config.data.fields=system={name}"
    if word in _OPENING:
        return "write prompt and answers as messages, lists of role and content, of which it then becomes the first"
    if word in COUNTERPARTS:
        return (
            f"if it is what is to be learned, say so with config.data.fields=question=FIELD,completion={name}"
        )
    if word in _QUESTION_LIKE:
        return f"if it is the question, say so with config.data.fields=question={name}, or write it into the prompt"
    return "write what it says into the prompt, the messages or the answer"


def says_nothing(word: str, value: Any) -> bool:
    """Whether a field of meaning, by its canonical name, is there for form's sake: empty, switched off, or a tag."""
    if is_empty(value) or (word in SWITCHES and value is not False and value == 1):
        return True
    if word == "label":
        # A list or an object of them tags the row; one alone may judge the answer.
        return not isinstance(value, bool | int | float | str)
    if word in ("reasoning", "thinking") and isinstance(value, str):
        return len(value.split()) < 2  # on, off, low, high
    if word in _TEXTS:
        return isinstance(value, bool | int | float)  # a switch or a count, and nothing to be read
    return value is False and word not in SWITCHES and word != "ktotag"


def is_empty(value: Any) -> bool:
    """Whether a field says nothing, as files with one set of columns for all rows have it."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    if isinstance(value, Sequence):
        return all(is_empty(item) for item in value)
    return value is None or (isinstance(value, Mapping) and not value)


def strings(value: Any) -> Iterator[str]:
    """Every text in a value or in a record, however deep, but the roles of its messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("role", "from"):
                yield from strings(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from strings(item)
    elif hasattr(value, "__dataclass_fields__"):
        yield from strings({name: item for name, item in vars(value).items() if name != "role"})


def _is_said(text: str, said: str) -> bool:
    """Whether `said` contains the text, and a short one not merely as letters of other words."""
    if len(text) >= 8:
        return text in said
    return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", said) is not None
