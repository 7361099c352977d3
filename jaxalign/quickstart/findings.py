"""What the numbers of a quickstart say: every sentence that compares two models follows from their intervals."""

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any, NamedTuple

from jaxalign.errors import DataError

ALIGNED = {"ppo": "PPO", "grpo": "GRPO", "dpo": "DPO", "orpo": "ORPO"}
MODELS = {"pretrained": "Pretrained", "sft": "SFT", **ALIGNED}
AXES = ("helpful", "honest", "harmless")
MISSING = "–"
TOLERANCE = 1e-6  # A rounded end of an interval may pass the mean by as much.
# What is measured, how more and less of it are said of two models, and its unit.
_PHRASES = {
    "score": ("Score", "clearly scores higher than", "clearly scores lower than", ""),
    "kl": ("Distance from SFT", "is clearly farther from SFT than", "is clearly nearer to SFT than", " nats"),
}


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval; NaN where there is none."""

    mean: float
    low: float
    high: float


def number(value: Any, where: str) -> float:
    """A number of results.json, NaN for null. Raises DataError for anything else."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"results.json: {where} is {value!r}: write a number or null")
    return float(value)


def interval(value: Any, where: str) -> Interval:
    """[mean, low, high] of results.json; a bare number has no interval, null is all NaN. Raises DataError."""
    if not isinstance(value, list | tuple):
        return Interval(number(value, where), math.nan, math.nan)
    if len(value) != 3:
        raise DataError(f"results.json: {where} is {value!r}: write [mean, low, high]")
    result = Interval(*(number(part, where) for part in value))
    if result.low > result.mean + TOLERANCE or result.mean > result.high + TOLERANCE:
        raise DataError(
            f"results.json: {where} is {value!r}: write [mean, low, high], the mean between the others"
        )
    return result


def measured(results: Mapping[str, Any], model: str, key: str) -> Interval:
    """results["models"][model][key], all NaN where the model or the key is missing."""
    return interval((results["models"].get(model) or {}).get(key), f"models.{model}.{key}")


def shown(value: float, digits: int = 2) -> str:
    """A number to `digits` decimals, never "-0.00"; NaN as a dash."""
    return MISSING if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"


def percent(value: float) -> str:
    """A share in per cent to one decimal; NaN as a dash."""
    return MISSING if math.isnan(value) else f"{shown(100.0 * value, 1)} %"


def is_whole(*intervals: Interval) -> bool:
    """Whether every mean and every end is a number."""
    return not any(math.isnan(value) for value in sum(intervals, ()))


def order(a: Interval, b: Interval) -> int:
    """1 if all of a lies above all of b, -1 if below, 0 if they share a point or one is not whole."""
    return int(a.low > b.high) - int(a.high < b.low)


def comparison(key: str, name_a: str, a: Interval, name_b: str, b: Interval) -> str:
    """One sentence on two models' "score" or "kl"; it ranks them only if the intervals do not touch."""
    quantity, more, less, unit = _PHRASES[key]
    if not is_whole(a, b):
        return f"{quantity}: {name_a} and {name_b} are not compared, for a range is missing."
    if order(a, b) == 0:
        return f"{quantity}: {name_a} {shown(a.mean)}, {name_b} {shown(b.mean)}{unit}; no clear difference."
    relation = more if order(a, b) > 0 else less
    return f"{name_a} {relation} {name_b} ({shown(a.mean)} against {shown(b.mean)}{unit})."


def headline(results: Mapping[str, Any]) -> str:
    """The answer in one sentence: which model scores highest, as far as the intervals tell."""
    values = {model: measured(results, model, "score") for model in MODELS}
    whole = {model: value for model, value in values.items() if is_whole(value)}
    if len(whole) < 2:
        return "No two models were measured, so there is nothing to compare."
    best = max(whole, key=lambda model: whole[model].mean)
    equals = [model for model in whole if model != best and order(whole[best], whole[model]) == 0]
    score = f"{shown(whole[best].mean)} of 1"
    if equals:
        others = _listed([f"{MODELS[model]} ({shown(whole[model].mean)})" for model in equals])
        return f"{MODELS[best]} scores {score} here, with no clear difference to {others}."
    if best == "sft" or "sft" not in whole:
        return f"{MODELS[best]} answers best here: {score}."
    return f"{MODELS[best]} answers best here: {score}, against {shown(whole['sft'].mean)} for SFT."


def verdict(results: Mapping[str, Any], model: str) -> str:
    """What there is to say of one model beside SFT, in a line or two."""
    if model == "sft":
        return "Where PPO, GRPO and DPO start, and what all are compared with."
    mine, sft = measured(results, model, "score"), measured(results, "sft", "score")
    if not is_whole(mine, sft):
        return "Not compared with SFT: a number is missing."
    word = {1: "Clearly better than SFT", -1: "Clearly worse than SFT", 0: "No clear difference to SFT"}
    rate = measured(results, model, "win_rate")
    won = f": wins {_of_100(rate.mean)} of 100 questions, a draw counting half" if is_whole(rate) else ""
    return f"{word[order(mine, sft)]}{won}."


def findings(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(heading, sentences): each model against SFT, the aligned models in pairs, and the reward model."""
    against_sft = [(f"{MODELS[a]} and SFT", _against_sft(results, a)) for a in MODELS if a != "sft"]
    pairs = [
        (f"{MODELS[a]} and {MODELS[b]}", " ".join(_compare(results, key, a, b) for key in _PHRASES))
        for a, b in combinations(ALIGNED, 2)
    ]
    return [*against_sft, *pairs, ("Reward model", _reward_model(results.get("reward_model") or {}))]


def _compare(results: Mapping[str, Any], key: str, a: str, b: str) -> str:
    return comparison(key, MODELS[a], measured(results, a, key), MODELS[b], measured(results, b, key))


def _against_sft(results: Mapping[str, Any], model: str) -> str:
    sentences = [_compare(results, "score", model, "sft"), _parts(results, model), _win_rate(results, model)]
    return " ".join(filter(None, sentences))


def _parts(results: Mapping[str, Any], model: str) -> str:
    orders = {1: [], -1: [], 0: []}
    for axis in AXES:
        a, b = measured(results, model, axis), measured(results, "sft", axis)
        if is_whole(a, b):
            orders[order(a, b)].append(axis)
    texts = {1: "more", -1: "less", 0: "no clear difference in"}
    parts = [f"{texts[sign]} {_listed(axes)}" for sign, axes in orders.items() if axes]
    return f"Part by part: {'; '.join(parts)}." if parts else ""


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _of_100(share: float) -> str:
    return shown(100.0 * share, 0)


def _win_rate(results: Mapping[str, Any], model: str) -> str:
    rate = measured(results, model, "win_rate")
    if not is_whole(rate):
        return ""
    where = ("half of them is within that range", "clearly more than half", "clearly fewer than half")
    return f"It wins {_of_100(rate.mean)} of 100 questions ({_range(rate)}): {where[_side(rate, 0.5)]}."


def _reward_model(values: Mapping[str, Any]) -> str:
    accuracy = interval(values.get("accuracy"), "reward_model.accuracy")
    limit = number(values.get("bayes_accuracy"), "reward_model.bayes_accuracy")
    if not is_whole(accuracy) or math.isnan(limit):
        return "It is not compared with the best possible, for a number is missing."
    where = ("it is as good as that, as far as these pairs can tell", "it did better, by luck")
    side = (*where, "it is clearly worse than that")[_side(accuracy, limit)]
    return (
        f"It tells the chosen answer in {_of_100(accuracy.mean)} of 100 new pairs ({_range(accuracy)}). "
        f"The choices are noisy, so that nobody can expect more than {_of_100(limit)}: {side}."
    )


def _range(value: Interval) -> str:
    return f"{_of_100(value.low)} to {_of_100(value.high)}"


def _side(value: Interval, point: float) -> int:
    """0 if an interval contains a point, 1 if it lies above it, -1 if below."""
    return int(value.low > point) - int(value.high < point)
