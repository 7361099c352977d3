"""All studies at a glance: every claim with its verdict, from the results that are kept."""

import pathlib
from collections.abc import Iterator, Sequence

from matplotlib.figure import Figure

from jaxalign.ablation.claims import NOT_REPRODUCED, REPRODUCED, UNDECIDED, Verdict
from jaxalign.ablation.page import PAGE, duration, shown
from jaxalign.ablation.results import FILE, Results, read_results, verdicts
from jaxalign.ablation.study import Study
from jaxalign.drawing import PALETTE, draw
from jaxalign.errors import DataError, amount
from jaxalign.storage import write_whole

PICTURE = "verdicts.png"
_COLOURS = {REPRODUCED: PALETTE[2], UNDECIDED: PALETTE[6], NOT_REPRODUCED: PALETTE[1]}

Done = tuple[Study, Results, list[Verdict]]


def write_overview(studies: Sequence[Study], folder: pathlib.Path) -> None:
    """Writes README.md and a picture into `folder`, of those studies whose results lie in folders of it.

    Raises:
      DataError: there are none.
    """
    done: list[Done] = []
    for study in studies:
        file = folder / study.name / FILE
        if file.is_file():
            results = read_results(file)
            done.append((study, results, verdicts(study, results)))
    if not done:
        raise DataError(
            f"{folder}: no folder of it holds the {FILE} of a study; run one, or name the folder that has "
            "them (--out)"
        )
    png, _, words = draw(6.4, 0.8 + 0.4 * len(done), lambda figure: _draw(figure, done))
    write_whole(folder / PICTURE, png)
    write_whole(folder / PAGE, "\n".join(overview_lines(done, words)).encode())


def overview_lines(done: Sequence[Done], words: str) -> Iterator[str]:
    """The page, line by line."""
    every = [each for _, _, found in done for each in found]
    counts = {verdict: sum(each.verdict == verdict for each in every) for verdict in _COLOURS}
    yield "# What papers say, and what we saw\n"
    yield (
        f"{amount(len(every), 'claim')} of {amount(len(done), 'study', 'studies')}: {counts[REPRODUCED]} reproduced, "
        f"{counts[NOT_REPRODUCED]} not reproduced, {counts[UNDECIDED]} undecided. Each was decided over seeds by a "
        "rule that stood before the runs; a seed is a world, an initialisation and an order of the data. All of it is "
        "small: tabular problems and models of a million parameters on two CPU cores, which can say whether an effect "
        "is there, and not how large it is elsewhere."
    )
    yield f"\n![{words}]({PICTURE})\n"
    for study, results, found in done:
        yield f"\n## [{study.title}]({study.name}/{PAGE})\n"
        yield f"{'; '.join(study.papers)}. {amount(len(study.seeds), 'seed')}, {duration(results.seconds)}.\n"
        yield "| claim | the paper | here: mean, 95 % interval | verdict |"
        yield "|---|---|---|---|"
        for each in found:
            yield f"| {each.claim.name} | {each.claim.paper or '–'} | {shown(each)} | {each.verdict} |"
    yield "\n`jaxalign ablate NAME` runs a study again, `jaxalign ablate NAME --check` one seed of it.\n"


def _draw(figure: Figure, done: Sequence[Done]) -> str:
    axes = figure.subplots()
    words = []
    for row, (study, _, found) in enumerate(done):
        left = 0
        for verdict, colour in _COLOURS.items():
            count = sum(each.verdict == verdict for each in found)
            axes.barh(row, count, left=left, color=colour, label=verdict if row == 0 else None)
            left += count
            if count:
                words.append(f"{study.name} {count} {verdict}")
    axes.set_yticks(range(len(done)), [study.name for study, _, _ in done])
    axes.set_ylim(len(done) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="claims")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return f"Verdicts: {', '.join(words)}"
