"""Pictures of runs, drawn without a display; matplotlib is imported only when one is drawn.

One style: no frame, direct labels, colours that colour-blind eyes tell apart, and for SVG the same bytes every time.
"""

import math
from pathlib import Path
from typing import Any, Literal

from minitrain.runtime.files import write_atomically

KINDS = {  # the matrices of a block: part of the name, label, colour
    "qkv": ("queries, keys, values", "#0072b2"),
    "attention.out": ("attention output", "#56b4e9"),
    "mlp.up": ("MLP input", "#d55e00"),
    "mlp.out": ("MLP output", "#e69f00"),
}
OTHER = "#888888"
INK = {"light": "#222222", "dark": "#dddddd"}


def draw_run(
    metrics: list[dict[str, Any]], path: Path, guess: float | None = None, theme: Literal["light", "dark"] = "light"
) -> None:
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
        draw_loss(top, metrics, guess, ink)
        draw_rotation(bottom, metrics, ink)
        bottom.set_xlabel("steps")
        options = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 150}
        write_atomically(path, lambda file: figure.savefig(file, format=kind, transparent=kind == "svg", **options))
        plt.close(figure)


def draw_loss(axes: Any, metrics: list[dict[str, Any]], guess: float | None, ink: str) -> None:
    """Training as a line, validation as dots, in bits per byte."""
    bits = 1 / math.log(2)
    trained = [(m["step"], m["loss"] * bits) for m in metrics if "loss" in m]
    validated = [(m["step"], m["val_loss"] * bits) for m in metrics if m.get("val_loss") is not None]
    blue = KINDS["qkv"][1]
    axes.set(ylabel="bits per byte", ylim=(0, 8.5), title="How well it predicts")
    if trained:
        axes.plot(*zip(*trained, strict=True), color=OTHER, linewidth=1.5)
        middle = trained[len(trained) // 2]
        axes.annotate("training", middle, (0, 9), textcoords="offset points", color=OTHER, ha="center")
    if validated:
        axes.plot(*zip(*validated, strict=True), color=blue, marker="o", markersize=6, linestyle="none", clip_on=False)
        end = validated[-1]
        label = f"validation {end[1]:.2f}"
        axes.annotate(label, end, (6, -18), textcoords="offset points", ha="right", color=blue)
    if guess is not None and validated:
        end = (validated[-1][0], guess)
        axes.plot(*end, marker="o", markersize=9, fillstyle="none", color=ink, linestyle="none", clip_on=False)
        axes.annotate("your guess", end, (-10, 4), textcoords="offset points", ha="right")


def draw_rotation(axes: Any, metrics: list[dict[str, Any]], ink: str) -> None:
    """One line a matrix, coloured by what it does, and the equilibrium that lr, decay and momentum predict."""
    axes.set(ylabel="radians per step", title="How far each layer's neurons turn")
    turned = [m for m in metrics if "rotation" in m]
    if not turned:
        return
    steps = [m["step"] for m in turned]
    labelled: set[str] = set()
    for name in turned[0]["rotation"]:
        label, color = next((KINDS[part] for part in KINDS if part in name), ("other", OTHER))
        line = [m["rotation"][name] for m in turned]
        axes.plot(steps, line, color=color, linewidth=1, alpha=0.8, label=None if label in labelled else label)
        labelled.add(label)
    predicted = [(m["step"], m["predicted_rotation"]) for m in turned if "predicted_rotation" in m]
    if predicted:
        axes.plot(
            *zip(*predicted, strict=True), color=ink, linestyle="--", linewidth=2, label="predicted in equilibrium"
        )
    axes.set_ylim(0, None)
    axes.legend(frameon=False, fontsize="small", ncols=2)
