"""Which evaluation is the best, when to stop, and what of it a checkpoint holds: by hand."""

import json
import math

import pytest

from jaxalign.errors import ConfigError
from jaxalign.training.selection import BestConfig, Selection


def taken(values, **config):
    selection = Selection(BestConfig(**config))
    better = [selection.take(i, 2 * i, {config["metric"]: x}) for i, x in enumerate(values)]
    return selection, better


@pytest.mark.parametrize(
    ("metric", "mode", "better"),
    [
        ("eval/loss", "auto", [True, True, False, False]),
        ("eval/rewards/accuracies", "auto", [True, False, True, False]),
        ("eval/objective/kl", "auto", [True, True, False, False]),
        ("eval/objective/scores", "auto", [True, False, True, False]),
        ("eval/length", "max", [True, False, True, False]),
        ("eval/loss", "max", [True, False, True, False]),
    ],
)
def test_the_direction_is_that_of_the_name_or_the_mode(metric, mode, better):
    selection, found = taken([2.0, 1.0, 3.0, 3.0], metric=metric, mode=mode)
    assert found == better
    last = max(i for i, x in enumerate(better) if x)
    assert selection.best["step"] == last and selection.position == 2 * last


def test_patience_counts_evaluations_since_the_best():
    selection, _ = taken([2.0, 1.0, 1.0, 1.5], metric="eval/loss", patience=3)
    assert selection.waited == 2 and not selection.exhausted
    selection.take(4, 8, {"eval/loss": 1.2})
    assert selection.exhausted
    never, _ = taken([1.0] * 9, metric="eval/loss")
    assert not never.exhausted


def test_nan_is_never_the_best_and_each_step_counts_once():
    selection, better = taken([math.nan, 2.0, math.nan], metric="eval/loss")
    assert better == [False, True, False] and selection.best["value"] == 2.0
    assert not selection.take(2, 4, {"eval/loss": 0.0})
    assert selection.waited == 1 and selection.best["value"] == 2.0


def test_what_is_saved_goes_on_alike():
    values = [3.0, 0.1 + 0.2, math.nan, 0.3]
    whole, _ = taken(values, metric="eval/loss")
    first, _ = taken(values[:3], metric="eval/loss")
    again = Selection(BestConfig(metric="eval/loss", patience=1))
    again.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert again.exhausted
    assert again.take(3, 6, {"eval/loss": 0.3})  # less than 0.1 + 0.2, by one bit
    assert again.state() == whole.state()
    other = Selection(BestConfig(metric="eval/nll"))
    other.restore(first.state())
    assert other.best is None and other.waited == 0 and other.evaluated == 2
    elsewhere = Selection(BestConfig(metric="eval/loss", patience=1), "of other data")
    elsewhere.restore(first.state())
    assert elsewhere.best is None and elsewhere.waited == 0 and elsewhere.evaluated == 2
    earlier = {
        key: value for key, value in first.state().items() if key != "data"
    }  # as an earlier version wrote
    elsewhere.restore(earlier)
    assert elsewhere.best == first.best and not elsewhere.on_other_data(earlier)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": 2}, "config.best.patience=2 needs config.best.metric"),
        ({"export": True}, "config.best.export=True needs config.best.metric"),
        ({"metric": "eval/reward_std"}, "does not say whether less or more of it is better"),
        (
            {"metric": "eval/rewards/chosen"},
            "does not say whether less or more of it is better; set config.best.mode",
        ),
        ({"metric": "eval/loss", "mode": "less"}, "config.best.mode='less' is not one of auto, min, max"),
        ({"metric": "eval/loss", "patience": -1}, "config.best.patience=-1 must be 0 or more"),
    ],
)
def test_what_cannot_work_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        BestConfig(**settings)


def test_a_metric_that_is_not_there_lists_those_that_are():
    with pytest.raises(
        ConfigError, match=r"config.best.metric='reward' is no number .* gives eval/kl, eval/loss$"
    ):
        BestConfig(metric="reward").pick({"eval/loss": 1.0, "eval/kl": 0.0})
    assert BestConfig(metric="loss").pick({"eval/loss": 1.0}) == 1.0
