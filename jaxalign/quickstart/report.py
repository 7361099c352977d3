"""The report of a quickstart: one HTML file that needs nothing else, and its main table in a terminal."""

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
    headline,
    interval,
    measured,
    number,
    percent,
    shown,
    verdict,
)
from jaxalign.quickstart.page import GUIDE, KINDS, LIMITS, PAGE, PAPERS, STAGES
from jaxalign.quickstart.plots import Plot, write_plots
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
    Column("win_rate", "Won vs SFT, %", 100.0, 1),
    Column("kl", "Distance from SFT, nats", 1.0, 2),
    Column("loss", "Loss, answers", 1.0, 3),
    Column("corpus_loss", "Loss, corpus", 1.0, 3),
    Column("length", "Tokens", 1.0, 1),
)
WIDE = 110  # terminal columns that all of them take
NARROW = ("score", "win_rate", "kl", "length")  # shown in a narrower terminal


def write_report(results: Mapping[str, Any], path: str | Path) -> None:
    """Writes the report to the file `path`, and its charts as PNG files to the folder `plots` beside it.

    `results` is what results.json holds; null, NaN and missing values are shown as a dash. The same results
    give the same bytes. Raises DataError for a value of another type or a model that the report does not know.
    """
    _check(results)
    path = Path(path)
    plots = write_plots(results, path.parent / "plots")
    page = PAGE.format(
        answer=escape(headline(results)),
        lead=_lead(results),
        methods="".join(_method(results, model) for model in MODELS if model != "pretrained"),
        examples="".join(_example(example) for example in results.get("examples") or []) or "<p>None.</p>",
        stages=_stages(),
        papers=", ".join(_paper(*paper) for paper in PAPERS.items()),
        findings=_definitions(findings(results)),
        table=_main_table(results),
        guide=_definitions(GUIDE.items()),
        kinds=_kind_table(results),
        reward_model=_reward_model(results.get("reward_model") or {}),
        limits=LIMITS,
        timing=_timing(results.get("seconds") or {}),
        **{section: _charts(charts) for section, charts in plots.items()},
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
        table.add_column(
            column.title.replace(", ", ",\n").replace(" vs", "\nvs").replace(" from", "\nfrom"),
            justify="right",
        )
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
        return f'<span class="stage" style="--c:var(--{key})">{escape(text)}</span>'

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
    """A table whose rows become lists in a narrow window: each cell knows its heading. Heads are text, cells HTML."""
    names = [escape(text) for text in head]
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{first}</th>'
        + "".join(f'<td data-of="{name}">{cell}</td>' for name, cell in zip(names[1:], cells, strict=True))
        + "</tr>"
        for first, *cells in rows
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _name(model: str) -> str:
    return f'<span class="model" style="--c:var(--{model})">{MODELS[model]}</span>'


def _method(results: Mapping[str, Any], model: str) -> str:
    mean, ends = _texts(COLUMNS[0], measured(results, model, "score"))
    said = escape(verdict(results, model))
    return f"<div>{_name(model)}<b>{mean}</b><small>{ends or MISSING}</small><p>{said}</p></div>"


def _paper(name: str, number: str) -> str:
    return f'<a href="https://arxiv.org/abs/{number}">{escape(name)}</a>'


def _charts(plots: Iterable[Plot]) -> str:
    figures = (f'<figure role="img" aria-label="{escape(plot.alt)}">{plot.svg}</figure>' for plot in plots)
    return f'<div class="charts">{"".join(figures)}</div>'


def _reward_model(values: Mapping[str, Any]) -> str:
    def spread(key: str) -> tuple[str, str]:
        mean, low, high = interval(values.get(key), f"reward_model.{key}")
        return percent(mean), f"{percent(low)} to {percent(high)}"

    def plain(key: str) -> float:
        return number(values.get(key), f"reward_model.{key}")

    limit, ratio, correlation = map(plain, ("bayes_accuracy", "ratio", "gold_correlation"))
    cards = (
        (*spread("accuracy"), "of new pairs: it prefers the answer that was chosen"),
        (percent(limit), "the most that anybody could expect", "because the choices are noisy"),
        (percent(ratio), "of that most", "what it reached, in share of what can be reached"),
        (*spread("gold_accuracy"), "of new pairs: it prefers the answer that is truly better"),
        (shown(correlation), "1 would be perfect", "how far its scores go up and down with the judge's"),
    )
    boxes = (f"<div><b>{value}</b><small>{note}</small><p>{text}</p></div>" for value, note, text in cards)
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
    return f'<div class="answer" style="--c:var(--{model})">{head}<div class="text">{body}</div></div>'


def _timing(seconds: Mapping[str, Any]) -> str:
    times = {name: number(value, f"seconds.{name}") for name, value in seconds.items()}
    total = times.get("total", 0.0) or math.nan
    rows = [[escape(name), _duration(time), percent(time / total)] for name, time in times.items()]
    return _table(["Step", "Time", "Share"], rows)
