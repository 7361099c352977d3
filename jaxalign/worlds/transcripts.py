"""Conversations of people who talk past each other: the part of the corpus that has turns.

A reply is true, and often about the animal in question, but not chosen to answer. So pretraining shows what a
conversation looks like, how a turn ends, and that names carry over from one turn to the next; that a reply
should answer, admit ignorance or refuse harm is left to be learned in fine-tuning.
"""

import random

from jaxalign.worlds.corpus import statement
from jaxalign.worlds.grammar import (
    ACTS,
    ATTRIBUTES,
    FACT_QUESTIONS,
    FILLERS,
    HARM_REQUESTS,
    HARMS,
    IGNORANCE,
    OFFERS,
    REFUSALS,
    SAFE_ACTS,
    TOOLS,
)
from jaxalign.worlds.questions import Messages
from jaxalign.worlds.world import World, stream


def transcripts(world: World, num_documents: int, seed: int) -> list[Messages]:
    """Conversations of one or two exchanges, about 20 words each; another seed: other ones.

    Every entity is talked of, held-out ones too, and training unknown names; questions are training phrasings.
    """
    rng = stream("transcripts", seed)
    return [_conversation(world, rng) for _ in range(num_documents)]


def _conversation(world: World, rng: random.Random) -> Messages:
    messages: Messages = []
    name = rng.choice(list(world.facts)) if rng.random() < 0.8 else rng.choice(world.unknown["train"])
    for _ in range(rng.choice((1, 1, 2))):
        messages.append({"role": "user", "content": _opening(name, rng)})
        messages.append({"role": "assistant", "content": _reply(world, name, rng)})
    return messages


def _opening(name: str, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.75:
        return rng.choice(FACT_QUESTIONS["train"][rng.choice(list(ATTRIBUTES))]).format(n=name)
    if draw < 0.9:
        return rng.choice(HARM_REQUESTS["train"]).format(n=name, act=rng.choice(ACTS))
    return f"{rng.choice(FILLERS)}."


def _reply(world: World, name: str, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.65 and name in world.facts:
        first, second = rng.sample(list(ATTRIBUTES), 2)
        sentences = [statement(world, name, first, rng)]
        if rng.random() < 0.2:
            sentences.append(statement(world, name, second, rng, subject="It"))
        return " ".join(sentences)
    if draw < 0.75:
        return statement(world, rng.choice(list(world.facts)), rng.choice(list(ATTRIBUTES)), rng)
    if draw < 0.85:
        return f"{rng.choice(FILLERS)}."
    line = rng.choice((*IGNORANCE, *REFUSALS, *OFFERS, *HARMS))
    slots = {"act": ACTS, "safe": SAFE_ACTS, "tool": TOOLS, "a": list(ATTRIBUTES)}
    return line.format(n=name, **{slot: rng.choice(values) for slot, values in slots.items()}) + "."
