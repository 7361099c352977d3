"""Alarms ring where a NumPy reading of the same numbers says so, once a crossing, and alike after a restart."""

import json

import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.training.alarms import Alarms, parse_alarms


def _told(text, rows, kind=""):
    alarms = Alarms(parse_alarms(text))
    return [bool(alarms.look(step, {f"{kind}x": value})) for step, value in enumerate(rows)]


def test_a_bound_rings_at_each_crossing():
    assert _told("x>2", [1, 3, 4, 2, 2.5]) == [False, True, False, False, True]
    assert _told("x<-0", [1, -1, 1]) == [False, True, False]


def test_deviations_are_those_of_the_last_hundred_steps_within_bounds():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=400)
    rows[[150, 151, 300]] = 9.0
    seen, expected, ringing = [], [], False
    for value in rows:
        last = np.array(seen[-100:])
        crossed = len(last) >= 20 and value > last.mean() + 4 * last.std()
        expected.append(crossed and not ringing)
        ringing = crossed
        if not crossed:
            seen.append(value)
    assert _told("x>4sd", rows) == expected and sum(expected) == 2


def test_the_best_evaluation_is_what_others_are_compared_with():
    assert _told("eval/x<best-0.5", [1, 2, 1.6, 1.4, 1.8, 1.2], "eval/") == [
        False,
        False,
        False,
        True,
        False,
        True,
    ]
    assert _told("eval/x>best+1", [3, 2, 2.9, 3.1], "eval/") == [False, False, False, True]


def test_messages_name_the_number_and_its_bound():
    alarms = Alarms(parse_alarms("x>2, eval/g<best-0.1"))
    assert alarms.look(7, {"x": 3.0, "y": 1.0}) == ["step 7: x is 3, above 2 (config.alarms: x>2)"]
    alarms.look(8, {"eval/g": 0.5})
    assert alarms.look(9, {"eval/g": 0.25}) == [
        "step 9: eval/g is 0.25, below 0.4, with 0.5 the best so far (config.alarms: eval/g<best-0.1)"
    ]
    assert alarms.raised == 2


@pytest.mark.parametrize("at", [0, 5, 30, 61])
def test_what_was_saved_and_goes_on_rings_alike(at):
    rng = np.random.default_rng(1)
    rows = [({"x": float(v)}, {"eval/g": float(v)}) for v in rng.standard_cauchy(60)]
    alarms = parse_alarms("x>3sd, x>1, eval/g<best-1")
    whole, first = Alarms(alarms), Alarms(alarms)
    expected = [whole.look(n, part) for n, row in enumerate(rows) for part in row]
    told = [first.look(n, part) for n, row in enumerate(rows[:at]) for part in row]
    second = Alarms(alarms, json.loads(json.dumps(first.state())))
    told += [second.look(n, part) for n, row in enumerate(rows[at:], at) for part in row]
    assert told == expected and sum(map(bool, expected)) > 5
    assert second.state() == whole.state()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", r"config\.alarms: 'x' is no alarm; write METRIC>NUMBER"),
        ("x>y", "no alarm"),
        ("x>best+1", "compares evaluations"),
        ("eval/x<best+1", "would ring at the best value"),
        ("eval/x<best-1sd", "no alarm"),
    ],
)
def test_what_is_no_alarm_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_alarms(text)


def test_a_metric_that_does_not_exist_is_named_with_its_neighbour():
    message = r"config\.alarms: 'los>2': no metric of steps is called so; did you mean 'loss'\?; there are loss, nll"
    with pytest.raises(ConfigError, match=message):
        Alarms(parse_alarms("los>2")).look(1, {"loss": 1.0, "nll": 1.0})
