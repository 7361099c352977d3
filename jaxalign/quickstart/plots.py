"""The plots of a quickstart's report, drawn with Agg: the same results give the same bytes."""

import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
    "pretrained": "#6B6B6B",
    "sft": "#0072B2",
    "ppo": "#D55E00",
    "grpo": "#000000",
    "dpo": "#009E73",
    "orpo": "#B0568A",
    "reward": "#A67500",
}
MARKERS = {"pretrained": "o", "sft": "s", "ppo": "^", "grpo": "<", "dpo": "D", "orpo": "v"}
CURVES = {
    "pretrain": ("Pretraining", "pretrained"),
    "sft": ("SFT", "sft"),
    "reward": ("Reward model", "reward"),
    **{model: (MODELS[model], model) for model in ALIGNED},
}
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8A8A8A",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "text.parse_math": False,  # names of metrics are shown as they are
}
_INCHES, _DPI = 7.2, 160


class Plot(NamedTuple):
    """A PNG file and its text for those who do not see it."""

    path: Path
    alt: str


def write_plots(results: Mapping[str, Any], folder: str | Path) -> dict[str, Plot]:
    """Writes scores.png, win_rate.png, frontier.png and curves.png into `folder`, which is made if missing."""
    draw: dict[str, tuple[Callable[[Figure, Mapping[str, Any]], str], float]] = {
        "scores": (_scores, 5.6),
        "win_rate": (_win_rate, 2.7),
        "frontier": (_frontier, 4.6),
        "curves": (_curves, 9.2),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plots = {}
    for name, (function, height) in draw.items():
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=(_INCHES, height), layout="constrained")
            FigureCanvasAgg(figure)
            alt = function(figure, results)
            plots[name] = Plot(folder / f"{name}.png", alt)
            # Without the version of matplotlib, so that the bytes depend on the pixels alone.
            file = io.BytesIO()
            figure.savefig(file, dpi=_DPI, metadata={"Software": None})
            write_whole(plots[name].path, file.getvalue())
    return plots


def _scores(figure: Figure, results: Mapping[str, Any]) -> str:
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    texts = []
    for axes, key in zip(panels.flat, ("score", *AXES), strict=True):
        values = {model: measured(results, model, key) for model in MODELS}
        _intervals(axes, values)
        axes.set(title=key, xlim=(-0.03, 1.03))
        texts.append(f"{key}: {_listed(values, shown)}")
    return "Mean judge score and its parts with 95 % intervals. " + ". ".join(texts) + "."


def _win_rate(figure: Figure, results: Mapping[str, Any]) -> str:
    values = {model: measured(results, model, "win_rate") for model in MODELS if model != "sft"}
    axes = figure.subplots()
    _intervals(axes, values)
    axes.axvline(0.5, color="#333333", linewidth=1, linestyle="--")
    axes.set(xlim=(-0.03, 1.03), xlabel="share of questions won against SFT, ties counting one half")
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
        "capsize": 5,
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
        points = (results.get("frontier") or {}).get(model) or []
        where = f"frontier.{model}"
        kl, score = (np.array([number(p.get(key), where) for p in points]) for key in ("kl", "score"))
        # A sampled KL near zero can come out below it.
        style: dict[str, Any] = {
            "color": COLOURS[model],
            "marker": MARKERS[model],
            "markerfacecolor": "white",
        }
        axes.plot(np.maximum(kl, 0.0), score, **style, linewidth=1.5, label=MODELS[model])
        final_kl, final_score = measured(results, model, "kl"), measured(results, model, "score")
        _point(axes, model, final_kl.mean, final_score.mean, final_kl, final_score)
        path = " then ".join(f"{shown(s)} at {shown(k)} nats" for k, s in zip(kl, score, strict=True))
        texts.append(f"{MODELS[model]}: {path or 'no points'}")
    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0.0)), np.square))
    axes.set_xlim(left=0.0)
    axes.set(xlabel="KL from SFT, nats a sequence (square-root scale)", ylabel="judge score")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, borderaxespad=0.2)
    return f"Judge score against KL from SFT during training. {'. '.join(texts)}."


def _curves(figure: Figure, results: Mapping[str, Any]) -> str:
    texts = []
    panels = figure.subplots(-(-len(CURVES) // 2), 2).flat
    for axes in panels[len(CURVES) :]:
        axes.remove()
    for axes, (stage, (label, colour)) in zip(panels, CURVES.items(), strict=False):
        curve = (results.get("curves") or {}).get(stage) or {}
        # The font lacks most of Unicode, and matplotlib warns of each glyph that it cannot draw.
        name = str(curve.get("name", "")).encode("ascii", "replace").decode()
        points = [[number(v, f"curves.{stage}") for v in point] for point in curve.get("points") or []]
        axes.plot(*np.array(points or [[math.nan, math.nan]]).T, color=COLOURS[colour], linewidth=1.8)
        axes.set_title(f"{label}: {name}" if name else label)
        axes.set_xlabel("step")
        values = [value for _, value in points if math.isfinite(value)]
        texts.append(
            f"{label}, {name}: {shown(values[0], 3)} at first, {shown(values[-1], 3)} at last"
            if values
            else f"{label}: no points"
        )
    return f"Training curves. {'. '.join(texts)}."


def _listed(values: Mapping[str, Interval], text: Callable[[float], str]) -> str:
    parts = (
        f"{MODELS[model]} {text(value.mean)} ({text(value.low)} to {text(value.high)})"
        for model, value in values.items()
    )
    return ", ".join(parts)
