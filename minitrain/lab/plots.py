"""Pictures, drawn without a display; matplotlib is imported only when one is drawn.

One style: no frame, direct labels, colours that colour-blind eyes tell apart, wide enough letters for a phone, a light and
a dark version, and for SVG the same bytes every time.
"""

import io
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitrain.runtime.files import write_atomically

if TYPE_CHECKING:
    from minitrain.lab.compare import Measure, Runs

WIDTH = 5.0  # inches; at a phone's width letters of 11 points are then about 11 pixels high


@dataclass(frozen=True)
class Theme:
    """Page, ink and colours; the colours are those of Okabe and Ito, lightened where the page is dark."""

    name: str
    page: str
    ink: str
    grey: str
    blue: str
    orange: str
    green: str
    pink: str
    sky: str
    red: str


LIGHT = Theme("light", "white", "#222222", "#767676", "#0072b2", "#b86e00", "#00805e", "#b0568a", "#2a85bd", "#c24e00")
DARK = Theme("dark", "#1e2129", "#e0e0e0", "#9e9e9e", "#56b4e9", "#e69f00", "#2fc49a", "#dd93c0", "#8fcdf0", "#ff7f3f")
THEMES = (LIGHT, DARK)
MATRICES = {  # by a part of their names: label and colour
    "qkv": ("queries, keys, values", "blue"),
    "attention.out": ("attention output", "pink"),
    "mlp.up": ("MLP input", "red"),
    "mlp.out": ("MLP output", "green"),
    "stem": ("first convolution", "green"),
    "conv": ("convolutions", "blue"),
    "shortcut": ("shortcuts", "pink"),
}


def save_figure(path: Path, draw: Callable[[Any, Theme], None], theme: Theme = LIGHT, height: float = 4.0) -> None:
    """Writes what `draw(figure, theme)` draws, `WIDTH` by `height` inches.

    The name of `path` decides between PNG (on white, or black for a dark theme) and SVG (transparent).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kind = path.suffix[1:]
    style: dict[str, Any] = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), theme.ink
    )
    style |= {
        "svg.hashsalt": "minitrain",
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "axes.facecolor": "none" if kind == "svg" else theme.page,
        "figure.facecolor": theme.page,
        "savefig.facecolor": theme.page,
    }
    with plt.rc_context(style):  # ty: ignore[invalid-argument-type]
        figure = plt.figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure, theme)
        drawn = io.BytesIO()
        options: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 160}
        figure.savefig(drawn, format=kind, transparent=kind == "svg", **options)
        plt.close(figure)
    content = drawn.getvalue()
    if kind == "svg":
        content = steady(content.decode()).encode()
    write_atomically(path, lambda file: file.write(content))


def steady(svg: str) -> str:
    """The layout's solver leaves the last bit of a position open; here it may change no byte.

    Ids that are digests of positions become numbers, and positions are rounded to thousandths of a point; not at their
    halves, on which sizes of words often lie, but a little aside.
    """
    ids = dict.fromkeys(re.findall(r'id="(\w*[0-9a-f]{10})"', svg))
    numbers = {name: f"i{n}" for n, name in enumerate(ids)}
    svg = re.sub(r"\w+", lambda word: numbers.get(word[0], word[0]), svg)
    return re.sub(r"-?\d+\.\d{5,}", lambda x: repr(round(float(x[0]) + 0.000123, 3) + 0.0), svg)


def save_pair(folder: Path, name: str, draw: Callable[[Any, Theme], None], height: float = 4.0) -> list[Path]:
    """`name-light.svg` and `name-dark.svg`."""
    paths = [folder / f"{name}-{theme.name}.svg" for theme in THEMES]
    for path, theme in zip(paths, THEMES, strict=True):
        save_figure(path, draw, theme, height)
    return paths


# --- what figures are made of ---------------------------------------------------------------------------------------------


def label(axes: Any, x: float, y: float, text: str, color: str, **how: Any) -> None:
    """Words beside a point, in the colour of what they name; `how` goes to matplotlib's `annotate`."""
    axes.annotate(text, (x, y), **{"xytext": (4, 0), "textcoords": "offset points", "va": "center", **how}, color=color)


def hollow(axes: Any, x: float, y: float, theme: Theme, text: str = "your prediction", **how: Any) -> None:
    """The reader's prediction: an empty circle with its name."""
    axes.plot(
        x, y, marker="o", markersize=9, fillstyle="none", color=theme.ink, linestyle="none", clip_on=False, zorder=5
    )
    label(axes, x, y, text, theme.ink, **{"xytext": (9, 0), **how})


def band(axes: Any, xs: Sequence[float], series: Sequence[Sequence[float]], color: str, **how: Any) -> None:
    """The mean over seeds as a line, and from the smallest to the largest as a band; `series` holds one line per seed."""
    columns = list(zip(*series, strict=True))
    axes.plot(xs, [statistics.fmean(column) for column in columns], color=color, **{"linewidth": 1.8, **how})
    axes.fill_between(xs, list(map(min, columns)), list(map(max, columns)), color=color, alpha=0.2, linewidth=0)


def u_curve(axes: Any, runs: "Runs", arm: str, measure: "Measure", color: str, scale: float = 1.0) -> None:
    """A learning-rate sweep: `measure` (times `scale`) against the learning rate, with the band of its seeds.

    Rates at which a run diverged are left out; at the bottom of the curve stands a dot.
    """
    found = {lr: runs.values(arm, measure, lr) for lr in runs.learning_rates if lr is not None}
    kept = {lr: [scale * x for x in values] for lr, values in sorted(found.items()) if all(map(math.isfinite, values))}
    if not kept:
        return
    axes.set_xscale("log")
    band(axes, list(kept), list(zip(*kept.values(), strict=True)), color)
    best = min(kept, key=lambda lr: statistics.fmean(kept[lr]))
    axes.plot(best, statistics.fmean(kept[best]), marker="o", color=color, markersize=6)


# --- the picture of a run ------------------------------------------------------------------------------------------------


def draw_run(metrics: list[dict[str, Any]], path: Path, guess: float | None = None, theme: Theme = LIGHT) -> None:
    """Two panels: bits per byte, of images the accuracy; and rotation per layer with its prediction.

    A `guess` is drawn hollow.

    `metrics` are the lines of a run's `metrics.jsonl`.
    """

    def draw(figure: Any, theme: Theme) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True)
        if any("val_accuracy" in m for m in metrics):
            draw_accuracy(top, metrics, theme)
        else:
            draw_loss(top, metrics, guess, theme)
        draw_rotation(bottom, metrics, theme)
        bottom.set_xlabel("steps")

    save_figure(path, draw, theme, height=6.0)


def draw_loss(axes: Any, metrics: list[dict[str, Any]], guess: float | None, theme: Theme) -> None:
    """Training as a line, validation as dots, in bits per byte."""
    bits = 1 / math.log(2)
    trained = [(m["step"], m["loss"] * bits) for m in metrics if "loss" in m]
    validated = [(m["step"], m["val_loss"] * bits) for m in metrics if m.get("val_loss") is not None]
    axes.set(ylabel="bits per byte", ylim=(0, 8.5), title="How well it predicts")
    if trained:
        axes.plot(*zip(*trained, strict=True), color=theme.grey, linewidth=1.5)
        label(axes, *trained[len(trained) // 2], "training", theme.grey, xytext=(0, 10), ha="center")
    if validated:
        axes.plot(*zip(*validated, strict=True), color=theme.blue, marker="o", linestyle="none", clip_on=False)
        label(axes, *validated[-1], f"validation {validated[-1][1]:.2f}", theme.blue, xytext=(6, -16), ha="right")
    if guess is not None and validated:
        hollow(axes, validated[-1][0], guess, theme, "your guess", xytext=(-10, 6), ha="right")


def draw_accuracy(axes: Any, metrics: list[dict[str, Any]], theme: Theme) -> None:
    """The share of images named rightly, of those that were never trained on, in percent."""
    measured = [(m["step"], 100 * m["val_accuracy"]) for m in metrics if "val_accuracy" in m]
    axes.set(ylabel="% right", ylim=(0, 102), title="How many images it names rightly")
    axes.plot(*zip(*measured, strict=True), color=theme.blue, marker="o", clip_on=False)
    label(axes, *measured[-1], f"validation {measured[-1][1]:.1f} %", theme.blue, xytext=(6, -16), ha="right")


def draw_rotation(axes: Any, metrics: list[dict[str, Any]], theme: Theme) -> None:
    """One line a matrix, coloured by what it does, and the equilibrium that lr, decay and momentum predict."""
    axes.set(ylabel="radians per step", title="How far each layer's neurons turn")
    turned = [m for m in metrics if "rotation" in m]
    if not turned:
        return
    steps = [m["step"] for m in turned]
    labelled: set[str] = set()
    for name in turned[0]["rotation"]:
        words, color = next((MATRICES[part] for part in MATRICES if part in name), ("other", "grey"))
        line = [m["rotation"][name] for m in turned]
        new = words not in labelled
        axes.plot(steps, line, color=getattr(theme, color), linewidth=1, alpha=0.8, label=words if new else None)
        labelled.add(words)
    predicted = [(m["step"], m["predicted_rotation"]) for m in turned if "predicted_rotation" in m]
    if predicted:
        line = zip(*predicted, strict=True)
        axes.plot(*line, color=theme.ink, linestyle="--", linewidth=2, label="predicted in equilibrium")
    axes.set_ylim(0, None)
    axes.legend(fontsize="small", loc="upper right")
