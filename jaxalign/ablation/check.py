"""Whether a study that is run here gives what was recorded: one seed, run anew."""

import pathlib
from collections.abc import Sequence

from rich.console import Console

from jaxalign.ablation.effects import arm_name
from jaxalign.ablation.results import FILE, Results
from jaxalign.ablation.runs import begin, parts_of, read_outcomes, run_seed
from jaxalign.ablation.statistics import prediction_interval
from jaxalign.ablation.study import Study
from jaxalign.errors import DataError

# What rounding alone may change, of the size of a number.
ROUNDING = 1e-3


def recorded(name: str) -> pathlib.Path:
    """Where the results of a study lie that are kept with the code."""
    return pathlib.Path(__file__).parents[2] / "docs" / "ablations" / name / FILE


def check_seed(
    study: Study, results: Results, workdir: pathlib.Path, console: Console, only: Sequence[str] = ()
) -> int:
    """Runs the first seed in `workdir`; 1 where a measure is not the recorded one, nor where one more seed would lie.

    That is an interval in which all measures of all arms together lie in 99 of 100 cases (Bonferroni).

    Args:
      only: arms by name; none: all.

    Raises:
      DataError: the results hold fewer than three seeds of an arm.
    """
    seed, counted = study.seeds[0], parts_of(study)[-1]
    begin(study, workdir)
    trials = {arm_name(trial): trial for trial in study.tuning.trials} if study.tuning else {}
    chosen = {arm: trials[name] for arm, name in results.chosen.items()}
    run_seed(study, workdir, counted, seed, only, chosen)
    outside = same = 0
    arms = [arm_name(arm) for arm in study.trials(only)]
    count = len(arms) * len(study.measures)
    for x in read_outcomes(workdir):
        arm = arm_name(x["arm"])
        if x["seed"] != seed or arm not in arms:
            continue
        for measure, number in x["measures"].items():
            others = results.of_arm(measure, arm)
            if len(others) < 3:
                raise DataError(
                    f"{study.name}: {len(others)} recorded seeds of {arm}; a check needs 3 or more"
                )
            low, high = prediction_interval(others, 1 - 0.01 / count)
            slack = ROUNDING * max(1.0, abs(number))
            before = results.table.get((seed, arm), {}).get(measure)
            if before is not None and abs(before - number) <= slack:
                same += 1
            elif not low - slack <= number <= high + slack:
                outside += 1
                console.print(
                    f"OUTSIDE: {measure} of {arm}, seed {seed}: {number:.4g}, expected {low:.4g} to {high:.4g}",
                    highlight=False,
                    soft_wrap=True,
                )
    console.print(
        f"{study.name}, seed {seed}: {count - outside} of {count} measures lie where the recorded seeds say, "
        f"{same} are the recorded numbers",
        highlight=False,
        soft_wrap=True,
    )
    return 1 if outside else 0
