"""Running a study: seed by seed and arm by arm, on several processes, and again from where it was stopped.

WORKDIR/declaration.json          what was fixed before the first run
WORKDIR/seeds/3/shared/           what the arms of seed 3 have in common, made once
WORKDIR/seeds/3/ARM/outcome.json  what a run found; one that is there is never run again
WORKDIR/tuning/100/shared/, WORKDIR/tuning/100/ARM/TRIAL/outcome.json
                                  likewise of what is tried before
"""

import concurrent.futures
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import pathlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jaxalign
from jaxalign.ablation.costs import trained_flops
from jaxalign.ablation.effects import Arm, Table, arm_name
from jaxalign.ablation.study import COUNTED, TUNING, Outcome, Study, Trial
from jaxalign.checksums import digest_of
from jaxalign.errors import ConfigError, JaxalignError
from jaxalign.storage import claim, read_json, write_whole

DECLARATION, OUTCOME = "declaration.json", "outcome.json"
_DIGEST = "sha256"  # in an outcome: of all else in it
_KEYS = {"study", "arm", "seed", "measures", "curves", "flops", "seconds", "declaration", "version", "commit"}

Note = Callable[[], None]


def begin(study: Study, workdir: pathlib.Path) -> None:
    """Writes down what is fixed, or finds it written.

    Raises:
      ConfigError: results of another declaration lie there; says what is different.
    """
    way_out = "name another --workdir, or delete it"
    declared = study.declaration()
    found = claim(workdir / DECLARATION, declared, way_out)
    if found != declared:
        changed = [key for key in declared if found.get(key) != declared[key]]
        raise ConfigError(
            f"--workdir={workdir} holds results of {found.get('study', 'another study')} as it was declared before: "
            f"its {' and '.join(changed)} changed since, and a rule must stand before the runs; {way_out}"
        )


@dataclasses.dataclass(frozen=True)
class Part:
    """The runs of a study that count, or those that it tunes by: by seed and arm."""

    name: str
    seeds: tuple[int, ...]
    trials: tuple[Arm, ...] = ()  # that are made of every arm; of the runs that count there is one, as chosen

    def folder(self, workdir: pathlib.Path, seed: int, arm: str = "shared", trial: str = "") -> pathlib.Path:
        """Of a run, or of what runs of a seed share."""
        return workdir / self.name / str(seed) / (arm.replace("/", "_") or "all") / trial.replace("/", "_")

    def pending(self, study: Study, workdir: pathlib.Path, only: Sequence[str] = ()) -> dict[int, list[str]]:
        """The arms that are still to be run, by seed."""
        names = [arm_name(trial) for trial in self.trials] or [""]
        left = {
            seed: [
                arm
                for arm in map(arm_name, study.trials(only))
                if not all((self.folder(workdir, seed, arm, name) / OUTCOME).is_file() for name in names)
            ]
            for seed in self.seeds
        }
        return {seed: arms for seed, arms in left.items() if arms}


def parts_of(study: Study) -> list[Part]:
    """What is tried first, and what counts."""
    counted = Part(COUNTED, study.seeds)
    return [Part(TUNING, study.tuning.seeds, study.tuning.trials), counted] if study.tuning else [counted]


def run_seed(
    study: Study,
    workdir: pathlib.Path,
    part: Part,
    seed: int,
    only: Sequence[str] = (),
    chosen: Mapping[str, Arm] | None = None,
    note: Note = lambda: None,
) -> None:
    """Runs what is left of a seed, and calls `note` after each run.

    Args:
      chosen: what was tuned, by arm.

    Raises:
      ConfigError: a run found no number, or not those that the study declares.
    """
    left = part.pending(study, workdir, only).get(seed, ())
    arms = [arm for arm in study.trials(only) if arm_name(arm) in left]
    if not arms:
        return
    shared = study.share(seed, part.folder(workdir, seed))
    for arm in arms:
        for tuned in part.trials or ((chosen or {}).get(arm_name(arm), {}),):
            name = arm_name(tuned) if part.trials else ""
            folder = part.folder(workdir, seed, arm_name(arm), name)
            if not (folder / OUTCOME).is_file():
                _run(study, Trial(arm, seed, folder, shared, tuned))
                note()


def _run(study: Study, trial: Trial) -> None:
    began = time.monotonic()
    outcome = study.run(trial)
    _check(study, arm_name(trial.arm), trial.seed, outcome)
    found = {
        "study": study.name,
        "arm": dict(trial.arm),
        "seed": trial.seed,
        "tuned": dict(trial.tuned),
        "measures": dict(outcome.measures),
        "curves": {name: [list(point) for point in points] for name, points in outcome.curves.items()},
        "flops": outcome.flops or trained_flops(trial.folder),
        "seconds": round(time.monotonic() - began, 2),
        "declaration": study.hash,
        "version": jaxalign.__version__,
        "commit": commit(),
    }
    found |= {_DIGEST: digest_of(found)}
    write_whole(trial.folder / OUTCOME, json.dumps(found, indent=1).encode())


def _read_outcome(file: pathlib.Path) -> dict[str, Any]:
    """What a run found, as it was written.

    Raises:
      ConfigError: it is not.
    """
    way_out = "delete it, and its run is made again"
    found = read_json(file, lambda reason: ConfigError(f"{file}: {reason}; {way_out}"))
    digest = found.pop(_DIGEST, None)  # earlier ones have none
    if not found.keys() >= _KEYS or digest not in (None, digest_of(found)):
        raise ConfigError(f"{file}: not what was written; {way_out}")
    return found


def choose(study: Study, tried: Sequence[dict[str, Any]], only: Sequence[str] = ()) -> dict[str, Arm]:
    """The settings of each arm that were best in the mean over the seeds that were tuned on; {} without tuning."""
    if study.tuning is None:
        return {}
    tuning, best = study.tuning, {}
    for arm in map(arm_name, study.trials(only)):
        means = []
        for trial in map(arm_name, tuning.trials):
            own = [x for x in tried if (arm_name(x["arm"]), arm_name(x["tuned"])) == (arm, trial)]
            means.append(sum(x["measures"][tuning.measure] for x in own) / len(own))
        best[arm] = tuning.trials[means.index(min(means) if tuning.smallest else max(means))]
    return best


def _check(study: Study, arm: str, seed: int, outcome: Outcome) -> None:
    where = f"study {study.name!r}, arm {arm}, seed {seed}"
    if missing := sorted(set(study.measures) ^ set(outcome.measures)):
        raise ConfigError(f"{where}: {', '.join(missing)} is declared and not measured, or the reverse")
    for name, value in outcome.measures.items():
        if not math.isfinite(value):
            raise ConfigError(f"{where}: {name} is {value}; let the run measure a number also where it fails")


def run_all(
    study: Study,
    workdir: pathlib.Path,
    *,
    source: tuple[str, str | None],
    jobs: int,
    only: Sequence[str] = (),
    note: Note = lambda: None,
) -> None:
    """Runs what is left of a study, `jobs` seeds at a time, each in a process of its own on cores of its own.

    Args:
      source: the file of the study and its argument, by which other processes find it.
      note: called when there is something new to show, and every second or so.

    Raises:
      JaxalignError: a process ended by itself, killed for its memory perhaps.
    """
    for part in parts_of(study):
        chosen = {} if part.trials else choose(study, read_outcomes(workdir, TUNING), only)
        _run_part(study, workdir, part, source=source, jobs=jobs, only=only, chosen=chosen, note=note)


def _run_part(
    study: Study,
    workdir: pathlib.Path,
    part: Part,
    *,
    source: tuple[str, str | None],
    jobs: int,
    only: Sequence[str],
    chosen: Mapping[str, Arm],
    note: Note,
) -> None:
    left = part.pending(study, workdir, only)
    if jobs == 1:
        for seed in left:
            run_seed(study, workdir, part, seed, only, chosen, note)
        return
    context = multiprocessing.get_context("spawn")
    cores: Any = context.Queue()
    for own in share_cores(jobs):
        cores.put(own)
    with concurrent.futures.ProcessPoolExecutor(jobs, context, _begin_worker, (cores,)) as pool:
        waiting = {
            pool.submit(_run_elsewhere, source, str(workdir), part, seed, tuple(only), chosen)
            for seed in left
        }
        try:
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, timeout=1.0, return_when="FIRST_COMPLETED")
                for each in done:
                    each.result()
                note()
        except concurrent.futures.process.BrokenProcessPool:
            raise JaxalignError(
                "a process of the study ended by itself, killed for its memory perhaps; run the same command again, "
                f"with fewer --jobs than {jobs}"
            ) from None
        finally:
            for each in waiting:
                each.cancel()


def share_cores(jobs: int) -> Iterator[set[int]]:
    """The cores of each of several processes, which would otherwise wait for each other."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for job in range(jobs):
        yield set(cores[job % len(cores) :: jobs]) or set(cores) if cores else set()


def _begin_worker(cores: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Before JAX counts them.
    if own := cores.get():
        os.sched_setaffinity(0, own)


def _end_with_parent() -> None:
    """Ends this process once the one that started it is gone: its lock is free, and another may run the same seeds."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(130)


def _run_elsewhere(
    source: tuple[str, str | None],
    workdir: str,
    part: Part,
    seed: int,
    only: tuple[str, ...],
    chosen: Mapping[str, Arm],
) -> None:
    from jaxalign.ablation.files import load_study
    from jaxalign.training.loop import Stopped

    try:
        run_seed(load_study(*source), pathlib.Path(workdir), part, seed, only, chosen)
    except (KeyboardInterrupt, Stopped):
        # A process that lived would go on with the next seed, and whoever asked it to stop would wait for that.
        os._exit(130)


def read_outcomes(workdir: pathlib.Path, part: str = COUNTED) -> list[dict[str, Any]]:
    """What all finished runs of a part found, by seed, arm and what was tried."""
    files = sorted((workdir / part).glob(f"*/*/{'*/' if part == TUNING else ''}{OUTCOME}"))
    found = [_read_outcome(file) for file in files]
    found = [
        {"tuned": {}, **x, "part": part} for x in found
    ]  # no file has its place, nor older ones what was tuned
    return sorted(found, key=lambda x: (x["seed"], arm_name(x["arm"]), arm_name(x["tuned"])))


def as_table(outcomes: Sequence[dict[str, Any]]) -> Table:
    """Outcomes as effects read them."""
    return {(x["seed"], arm_name(x["arm"])): x["measures"] for x in outcomes}


@functools.cache
def commit() -> str:
    """The commit of the code that runs, "" where it lies in no repository."""
    place = pathlib.Path(__file__).parent
    told = ["git", "-C", str(place), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(told, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
