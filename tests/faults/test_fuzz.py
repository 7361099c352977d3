"""Ten thousand cases of everything that is read, and that the harness sees what it is there to see."""

import pytest

from tests.faults import hostile
from tests.faults.fuzz.cases import mutated
from tests.faults.fuzz.runner import SURFACES, fault_lines, fuzz, shares, table
from tests.faults.fuzz.worker import generator


@pytest.mark.slow
@pytest.mark.parametrize(("surface", "count"), shares(10_000).items())
def test_none_hangs_crashes_or_ends_in_a_traceback(surface, count):
    tally = fuzz(surface, 0, range(count))
    assert not tally.faults, "\n".join(fault_lines([tally]))
    assert tally.cases == count == tally.accepted + tally.refused
    assert count < 50 or min(tally.accepted, tally.refused) > 0


@pytest.mark.slow
def test_the_harness_sees_each_deed(monkeypatch):
    """A worker that is killed is followed by another, which counts its own cases."""
    ended = {}
    for first, deed in enumerate(hostile.DEEDS):
        monkeypatch.setenv("FUZZ_FIRST", str(first))
        tally = fuzz("tests.faults.hostile", 0, range(1))
        assert tally.cases == 1
        ended[deed] = (
            "accepted" if tally.accepted else "refused" if tally.refused else next(iter(tally.said.values()))
        )
    assert ended.pop("nothing") == "accepted" and ended.pop("refuse") == "refused"
    assert ended.pop("hang") == "time: more than 2 s"
    assert ended.pop("grow").startswith("memory: 1,") and ended.pop("ask") == "memory: it could not be had"
    assert "outside/secret.json" in ended.pop("open") and ended.pop("write").startswith("os.remove")
    assert ended.pop("run").startswith("subprocess.Popen") and ended.pop("exec") == "runs code of '<data>'"
    assert ended.pop("crash").startswith(("the process died", "ctypes"))
    assert ended.pop("raise") == "KeyError: 'x'" and ended.pop("talk") == "a message of 30,000 characters"
    assert not ended


def test_the_same_seed_makes_the_same_cases():
    value = {"a": [1, {"b": "c"}], "d": None}
    made = [[mutated(generator(7, "readers", case), value) for case in range(200)] for _ in range(2)]
    assert (
        repr(made[0])
        == repr(made[1])
        != repr([mutated(generator(8, "readers", n), value) for n in range(200)])
    )
    assert value == {"a": [1, {"b": "c"}], "d": None}
    assert sum(each == value for each in made[0]) < 100


def test_every_surface_has_its_share():
    wanted = shares(1_000_000)
    assert tuple(wanted) == SURFACES and abs(sum(wanted.values()) - 1_000_000) < 20
    assert min(wanted.values()) > 500
    assert table([]).splitlines()[-1] == "| all | 0 | 0 | 0 | 0 | 0 |"
