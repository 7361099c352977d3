"""`jaxalign compare`: values, differing settings and curves of runs, whatever they have written so far."""

import json
import struct

import pytest

from jaxalign.cli import main
from jaxalign.errors import DataError
from jaxalign.verbs.compare import best, choose_metrics, read_histories, setting_rows, value_rows, warnings

SETTINGS = {"config.seed": 0, "config.dpo.beta": 0.1, "config.data.train": ["a", "b"]}


def write(folder, losses, *, evals=(), settings=None, more=""):
    folder.mkdir(parents=True)
    lines = [
        {"step": 10 * (i + 1), "time": 0.0, "kind": "train", "values": {"loss": loss, "perf/mfu": 0.1}}
        for i, loss in enumerate(losses)
    ]
    lines += [
        {"step": step, "time": 0.0, "kind": "eval", "values": {"loss": loss, "rewards/accuracies": 1 - loss}}
        for step, loss in evals
    ]
    lines.sort(key=lambda line: line["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + more)
    if settings is not None:
        (folder / "settings.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    first = write(
        tmp_path / "a/dpo", [0.7, "NaN", 0.5], evals=[(10, 0.6), (20, 0.4), (30, 0.5)], settings=SETTINGS
    )
    # One still trains: its last line is not whole yet.
    second = write(
        tmp_path / "b/dpo", [0.8, 0.75], settings=SETTINGS | {"config.dpo.beta": 0.2}, more='{"step": 3'
    )
    return first, second


def test_last_and_best_values_and_what_is_missing(runs):
    histories = read_histories(runs)
    metrics = choose_metrics(histories, "")
    assert metrics == ["eval/loss", "eval/rewards/accuracies", "train/loss"]
    assert value_rows(histories, metrics) == [
        ["metric", "a/dpo", "b/dpo"],
        ["eval/loss", "0.5 at 30, best 0.4 at 20", "–"],
        ["eval/rewards/accuracies", "0.5 at 30, best 0.6 at 20", "–"],
        ["train/loss", "0.5 at 30", "0.75 at 20"],
    ]
    assert warnings(histories, metrics) == [
        "b/dpo has no eval/loss, eval/rewards/accuracies",
        "last steps: a/dpo 30, b/dpo 20",
    ]
    assert setting_rows(histories) == [["setting", "a/dpo", "b/dpo"], ["config.dpo.beta", "0.1", "0.2"]]


def test_a_file_of_metrics_has_no_settings_to_compare(runs, tmp_path):
    alone = write(tmp_path / "c", [0.9]) + "/metrics.jsonl"
    histories = read_histories([*runs, alone])
    assert [history.name for history in histories] == ["a/dpo", "b/dpo", "c"] or histories[2].name.endswith(
        "c"
    )
    assert setting_rows(histories)[1] == ["config.dpo.beta", "0.1", "0.2", "?"]
    assert choose_metrics(histories, "loss,perf/mfu") == ["eval/loss", "train/perf/mfu"]


def test_the_best_of_a_metric_is_its_least_or_its_largest_where_that_is_known():
    curve = [(1, 0.5), (2, float("inf")), (3, 0.25), (4, 0.75)]
    assert best("eval/loss", curve) == (3, 0.25) and best("train/objective/kl", curve) == (3, 0.25)
    assert best("eval/rewards/accuracies", curve) == best("eval/score", curve) == (4, 0.75)
    for name in ("frac_reward_zero_std", "reward_std", "rewards/accuracy/std", "kl_coef", "perf/score_time"):
        assert best(f"eval/{name}", curve) is None
    assert best("train/grad_norm", curve) is None and best("eval/loss", [(1, float("nan"))]) is None


def test_what_is_not_there_is_named_with_the_nearest(runs, tmp_path, capsys):
    with pytest.raises(DataError, match=r"--metrics=eval/los: no run has it; did you mean 'eval/loss'\?"):
        choose_metrics(read_histories(runs), "eval/los")
    assert main(["compare", str(tmp_path / "none")]) == 1
    assert "no such file; give a run directory" in capsys.readouterr().err
    assert main(["compare"]) == 2
    assert capsys.readouterr().err.startswith("jaxalign compare: RUN is missing: folders of runs")
    assert main(["compare", *runs, "--out=x.pdf"]) == 1
    assert "write a name that ends with .png or .html" in capsys.readouterr().err


def test_tables_are_printed_and_curves_written(runs, tmp_path, capsys):
    picture, web = tmp_path / "out.png", tmp_path / "out.html"
    assert main(["compare", *runs, "--metrics=train/loss", f"--out={picture}"]) == 0
    printed = capsys.readouterr().out
    assert (
        "0.75 at 20" in printed
        and "config.dpo.beta" in printed
        and f"{picture}: curves of train/loss" in printed
    )
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    assert width == 1152 and height > 400
    first = web
    assert main(["compare", *runs, f"--out={first}"]) == 0
    text = first.read_text()
    assert text.startswith("<!doctype html>") and "<td>0.75 at 20</td>" in text and "<svg" in text
    assert "http://" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert main(["compare", *runs, f"--out={tmp_path / 'again.html'}"]) == 0
    assert (tmp_path / "again.html").read_text() == text


def test_names_are_text_for_the_terminal_and_the_page(tmp_path, capsys):
    run = write(tmp_path / "<b>[red]x", [0.5])
    assert main(["compare", run, f"--out={tmp_path / 'out.html'}"]) == 0
    assert "[red]x" in capsys.readouterr().out
    page = (tmp_path / "out.html").read_text()
    assert "&lt;b&gt;[red]x" in page and "<b>[red]" not in page
