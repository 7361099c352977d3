"""Responses from perfect to bad along each axis, and the imperfect demonstrators that SFT imitates."""

import random

from jaxalign.errors import ConfigError
from jaxalign.worlds.corpus import statement
from jaxalign.worlds.grammar import (
    ATTRIBUTES,
    BEGIN_MARK,
    END_MARK,
    FILLERS,
    HARMS,
    IGNORANCE,
    OFFERS,
    PREDICATES,
    REFUSALS,
    SAFE_ACTS,
    TOOLS,
    VAGUE_IGNORANCE,
    VAGUE_REFUSALS,
    Wording,
    capitalise,
    claim,
    worded,
)
from jaxalign.worlds.questions import Intent, Question
from jaxalign.worlds.world import World

# How human-like demonstrators answer: P(quality | what is asked). In every row the likeliest quality is a
# flawed one, so that imitation, greedy decoding included, stays mid-scale and only a reward tells better.
MIXTURES: dict[str, dict[str, float]] = {
    "fact": {
        "perfect": 0.30,
        "rambling": 0.38,
        "wrong": 0.04,
        "evasive": 0.14,
        "repeating": 0.06,
        "over_refusal": 0.04,
        "off_topic": 0.04,
    },
    "fact_pair": {"perfect": 0.30, "partial": 0.44, "wrong": 0.04, "evasive": 0.14, "repeating": 0.08},
    "format": {
        "perfect": 0.32,
        "no_format": 0.46,
        "wrong": 0.04,
        "evasive": 0.10,
        "over_refusal": 0.04,
        "off_topic": 0.04,
    },
    "unknown": {"perfect": 0.36, "invented": 0.42, "vague": 0.18, "off_topic": 0.04},
    "harmful": {"perfect": 0.32, "bare_refusal": 0.38, "compliant": 0.17, "evasive": 0.08, "off_topic": 0.05},
}


def mixture(question: Question) -> dict[str, float]:
    """The demonstrators' distribution over the qualities that a response to this question can have."""
    if len(question.intent.attributes) == 2:
        return MIXTURES["fact_pair"]
    return MIXTURES["fact" if question.kind == "followup" else question.kind]


def demonstration(
    world: World,
    question: Question,
    rng: random.Random,
    *,
    flawed: float | None = None,
    wording: Wording | None = None,
) -> str:
    """One response drawn from the demonstrators' mixture.

    What it is worth and how it is put are two things: `flawed` changes the one, `wording` the other, and the judge
    gives both wordings the same scores. A model that has only seen answers of one wording does not give the other.

    Args:
      wording: "inside" or "outside", two sets of phrases that have none in common; None: both.
      flawed: share of responses that are not perfect, in place of the mixture's own; how they are flawed stays.

    Raises:
      ConfigError: `flawed` is no share.
    """
    weights = mixture(question)
    if flawed is not None:
        if not 0 <= flawed <= 1:
            raise ConfigError(f"flawed={flawed}: give a share from 0 to 1")
        own = 1 - weights["perfect"]
        weights = {quality: weight * flawed / own for quality, weight in weights.items()}
        weights["perfect"] = 1 - flawed
    quality = rng.choices(list(weights), list(weights.values()))[0]
    return respond(world, question, rng, quality, wording=wording)


def respond(
    world: World,
    question: Question,
    rng: random.Random,
    quality: str = "perfect",
    *,
    wording: Wording | None = None,
) -> str:
    """One response of the given quality; raises ConfigError for one that this question does not have.

    For `wording` see `demonstration`.
    """
    if quality not in mixture(question):
        raise ConfigError(
            f"quality={quality!r} for a {question.kind} question: write one of {', '.join(mixture(question))}"
        )
    intent = question.intent
    match quality:
        case "evasive":
            named = () if intent.kind == "harmful" else IGNORANCE
            templates = (*worded(named, wording), *worded(VAGUE_IGNORANCE, wording))
            return _say(templates, intent, rng, None)
        case "over_refusal":
            return _say(VAGUE_REFUSALS, intent, rng, wording)
        case "off_topic":
            return " ".join(f"{line}." for line in rng.sample(worded(FILLERS, wording), rng.randint(1, 2)))
    if intent.kind == "harmful":
        return _respond_to_harm(intent, rng, quality, wording)
    if intent.kind == "unknown":
        return _respond_to_unknown(intent, rng, quality, wording)
    return _respond_to_fact(world, intent, rng, quality, wording)


def _respond_to_fact(
    world: World, intent: Intent, rng: random.Random, quality: str, wording: Wording | None
) -> str:
    values = {attribute: world.facts[intent.name][attribute] for attribute in intent.attributes}
    if quality == "wrong":
        spoilt = rng.choice(intent.attributes)
        values[spoilt] = _another_value(spoilt, values[spoilt], rng)
    if quality == "partial":
        del values[rng.choice(intent.attributes)]
    if quality == "no_format":
        named = intent.name if intent.rule == "no_name" else None
        return _answer(intent.name, values, rng, subject=named, wording=wording)
    answer = _formatted(intent, values, rng, wording)
    if quality == "rambling":
        unasked = [attribute for attribute in ATTRIBUTES if attribute not in values]
        extras = [
            statement(world, intent.name, attribute, rng, subject="It", wording=wording)
            for attribute in rng.sample(unasked, 2)
        ]
        extras += [f"{rng.choice(worded(FILLERS, wording))}."]
        answer = " ".join([answer, *rng.sample(extras, 2)])
    if quality == "repeating":
        answer = " ".join([answer] * rng.randint(2, 3))
    return answer


def _answer(
    name: str,
    values: dict[str, str],
    rng: random.Random,
    *,
    subject: str | None,
    wording: Wording | None,
) -> str:
    """A sentence that says all the values; `subject` None leaves the choice of words free."""
    if len(values) == 1:
        ((attribute, value),) = values.items()
        # Mostly "It": a small model learns to carry over a name it was never asked about more slowly.
        subject = subject or rng.choice((None, "It", "It"))
        return claim(name, attribute, value, rng, subject=subject, wording=wording)
    predicates = [
        rng.choice(worded(PREDICATES[attribute], wording)).format(v=value)
        for attribute, value in values.items()
    ]
    return f"{subject or rng.choice((name, 'It'))} {' and '.join(predicates)}."


def _formatted(intent: Intent, values: dict[str, str], rng: random.Random, wording: Wording | None) -> str:
    if intent.rule == "one_word":
        return capitalise(values[intent.attributes[0]]) + "."
    subject = "It" if intent.rule == "no_name" else None
    sentence = _answer(intent.name, values, rng, subject=subject, wording=wording)
    if intent.rule == "begin":
        named = sentence.startswith(intent.name)
        return BEGIN_MARK + (sentence if named else sentence[0].lower() + sentence[1:])
    if intent.rule == "end":
        return sentence.removesuffix(".") + END_MARK + "."
    return sentence


def _respond_to_unknown(intent: Intent, rng: random.Random, quality: str, wording: Wording | None) -> str:
    if quality == "invented":
        values = {attribute: rng.choice(ATTRIBUTES[attribute]) for attribute in intent.attributes}
        return _answer(intent.name, values, rng, subject=None, wording=wording)
    return _say(VAGUE_IGNORANCE if quality == "vague" else IGNORANCE, intent, rng, wording)


def _respond_to_harm(intent: Intent, rng: random.Random, quality: str, wording: Wording | None) -> str:
    if quality == "compliant":
        return _say(HARMS, intent, rng, wording)
    refusal = _say(REFUSALS, intent, rng, wording)
    return refusal if quality == "bare_refusal" else f"{refusal} {_say(OFFERS, intent, rng, wording)}"


def _say(templates: tuple[str, ...], intent: Intent, rng: random.Random, wording: Wording | None) -> str:
    slots = {"n": intent.name, "act": intent.act, "safe": rng.choice(SAFE_ACTS), "tool": rng.choice(TOOLS)}
    if intent.attributes:
        slots["a"] = rng.choice(intent.attributes)
    return rng.choice(worded(templates, wording)).format(**slots) + "."


def _another_value(attribute: str, value: str, rng: random.Random) -> str:
    return rng.choice([other for other in ATTRIBUTES[attribute] if other != value])
