"""Where the differences of a crossed design come from: the share of the variance that each factor has."""

import itertools
from collections.abc import Sequence

import numpy as np

from jaxalign.ablation.effects import arm_name
from jaxalign.ablation.results import Results
from jaxalign.ablation.statistics import interval
from jaxalign.ablation.study import Sources, Study
from jaxalign.errors import ConfigError

TOGETHER, SEEDS, REST = "factors together", "seeds", "seeds with factors"


def sums_of_squares(y: np.ndarray) -> dict[tuple[int, ...], tuple[float, int]]:
    """The sum of squares and degrees of freedom of every set of axes of a balanced design, one value a cell.

    Effects are means over the axes that are not in the set, less the effects of all smaller sets; they are orthogonal,
    so that the sums add up to that of the whole.
    """
    axes = range(y.ndim)
    effects: dict[tuple[int, ...], np.ndarray] = {}
    found = {}
    for count in range(y.ndim + 1):
        for kept in itertools.combinations(axes, count):
            others = tuple(axis for axis in axes if axis not in kept)
            smaller = [effect for own, effect in effects.items() if set(own) < set(kept)]
            effects[kept] = y.mean(others, keepdims=True) - sum(smaller, np.zeros(()))
            cells = np.prod([y.shape[axis] for axis in others], initial=1.0)
            freedom = np.prod([y.shape[axis] - 1 for axis in kept], initial=1)
            found[kept] = float(cells * np.square(effects[kept]).sum()), int(freedom)
    del found[()]  # of the mean itself
    return found


def shares(y: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """ω² of each factor, of all their interactions together, of seeds, and what is left.

    ω² = (SS - df MS_rest) / (SS_whole + MS_rest), with seeds as blocks, whose interactions with factors are the rest.

    Args:
      y: [seeds, levels of the first factor, ...]. names: of the factors.
    """
    found = sums_of_squares(np.asarray(y, np.float64))
    rest = [x for axes, x in found.items() if 0 in axes and len(axes) > 1]
    error = sum(x[0] for x in rest) / sum(x[1] for x in rest)
    whole = sum(x[0] for x in found.values()) + error

    def omega(*sources: tuple[float, int]) -> float:
        return sum(square - freedom * error for square, freedom in sources) / whole

    out = {name: omega(found[axis,]) for axis, name in enumerate(names, 1)}
    if len(names) > 1:
        out[TOGETHER] = omega(*(x for axes, x in found.items() if 0 not in axes and len(axes) > 1))
    out[SEEDS] = omega(found[0,])
    return out | {REST: 1.0 - sum(out.values())}


def share_intervals(y: np.ndarray, names: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Each of `shares`, with the ends of a 95 % interval by the jackknife over seeds (Tukey 1958).

    A bootstrap would draw some seeds twice, whose interactions then look smaller than they are: with 8 seeds its
    intervals hold the share of seeds in 7 cases of 10.
    """
    whole, count = shares(y, names), len(y)
    without = [shares(np.delete(y, seed, 0), names) for seed in range(count)]
    found = {}
    for name, share in whole.items():
        _, low, high = interval([count * share - (count - 1) * each[name] for each in without])
        found[name] = share, share - (high - low) / 2, share + (high - low) / 2
    return found


def gather(study: Study, sources: Sources, results: Results) -> np.ndarray:
    """The measure by seed and level of each factor: [seeds, levels of the first factor, ...].

    Raises:
      ConfigError: a combination of levels is no arm, or two.
    """
    levels = [
        list(dict.fromkeys(tuple(arm.get(key) for key in keys) for arm in study.arms))
        for keys in sources.factors.values()
    ]
    cells: dict[tuple, str] = {}
    for arm in study.arms:
        cell = tuple(tuple(arm.get(key) for key in keys) for keys in sources.factors.values())
        if cell in cells:
            raise ConfigError(
                f"study {study.name!r}, sources: {cells[cell]} and {arm_name(arm)} have the same levels; name more keys"
            )
        cells[cell] = arm_name(arm)
    whole = list(itertools.product(*levels))
    if missing := [cell for cell in whole if cell not in cells]:
        raise ConfigError(
            f"study {study.name!r}, sources: no arm has the levels {missing[0]}; every combination must be one"
        )
    seeds = [seed for seed in study.seeds if all((seed, arm) in results.table for arm in cells.values())]
    numbers = [[results.table[seed, cells[cell]][sources.measure] for cell in whole] for seed in seeds]
    return np.array(numbers).reshape(len(seeds), *map(len, levels))
