"""The charts of a quickstart's report: SVG for the page, which follows its colours, and PNG files to pass on.

The same results give the same bytes.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxalign.drawing import AXIS, INK, LINE
from jaxalign.drawing import draw as draw_chart
from jaxalign.quickstart.findings import (
    ALIGNED,
    AXES,
    MODELS,
    Interval,
    is_whole,
    measured,
    number,
    percent,
    shown,
)
from jaxalign.storage import write_whole

# Okabe and Ito's palette, which colour-blind readers tell apart; every model has a marker of its own too.
COLOURS = {
    "pretrained": "#6b6b6b",
    "sft": "#0072b2",
    "ppo": "#d55e00",
    "grpo": "#111111",  # not black, which SVG leaves unsaid
    "dpo": "#009e73",
    "orpo": "#b0568a",
    "reward": "#a67500",
}
# The same hues, light enough for a dark page.
DARK_COLOURS = {
    "pretrained": "#a8a8a8",
    "sft": "#56b4e9",
    "ppo": "#ff8a3d",
    "grpo": "#ffffff",
    "dpo": "#2fcb9c",
    "orpo": "#e093be",
    "reward": "#e5b33c",
}
# What a colour of a chart is called by the style of the page, which has another one for it in the dark.
VARIABLES = {colour: name for name, colour in COLOURS.items()} | {INK: "ink", AXIS: "axis", LINE: "line"}
MARKERS = {"pretrained": "o", "sft": "s", "ppo": "^", "grpo": "<", "dpo": "D", "orpo": "v"}
CURVES = {
    "pretrain": ("Pretraining", "pretrained"),
    "sft": ("SFT", "sft"),
    "reward": ("Reward model", "reward"),
    **{model: (MODELS[model], model) for model in ALIGNED},
}
TITLES = {"score": "Score, of 1", "helpful": "Helpful", "honest": "Honest", "harmless": "Harmless"}
# What the metrics of the curves are, by their names in metrics.jsonl.
QUANTITIES = {
    "loss": "loss, nats a token",
    "accuracy": "share of pairs told right",
    "objective/scores": "mean reward",
    "rewards/margins": "margin, chosen over rejected",
    "log_odds_chosen": "log odds, chosen over rejected",
}
_WIDTH = 3.4  # inches: 326 points, so that text is of the page's size on a narrow screen

Draw = Callable[[Figure], str]


class Plot(NamedTuple):
    """A chart as a PNG file, as SVG, and in words for those who do not see it."""

    path: Path
    svg: str
    alt: str


def write_plots(results: Mapping[str, Any], folder: str | Path) -> dict[str, list[Plot]]:
    """Draws all charts, by the section of the page they belong to, and writes them to `folder`, made if missing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plots: dict[str, list[Plot]] = {}
    for section, name, height, draw in _charts(results):
        png, svg, alt = draw_chart(_WIDTH, height, draw)
        path = folder / f"{name}.png"
        write_whole(path, png)
        plots.setdefault(section, []).append(Plot(path, _for_page(svg), alt))
    return plots


def _charts(results: Mapping[str, Any]) -> Iterator[tuple[str, str, float, Draw]]:
    """Section, name of the file, height in inches, and what draws it."""
    yield "score", "score", 2.3, partial(_parts, results=results, key="score")
    for key in AXES:
        yield "parts", key, 2.3, partial(_parts, results=results, key=key)
    yield "win_rate", "win_rate", 2.1, partial(_win_rate, results=results)
    yield "frontier", "frontier", 3.2, partial(_frontier, results=results)
    for stage in CURVES:
        yield "curves", f"curve_{stage}", 2.1, partial(_curve, results=results, stage=stage)


def _for_page(svg: str) -> str:
    """An SVG element that takes the page's width and colours, and whose names cannot meet those of another one."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg))
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    for colour, name in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.strip()


def _parts(figure: Figure, results: Mapping[str, Any], key: str) -> str:
    values = {model: measured(results, model, key) for model in MODELS}
    axes = figure.subplots()
    _intervals(axes, values)
    axes.set(title=TITLES[key], xlim=(-0.03, 1.03))
    return f"{TITLES[key]}, with 95 % intervals: {_listed(values, shown)}."


def _win_rate(figure: Figure, results: Mapping[str, Any]) -> str:
    values = {model: measured(results, model, "win_rate") for model in MODELS if model != "sft"}
    axes = figure.subplots()
    _intervals(axes, values)
    axes.axvline(0.5, color=INK, linewidth=1, linestyle="--")
    axes.set(xlim=(-0.03, 1.03), title="Questions won against SFT, share")
    return f"Win rate against SFT with 95 % intervals: {_listed(values, percent)}."


def _intervals(axes: Axes, values: Mapping[str, Interval]) -> None:
    for row, (model, value) in enumerate(values.items()):
        _point(axes, model, value.mean, row, value, None)
    axes.set_yticks(range(len(values)), [MODELS[model] for model in values])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def _point(
    axes: Axes, model: str, x: float, y: float, x_ends: Interval | None, y_ends: Interval | None
) -> None:
    spread = {
        f"{side}err": np.abs([[ends.mean - ends.low], [ends.high - ends.mean]])
        for side, ends in (("x", x_ends), ("y", y_ends))
        if ends is not None and is_whole(ends)
    }
    style = {
        "color": COLOURS[model],
        "marker": MARKERS[model],
        "markersize": 6,
        "elinewidth": 1.5,
        "capsize": 4,
    }
    axes.errorbar([x], [y], **spread, **style, linestyle="none", zorder=3)


def _frontier(figure: Figure, results: Mapping[str, Any]) -> str:
    axes = figure.subplots()
    texts = []
    sft = measured(results, "sft", "score")
    if is_whole(sft):
        axes.axhspan(sft.low, sft.high, color=COLOURS["sft"], alpha=0.15, linewidth=0)
        axes.axhline(sft.mean, color=COLOURS["sft"], linewidth=1, linestyle="--", label="SFT")
    for model in ALIGNED:
        path = _path(results, model)
        style: dict[str, Any] = {
            "color": COLOURS[model],
            "marker": MARKERS[model],
            "markersize": 5,
            "markerfacecolor": "none",
        }
        # A sampled KL near zero can come out below it.
        kl, score = (np.array([point[side] for point in path]) for side in range(2))
        axes.plot(np.maximum(kl, 0.0), score, **style, linewidth=1.5, label=MODELS[model])
        final_kl, final_score = measured(results, model, "kl"), measured(results, model, "score")
        _point(axes, model, final_kl.mean, final_score.mean, final_kl, final_score)
        steps = " then ".join(f"{shown(s)} at {shown(k)} nats" for k, s in path)
        texts.append(f"{MODELS[model]}: {steps or 'no points'}")
    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0.0)), np.square))
    axes.set_xlim(left=0.0)
    axes.set(xlabel="distance from SFT, nats (root scale)", ylabel="score, of 1")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, columnspacing=1.0)
    return f"Score against distance from SFT (KL) during training. {'. '.join(texts)}."


def _path(results: Mapping[str, Any], model: str) -> list[tuple[float, float]]:
    """(KL, score) during training. The last point is the final model's, measured on all questions instead of some."""
    where = f"frontier.{model}"
    points = (results.get("frontier") or {}).get(model) or []
    path = [(number(p.get("kl"), where), number(p.get("score"), where)) for p in points]
    final = measured(results, model, "kl").mean, measured(results, model, "score").mean
    if path and not any(map(math.isnan, final)):
        path[-1] = final
    return path


def _curve(figure: Figure, results: Mapping[str, Any], stage: str) -> str:
    label, model = CURVES[stage]
    curve = (results.get("curves") or {}).get(stage) or {}
    # The font lacks most of Unicode, and matplotlib warns of each glyph that it cannot draw.
    name = str(curve.get("name", "")).encode("ascii", "replace").decode()
    name = QUANTITIES.get(name, name)
    points = [[number(v, f"curves.{stage}") for v in point] for point in curve.get("points") or []]
    axes = figure.subplots()
    axes.plot(*np.array(points or [[math.nan, math.nan]]).T, color=COLOURS[model], linewidth=1.8)
    axes.set(title=f"{label}: {name}" if name else label, xlabel="step")
    values = [value for _, value in points if math.isfinite(value)]
    if not values:
        return f"{label}: no points."
    return f"{label}, {name}: {shown(values[0], 3)} at first, {shown(values[-1], 3)} at last."


def _listed(values: Mapping[str, Interval], text: Callable[[float], str]) -> str:
    parts = (
        f"{MODELS[model]} {text(value.mean)} ({text(value.low)} to {text(value.high)})"
        for model, value in values.items()
    )
    return ", ".join(parts)
