"""The screening design is orthogonal, and its contrasts are what least squares finds."""

import numpy as np
import pytest

from jaxalign.ablation import (
    Chart,
    Claim,
    Outcome,
    Study,
    assign,
    contrast,
    cross,
    plackett_burman,
    table_of,
)
from jaxalign.ablation.claims import decide
from jaxalign.ablation.page import write_page
from jaxalign.ablation.results import Results

DESIGN = plackett_burman()
ARMS = cross(row=tuple(range(12)))


def test_the_design_is_orthogonal_and_balanced():
    assert DESIGN.shape == (12, 11) and set(DESIGN.ravel()) == {-1, 1}
    whole = np.column_stack([np.ones(12, int), DESIGN])
    assert (whole.T @ whole == 12 * np.eye(12, dtype=int)).all()
    assert len({tuple(row) for row in DESIGN}) == 12


def test_what_two_factors_do_together_is_a_third_of_it_elsewhere():
    for first, second in ((0, 1), (3, 9)):
        spread = (DESIGN[:, first] * DESIGN[:, second]) @ DESIGN / 12
        others = np.delete(spread, [first, second])
        assert spread[[first, second]] == pytest.approx(0) and np.abs(others) == pytest.approx(1 / 3)


def test_a_mirrored_design_has_main_effects_apart_from_those_of_pairs():
    design = plackett_burman(mirrored=True)
    whole = np.column_stack([np.ones(24, int), design])
    assert (whole.T @ whole == 24 * np.eye(12, dtype=int)).all()
    pairs = [design[:, i] * design[:, j] for i in range(11) for j in range(i)]
    assert (np.array(pairs) @ design == 0).all()


def measured(seed):
    """Numbers of 12 arms: main effects, what a seed has in common, and noise."""
    rng = np.random.default_rng(seed)
    return 50.0 * rng.normal() + DESIGN @ np.linspace(-1, 1, 11) + rng.normal(size=12)


def test_contrasts_are_the_effects_of_least_squares():
    seeds = tuple(range(6))
    numbers = {seed: measured(seed) for seed in seeds}
    table = {(seed, f"row={row}"): {"x": y[row]} for seed, y in numbers.items() for row in range(12)}
    whole = np.column_stack([np.ones(12), DESIGN]).astype(np.float64)
    effects = [contrast("x", ARMS, column) for column in DESIGN.T]
    for seed in seeds:
        coefficients = np.linalg.lstsq(whole, numbers[seed], rcond=None)[0]
        found = [effect.of_seed(table, seed) for effect in effects]
        np.testing.assert_allclose(found, 2 * coefficients[1:], rtol=0, atol=1e-12)
    # All seeds at once, each with its own level: the mean over seeds is the fit's effect.
    stacked = np.tile(whole[:, 1:], (len(seeds), 1))
    levels = np.kron(np.eye(len(seeds)), np.ones((12, 1)))
    fit = np.linalg.lstsq(
        np.column_stack([levels, stacked]), np.concatenate(list(numbers.values())), rcond=None
    )
    verdicts = decide([Claim(str(i), "", x, 0.1) for i, x in enumerate(effects)], table, seeds)
    np.testing.assert_allclose([x.mean for x in verdicts], 2 * fit[0][len(seeds) :], rtol=0, atol=1e-12)


def test_a_contrast_is_of_any_two_groups_and_can_be_read():
    arms = cross(way=("a", "b", "c"))
    effect = contrast("x", arms, (1, -1, -1))
    table = {(0, "way=a"): {"x": 7.0}, (0, "way=b"): {"x": 1.0}, (0, "way=c"): {"x": 2.0}}
    assert effect.per_seed(table, (0, 1)) == {0: 5.5}
    assert str(effect) == "+1 x[way=a] -0.5 x[way=b] -0.5 x[way=c]"
    assert [value.arm for value in effect.values()] == ["way=a", "way=b", "way=c"]
    assert (effect * 2.0).of_seed(table, 0) == 11.0


def test_factors_get_their_levels_row_by_row():
    settings = assign({"rate": (0.1, 0.2), "kind": ("new", "old")}, DESIGN)
    assert [x["rate"] for x in settings] == [0.1 if sign > 0 else 0.2 for sign in DESIGN[:, 0]]
    assert [x["kind"] for x in settings] == ["new" if sign > 0 else "old" for sign in DESIGN[:, 1]]
    assert (
        table_of(settings[:2]) == "| row | rate | kind |\n|---|---|---|\n| 1 | 0.1 | new |\n| 2 | 0.2 | new |"
    )


def test_a_chart_of_claims_shows_the_effects_on_its_measure(tmp_path):
    arms = cross(way=("old", "new"))
    effects = {x: contrast(x, arms, (-1, 1)) for x in ("score", "cost")}
    study = Study(
        name="tried",
        title="Tried",
        papers=("none",),
        question="?",
        setting="Numbers.",
        arms=arms,
        seeds=tuple(range(5)),
        measures={"score": "a number", "cost": "another"},
        run=lambda trial: Outcome({}),
        claims=tuple(Claim(f"{x} rises", "", effect, 0.1) for x, effect in effects.items()),
        charts=(Chart("Effects", "score", "claims"),),
    )
    table = {
        (seed, f"way={way}"): {"score": gain + 0.01 * seed, "cost": 0.0}
        for seed in range(5)
        for way, gain in (("old", 1.0), ("new", 3.0))
    }
    write_page(study, Results(table, {}, {}, {}, 0.0, 0.0, (study.hash,), ()), tmp_path)
    words = "Effects, with 95 % intervals over seeds: score rises 2"
    assert f"![{words}](chart_1.png)" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "chart_1.svg").stat().st_size > 1000
