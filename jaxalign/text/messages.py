"""Conversations: who says what."""

import json
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
REASONING = ("reasoning_content", "reasoning", "thinking")  # what models call their thoughts beside an answer


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str  # "" where there is none, beside tool calls
    # What else chat templates are given of it (tool_calls, reasoning_content, name, …) as a JSON object, or "".
    fields: str = ""
    # The same of what does not make it another message: ids, dates, sources.
    notes: str = field(default="", compare=False)
    learned: bool = field(default=True, compare=False)  # of an answer: False is a weight of 0

    @property
    def more(self) -> dict[str, Any]:
        """The fields of meaning beside role and content."""
        return json.loads(self.fields) if self.fields else {}

    def to_dict(self) -> dict[str, Any]:
        """The message as rows have it, and as chat templates get it."""
        notes = json.loads(self.notes) if self.notes else {}
        return {"role": self.role, "content": self.content, **self.more, **notes}


Turns = str | tuple[Message, ...]  # plain text, or the messages of a conversation
