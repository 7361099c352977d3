"""Studies as they run: each run once, on after any end, and never by another rule than that of before."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from jaxalign.ablation.files import load_study, own_studies
from jaxalign.ablation.results import FILE, read_results
from jaxalign.ablation.runs import OUTCOME, read_outcomes
from jaxalign.ablation.study import Trial
from jaxalign.cli import main
from jaxalign.errors import DataError
from jaxalign.training.loop import Stopped

STUDY = """
import pathlib, time
from jaxalign.ablation import Chart, Claim, Outcome, Study, Trial, cross, value

def share(seed, folder):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "made").open("a") as file:
        file.write("x")
    return 100 * seed

def run(trial):
    time.sleep({pause})
    with open({log!r}, "a") as file:
        file.write(f"{{trial.seed}} {{trial.arm['way']}}\\n")
    score = trial.shared + (1.0 if trial.arm["way"] == "new" else 0.0) + 0.01 * trial.seed
    return Outcome({{"score": score}}, {{"line": [(0, 0.0), (1, score)]}})

def get_study(size):
    return Study(
        name="tried", title="Tried", papers=("none",), question="Is new better?", setting="Numbers.",
        arms=cross(way=("old", "new")), seeds=tuple(range({seeds})), measures={{"score": "a number"}}, run=run,
        share=share,
        claims=(Claim("new wins", "new is better", value("score", way="new") - value("score", way="old"),
                      smallest={smallest}, seeds=5),),
        charts=(Chart("Score", "score"), Chart("Line", "line", kind="lines", x="step", y="score")),
    )
"""


@pytest.fixture
def study(tmp_path):
    """Writes a study of ten runs; gives its path and the log in which each run leaves a line."""

    def write(smallest=0.5, seeds=5, pause=0.0):
        path, log = tmp_path / "tried.py", tmp_path / "log"
        path.write_text(STUDY.format(smallest=smallest, seeds=seeds, pause=pause, log=str(log)))
        return path, log

    return write


def values(workdir):
    return {(x["seed"], x["arm"]["way"]): x["measures"] for x in read_outcomes(workdir)}


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_study_runs_everything_once_and_says_what_holds(study, tmp_path, capsys, jobs):
    path, log = study()
    work = tmp_path / "work"
    assert main(["ablate", str(path), f"--workdir={work}", f"--jobs={jobs}"]) == 0
    assert "reproduced: new wins" in capsys.readouterr().out
    assert sorted(log.read_text().split("\n")[:-1]) == sorted(
        f"{s} {w}" for s in range(5) for w in ("old", "new")
    )
    assert (work / "seeds/3/shared/made").read_text() == "x"  # once for both arms
    page = (work / "README.md").read_text()
    assert "**new wins**: new is better" in page and "| 1 [1, 1] | 0.5 | 5 | **reproduced** |" in page
    assert "| way=new | 201 ± 2e+02 |" in page
    assert {"chart_1.png", "chart_1.svg", "chart_2.png", "chart_2.svg"} <= {x.name for x in work.iterdir()}
    found = read_results(work / FILE)
    assert found.table[4, "way=new"]["score"] == 401.04
    assert found.curves["line"][4, "way=new"].tolist() == [[0, 0], [1, 401.04]]
    before = (work / FILE).read_bytes()
    assert main(["ablate", str(path), f"--workdir={work}"]) == 0
    assert (work / FILE).read_bytes() == before and len(log.read_text().splitlines()) == 10


def test_a_size_that_a_study_has_not_is_refused(study, tmp_path, capsys):
    path, log = study()
    assert main(["ablate", f"{path}:paper", f"--workdir={tmp_path / 'work'}"]) == 2
    assert f"{path}:paper: the study has no such size; it has small" in capsys.readouterr().err
    assert not log.exists() and load_study("ipo_bandits", "paper").name == "ipo_bandits"


def test_the_size_of_the_paper_is_printed_alone_from_one_reading(study, capsys):
    path, log = study()
    recipes = 'recipes={"way=new": "orpo_mistral_7b"}, share=share,'
    text = path.read_text().replace("share=share,", recipes)
    path.write_text(text.replace("def get_study(size):", "def get_study(size):\n    print('read as', size)"))
    assert main(["ablate", f"{path}:paper"]) == 0
    first, arm, command = capsys.readouterr().out.splitlines()
    assert (first, arm) == ("read as paper", "# way=new")
    assert command.startswith("jaxalign train --config=papers:orpo_mistral_7b ")
    for words, named in (
        (["report", f"{path}:paper"], "report"),
        ([f"{path}:paper", "--check"], "--check"),
        (["report", f"{path}:paper", "--jobs=2", "--only=way=new"], "report and --only and --jobs"),
    ):
        assert main(["ablate", *words]) == 2
        out, error = capsys.readouterr()
        assert (
            f"{path}:paper only prints the commands of the trainings, without {named}: leave that out"
            in error
        )
        assert f"or write {path} for the study that runs here" in error and "jaxalign train" not in out
    assert main(["ablate", "report", str(path), "--check"]) == 2
    assert "report --check: a check runs a seed and makes no page" in capsys.readouterr().err
    assert not log.exists()


def test_arms_can_be_run_alone_and_the_rest_later(study, tmp_path, capsys):
    path, log = study()
    work = tmp_path / "work"
    assert main(["ablate", str(path), f"--workdir={work}", "--only=way=new"]) == 0
    assert "undecided: new wins" in capsys.readouterr().out
    assert main(["ablate", str(path), f"--workdir={work}"]) == 0
    assert len(log.read_text().splitlines()) == 10
    assert main(["ablate", str(path), f"--workdir={work}", "--only=way=newer"]) == 1
    assert (
        "--only=way=newer: study 'tried' has no such arm; did you mean 'way=new'?" in capsys.readouterr().err
    )


def test_a_rule_that_changes_after_the_runs_is_refused_and_shows(study, tmp_path, capsys):
    path, _ = study()
    work = tmp_path / "work"
    main(["ablate", str(path), f"--workdir={work}"])
    study(smallest=0.01)
    assert main(["ablate", str(path), f"--workdir={work}"]) == 1
    error = capsys.readouterr().err
    assert f"--workdir={work} holds results of tried" in error and "its claims changed since" in error
    assert main(["ablate", "report", str(path), f"--workdir={work}"]) == 0
    assert "The declaration changed since these results were made" in (work / "README.md").read_text()


TUNED = """
from jaxalign.ablation import Claim, Outcome, Study, Tuning, cross, value

BEST = {{"old": 1.0, "new": 3.0}}

def run(trial):
    assert (trial.seed >= 100) == ("tuning" in trial.folder.parts)
    with open({log!r}, "a") as file:
        file.write(f"{{trial.seed}} {{trial.arm['way']}} {{trial.tuned['rate']}}\\n")
    return Outcome({{"error": (trial.tuned["rate"] - BEST[trial.arm["way"]]) ** 2 + 0.001 * trial.seed}})

def get_study(size):
    return Study(
        name="tuned", title="Tuned", papers=("none",), question="?", setting="Numbers.", arms=cross(way=("old", "new")),
        seeds=tuple(range(5)), measures={{"error": "a number"}}, run=run,
        tuning=Tuning(tuple({{"rate": x}} for x in (1.0, 2.0, 3.0)), seeds={seeds}, measure="{measure}", smallest=True),
        claims=(Claim("alike", "", value("error", way="new") - value("error", way="old"), 0.1, near=0.0),),
    )
"""


def write_tuned(folder, seeds=(100, 101), measure="error"):
    path, log = folder / "tuned.py", folder / "log"
    path.write_text(TUNED.format(log=str(log), seeds=seeds, measure=measure))
    return path, log


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_arm_is_tuned_as_often_on_seeds_that_do_not_count(tmp_path, capsys, jobs):
    path, log = write_tuned(tmp_path)
    work = tmp_path / "work"
    assert main(["ablate", str(path), f"--workdir={work}", f"--jobs={jobs}"]) == 0
    assert "reproduced: alike" in capsys.readouterr().out
    lines = log.read_text().splitlines()
    tried = [line for line in lines if int(line.split()[0]) >= 100]
    assert sorted(tried) == sorted(
        f"{s} {w} {r}" for s in (100, 101) for w in ("old", "new") for r in (1.0, 2.0, 3.0)
    )
    assert lines[:12] == tried  # first
    assert sorted(lines[12:]) == sorted(f"{s} {w}" for s in range(5) for w in ("old 1.0", "new 3.0"))
    found = read_results(work / FILE)
    assert found.chosen == {"way=old": "rate=1.0", "way=new": "rate=3.0"}
    assert found.tuning["way=old", "rate=3.0"] == {100: {"error": 4.1}, 101: {"error": 4.101}}
    assert found.table[3, "way=new"] == {"error": 0.003}
    page = (work / "README.md").read_text()
    assert "same 3 trials, on seeds that count for nothing else (100, 101)" in page
    assert (
        "| way=old | **0.1005** | 1.101 | 4.101 |" in page
        and "| way=new | 4.101 | 1.101 | **0.1005** |" in page
    )
    assert main(["ablate", str(path), f"--workdir={work}"]) == 0 and len(log.read_text().splitlines()) == 22
    # A check runs one seed with what was chosen then.
    check = ["ablate", str(path), "--check", f"--results={work / FILE}", f"--workdir={tmp_path / 'check'}"]
    assert main(check) == 0
    assert log.read_text().splitlines()[22:] == ["0 old 1.0", "0 new 3.0"]


def test_tuning_on_a_seed_that_counts_is_refused(tmp_path, capsys):
    path, _ = write_tuned(tmp_path, seeds=(4, 100))
    assert main(["ablate", str(path), f"--workdir={tmp_path}"]) == 1
    assert "seed 4 is tuned on and counted; tune on seeds of their own" in capsys.readouterr().err
    path, _ = write_tuned(tmp_path, measure="errors")
    assert main(["ablate", str(path), f"--workdir={tmp_path}"]) == 1
    assert "tuning: there is no measure 'errors'; did you mean 'error'?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_study_that_is_killed_again_and_again_ends_as_one_that_is_not(study, tmp_path, jobs):
    path, _ = study(pause=0.15, seeds=6)
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    main(["ablate", str(path), f"--workdir={calm}"])
    command = [sys.executable, "-m", "jaxalign", "ablate", str(path), f"--workdir={killed}", f"--jobs={jobs}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    for kill in range(10):
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        begun = len(values(killed))
        deadline = time.monotonic() + 60
        while process.poll() is None and len(values(killed)) == begun and time.monotonic() < deadline:
            time.sleep(0.01 + 0.013 * kill)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    assert values(killed) == values(calm) and len(values(calm)) == 12
    assert [x["curves"] for x in read_outcomes(killed)] == [x["curves"] for x in read_outcomes(calm)]


def test_a_run_that_was_asked_to_stop_is_no_fault_of_the_file(study):
    path, _ = study()
    text = path.read_text().replace("time.sleep(0.0)", "raise Stopped('asked')")
    path.write_text(f"from jaxalign.training.loop import Stopped\n{text}")
    with pytest.raises(Stopped, match="asked"):
        load_study(str(path)).run(Trial({"way": "old"}, 0, path.parent, 0))


def _begin(path, work, log):
    """A study in processes of its own, once it has begun with a seed."""
    command = [sys.executable, "-m", "jaxalign", "ablate", str(path), f"--workdir={work}", "--jobs=2"]
    process = subprocess.Popen(
        command,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


@pytest.mark.slow
def test_an_interrupt_begins_no_other_seed(study, tmp_path):
    path, log = study(pause=1.0, seeds=8)
    process = _begin(path, tmp_path / "runs", log)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert {line.split()[0] for line in log.read_text().splitlines()} <= {"0", "1"}


def test_an_outcome_that_was_damaged_is_named_and_made_again(study, tmp_path, capsys):
    path, log = study()
    work = tmp_path / "work"
    assert main(["ablate", str(path), f"--workdir={work}"]) == 0
    whole = read_outcomes(work)
    file = work / "seeds" / "2" / "way=new" / OUTCOME
    text = file.read_text()
    for damaged in (text.replace("201.0", "203.0"), text.replace('"seed"', '"seee"'), text[:-5]):
        assert damaged != text
        file.write_text(damaged)
        assert main(["ablate", str(path), f"--workdir={work}"]) == 1
        assert (
            f"{file}: not " in (told := capsys.readouterr().err)
            and "delete it, and its run is made again" in told
        )
    file.unlink()
    assert main(["ablate", str(path), f"--workdir={work}"]) == 0
    assert [x["measures"] for x in read_outcomes(work)] == [x["measures"] for x in whole]
    assert len(log.read_text().splitlines()) == 11


@pytest.mark.slow
def test_the_processes_of_a_study_end_with_it(study, tmp_path):
    """Killed alone, without its group: what went on would run the seeds that the next start runs, too."""
    path, log = study(pause=1.0, seeds=8)
    process = _begin(path, tmp_path / "runs", log)
    process.kill()
    process.communicate(timeout=20)  # returns once all have closed their output
    assert len(log.read_text().splitlines()) <= 4


def test_a_second_start_is_told_of_the_first(study, tmp_path, capsys):
    from jaxalign.locks import LOCK, locked

    path, _ = study()
    work = tmp_path / "work"
    with locked(work / LOCK, "here"):
        assert main(["ablate", str(path), f"--workdir={work}"]) == 1
    assert f"--workdir={work} is in use by process" in capsys.readouterr().err


def test_a_full_disk_is_said_and_nothing_is_lost(study, tmp_path, capsys, monkeypatch):
    import errno

    from jaxalign.ablation import runs

    path, log = study()
    work = tmp_path / "work"
    whole = runs.write_whole

    def full(file, data):
        if file.name == OUTCOME and "seeds/2" in str(file):
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        whole(file, data)

    monkeypatch.setattr(runs, "write_whole", full)
    assert main(["ablate", str(path), f"--workdir={work}"]) == 1
    assert "the disk takes no more" in capsys.readouterr().err
    monkeypatch.setattr(runs, "write_whole", whole)
    assert main(["ablate", str(path), f"--workdir={work}"]) == 0
    assert len(values(work)) == 10 and len(log.read_text().splitlines()) == 11


def test_one_seed_is_checked_against_recorded_ones(study, tmp_path, capsys):
    path, _ = study()
    work, again = tmp_path / "work", tmp_path / "again"
    main(["ablate", str(path), f"--workdir={work}"])
    flags = [f"--results={work / FILE}", "--check"]
    assert main(["ablate", str(path), f"--workdir={again}", *flags]) == 0
    assert (
        "2 of 2 measures lie where the recorded seeds say, 2 are the recorded numbers"
        in capsys.readouterr().out
    )
    alone = tmp_path / "alone"
    assert main(["ablate", str(path), f"--workdir={alone}", "--only=way=new", *flags]) == 0
    assert "1 of 1 measures lie where" in capsys.readouterr().out and len(values(alone)) == 1
    rows = [json.loads(line) for line in (work / FILE).read_text().splitlines()]
    for row in rows:
        if row.get("measure") and row["arm"] == "way=new":
            row["value"] = -500.0 + row["seed"]
    (work / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["ablate", str(path), f"--workdir={again}", *flags]) == 1
    assert "OUTSIDE: score of way=new, seed 0: 1," in capsys.readouterr().out


WRONG = [
    (
        'value("score", way="old")',
        'value("score", way="older")',
        "there is no arm 'way=older'; did you mean 'way=old'?",
    ),
    (
        'value("score", way="new")',
        'value("scor", way="new")',
        "there is no measure 'scor'; did you mean 'score'?",
    ),
    ("tuple(range(5))", "tuple(range(4))", "needs 5 seeds for its verdict, and the study has 4; add seeds"),
    ("tuple(range(5))", "(0, 1, 2, 3, 3)", "a seed stands twice"),
    ('cross(way=("old", "new"))', 'cross(way=("old", "new", "new"))', "two arms are named 'way=new'"),
    ("def get_study", "def got_study", "no function get_study"),
    ('Outcome({"score": score}', 'Outcome({"score": score / 0}', "ZeroDivisionError"),
    (
        'Outcome({"score": score}',
        'Outcome({"score": float("nan")}',
        "score is nan; let the run measure a number",
    ),
    ('Outcome({"score": score}', 'Outcome({"points": score}', "points, score is declared and not measured"),
]


@pytest.mark.parametrize(("right", "wrong", "said"), WRONG)
def test_what_cannot_be_is_refused_with_its_place(study, tmp_path, capsys, right, wrong, said):
    path, _ = study()
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    assert main(["ablate", str(path), f"--workdir={tmp_path / 'work'}"]) == 1
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_the_studies_that_come_with_jaxalign_are_listed_and_declared(capsys):
    assert main(["ablate", "--list"]) == 0
    listed = capsys.readouterr().out
    for name in own_studies():
        for size in (declared := load_study(name)).sizes:
            sized = load_study(name, size)
            assert sized.name == name and sized.claims and len(sized.seeds) >= 5
        assert f"{name}: {declared.title}" in listed
    assert main(["ablate", "ipo_bandit"]) == 2
    assert "did you mean ipo_bandits?" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"nowhere: .*; run the study first"):
        read_results(pathlib.Path("nowhere"))
