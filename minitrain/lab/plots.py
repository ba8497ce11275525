"""Pictures of runs, drawn without a display; matplotlib is imported only when one is drawn.

One style: no frame, direct labels, colours that colour-blind eyes tell apart, and for SVG the same bytes every time.
"""

import math
from pathlib import Path
from typing import Any, Literal

from minitrain.runtime.files import write_atomically

KINDS = {  # the matrices of a block, by a part of their names: label, and colour on a light and on a dark page
    "qkv": ("queries, keys, values", {"light": "#0072b2", "dark": "#56b4e9"}),
    "attention.out": ("attention output", {"light": "#cc79a7", "dark": "#cc79a7"}),
    "mlp.up": ("MLP input", {"light": "#d55e00", "dark": "#d55e00"}),
    "mlp.out": ("MLP output", {"light": "#e69f00", "dark": "#e69f00"}),
}
OTHER = ("other", {"light": "#888888", "dark": "#888888"})
INK = {"light": "#222222", "dark": "#dddddd"}
Theme = Literal["light", "dark"]


def draw_run(metrics: list[dict[str, Any]], path: Path, guess: float | None = None, theme: Theme = "light") -> None:
    """Two panels: bits per byte; and rotation per layer with its prediction. A `guess` is drawn hollow.

    `metrics` are the lines of a run's `metrics.jsonl`. The name of `path` decides between PNG (on white) and SVG
    (transparent, with ink for a light or dark page).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ink, kind = INK[theme], path.suffix[1:]
    style: dict[str, Any] = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink
    )
    style |= {"svg.hashsalt": "minitrain", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):  # ty: ignore[invalid-argument-type]
        figure, (top, bottom) = plt.subplots(2, 1, figsize=(6.5, 6.5), sharex=True, layout="constrained")
        draw_loss(top, metrics, guess, theme)
        draw_rotation(bottom, metrics, theme)
        bottom.set_xlabel("steps")
        options = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 150}
        write_atomically(path, lambda file: figure.savefig(file, format=kind, transparent=kind == "svg", **options))
        plt.close(figure)


def draw_loss(axes: Any, metrics: list[dict[str, Any]], guess: float | None, theme: Theme) -> None:
    """Training as a line, validation as dots, in bits per byte."""
    bits = 1 / math.log(2)
    trained = [(m["step"], m["loss"] * bits) for m in metrics if "loss" in m]
    validated = [(m["step"], m["val_loss"] * bits) for m in metrics if m.get("val_loss") is not None]
    blue, grey = KINDS["qkv"][1][theme], OTHER[1][theme]
    axes.set(ylabel="bits per byte", ylim=(0, 8.5), title="How well it predicts")
    if trained:
        axes.plot(*zip(*trained, strict=True), color=grey, linewidth=1.5)
        middle = trained[len(trained) // 2]
        axes.annotate("training", middle, (0, 9), textcoords="offset points", color=grey, ha="center")
    if validated:
        axes.plot(*zip(*validated, strict=True), color=blue, marker="o", markersize=6, linestyle="none", clip_on=False)
        end = validated[-1]
        label = f"validation {end[1]:.2f}"
        axes.annotate(label, end, (6, -18), textcoords="offset points", ha="right", color=blue)
    if guess is not None and validated:
        end = (validated[-1][0], guess)
        axes.plot(*end, marker="o", markersize=9, fillstyle="none", color=INK[theme], linestyle="none", clip_on=False)
        axes.annotate("your guess", end, (-10, 4), textcoords="offset points", ha="right")


def draw_rotation(axes: Any, metrics: list[dict[str, Any]], theme: Theme) -> None:
    """One line a matrix, coloured by what it does, and the equilibrium that lr, decay and momentum predict."""
    axes.set(ylabel="radians per step", title="How far each layer's neurons turn")
    turned = [m for m in metrics if "rotation" in m]
    if not turned:
        return
    steps = [m["step"] for m in turned]
    labelled: set[str] = set()
    for name in turned[0]["rotation"]:
        label, colors = next((KINDS[part] for part in KINDS if part in name), OTHER)
        line = [m["rotation"][name] for m in turned]
        axes.plot(steps, line, color=colors[theme], linewidth=1, alpha=0.8, label=None if label in labelled else label)
        labelled.add(label)
    predicted = [(m["step"], m["predicted_rotation"]) for m in turned if "predicted_rotation" in m]
    if predicted:
        axes.plot(
            *zip(*predicted, strict=True),
            color=INK[theme],
            linestyle="--",
            linewidth=2,
            label="predicted in equilibrium",
        )
    axes.set_ylim(0, None)
    axes.legend(frameon=False, fontsize="small", ncols=2)
