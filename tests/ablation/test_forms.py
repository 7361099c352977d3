"""Forms of over-optimisation: fits against closed forms, their power by simulation, best-of-n by enumeration."""

import itertools

import numpy as np
import pytest
from scipy.optimize import curve_fit

from jaxalign.ablation.forms import FORMS, best_of_n, fit, held_out_rmse, peak, predict

PEAK = 0.2  # gold gain there
NOISE = 0.02
POINTS = 10


def truth(form, u):
    """A form with its peak, of height `PEAK`, at u = 1."""
    return PEAK * u * (2 - u) if form == "best-of-n" else PEAK * u * (1 - np.log(u))


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_fitted_as_scipy_does(form):
    d = np.linspace(0.3, 3.0, POINTS)
    gain = predict(form, 0.4, 0.15 if form != "saturating" else 0.9, d)
    gain = gain + np.random.default_rng(0).normal(0, NOISE, POINTS)
    found = fit(form, d, gain)
    best, _ = curve_fit(lambda d, a, b: predict(form, a, b, d), d, gain, p0=(0.5, 0.5))
    assert predict(form, *found, d) == pytest.approx(predict(form, *best, d), abs=1e-3)


@pytest.mark.parametrize("form", ["best-of-n", "rl"])
def test_the_peak_is_where_the_form_is_largest(form):
    d = np.linspace(0.01, 6, 60_000)
    assert peak(form, 0.5, 0.2) == pytest.approx(d[predict(form, 0.5, 0.2, d).argmax()], abs=1e-3)
    assert peak(form, 0.5, -0.1) == peak("saturating", 0.5, 0.3) == np.inf


# How often the means of five seeds choose the right one of the two, with points up to the peak and to 1.5 times its d.
POWER = [("rl", 1.0, 0.95), ("best-of-n", 1.0, 0.85), ("rl", 1.5, 0.99), ("best-of-n", 1.5, 0.99)]


@pytest.mark.parametrize(("form", "reach", "power"), POWER)
def test_five_seeds_tell_the_forms_apart(form, reach, power):
    rng = np.random.default_rng(0)
    u = np.linspace(reach / POINTS, reach, POINTS)
    other = "rl" if form == "best-of-n" else "best-of-n"
    right = 0
    for _ in range(400):
        gain = truth(form, u) + rng.normal(0, NOISE, (5, POINTS)).mean(0)
        right += held_out_rmse(form, u, gain) < held_out_rmse(other, u, gain)
    assert right / 400 == pytest.approx(power, abs=0.035)


def test_no_form_is_fitted_to_nothing():
    with pytest.raises(ValueError, match="'line' of 3 points"):
        fit("line", [1, 2, 3], [0, 0, 0])
    with pytest.raises(ValueError, match="d > 0"):
        fit("rl", [0, 1, 2], [0, 0, 0])


@pytest.mark.parametrize("proxy", [[3, 1, 2, 0], [1, 1, 2, 0], [5, 5, 5, 5], [0, 0, 0, 1]])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_best_of_n_is_what_all_draws_give(proxy, n):
    """Every sequence of n draws, each as likely; ties share."""
    proxy = np.array(proxy, np.float64)
    counted = np.zeros(4)
    for draw in itertools.product(range(4), repeat=n):
        top = [i for i in draw if proxy[i] == proxy[list(draw)].max()]
        for i in top:
            counted[i] += 1 / len(top) / 4**n
    chosen, kl = best_of_n(proxy, n)
    assert chosen == pytest.approx(counted)
    said = counted[counted > 0]
    assert kl == pytest.approx(np.sum(said * np.log(said * 4)))
    assert kl <= np.log(n) - (n - 1) / n + 1e-12  # the formula is a bound


def test_of_many_different_answers_the_kl_is_the_formulas():
    proxy = np.random.default_rng(0).normal(size=50_000)
    for n in (2, 8, 64):
        assert best_of_n(proxy, n)[1] == pytest.approx(np.log(n) - (n - 1) / n, abs=2e-3)
