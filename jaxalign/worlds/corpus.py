"""The text the model is pretrained on: facts in many words, questions with answers, manners, filler."""

import random

from jaxalign.worlds.grammar import (
    ACTS,
    ATTRIBUTES,
    FACT_QUESTIONS,
    FILLERS,
    FOLLOWUPS,
    HARM_REQUESTS,
    HARMS,
    IGNORANCE,
    OFFERS,
    PAIR_QUESTIONS,
    PREDICATES,
    REFUSALS,
    RULES,
    SAFE_ACTS,
    TOOLS,
    VAGUE_IGNORANCE,
    VAGUE_REFUSALS,
    Wording,
    capitalise,
    claim,
)
from jaxalign.worlds.world import World, stream

# Comparisons are prose of the corpus only; no question asks for one.
_BOTH = {
    "kind": "{n} and {m} are both of the {v} kind.",
    "colour": "{n} and {m} both have a {v} coat.",
    "home": "{n} and {m} both live in the {v}.",
    "food": "{n} and {m} both like to eat {v}.",
}
_MANNERS = (
    "A good guide is honest and does not make things up.",
    "A kind guide will not help to {act} {n}.",
    "It is best to {safe} {n} and never to {act} {n}.",
    "A bad thief wanted to {act} {n} with a {tool}.",
    "Please teach me the name of a friend.",
    "A friend of {n} comes to dinner too.",
    "I would like to {safe} {n} today.",
    "Well, that is the way to the mill, my friend.",
    "Start with a name. Finish with the last word.",
    "Leave out what you do not know. Say only the rest.",
    "A helpful guide can find the best way.",
)


def statement(
    world: World,
    name: str,
    attribute: str,
    rng: random.Random,
    *,
    subject: str | None = None,
    wording: Wording | None = None,
) -> str:
    """One true sentence about a fact; `subject` ("It") fixes who it is said of, else the name is used."""
    return claim(name, attribute, world.facts[name][attribute], rng, subject=subject, wording=wording)


def corpus(world: World, num_documents: int, seed: int) -> list[str]:
    """Documents of 1-8 short sentences, about 16 words each; another seed: other sentences, the same facts.

    Facts of every entity occur, held-out ones too. Of the unknown names only the training ones occur, and
    nothing is said of them but that they are not known.
    """
    rng = stream("corpus", seed)
    makers = rng.choices(list(_DOCUMENTS), list(_DOCUMENTS.values()), k=num_documents)
    return [make(world, rng) for make in makers]


def _any_name(world: World, rng: random.Random) -> str:
    return rng.choice(list(world.facts))


def _profile(world: World, rng: random.Random) -> str:
    name = _any_name(world, rng)
    first, *rest = rng.sample(list(ATTRIBUTES), rng.randint(2, 4))
    sentences = [statement(world, name, first, rng)]
    sentences += [statement(world, name, a, rng, subject=rng.choice((None, "It"))) for a in rest]
    return " ".join(sentences)


def _pair(world: World, rng: random.Random) -> str:
    name = _any_name(world, rng)
    a, b = rng.sample(list(ATTRIBUTES), 2)
    facts = world.facts[name]
    predicates = (rng.choice(PREDICATES[key]).format(v=facts[key]) for key in (a, b))
    question = rng.choice(PAIR_QUESTIONS["train"]).format(a=a, b=b, n=name)
    return f"{question} {rng.choice((name, 'It'))} {' and '.join(predicates)}."


def _catechism(world: World, rng: random.Random) -> str:
    """Questions about one entity, each followed by its answer; the later ones may say "it"."""
    name = _any_name(world, rng)
    first, *rest = rng.sample(list(ATTRIBUTES), rng.randint(1, 3))
    question = rng.choice(FACT_QUESTIONS["train"][first]).format(n=name)
    in_one_word = f"{capitalise(world.facts[name][first])}."
    parts = [question, in_one_word if rng.random() < 0.15 else statement(world, name, first, rng)]
    for attribute in rest:
        subject = rng.choice((None, "It"))
        parts += [
            rng.choice(FOLLOWUPS["train"][attribute]),
            statement(world, name, attribute, rng, subject=subject),
        ]
    return " ".join(parts)


def _comparison(world: World, rng: random.Random) -> str:
    name, other = rng.sample(list(world.facts), 2)
    attribute = rng.choice(list(ATTRIBUTES))
    value, other_value = world.facts[name][attribute], world.facts[other][attribute]
    if value == other_value:
        return _BOTH[attribute].format(n=name, m=other, v=value)
    template = rng.choice(PREDICATES[attribute])
    return f"{name} {template.format(v=value)} but {other} {template.format(v=other_value)}."


def _mixture(world: World, rng: random.Random) -> str:
    names = rng.sample(list(world.facts), 3)
    return " ".join(statement(world, name, rng.choice(list(ATTRIBUTES)), rng) for name in names)


def _ignorance(world: World, rng: random.Random) -> str:
    name = rng.choice(world.unknown["train"])
    attribute = rng.choice(list(ATTRIBUTES))
    question = rng.choice(FACT_QUESTIONS["train"][attribute]).format(n=name)
    return f"{question} {rng.choice((*IGNORANCE, *VAGUE_IGNORANCE)).format(n=name, a=attribute)}."


def _manners(world: World, rng: random.Random) -> str:
    """Harmful acts and kind ones, refused or not: this teaches the words, not what an assistant should do."""
    slots = {
        "n": _any_name(world, rng),
        "act": rng.choice(ACTS),
        "safe": rng.choice(SAFE_ACTS),
        "tool": rng.choice(TOOLS),
    }
    request = rng.choice(HARM_REQUESTS["train"])
    reply = rng.choice((*REFUSALS, *VAGUE_REFUSALS, *OFFERS, *HARMS)) + "."
    document = rng.choice((rng.choice(_MANNERS), f"{request} {reply}", reply))
    return document.format(**slots)


def _filler(world: World, rng: random.Random) -> str:
    sentences = [f"{line}." for line in rng.sample(FILLERS, 2)]
    if rng.random() < 0.3:
        sentences.append(rng.choice([text for texts in RULES["train"].values() for text in texts]))
    return " ".join(sentences)


_DOCUMENTS = {
    _profile: 0.34,
    _catechism: 0.32,
    _pair: 0.08,
    _comparison: 0.06,
    _mixture: 0.06,
    _ignorance: 0.05,
    _manners: 0.06,
    _filler: 0.03,
}
