"""A few tries of each kind, with the seeds that the long campaigns of docs/reliability.md begin with."""

import os
import random
import shutil
import signal
import subprocess
import sys

import pytest

from tests.faults import forks
from tests.faults.forks import ROOT, Fault, attempt

forks.server()

from tests.faults import places  # noqa: E402
from tests.faults.kill import Campaign  # noqa: E402
from tests.faults.tasks import all_tasks, prepare  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data and the runs that others begin with, and an undisturbed run of SFT."""
    folder = tmp_path_factory.mktemp("faults")
    prepare(folder / "runs")
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    place = folder / "whole"
    place.mkdir()
    ended = attempt(all_tasks(folder / "runs")["sft"].command(place), folder / "whole.log")
    assert ended.code == 0, ended.log
    return place, ended.seconds


@pytest.mark.parametrize("name", ["sft", "grpo", "generate"])
def test_what_is_killed_and_started_again_ends_as_if_undisturbed(folder, name):
    campaign = Campaign(all_tasks(folder / "runs")[name], folder / name, random.Random(name))
    campaign.measure()
    rows = campaign.run(4)
    assert [row["faults"] for row in rows if row["faults"]] == []


@pytest.mark.skipif(not places.can_mount(), reason="needs the right to mount a file system")
def test_a_disk_of_any_size_ends_a_run_with_words_and_loses_nothing(folder, whole):
    task, total = all_tasks(folder / "runs")["sft"], places.used(whole[0])
    for number, share in enumerate((0.02, 0.5)):
        row = places.fill_up(task, whole[0], folder / f"disk{number}", int(total * share))
        assert row["faults"] == [] and row["code"] == 1, row


def test_a_damaged_file_of_a_run_is_made_up_for_or_named(folder, whole):
    task = all_tasks(folder / "runs")["sft"]
    stopped = folder / "stopped"
    places.stop(task, stopped, folder / "stopped.log")
    rng = random.Random(0)
    for number in range(4):
        row = places.damage(task, whole[0], stopped, folder / f"damaged{number}", rng)
        assert row["faults"] == [], row


def _start(task, place, **streams):
    """A task as a program of its own, whose output is read through a pipe."""
    command = [sys.executable, "-m", "jaxalign", *task.command(place)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'stages'}"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, **streams)


def test_of_two_starts_at_once_one_runs_and_one_is_told(folder, whole, tmp_path):
    """In a folder that is there already; each is a program of its own."""
    (tmp_path / "run").mkdir()
    task = all_tasks(folder / "runs")["sft"]
    started = [_start(task, tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate()[1] for process in started]
    codes = [process.returncode for process in started]
    assert sorted(codes) == [0, 1]
    assert f"--workdir={tmp_path}/run is in use by process " in told[codes.index(1)]
    assert task.differences(tmp_path, whole[0]) == []


def test_a_folder_that_vanishes_ends_a_run_with_words(folder, whole, tmp_path):
    """It may be gone before a file is opened, or between two writes."""
    task = all_tasks(folder / "runs")["sft"]
    for share in (0.6, 0.9):
        place = tmp_path / str(share)
        place.mkdir()
        remover = subprocess.Popen(["sh", "-c", f"sleep {whole[1] * share}; rm -rf {place}"])
        ended = attempt(task.command(place), tmp_path / "log")
        remover.wait()
        assert "Traceback" not in ended.log, ended.log
        assert ended.code in (0, 1), ended.log
        shutil.rmtree(place, ignore_errors=True)


def test_a_reader_that_goes_away_ends_nothing(folder, whole, tmp_path):
    task = all_tasks(folder / "runs")["sft"]
    process = _start(task, tmp_path, stderr=subprocess.STDOUT)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 0
    assert task.differences(tmp_path, whole[0]) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_loop_asks_for_the_same_command(folder, tmp_path, number):
    """It comes as the run makes the first file of its folder: no machine is too fast or too slow for that."""
    task = all_tasks(folder / "runs")["sft"]
    fault = Fault(number=number, operation=1, folder=str(tmp_path / "run"))
    ended = attempt(task.command(tmp_path), tmp_path / "log", fault)
    assert ended.code == 75 and "run the same command to go on" in ended.log, ended.log
