"""Which mutants are drawn: Python, other programs, one of a place, and the same ones from the same seed."""

import pytest

from tests.mutation.mutants import (
    ROOT,
    all_mutants,
    annotations,
    drawn,
    first_change,
    meaning,
    raises,
    within,
)
from tests.mutation.rooms import ROOMS, files_of, steps_of

SOURCE = """
x: int | None = 3 | 4

def f(a: str | bytes, *rest: int, b: "int | str" = 1 - 2) -> dict[str, int | None]:
    return {"y": a | b}
"""


def test_annotations_are_told_from_what_is_reckoned():
    lines = SOURCE.splitlines()
    spans = annotations(SOURCE)
    found = {lines[a - 1][b:c] for (a, b), (_, c) in spans}
    assert found == {"int | None", "str | bytes", "int", '"int | str"', "dict[str, int | None]"}
    bars = [(n, c) for n, line in enumerate(lines, 1) for c, sign in enumerate(line) if sign == "|"]
    assert [within(*bar, spans) for bar in bars] == [True, False, True, True, True, False]


def test_operators_that_always_raise():
    assert raises("core/ReplaceBinaryOperator_Mul_BitAnd") and raises("core/ReplaceBinaryOperator_BitOr_Add")
    assert not raises("core/ReplaceBinaryOperator_Mul_Pow") and not raises(
        "core/ReplaceBinaryOperator_BitOr_BitXor"
    )
    assert not raises("core/NumberReplacer") and not raises("core/ReplaceComparisonOperator_Eq_Is")


def test_the_first_change():
    assert first_change("a\n  b = 1\nc", "a\n  b = 2\nd") == ("b = 1", "b = 2")


@pytest.mark.parametrize("room", ROOMS)
def test_tests_that_are_named_are_there(room):
    named = {test for file in files_of(room) for step in steps_of(room, file) for test in step}
    assert [x for x in named if x.startswith("tests/") and not (ROOT / x).exists()] == []


def test_a_sample_is_of_places_and_repeats():
    pytest.importorskip("cosmic_ray")
    file = "jaxalign/losses/numerics.py"
    source = (ROOT / file).read_text(encoding="utf-8")
    mutants = all_mutants([file])
    assert mutants == all_mutants([file])
    few, same, more = (list(drawn(mutants, count, seed=4)) for count in (8, 8, 10_000))
    assert few == same == more[:8] != list(drawn(mutants, 8, seed=5))
    places = [(mutant.line, mutant.column) for mutant, _ in more]
    assert len(set(places)) == len(places) > 8
    for _, changed in more:
        assert meaning(changed) != meaning(source)


def test_what_guards_against_mistakes_elsewhere_is_no_part_of_the_meaning():
    assert (
        meaning("x = zip(a, b, strict=True)")
        == meaning("x = zip(a, b, strict=False)")
        != meaning("x = zip(a, c)")
    )
    assert meaning("def f(a, *, b=1): return a") == meaning("def f(a, /, b=1): return a")
    assert meaning("def f(a, *, b=1): return a") != meaning("def f(a, *, b=2): return a")
    assert meaning("x = a * b") != meaning("x = a / b")
