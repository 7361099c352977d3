"""Conversations: who says what."""

from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str

    def to_dict(self) -> dict[str, Any]:
        """The message as rows have it."""
        return {"role": self.role, "content": self.content}


Turns = str | tuple[Message, ...]  # plain text, or the messages of a conversation
