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
    "score": ("Judge score", "scores higher than", "scores lower than", ""),
    "kl": ("KL from SFT", "is farther from SFT than", "is nearer to SFT than", " nats"),
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
        return f"{quantity}: {name_a} and {name_b} are not compared, for an interval is missing."
    if order(a, b) == 0:
        return f"{quantity}: {name_a} {shown(a.mean)}, {name_b} {shown(b.mean)}{unit}; the intervals overlap."
    relation = more if order(a, b) > 0 else less
    values = f"{shown(a.mean)} against {shown(b.mean)}{unit}"
    return f"{name_a} {relation} {name_b} ({values}; the intervals do not touch)."


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
    texts = {1: "higher on", -1: "lower on", 0: "intervals that overlap on"}
    parts = [f"{texts[sign]} {_listed(axes)}" for sign, axes in orders.items() if axes]
    return f"Part by part: {'; '.join(parts)}." if parts else ""


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _win_rate(results: Mapping[str, Any], model: str) -> str:
    rate = measured(results, model, "win_rate")
    if not is_whole(rate):
        return ""
    return f"Question by question its win rate is {percent(rate.mean)}; {_position(rate, 0.5, 'one half')}."


def _reward_model(values: Mapping[str, Any]) -> str:
    accuracy = interval(values.get("accuracy"), "reward_model.accuracy")
    limit = number(values.get("bayes_accuracy"), "reward_model.bayes_accuracy")
    if not is_whole(accuracy) or math.isnan(limit):
        return "Its accuracy and the limit set by the noise are not compared, for a number is missing."
    return (
        f"It agrees with {percent(accuracy.mean)} of the held-out labels; {_position(accuracy, limit, 'the limit')}: "
        f"because of the noise no scorer can expect more than {percent(limit)}."
    )


def _position(value: Interval, point: float, name: str) -> str:
    """Where an interval of shares lies: "the interval, 74.0 % to 81.5 %, is above one half"."""
    where = "is above" if value.low > point else "is below" if value.high < point else "contains"
    return f"the interval, {percent(value.low)} to {percent(value.high)}, {where} {name}"
