"""The page of a study, in Markdown with charts, made from its results alone."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from jaxalign.ablation.claims import LEVEL, Claim, Verdict
from jaxalign.ablation.effects import arm_name
from jaxalign.ablation.results import Results, verdicts
from jaxalign.ablation.statistics import interval
from jaxalign.ablation.study import Chart, Sources, Study
from jaxalign.ablation.variance import gather, share_intervals
from jaxalign.drawing import AXIS, MARKERS, PALETTE, draw
from jaxalign.errors import amount
from jaxalign.storage import write_whole

PAGE = "README.md"
_WIDTH = 6.4  # inches


def write_page(study: Study, results: Results, folder: pathlib.Path) -> None:
    """Writes README.md, and each chart as PNG and SVG, into `folder`."""
    pictures = []
    for number, chart in enumerate(study.charts, 1):
        png, svg, words = _draw(study, results, chart)
        name = f"chart_{number}"
        write_whole(folder / f"{name}.png", png)
        write_whole(folder / f"{name}.svg", svg.encode())
        pictures.append(f"![{words}]({name}.png)")
    write_whole(folder / PAGE, "\n".join(page_lines(study, results, pictures)).encode())


def page_lines(study: Study, results: Results, pictures: Sequence[str] = ()) -> Iterator[str]:
    """The page, line by line."""
    found = verdicts(study, results)
    yield f"# {study.title}"
    yield f"\n{study.question}"
    yield f"\nFrom {'; '.join(study.papers)}."
    yield "\n## Verdicts\n"
    yield "| claim | the paper | here: mean, 95 % interval | counts from | seeds | verdict |"
    yield "|---|---|---|---|---|---|"
    for each in found:
        claim = each.claim
        yield (
            f"| **{claim.name}**: {claim.says} | {claim.paper or '–'} | {shown(each)} | {_rule(claim)} | "
            f"{len(each.per_seed)} | **{each.verdict}** |"
        )
    yield (
        f"\nA verdict is by the rule that stood before the runs (declaration `{study.hash}`): Student's test over "
        f"seeds, paired, at {LEVEL:g} for all claims of this page together (Holm). *Counts from* is the smallest "
        "effect that counts, or how near a number must be."
    )
    if set(results.declarations) - {study.hash}:
        yield (
            f"\n**The declaration changed since these results were made** (theirs: "
            f"`{'`, `'.join(sorted(set(results.declarations) - {study.hash}))}`): these are not the rules of then."
        )
    yield "\n## Setting\n"
    yield study.setting
    if results.tuning:
        yield "\n## What was tuned\n"
        yield from _tuning(study, results)
    yield "\n## Results\n"
    yield from _table(study, results)
    if pictures:
        yield ""
        yield "\n\n".join(pictures)
    if study.sources:
        yield "\n## Where the differences come from\n"
        yield from _sources(study, study.sources, results)
    if study.discussion:
        yield "\n## What it means\n"
        yield study.discussion
    yield "\n## Again\n"
    yield f"```bash\njaxalign ablate {study.name}\n```\n"
    runs = len(results.table)
    yield (
        f"{amount(runs, 'run')}, {duration(results.seconds)} of two cores or less in all"
        f"{f', {results.flops:.3g} FLOP' if results.flops else ''}; seeds {_seeds(study)}; code "
        f"{', '.join(f'`{commit}`' for commit in results.commits) or 'outside of a repository'}. Every number is in "
        "[results.jsonl](results.jsonl).\n"
    )


def _seeds(study: Study) -> str:
    first, last = study.seeds[0], study.seeds[-1]
    return (
        f"{first} to {last}"
        if study.seeds == tuple(range(first, last + 1))
        else ", ".join(map(str, study.seeds))
    )


def shown(verdict: Verdict) -> str:
    """An effect with its interval and unit."""
    if not verdict.per_seed:
        return "no runs"
    unit = f" {verdict.claim.unit}" if verdict.claim.unit else ""
    if not np.isfinite(verdict.low):
        return f"{verdict.mean:.3g}{unit}"
    return f"{verdict.mean:.3g} [{verdict.low:.3g}, {verdict.high:.3g}]{unit}"


def _rule(claim: Claim) -> str:
    return f"{claim.smallest:g}" if claim.near is None else f"{claim.near:g} ± {claim.smallest:g}"


def duration(seconds: float) -> str:
    """Seconds as one says them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _table(study: Study, results: Results) -> Iterator[str]:
    """Arms and measures: means with half of their 95 % intervals."""
    yield f"| arm | {' | '.join(study.measures)} |"
    yield f"|---|{'---|' * len(study.measures)}"
    for arm in map(arm_name, study.arms):
        cells = []
        for measure in study.measures:
            values = results.of_arm(measure, arm)
            mean, low, high = interval(values)
            half = f" ± {(high - low) / 2:.2g}" if len(values) > 1 else ""
            cells.append(f"{mean:.4g}{half}" if values else "–")
        yield f"| {arm} | {' | '.join(cells)} |"
    yield ""
    for name, says in study.measures.items():
        yield f"- *{name}*: {says}"


def _sources(study: Study, sources: Sources, results: Results) -> Iterator[str]:
    """What each factor has of the variance; nothing as long as fewer than three seeds are there."""
    y = gather(study, sources, results)
    yield (
        f"Shares of the variance of *{sources.measure}* over {amount(y[0].size, 'arm')} and {len(y)} seeds, ω² with "
        "95 % intervals by the jackknife over seeds. They are those of the levels that the study has, not of others, "
        f"and were computed after the runs: there is no verdict. {sources.says}\n"
    )
    if len(y) < 3:
        return
    yield "| source | share |"
    yield "|---|---|"
    for name, numbers in share_intervals(y, list(sources.factors)).items():
        share, low, high = (round(number, 3) + 0.0 for number in numbers)  # no -0
        yield f"| {name} | {share:.3f} [{low:.3f}, {high:.3f}] |"


def _tuning(study: Study, results: Results) -> Iterator[str]:
    """Every trial of every arm, that of the best in bold."""
    assert study.tuning is not None
    tuning, trials = study.tuning, [arm_name(trial) for trial in study.tuning.trials]
    seeds = ", ".join(map(str, tuning.seeds))
    yield (
        f"Every arm had the same {amount(len(trials), 'trial')}, on seeds that count for nothing else ({seeds}). Its "
        f"runs got the settings whose *{tuning.measure}* was {'smallest' if tuning.smallest else 'largest'}, in bold.\n"
    )
    yield f"| arm | {' | '.join(trials)} |"
    yield f"|---|{'---|' * len(trials)}"
    for arm in map(arm_name, study.arms):
        cells = []
        for trial in trials:
            found = [values[tuning.measure] for values in results.tuning.get((arm, trial), {}).values()]
            cell = f"{np.mean(found):.4g}" if found else "–"
            cells.append(f"**{cell}**" if results.chosen.get(arm) == trial else cell)
        yield f"| {arm} | {' | '.join(cells)} |"


def _draw(study: Study, results: Results, chart: Chart) -> tuple[bytes, str, str]:
    arms = chart.arms or tuple(map(arm_name, study.arms))
    if chart.kind == "lines":
        return draw(_WIDTH, 3.6, lambda figure: _lines(figure, results, chart, arms))
    if chart.kind == "claims":
        bars = {
            each.claim.name: (each.mean, each.low, each.high)
            for each in verdicts(study, results)
            if {x.measure for x in each.claim.effect.values()} == {chart.of}
        }
    else:
        bars = {arm: interval(results.of_arm(chart.of, arm)) for arm in arms}
    return draw(_WIDTH, 0.6 + 0.3 * len(bars), lambda figure: _bars(figure, chart, bars))


def _bars(figure: Figure, chart: Chart, bars: Mapping[str, tuple[float, float, float]]) -> str:
    """Of each name its mean with the ends of its interval."""
    axes = figure.subplots()
    words = []
    for row, (name, (mean, low, high)) in enumerate(bars.items()):
        spread = [[mean - low], [high - mean]] if np.isfinite([low, high]).all() else None
        axes.errorbar([mean], [row], xerr=spread, color=PALETTE[0], marker="o", capsize=4, linestyle="none")
        words.append(f"{name} {mean:.3g}")
    if chart.kind == "claims":
        axes.axvline(0, color=AXIS, linewidth=0.5)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set(title=chart.title, xlabel=chart.x or chart.of)
    return f"{chart.title}, with 95 % intervals over seeds: {_few(words)}"


def _few(words: Sequence[str]) -> str:
    """What a picture shows, for those who do not see it; of many arms the table has the numbers."""
    return ", ".join(words) if len(words) <= 8 else "the numbers stand in the table"


def _lines(figure: Figure, results: Results, chart: Chart, arms: Sequence[str]) -> str:
    axes = figure.subplots()
    words = []
    runs = results.curves.get(chart.of, {})
    for number, arm in enumerate(arms):
        lines = [points for (_, name), points in sorted(runs.items()) if name == arm and len(points)]
        colour = PALETTE[number % len(PALETTE)]
        for points in lines:
            axes.plot(*points.T, color=colour, linewidth=0.6, alpha=0.35)
        if lines:
            low, high = max(x[:, 0].min() for x in lines), min(x[:, 0].max() for x in lines)
            at = np.linspace(low, high, 50) if high > low else np.array([low])
            mean = np.mean([np.interp(at, *x[np.argsort(x[:, 0])].T) for x in lines], axis=0)
            mark = MARKERS[number % len(MARKERS)]
            axes.plot(at, mean, color=colour, linewidth=2, marker=mark, markevery=12, label=arm)
            words.append(f"{arm} from {mean[0]:.3g} to {mean[-1]:.3g}")
    axes.axhline(0, color=AXIS, linewidth=0.5) if axes.get_ylim()[0] < 0 < axes.get_ylim()[1] else None
    axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
    if words:
        axes.legend(fontsize=8)
    return f"{chart.title}: {_few(words) or 'no points'}"
