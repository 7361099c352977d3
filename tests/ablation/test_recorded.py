"""The results that are kept with the code: their pages, and that they come out again."""

import pathlib

import pytest

from jaxalign.ablation.check import recorded
from jaxalign.ablation.files import load_study, own_studies
from jaxalign.ablation.overview import write_overview
from jaxalign.ablation.page import PAGE, write_page
from jaxalign.ablation.results import read_results, verdicts
from jaxalign.cli import main

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "ablations"
STUDIES = [name for name in own_studies() if recorded(name).is_file()]
# Where rounding cannot decide between two ends of a training, as it can among unseen answers; of many arms a few.
QUICK = {
    "ipo_bandits": "",
    "rloo": "method=ppo;method=rloo,samples=4",
    "which_method": ";".join(
        f"data=outside,method={method},quality=equal,support=near" for method in ("dpo", "orpo")
    ),
    "frontier": "method=dpo;method=rl",
    "ppo_details": "row=1;row=2;row=14",
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_page_is_made_of_its_results_alone(name, tmp_path):
    study, results = load_study(name), read_results(recorded(name))
    assert results.declarations == (study.hash,)  # no rule has changed since the runs
    assert recorded(name).stat().st_size < 2**20
    write_page(study, results, tmp_path)
    assert (tmp_path / PAGE).read_text() == (DOCS / name / PAGE).read_text()


def test_the_overview_and_the_readme_say_what_the_results_say(tmp_path):
    for name in STUDIES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.jsonl").write_bytes(recorded(name).read_bytes())
    write_overview([load_study(name) for name in own_studies()], tmp_path)
    assert (tmp_path / PAGE).read_text() == (DOCS / PAGE).read_text()


def test_an_overview_of_nothing_is_refused(tmp_path, capsys):
    (tmp_path / PAGE).write_text("of other things")
    assert main(["ablate", "report", "all", f"--out={tmp_path}"]) == 1
    assert f"{tmp_path}: no folder of it holds the results.jsonl of a study" in capsys.readouterr().err
    assert (tmp_path / PAGE).read_text() == "of other things"


def test_results_named_in_advance_come_out():
    """Probabilities of bandits in closed form, and the pilot's means of the 8 x 8 problem, within their intervals."""
    found = {each.claim.name: each for each in verdicts(*both("ipo_bandits"))}
    for name, exact in (("2 actions, τ=0.1, best", 0.9933), ("3 actions, τ=1, worst", 0.230)):
        assert found[f"IPO, {name}"].mean == pytest.approx(exact, abs=0.01)
    _, results = both("unseen_answers")
    arms = {"dpo": (0.49, 0.07), "rl": (0.47, 0.07)}
    for method, (mean, half) in arms.items():
        gold = results.of_arm("gold", f"beta=0.1,method={method},pull=none,seen=2")
        assert sum(gold) / len(gold) == pytest.approx(mean, abs=2 * half)
    regularised = results.of_arm("gold", "beta=0.1,method=rl,pull=all,seen=2")
    assert min(regularised) > 0.99


def both(name):
    return load_study(name), read_results(recorded(name))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "only"), QUICK.items())
def test_one_seed_runs_as_recorded(name, only, tmp_path, capsys):
    assert main(["ablate", name, "--check", f"--only={only}", f"--workdir={tmp_path}"]) == 0
    assert "measures lie where the recorded seeds say" in capsys.readouterr().out
