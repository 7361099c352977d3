"""The report holds the numbers it was given, keeps hostile text as text, and says no more than the intervals."""

import copy
import html.parser
import io
import json
import math
import re

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from jaxalign.errors import DataError
from jaxalign.quickstart.findings import (
    Interval,
    comparison,
    findings,
    headline,
    interval,
    shown,
    verdict,
)
from jaxalign.quickstart.report import print_results, write_report

NAMES = ("pretrained", "sft", "ppo", "dpo", "orpo", "grpo")
KINDS = ("fact", "followup", "format", "unknown", "harmful")
HOSTILE = """</div><script>alert(1)</script><img src=x onerror='alert("2")'> &lt; {lead} \u202e \ud800 日本"""


def model(i: int) -> dict:
    """Numbers that no two cells share."""
    spread = {
        key: [centre, centre - 0.021 - 0.001 * i, centre + 0.023 + 0.001 * i]
        for key, centre in zip(
            ("score", "helpful", "honest", "harmless"),
            (0.11 + 0.17 * i, 0.07 + 0.16 * i, 0.23 + 0.14 * i, 0.39 + 0.13 * i),
            strict=True,
        )
    }
    return spread | {
        "loss": 3.111 - 0.317 * i,
        "corpus_loss": 1.403 + 0.129 * i,
        "by_kind": {kind: 0.043 + 0.181 * i + 0.032 * k for k, kind in enumerate(KINDS)},
        "win_rate": None if i == 1 else [0.1234 + 0.15 * i, 0.1034 + 0.15 * i, 0.1434 + 0.15 * i],
        "kl": [abs(i - 1) * 2.34, abs(i - 1) * 2.12, abs(i - 1) * 2.56],
        "length": 31.7 - 4.1 * i,
    }


@pytest.fixture
def results() -> dict:
    stages = ("pretrain", "sft", "reward", "ppo", "dpo", "orpo", "grpo")
    return {
        "seed": 17,
        "fast": False,
        "parameters": 1234567,
        "vocabulary": 768,
        "questions": 400,
        "seconds": {"data": 3.1, "pretrain": 245.6, "total": 248.7},
        "models": {name: model(i) for i, name in enumerate(NAMES)},
        "reward_model": {
            "accuracy": [0.852, 0.821, 0.879],
            "bayes_accuracy": 0.881,
            "ratio": 0.967,
            "gold_correlation": 0.83,
            "gold_accuracy": [0.918, 0.893, 0.938],
        },
        "frontier": {
            name: [{"step": 10 * i, "kl": 0.71 * i, "score": 0.28 + 0.07 * i} for i in range(4)]
            for name in ("ppo", "grpo", "dpo", "orpo")
        },
        "curves": {
            stage: {"name": f"name_{stage}", "points": [[0, 2.0 + i], [10, 1.125 + i]]}
            for i, stage in enumerate(stages)
        },
        "examples": [
            {
                "kind": kind,
                "prompt": [{"role": "user", "content": f"Question {kind}?"}],
                "answers": {name: {"text": f"{name} on {kind}", "score": 0.61} for name in NAMES},
            }
            for kind in KINDS
        ],
    }


@pytest.fixture
def without_charts(monkeypatch):
    """Drawing takes seconds."""
    sections = ("score", "parts", "win_rate", "frontier", "curves")
    monkeypatch.setattr("jaxalign.quickstart.report.write_plots", lambda *_: {key: [] for key in sections})


class Page(html.parser.HTMLParser):
    """The tags, attributes, tables and text of a page; checks that every tag is closed in its turn."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.open, self.text, self.rows = [], [], [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "tr" in self.open:
            self.rows[-1][-1] += f"{data} "

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def report(results: dict, folder) -> Page:
    write_report(results, folder / "report.html")
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def row(page: Page, head: str, number: int = 0) -> list[str]:
    return [cells for cells in page.rows if cells[0].strip() == head][number]


def sentences(results: dict) -> dict[str, str]:
    return dict(findings(results))


def test_every_number_is_in_its_row(results, tmp_path, without_charts):
    page = report(json.loads(json.dumps(results)), tmp_path)
    for name, label in zip(NAMES, ("Pretrained", "SFT", "PPO", "DPO", "ORPO", "GRPO"), strict=True):
        values = results["models"][name]
        cells = iter(row(page, label)[1:])
        for key, factor, digits in [
            *((key, 1, 2) for key in ("score", "helpful", "honest", "harmless")),
            ("win_rate", 100, 1),
            ("kl", 1, 2),
        ]:
            cell = next(cells)
            if values[key] is None:
                assert cell.strip() == "–"
                continue
            mean, low, high = (f"{factor * x:.{digits}f}" for x in values[key])
            assert cell.split() == [mean, low, "to", high]
        rest = [f"{values['loss']:.3f}", f"{values['corpus_loss']:.3f}", f"{values['length']:.1f}"]
        assert [cell.strip() for cell in cells] == rest
        kinds = [f"{values['by_kind'][kind]:.2f}" for kind in KINDS]
        assert [cell.strip() for cell in row(page, label, 1)[1:]] == kinds
    for text in ("1,234,567", "768", "400", "17", "85.2 %", "82.1 % to 87.9 %", "88.1 %", "96.7 %", "0.83"):
        assert text in page.text
    assert "fast run" not in page.text
    assert "91.8 %" in page.text and "89.3 % to 93.8 %" in page.text
    assert [cell.strip() for cell in row(page, "pretrain")] == ["pretrain", "4 min 6 s", "98.8 %"]
    for kind in KINDS:
        assert f"Question {kind}?" in page.text
        for name in NAMES:
            assert f"{name} on {kind}" in page.text


CHARTS = ("score", "helpful", "honest", "harmless", "win_rate", "frontier")
STAGES = ("pretrain", "sft", "reward", "ppo", "grpo", "dpo", "orpo")


def described(page: Page) -> dict[str, str]:
    """What each chart says to those who do not see it."""
    charts = (*CHARTS, *(f"curve_{stage}" for stage in STAGES))
    return dict(zip(charts, page.values("aria-label"), strict=True))


@pytest.mark.slow
def test_the_charts_are_in_the_page_are_files_and_are_described_with_their_numbers(results, tmp_path):
    page = report(results, tmp_path)
    said = described(page)
    assert page.tags.count("svg") == len(said)
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == set(said)
    for name in said:
        pixels = imread(tmp_path / f"plots/{name}.png")
        assert pixels.shape[1] > 600 and np.ptp(pixels[..., :3]) > 0.5  # neither small nor blank
    assert "Pretrained 0.23 (0.21 to 0.25), SFT 0.37" in said["honest"]
    assert "ORPO 72.3 % (70.3 % to 74.3 %)" in said["win_rate"]
    # The last point is the final model's own, on all questions.
    assert (
        "DPO: 0.28 at 0.00 nats then 0.35 at 0.71 nats then 0.42 at 1.42 nats then 0.62 at 4.68 nats"
        in (said["frontier"])
    )
    assert said["curve_reward"] == "Reward model, name_reward: 4.000 at first, 3.125 at last."


@pytest.mark.slow
def test_the_charts_move_with_the_numbers_they_show(results, tmp_path):
    dpo = results["models"]["dpo"]
    changes = {  # of the ends of an interval alone, where a plot has intervals
        "honest": lambda r: r["models"]["dpo"].update(honest=[dpo["honest"][0], 0.1, 0.9]),
        "win_rate": lambda r: r["models"]["dpo"].update(win_rate=[dpo["win_rate"][0], 0.1, 0.9]),
        "frontier": lambda r: r["models"]["dpo"].update(kl=[dpo["kl"][0], 3.0, 6.0]),
        "curve_reward": lambda r: r["curves"]["reward"]["points"].append([20, 0.5]),
    }
    write_report(results, tmp_path / "a/report.html")
    for name, change in changes.items():
        changed = copy.deepcopy(results)
        change(changed)
        write_report(changed, tmp_path / "b/report.html")
        differ = {
            path.stem
            for path in (tmp_path / "a/plots").iterdir()
            if path.read_bytes() != (tmp_path / "b/plots" / path.name).read_bytes()
        }
        assert differ == {name}


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_is_the_same_each_time(results, tmp_path):
    page = report(results, tmp_path)
    raw = (tmp_path / "report.html").read_bytes()
    # Links to papers are for the reader to follow; nothing is fetched.
    without_links = re.sub(rb'<a href="https://arxiv.org/abs/[0-9.]+">', b"", raw)
    assert len(raw) - len(without_links) > 300
    assert not re.search(
        rb"https?:|//[a-z]|url\([^#]|@import|<(script|link|iframe|object|img)\b", without_links
    )
    assert not {"src", "srcset", "action"} & {key for _, key, _ in page.attributes}
    names = [value for _, key, value in page.attributes if key == "id"]
    assert len(set(names)) == len(names) or all(
        name[0] in "mp" for name in names
    )  # markers and clips, by content
    assert str(tmp_path).encode() not in raw
    report(results, tmp_path / "again")
    assert (tmp_path / "again/report.html").read_bytes() == raw


@pytest.mark.slow
def test_hostile_text_stays_text(results, tmp_path):
    clean = report(results, tmp_path / "clean")
    for example in results["examples"]:
        example["prompt"][0] = {"role": HOSTILE, "content": HOSTILE}
        example["answers"]["dpo"]["text"] = HOSTILE
    results["examples"][0]["kind"] = HOSTILE
    results["curves"]["sft"]["name"] = HOSTILE + "$x_{"
    results["seconds"][HOSTILE] = 1.0
    page = report(results, tmp_path)
    assert page.tags[: len(clean.tags)].count("script") == page.tags.count("script") == 0
    assert page.tags.count("img") == 0 and "onerror" not in {key for _, key, _ in page.attributes}
    kept = HOSTILE.replace("\ud800", "\\ud800")  # half of a character has no UTF-8
    assert page.text.count(kept) == 3 * len(KINDS) + 2


@pytest.mark.slow
def test_points_that_are_not_finite_are_left_out_of_the_plots(results, tmp_path):
    results["curves"]["ppo"]["points"] = [[0, math.nan], [10, 0.5], [20, math.inf], [30, None]]
    results["frontier"]["dpo"] = [{"step": 0, "kl": math.nan, "score": 0.5}, {"step": 1, "score": 0.6}]
    said = described(report(results, tmp_path))
    assert said["curve_ppo"] == "PPO, name_ppo: 0.500 at first, 0.500 at last."
    assert "DPO: 0.50 at – nats then 0.62 at 4.68 nats" in said["frontier"]


@pytest.mark.slow
def test_missing_values_are_dashes(results, tmp_path):
    results["fast"] = True
    results["models"]["ppo"] = {
        "score": [math.nan] * 3,
        "helpful": None,
        "honest": [0.5, None, None],
        "kl": math.nan,
        "by_kind": {"fact": None},
    }
    results["models"]["orpo"] = None
    del results["models"]["pretrained"]
    for key in ("frontier", "curves", "reward_model", "seconds", "parameters"):
        results[key] = None
    results["examples"] = [{"kind": "fact", "prompt": [], "answers": {"sft": {"text": "", "score": None}}}]
    page = report(results, tmp_path)
    assert [cell.strip() for cell in row(page, "PPO")[1:]] == ["–", "–", "0.50", *"––––––"]
    assert [cell.strip() for cell in row(page, "Pretrained")[1:]] == ["–"] * 9
    assert [cell.strip() for cell in row(page, "ORPO", 1)[1:]] == ["–"] * 5
    assert "nan" not in page.text.lower() and "None" not in page.text
    assert "A fast run shows that every stage works" in page.text
    assert "(empty)" in page.text and "PPO: no points" in described(page)["frontier"]
    said = sentences(results)
    assert said["PPO and SFT"] == "Score: PPO and SFT are not compared, for a range is missing."
    assert "for a number is missing" in said["Reward model"]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0.85, 0.83, 0.87], [0.58, 0.56, 0.60], "A clearly scores higher than B (0.85 against 0.58)."),
        ([0.58, 0.56, 0.60], [0.85, 0.83, 0.87], "A clearly scores lower than B (0.58 against 0.85)."),
        ([0.60, 0.50, 0.70], [0.65, 0.55, 0.75], "Score: A 0.60, B 0.65; no clear difference."),
        ([0.60, 0.50, 0.625], [0.65, 0.625, 0.75], "Score: A 0.60, B 0.65; no clear difference."),
        ([0.65, 0.625, 0.75], [0.60, 0.50, 0.625], "Score: A 0.65, B 0.60; no clear difference."),
        ([0.60, 0.10, 0.90], [0.80, 0.79, 0.81], "Score: A 0.60, B 0.80; no clear difference."),
    ],
)  # fmt: skip
def test_a_comparison_ranks_only_intervals_that_do_not_touch(a, b, expected):
    assert comparison("score", "A", Interval(*a), "B", Interval(*b)) == expected


def test_the_findings_follow_the_intervals_both_ways(results, tmp_path, without_charts):
    models = results["models"]
    models["dpo"] |= {
        "score": [0.85, 0.83, 0.87],
        "helpful": [0.9, 0.8, 1.0],
        "honest": [0.3, 0.2, 0.4],
        "harmless": [0.1, 0.0, 0.2],
        "win_rate": [0.78, 0.74, 0.81],
        "kl": [4.0, 3.5, 4.5],
    }
    models["sft"] |= {"score": [0.58, 0.5, 0.6], "helpful": [0.5, 0.4, 0.6], "honest": [0.35, 0.25, 0.45]}
    models["ppo"] |= {"score": [0.8, 0.7, 0.9], "kl": [6.0, 5.0, 7.0], "win_rate": [0.52, 0.48, 0.56]}
    said = sentences(results)
    assert said["DPO and SFT"] == (
        "DPO clearly scores higher than SFT (0.85 against 0.58). "
        "Part by part: more helpful; less harmless; no clear difference in honest. "
        "It wins 78 of 100 questions (74 to 81): clearly more than half."
    )
    assert "52 of 100 questions (48 to 56): half of them is within that range" in said["PPO and SFT"]
    assert said["PPO and DPO"] == (
        "Score: PPO 0.80, DPO 0.85; no clear difference. "
        "PPO is clearly farther from SFT than DPO (6.00 against 4.00 nats)."
    )
    assert verdict(results, "dpo") == (
        "Clearly better than SFT: wins 78 of 100 questions, a draw counting half."
    )
    models["sft"]["score"], models["dpo"]["score"] = models["dpo"]["score"], models["sft"]["score"]
    models["dpo"] |= {"win_rate": [0.3, 0.2, 0.4], "kl": [6.5, 5.5, 7.5]}
    page = report(results, tmp_path)
    said = sentences(results)
    assert said["DPO and SFT"].startswith("DPO clearly scores lower than SFT (0.58 against 0.85). ")
    assert "(20 to 40): clearly fewer than half" in said["DPO and SFT"]
    assert said["PPO and DPO"].endswith("Distance from SFT: PPO 6.00, DPO 6.50 nats; no clear difference.")
    assert verdict(results, "dpo").startswith("Clearly worse than SFT: wins 30 of 100")
    assert all(text in page.text for text in said.values())


def test_the_answer_comes_first_and_names_a_best_model_only_where_one_is(results, tmp_path, without_charts):
    scores = {"pretrained": 0.1, "sft": 0.4, "ppo": 0.7, "grpo": 0.5, "dpo": 0.6, "orpo": 0.3}
    for name, score in scores.items():
        results["models"][name]["score"] = [score, score - 0.04, score + 0.04]
    assert headline(results) == "PPO answers best here: 0.70 of 1, against 0.40 for SFT."
    page = report(results, tmp_path)
    places = [page.text.index(text) for text in (headline(results), "Answers side by side", "All numbers")]
    assert places == sorted(places) and page.text.index("Where PPO, GRPO and DPO start") < places[1]
    results["models"]["dpo"]["score"] = [0.65, 0.61, 0.69]
    results["models"]["grpo"]["score"] = [0.64, 0.60, 0.68]
    assert headline(results) == (
        "PPO scores 0.70 of 1 here, with no clear difference to GRPO (0.64) and DPO (0.65)."
    )
    results["models"] = {"sft": {"score": [0.4, 0.3, 0.5]}}
    assert headline(results).startswith("No two models were measured")


@pytest.mark.parametrize(
    ("limit", "where"), [(0.9, "clearly worse than"), (0.85, "as good as that"), (0.8, "better, by luck")]
)
def test_the_reward_model_is_placed_against_the_limit(results, limit, where):
    results["reward_model"]["bayes_accuracy"] = limit
    said = sentences(results)["Reward model"]
    assert (
        where in said and "85 of 100 new pairs (82 to 88)" in said and f"more than {100 * limit:.0f}:" in said
    )


def test_the_terminal_table_fits_and_holds_the_same_numbers(results):
    results["models"]["pretrained"]["kl"] = [1234.56, 1100.25, 1350.75]
    console = Console(width=120, file=io.StringIO())
    print_results(results, console)
    printed = console.file.getvalue()
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= 120 and "…" not in printed
    assert "1234.56" in printed and "1100.25–1350.75" in printed
    for values in results["models"].values():
        for key in ("score", "helpful", "honest", "harmless"):
            mean, low, high = (f"{x:.2f}" for x in values[key])
            assert mean in printed and f"{low}–{high}" in printed
        assert f"{values['loss']:.3f}" in printed and f"{values['length']:.1f}" in printed
        if values["win_rate"]:
            assert f"{100 * values['win_rate'][1]:.1f}–{100 * values['win_rate'][2]:.1f}" in printed


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.1, 0.2], r"models\.dpo\.score is \[0\.1, 0\.2\]: write \[mean, low, high\]"),
        ([0.1, 0.2, 0.3], "the mean between the others"),
        ("0.5", "'0.5': write a number or null"),
        (True, "True: write a number or null"),
    ],
)
def test_a_wrong_value_is_named(results, tmp_path, value, message):
    results["models"]["dpo"]["score"] = value
    with pytest.raises(DataError, match=message):
        write_report(results, tmp_path / "report.html")
    with pytest.raises(DataError, match=message):
        print_results(results, Console(file=io.StringIO()))


def test_unknown_and_absent_models_are_refused(results, tmp_path):
    results["models"]["kto"] = {}
    with pytest.raises(DataError, match="'kto': write one of pretrained, sft, ppo, grpo, dpo, orpo"):
        write_report(results, tmp_path / "report.html")
    with pytest.raises(DataError, match=r"models is None"):
        write_report({}, tmp_path / "report.html")


def test_numbers_are_rounded_without_a_negative_zero():
    assert [shown(x) for x in (-0.001, 0.126, -1.5, math.nan, math.inf)] == [
        "0.00",
        "0.13",
        "-1.50",
        "–",
        "inf",
    ]
    # Wilson's interval of a proportion of 1 ends a rounding error below it.
    assert interval([1.0, 0.99, 1.0 - 1e-16], "x").high <= 1.0


def test_a_narrow_terminal_gets_the_chief_columns_whole(results):
    console = Console(width=80, record=True, file=io.StringIO())
    print_results(results, console)
    text = console.export_text()
    assert "Score" in text and "Tokens" in text and "Helpful" not in text and "…" not in text
