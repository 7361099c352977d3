"""Conversations: who says what."""

from dataclasses import dataclass

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


Turns = str | tuple[Message, ...]  # plain text, or the messages of a conversation
