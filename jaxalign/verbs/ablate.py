"""`jaxalign ablate`: runs a study, and says which claims of a paper hold."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxalign.errors import ConfigError, UsageError
from jaxalign.verbs.requests import Request, flag

REPORT, ALL = "report", "all"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblateRequest(Request):
    """Run a study: claims of papers, decided over seeds.

    Its rules stand before the runs. It goes on where it was stopped. A study is a file, or the name of one that comes
    with jaxalign:

        jaxalign ablate ipo_bandits --jobs=2

    NAME:paper prints what trains the arms of a study in its paper's size: each command is for a slice of TPUs.

    `jaxalign ablate report NAME` makes the page anew from the results, `jaxalign ablate report all` one of all studies
    whose results lie in folders of --out.
    """

    study: tuple[str, ...] = flag(
        "a study's file or name, with :small (the default) or :paper; before it `report` to make only the page",
        default=(),
        show="STUDY[:SIZE]",
        place=True,
        unless="list_",
    )
    workdir: str = flag("folder for the runs (default: ablations/NAME)", default="", show="DIR")
    only: str = flag("arms to run, separated by semicolons", default="", show="ARM;...")
    jobs: int = flag("seeds at a time, each in a process on cores of its own", default=1, at_least=1)
    out: str = flag(
        "folder for the page, its charts and results.jsonl (default: the workdir)", default="", show="DIR"
    )
    check: bool = flag(
        "run one seed anew, and say whether it lies where the recorded ones say", default=False
    )
    results: str = flag(
        "recorded results for --check (default: those of docs/ablations)", default="", show="FILE"
    )
    list_: bool = flag("list the studies that come with jaxalign", default=False)


def run(request: AblateRequest) -> int:
    """Runs what is missing; 1 where a check fails."""
    from rich.console import Console

    from jaxalign.ablation.check import check_seed, recorded
    from jaxalign.ablation.files import PAPER, load_study, own_studies
    from jaxalign.ablation.overview import write_overview
    from jaxalign.ablation.page import PAGE, write_page
    from jaxalign.ablation.results import FILE, read_results, verdicts, write_results
    from jaxalign.ablation.runs import read_outcomes
    from jaxalign.ablation.study import TUNING

    console = Console()
    if request.list_:
        for name in own_studies():
            study = load_study(name)
            console.print(f"{name}: {study.title}", highlight=False, soft_wrap=True)
        return 0
    words = request.study[1:] if request.study[0] == REPORT else request.study
    if len(words) != 1:
        raise UsageError(f"{' '.join(request.study)}: name one study")
    if words == (ALL,):
        out = pathlib.Path(request.out or "ablations")
        write_overview([load_study(name) for name in own_studies()], out)
        console.print(f"The page: {out / PAGE}", highlight=False, soft_wrap=True)
        return 0
    name, _, size = words[0].partition(":")
    study = load_study(name, size or None)
    if size == PAPER and PAPER not in study.sizes:
        _print_trainings(study, request, console)
        return 0
    workdir = pathlib.Path(request.workdir or f"ablations/{study.name}")
    arms = tuple(arm for arm in request.only.split(";") if arm)
    _check_arms(study, arms)
    if request.check:
        if request.study[0] == REPORT:
            raise UsageError(
                "report --check: a check runs a seed and makes no page; leave out one of the two"
            )
        file = pathlib.Path(request.results) if request.results else recorded(study.name)
        return check_seed(study, read_results(file), workdir, console, arms)
    out = pathlib.Path(request.out) if request.out else workdir
    if request.study[0] != REPORT:
        _run(study, (name, size or None), workdir, arms, request.jobs, console)
        write_results([*read_outcomes(workdir, TUNING), *read_outcomes(workdir)], out / FILE)
    results = read_results(out / FILE)
    write_page(study, results, out)
    for each in verdicts(study, results):
        console.print(f"{each.verdict}: {each.claim.name}", highlight=False, soft_wrap=True)
    console.print(f"The page: {out / PAGE}", highlight=False, soft_wrap=True)
    return 0


def _print_trainings(study: Any, request: AblateRequest, console: Any) -> None:
    """Raises UsageError where there is more on the command line than the study: nothing runs that it could change."""
    from jaxalign.ablation.at_scale import describe_trainings

    *given, sized = request.study
    for each in dataclasses.fields(request):
        if each.name != "study" and getattr(request, each.name) != each.default:
            given.append(request.key(each.name))
    if given:
        raise UsageError(
            f"{sized} only prints the commands of the trainings, without {' and '.join(given)}: leave that out, or "
            f"write {sized.partition(':')[0]} for the study that runs here"
        )
    for line in describe_trainings(study):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _check_arms(study: Any, arms: Sequence[str]) -> None:
    from jaxalign.ablation.effects import arm_name
    from jaxalign.fields import nearest_hint

    names = [arm_name(arm) for arm in study.arms]
    for arm in arms:
        if arm not in names:
            raise ConfigError(
                f"--only={arm}: study {study.name!r} has no such arm{nearest_hint(arm, names)}; it has "
                f"{'; '.join(names)}"
            )


def _run(
    study: Any,
    source: tuple[str, str | None],
    workdir: pathlib.Path,
    arms: Sequence[str],
    jobs: int,
    console: Any,
) -> None:
    from rich.live import Live

    from jaxalign.ablation.progress import Progress, print_table
    from jaxalign.ablation.runs import begin, run_all
    from jaxalign.locks import LOCK, locked

    with locked(workdir / LOCK, f"--workdir={workdir}"):
        begin(study, workdir)
        progress = Progress(study, workdir, arms)
        if console.is_terminal:
            with Live(progress.table(), console=console, auto_refresh=False) as live:
                run_all(
                    study,
                    workdir,
                    source=source,
                    jobs=jobs,
                    only=arms,
                    note=lambda: live.update(progress.table(), refresh=True),
                )
        else:
            run_all(study, workdir, source=source, jobs=jobs, only=arms)
        print_table(progress, console)
