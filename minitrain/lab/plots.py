"""Pictures of runs, drawn without a display; matplotlib is imported only when one is drawn."""

import math
from pathlib import Path
from typing import Any

from minitrain.runtime.files import write_atomically

KINDS = {
    "qkv": "#0072b2",
    "attention.out": "#56b4e9",
    "up": "#d55e00",
    "mlp.out": "#e69f00",
}  # safe for colour-blind eyes
OTHER = "#777777"


def draw_run(metrics: list[dict[str, Any]], path: Path, guess: float | None = None) -> None:
    """Two panels into a PNG: bits per byte, and rotation per layer with its prediction; `guess` is drawn hollow.

    `metrics` are the lines of a run's `metrics.jsonl`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 7), sharex=True, layout="constrained")
    bits = 1 / math.log(2)
    trained = [(m["step"], m["loss"] * bits) for m in metrics if "loss" in m]
    validated = [(m["step"], m["val_loss"] * bits) for m in metrics if "val_loss" in m]
    turned = [m for m in metrics if "rotation" in m]
    if trained:
        top.plot(*zip(*trained, strict=True), color="#999999", linewidth=1)
        top.annotate("training", trained[len(trained) // 2], (0, 8), textcoords="offset points", color="#777777")
    if validated:
        top.plot(*zip(*validated, strict=True), color="#0072b2", marker="o", markersize=5, linestyle="none")
        step, value = validated[-1]
        top.annotate(
            f"validation {value:.2f}", (step, value), (0, -14), textcoords="offset points", ha="right", color="#0072b2"
        )
    if guess is not None and validated:
        top.plot(validated[-1][0], guess, marker="o", markersize=9, fillstyle="none", color="black", linestyle="none")
        top.annotate("your guess", (validated[-1][0], guess), (-10, 4), textcoords="offset points", ha="right")
    top.set(ylabel="bits per byte", ylim=(0, None), title="How well it predicts")
    if turned:
        steps = [m["step"] for m in turned]
        for name in turned[0]["rotation"]:
            kind = next((kind for kind in KINDS if kind in name), None)
            line = [m["rotation"][name] for m in turned]
            bottom.plot(steps, line, color=KINDS.get(kind, OTHER) if kind else OTHER, linewidth=1, alpha=0.8)
        for kind, color in KINDS.items():
            bottom.plot([], [], color=color, label=f"{kind} matrices")
        predicted = [(m["step"], m["predicted_rotation"]) for m in turned if "predicted_rotation" in m]
        if predicted:
            bottom.plot(*zip(*predicted, strict=True), color="black", linestyle="--", label="predicted in equilibrium")
        bottom.legend(frameon=False, fontsize="small", ncols=2)
        bottom.set(ylabel="radians per step", ylim=(0, None), title="How far each layer's neurons turn")
    bottom.set(xlabel="steps")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda file: figure.savefig(file, dpi=150, format="png"))
    plt.close(figure)
