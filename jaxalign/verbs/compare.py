"""`jaxalign compare`: several runs beside each other, their metrics as a table and as curves."""

import dataclasses
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxalign.errors import DataError
from jaxalign.fields import nearest_hint
from jaxalign.storage import to_path, write_whole
from jaxalign.streams import shown
from jaxalign.training.loop import SETTINGS
from jaxalign.training.selection import direction_of
from jaxalign.training.writer import FILE_NAME, read_metrics
from jaxalign.verbs.requests import Request, flag

_SPEED = "perf/"  # measured of a run's speed, which is no result
# Okabe and Ito's palette, which colour-blind readers tell apart; after it, dashes.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B0568A", "#A67500", "#6B6B6B", "#000000")
_DASHES = ("-", "--", ":", "-.")

Curve = list[tuple[int, float]]  # (step, value), in the order of steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareRequest(Request):
    """Compare runs, also while they train: their last and best values, the settings in which they differ, and curves.

    Runs are named one after another, as folders or as their metrics.jsonl:

        jaxalign compare runs/dpo runs/dpo-beta --metrics=eval/loss,train/rewards/margins --out=compare.html
    """

    runs: tuple[str, ...] = flag("folders of runs, or files metrics.jsonl", show="RUN", place=True)
    metrics: str = flag(
        "names between commas, such as eval/loss; without: those of evaluation, and the loss of training",
        default="",
        show="NAMES",
    )
    out: str = flag("write the curves here, as .png, or as a .html with the tables", default="", show="FILE")


@dataclasses.dataclass(frozen=True)
class History:
    """What a run has written so far."""

    name: str  # as short as tells the runs apart
    curves: dict[str, Curve]  # by the full name of a metric, such as eval/loss
    settings: dict[str, Any]  # by the names of flags; empty where there are none beside the metrics


def run(request: CompareRequest) -> int:
    """Prints the tables, and writes the curves."""
    histories = read_histories(request.runs)
    metrics = choose_metrics(histories, request.metrics)
    console = Console()
    for line in warnings(histories, metrics):
        console.print(shown(line), highlight=False, markup=False, soft_wrap=True)
    tables = [value_rows(histories, metrics), setting_rows(histories)]
    for title, rows in zip(("values", "settings in which they differ"), tables, strict=True):
        if len(rows) > 1:
            console.print(_terminal_table(title, rows))
    if request.out:
        write_curves(request.out, histories, metrics, tables)
        print(f"{request.out}: curves of {', '.join(metrics)}")
    return 0


def read_histories(paths: Sequence[str]) -> list[History]:
    """What runs have written, in the order in which they are named.

    Raises:
      DataError: one has no metrics, or a line that is not a record; names the file.
    """
    names = _short_names(paths)
    found = []
    for path, name in zip(paths, names, strict=True):
        curves: dict[str, Curve] = {}
        for record in read_metrics(path):
            for metric, value in record["values"].items():
                kind = f"{record['kind']}/"
                full = metric if metric.startswith(kind) else kind + metric
                curves.setdefault(full, []).append((record["step"], value))
        found.append(History(name, curves, _settings(path)))
    return found


def _short_names(paths: Sequence[str]) -> list[str]:
    """The last parts of paths, as many as tell them apart."""
    parts = [str(to_path(path)).removesuffix(f"/{FILE_NAME}").strip("/").split("/") for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(set(map(tuple, parts))):
            break
    return names


def _settings(path: str) -> dict[str, Any]:
    folder = to_path(path)
    file = (folder if folder.is_dir() else folder.parent) / SETTINGS
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error}); delete it, and the settings are not compared") from None
    return found if isinstance(found, dict) else {}


def choose_metrics(histories: Sequence[History], named: str) -> list[str]:
    """The metrics to compare: those that are named, or else those of evaluation and the loss of training.

    Raises:
      DataError: no run has one that is named; says which is nearest.
    """
    known = list(dict.fromkeys(name for history in histories for name in history.curves))
    if not known:
        raise DataError("no run has written a metric yet; wait for its first line")
    wanted = [name.strip() for name in named.split(",") if name.strip()]
    chosen = []
    for name in wanted:
        # A name without its kind is that of evaluation before that of training.
        full = [each for each in (name, f"eval/{name}", f"train/{name}") if each in known]
        if not full:
            hint = nearest_hint(name, [*known, *(each.split("/", 1)[1] for each in known)])
            raise DataError(f"--metrics={name}: no run has it{hint or '; they have ' + ', '.join(known)}")
        chosen.append(full[0])
    if wanted:
        return list(dict.fromkeys(chosen))
    evaluated = [name for name in known if name.startswith("eval/")]
    loss = [name for name in ("train/loss",) if name in known]
    trained = [name for name in known if not name.split("/", 1)[1].startswith(_SPEED)]
    return evaluated + loss or trained


def warnings(histories: Sequence[History], metrics: Sequence[str]) -> list[str]:
    """Which run lacks which metric, and whether the runs are of different lengths."""
    lines = []
    for history in histories:
        if missing := [name for name in metrics if name not in history.curves]:
            lines.append(f"{history.name} has no {', '.join(missing)}")
    ends = {
        history.name: max((curve[-1][0] for curve in history.curves.values()), default=0)
        for history in histories
    }
    if len(set(ends.values())) > 1:
        lines.append(f"last steps: {', '.join(f'{name} {step}' for name, step in ends.items())}")
    return lines


def value_rows(histories: Sequence[History], metrics: Sequence[str]) -> list[list[str]]:
    """A header and a row for each metric: the last value of each run, and its best where that is another."""
    rows = [["metric", *(history.name for history in histories)]]
    for metric in metrics:
        cells = [_cell(metric, history.curves.get(metric, [])) for history in histories]
        rows.append([metric, *cells])
    return rows


def _cell(metric: str, curve: Curve) -> str:
    if not curve:
        return "–"
    step, last = curve[-1]
    text = f"{last:.4g} at {step}"
    better = best(metric, curve)
    return text if better is None or better[1] == last else f"{text}, best {better[1]:.4g} at {better[0]}"


def best(metric: str, curve: Curve) -> tuple[int, float] | None:
    """The step and value at which a metric was best; None where it is not known whether it should be high or low."""
    finite = [point for point in curve if math.isfinite(point[1])]
    way = direction_of(metric)
    if not finite or way is None:
        return None
    return max(finite, key=lambda point: way * point[1])


def setting_rows(histories: Sequence[History]) -> list[list[str]]:
    """A header and a row for each setting that is not the same in all runs."""
    rows = [["setting", *(history.name for history in histories)]]
    with_settings = [history for history in histories if history.settings]
    for key in dict.fromkeys(key for history in with_settings for key in history.settings):
        values = [history.settings.get(key, "–") if history.settings else "?" for history in histories]
        if len({json.dumps(value) for value in values if value != "?"}) > 1:
            rows.append([key, *(str(value) for value in values)])
    return rows


def _terminal_table(title: str, rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=Text(title), title_justify="left", show_edge=False)
    for name in rows[0]:
        table.add_column(Text(shown(name)), overflow="fold")
    for row in rows[1:]:
        table.add_row(*(Text(shown(cell)) for cell in row))
    return table


def write_curves(
    out: str, histories: Sequence[History], metrics: Sequence[str], tables: Sequence[Sequence[Sequence[str]]]
) -> None:
    """Writes a PNG of the curves, or an HTML page of itself with the curves and the tables.

    Raises:
      DataError: `out` ends neither with .png nor with .html.
    """
    ending = str(out).rpartition(".")[2].lower()
    if ending == "png":
        write_whole(to_path(out), _drawn(histories, metrics, "png"))
    elif ending in ("html", "htm"):
        picture = _drawn(histories, metrics, "svg").decode()
        write_whole(to_path(out), _page(picture[picture.index("<svg") :], tables).encode())
    else:
        raise DataError(f"--out={out}: write a name that ends with .png or .html")


def _drawn(histories: Sequence[History], metrics: Sequence[str], kind: str) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {"font.family": "DejaVu Sans", "text.parse_math": False, "svg.hashsalt": "jaxalign"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.2, 2.8 * len(metrics) + 0.6), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, metric in zip(figure.subplots(len(metrics), 1, squeeze=False)[:, 0], metrics, strict=True):
            for number, history in enumerate(histories):
                curve = history.curves.get(metric, [])
                axes.plot(
                    [step for step, _ in curve],
                    [value if math.isfinite(value) else math.nan for _, value in curve],
                    color=_COLOURS[number % len(_COLOURS)],
                    linestyle=_DASHES[number // len(_COLOURS) % len(_DASHES)],
                    marker="o" if len(curve) == 1 else "",
                    label=_ascii(history.name),
                )
            axes.set_title(_ascii(metric), loc="left")
            axes.set_xlabel("step")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(color="#8888", linewidth=0.4)
            axes.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=2, frameon=False)
        file = io.BytesIO()
        metadata: Mapping[str, Any] = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        figure.savefig(file, format=kind, dpi=160, metadata=dict(metadata))
    return file.getvalue()


def _ascii(text: str) -> str:
    # The font lacks most of Unicode, and matplotlib warns of each glyph that it cannot draw.
    return text.encode("ascii", "replace").decode()


_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1rem auto; padding: 0 1rem }
svg { width: 100%; height: auto; background: #fff }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin-bottom: 1.5rem }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8886; vertical-align: top }
"""


def _page(picture: str, tables: Sequence[Sequence[Sequence[str]]]) -> str:
    parts = []
    for rows in tables:
        if len(rows) > 1:
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
            body = "".join(
                "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
                for row in rows[1:]
            )
            parts.append(f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>')
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Runs compared</title>'
        f"<style>{_STYLE}</style><h1>Runs compared</h1>{''.join(parts)}{picture}</html>\n"
    )
