"""The report of a quickstart: one HTML file that needs nothing else, and its main table in a terminal."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxalign.errors import DataError
from jaxalign.quickstart.findings import (
    MISSING,
    MODELS,
    Interval,
    findings,
    interval,
    measured,
    number,
    percent,
    shown,
)
from jaxalign.quickstart.page import GUIDE, KINDS, LIMITS, PAGE, STAGES
from jaxalign.quickstart.plots import COLOURS, Plot, write_plots
from jaxalign.storage import write_whole


class Column(NamedTuple):
    """A column of the main table; the factor and digits turn its values into text."""

    key: str
    title: str
    factor: float
    digits: int


COLUMNS = (
    Column("score", "Score", 1.0, 2),
    Column("helpful", "Helpful", 1.0, 2),
    Column("honest", "Honest", 1.0, 2),
    Column("harmless", "Harmless", 1.0, 2),
    Column("win_rate", "Win rate vs SFT, %", 100.0, 1),
    Column("kl", "KL from SFT, nats", 1.0, 2),
    Column("loss", "Loss, answers", 1.0, 3),
    Column("corpus_loss", "Loss, corpus", 1.0, 3),
    Column("length", "Tokens", 1.0, 1),
)
WIDE = 110  # terminal columns that all of them take
NARROW = ("score", "win_rate", "kl", "length")  # shown in a narrower terminal


def write_report(results: Mapping[str, Any], path: str | Path) -> None:
    """Writes the report to the file `path`, and its plots as PNG files to the folder `plots` beside it.

    `results` is what results.json holds; null, NaN and missing values are shown as a dash. The same results
    give the same bytes. Raises DataError for a value of another type or a model that the report does not know.
    """
    _check(results)
    path = Path(path)
    plots = write_plots(results, path.parent / "plots")
    figures = {name: _figure(plot) for name, plot in plots.items()}
    page = PAGE.format(
        lead=_lead(results),
        stages=_stages(),
        findings=_definitions(findings(results)),
        table=_main_table(results),
        guide=_definitions(GUIDE.items()),
        kinds=_kind_table(results),
        reward_model=_reward_model(results.get("reward_model") or {}),
        examples="".join(_example(example) for example in results.get("examples") or []) or "<p>None.</p>",
        limits=LIMITS,
        timing=_timing(results.get("seconds") or {}),
        **figures,
    )
    # A model may write half of a character, which UTF-8 cannot hold.
    write_whole(path, page.encode(errors="backslashreplace"))


def print_results(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the main table, means above their 95 % intervals, in at most 120 columns; the chief columns alone
    where the terminal is narrower than that. Raises DataError."""
    _check(results)
    console = console or Console()
    columns = [column for column in COLUMNS if console.width >= WIDE or column.key in NARROW]
    table = Table(box=SIMPLE_HEAD, title="Held-out questions: means and 95 % intervals", title_justify="left")
    table.add_column("Model", no_wrap=True)
    for column in columns:
        table.add_column(column.title.replace(", ", ",\n").replace(" vs", "\nvs"), justify="right")
    for model, label in MODELS.items():
        values = ((column, measured(results, model, column.key)) for column in columns)
        table.add_row(label, *("\n".join(filter(None, _texts(*value, "–"))) for value in values))
    console.print(table)


def _check(results: Mapping[str, Any]) -> None:
    if not isinstance(results.get("models"), Mapping):
        raise DataError(
            f"results.json: models is {results.get('models')!r}: write the results of {set(MODELS)}"
        )
    for name in results["models"]:
        if name not in MODELS:
            raise DataError(f"results.json: models has {name!r}: write one of {', '.join(MODELS)}")


def _texts(column: Column, value: Interval, to: str = " to ") -> tuple[str, str]:
    """A mean and its interval; the second is empty where there is none."""
    mean, low, high = (shown(part * column.factor, column.digits) for part in value)
    return mean, "" if MISSING in (low, high) else f"{low}{to}{high}"


def _lead(results: Mapping[str, Any]) -> str:
    sizes = {"parameters": "parameters", "vocabulary": "kinds of token", "questions": "held-out questions"}
    parts = [f"<b>{_count(results.get(key), key)}</b> {text}" for key, text in sizes.items()]
    parts.append(f"seed <b>{_count(results.get('seed'), 'seed')}</b>")
    total = number((results.get("seconds") or {}).get("total"), "seconds.total")
    fast = (
        '<p class="warning">A fast run shows that every stage works. Its numbers mean nothing more.</p>'
        if results.get("fast")
        else ""
    )
    return f"<p class='sizes'>{' · '.join(parts)} · <b>{_duration(total)}</b> in all</p>{fast}"


def _count(value: Any, where: str) -> str:
    return MISSING if value is None else f"{number(value, where):,.0f}"


def _duration(seconds: float) -> str:
    if not seconds >= 60.0:
        return MISSING if math.isnan(seconds) else f"{shown(seconds, 1)} s"
    return "{} min {} s".format(*divmod(round(seconds), 60))


def _stages() -> str:
    """The paths from text to the aligned models, an arrow between the boxes."""

    def box(key: str, text: str) -> str:
        return f'<span class="stage" style="--c:{COLOURS[key]}">{escape(text)}</span>'

    rows = (
        "<i>→</i>".join(box(*stage) for stage in path) + f"<small>{escape(note)}</small>"
        for path, note in STAGES
    )
    return "".join(f'<div class="path">{row}</div>' for row in rows)


def _definitions(rows: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in rows)


def _main_table(results: Mapping[str, Any]) -> str:
    def cell(column: Column, model: str) -> str:
        mean, ends = _texts(column, measured(results, model, column.key))
        return f"{mean}<small>{ends}</small>"

    rows = [[_name(model), *(cell(column, model) for column in COLUMNS)] for model in MODELS]
    return _table(["Model", *(column.title for column in COLUMNS)], rows)


def _kind_table(results: Mapping[str, Any]) -> str:
    def cell(model: str, kind: str) -> str:
        kinds = (results["models"].get(model) or {}).get("by_kind") or {}
        return shown(number(kinds.get(kind), f"models.{model}.by_kind.{kind}"))

    rows = [[_name(model), *(cell(model, kind) for kind in KINDS)] for model in MODELS]
    return _table(["Model", *KINDS.values()], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls in a narrow window. The head is text, the cells are HTML."""
    heads = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _name(model: str) -> str:
    return f'<span class="model" style="--c:{COLOURS[model]}">{MODELS[model]}</span>'


def _figure(plot: Plot) -> str:
    data = base64.b64encode(plot.path.read_bytes()).decode("ascii")
    return f'<div class="wide"><img src="data:image/png;base64,{data}" alt="{escape(plot.alt)}"></div>'


def _reward_model(values: Mapping[str, Any]) -> str:
    def spread(key: str) -> tuple[str, str]:
        mean, low, high = interval(values.get(key), f"reward_model.{key}")
        return percent(mean), f"{percent(low)} to {percent(high)}"

    def plain(key: str) -> float:
        return number(values.get(key), f"reward_model.{key}")

    limit, ratio, correlation = map(plain, ("bayes_accuracy", "ratio", "gold_correlation"))
    cards = (
        ("of the noisy held-out labels predicted", *spread("accuracy")),
        ("at best, by any scorer, in expectation", percent(limit), "the limit of the noise"),
        ("of what the noise allows", percent(ratio), "the first over the second"),
        ("agreement with the judge", *spread("gold_accuracy")),
        ("correlation with the judge's score", shown(correlation), "1 would be perfect"),
    )
    boxes = (
        f"<div><b>{value}</b><span>{text}</span><small>{note}</small></div>" for text, value, note in cards
    )
    return f'<div class="cards">{"".join(boxes)}</div>'


def _example(example: Mapping[str, Any]) -> str:
    kind = str(example.get("kind"))
    turns = "".join(
        f'<p class="turn"><b>{escape(str(turn.get("role")))}</b> <bdi>{escape(str(turn.get("content")))}</bdi></p>'
        for turn in example.get("prompt") or []
    )
    answers = example.get("answers") or {}
    cards = "".join(_answer(model, answers.get(model) or {}, kind) for model in MODELS)
    title = escape(KINDS.get(kind, kind))
    return f'<article><h3>{title}</h3><div class="prompt">{turns}</div><div class="answers">{cards}</div></article>'


def _answer(model: str, answer: Mapping[str, Any], kind: str) -> str:
    text = answer.get("text")
    body = MISSING if text is None else f"<bdi>{escape(str(text))}</bdi>" if text else "<i>(empty)</i>"
    score = shown(number(answer.get("score"), f"examples: {kind}: {model}.score"))
    head = f"<p>{_name(model)} <span class='score'>{score}</span></p>"
    return f'<div class="answer" style="--c:{COLOURS[model]}">{head}<div class="text">{body}</div></div>'


def _timing(seconds: Mapping[str, Any]) -> str:
    times = {name: number(value, f"seconds.{name}") for name, value in seconds.items()}
    total = times.get("total", 0.0) or math.nan
    rows = [[escape(name), _duration(time), percent(time / total)] for name, time in times.items()]
    return _table(["Step", "Time", "Share"], rows)
