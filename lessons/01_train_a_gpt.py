"""01 Train a GPT. Question: what does it take to teach a network to write Python?

A loop of twelve lines and one number, the loss. A small GPT reads the source of Python's standard library byte by byte,
guesses each next byte, and is moved a little towards the byte that came.

    python lessons/01_train_a_gpt.py                # --preset quick (default), cpu, record, gpu
"""

import math
import statistics
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from minitrain.cli import lesson_main
from minitrain.data.text import standard_library
from minitrain.gpt import GPT
from minitrain.lab.claims import Claim
from minitrain.lab.compare import Metrics, Runs, at, difference, final, mean_late, ratio, series
from minitrain.lab.course import Predict
from minitrain.lab.plots import Theme, hollow, label
from minitrain.lab.samples import printable, python_accepts, sample_text
from minitrain.optim import AdamW
from minitrain.recipe import Recipe
from minitrain.runtime.checkpoint import load_weights
from minitrain.train import Run, evaluation_model

BITS = 1 / math.log(2)  # losses are computed in nats, with the natural logarithm; this many bits are one nat
PROMPT = "def "
BROKEN = "broken: no zero_grad"


# --8<-- [start:twelve]
def twelve_lines(seed: int, steps: int) -> Metrics:
    """Trains a GPT for `steps` steps and returns the loss of each."""
    torch.manual_seed(seed)
    model, data = GPT(depth=2, width=64, context=64), standard_library(context=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, weight_decay=0.0, fused=True)
    metrics = []
    for step in range(steps):
        inputs, targets = data.batch(seed, step, rows=16)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        metrics.append({"step": step + 1, "loss": loss.item()})
    return metrics


# --8<-- [end:twelve]
# --8<-- [start:setup]
PREDICT = Predict(
    "A blind guess costs 8 bits per byte. How many will the model need after its last step?",
    low=0.0,
    high=8.0,
    answer=lambda runs: statistics.fmean(runs.values("train", final_bits)),
)
# `check_steps` is how long the other two arms run: long enough to see what they show, and no longer.
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"steps": 500, "check_steps": 60, "seeds": 3},
    "cpu": {"steps": 500, "check_steps": 500, "seeds": 3},
    "record": {"steps": 500, "check_steps": 500, "seeds": 6},
    "gpu": {
        "steps": 1000, "check_steps": 100, "seeds": 2, "twelve": False,
        "depth": 12, "width": 768, "context": 1024, "batch_size": 65_536, "lr": 1e-3, "precision": "bf16",
    },
}  # fmt: skip


def experiment(
    steps: int,
    check_steps: int,
    seeds: int,
    twelve: bool = True,
    depth: int = 2,
    width: int = 64,
    context: int = 64,
    batch_size: int = 1024,
    lr: float = 6e-3,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, Any]:
    """The package's loop; the twelve lines, at the small size; the loop with one line less; and two yardsticks."""
    base = Recipe(
        build_model=partial(GPT, depth=depth, width=width, context=context),
        data=partial(standard_library, context=context),
        steps=steps,
        batch_size=batch_size,
        make_optimizer=partial(AdamW, lr=lr, weight_decay=0.0),
        precision=precision,
    )
    short = replace(base, steps=check_steps)
    return {
        "arms": {
            "train": base,
            **({"twelve lines": partial(twelve_lines, steps=check_steps)} if twelve else {}),
            BROKEN: replace(short, make_optimizer=partial(Forgetful, lr=lr, weight_decay=0.0)),
            "no network: bytes": partial(counting, pairs=False, context=context),
            "no network: pairs": partial(counting, pairs=True, context=context),
        },
        "seeds": range(seeds),
        "probes": (partial(Samples, steps=(0, steps // 10, steps)), GradientNorm),
        "log_every": 1,
        "evaluate_every": steps // 10,
        "keep_weights": True,
    }


# --8<-- [end:setup]
# --8<-- [start:broken]
class Forgetful(AdamW):
    """AdamW, but the loop's `optimizer.zero_grad()` does nothing: every gradient is added to all those before it."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        pass


# --8<-- [end:broken]
# --8<-- [start:counting]
def counting(seed: int, pairs: bool, context: int) -> Metrics:
    """The loss of a guess that only counts: how often each byte comes in the training text, or how often after another.

    There is nothing random in it, so that all seeds give the same.
    """
    data = standard_library(context)
    text = torch.from_numpy(data.train_tokens.astype(np.int64))
    counts = torch.bincount(256 * text[:-1] + text[1:], minlength=256 * 256).view(256, 256).float()  # (before, after)
    if not pairs:
        counts = counts.sum(0).expand(256, 256)
    chances = (counts + 0.1) / (counts + 0.1).sum(1, keepdim=True)  # what never came in training gets a chance too
    inputs, targets = (torch.cat(x) for x in zip(*data.validation(rows=1), strict=True))
    return [{"step": 0, "val_loss": -chances[inputs, targets].log().mean().item()}]


# --8<-- [end:counting]
# --8<-- [start:probes]
class Samples:
    """A probe: the model's answers to `PROMPT` after each of `steps`, where 0 is before the first.

    They are drawn with random numbers of their own, so that the run takes the same course with them as without.
    """

    every = 1

    def __init__(self, steps: tuple[int, ...]):
        self.steps = steps
        self.untrained: dict[str, Any] = {}

    def before(self, run: Run) -> None:
        self.untrained = {"0": answers(run)} if run.step == 0 and 0 in self.steps else {}

    def after(self, run: Run) -> dict[str, Any]:
        found = self.untrained | ({str(run.step): answers(run)} if run.step in self.steps else {})
        return {"samples": found} if found else {}


def answers(run: Run) -> dict[str, Any]:
    """Eight answers: the first one's text; of all, the whole lines of at least ten characters, and what Python accepts."""
    with evaluation_model(run) as model:
        texts = sample_text(model, PROMPT, max_new_tokens=200, rows=8)
    whole = [line.strip() for text in texts for line in text.splitlines()[:-1]]  # without the last, which was cut off
    lines = [line for line in whole if len(line) >= 10 and not line.startswith("#")]
    return {"text": plain(texts[0]), "lines": len(lines), "accepted": sum(map(python_accepts, lines))}


def plain(text: str) -> str:
    """The text with a dot for everything that is not a printable ASCII character or a line's end."""
    return "".join(c if c in "\n" or (c.isascii() and c.isprintable()) else "\N{MIDDLE DOT}" for c in text)


class GradientNorm:
    """A probe: in the first 20 steps, the length of the gradient of all parameters, as the optimizer was given it."""

    every = 1

    def before(self, run: Run) -> None:
        pass

    def after(self, run: Run) -> dict[str, Any]:
        if run.step > 20:
            return {}
        norms = [p.grad.norm() for p in run.model.parameters() if p.grad is not None]
        return {"grad_norm": torch.stack(norms).norm().item()}


# --8<-- [end:probes]
# --8<-- [start:hand]
def by_hand() -> None:
    """Loss, gradient and step on four scores, with an alphabet of four letters."""
    scores = torch.zeros(4, requires_grad=True)  # one for each of d, e, f and g
    target = torch.tensor(1)  # the letter that came: e
    print("step  P(d)  P(e)  P(f)  P(g)   loss in bits   its gradient")
    for step in range(5):
        loss = F.cross_entropy(scores, target)
        loss.backward()
        gradient = scores.grad
        assert gradient is not None
        chances = "  ".join(f"{p:.2f}" for p in scores.softmax(0).tolist())
        slopes = " ".join(f"{g:+.2f}" for g in gradient.tolist())
        print(f"{step:>4}  {chances}   {loss.item() * BITS:>12.2f}   {slopes}")
        with torch.no_grad():
            scores -= 1.0 * gradient  # downhill, with a learning rate of 1
        scores.grad = None


# --8<-- [end:hand]
def final_bits(metrics: Metrics) -> float:
    """Validation loss at the end, in bits per byte."""
    return final("val_loss")(metrics) * BITS


def early_bits(metrics: Metrics) -> float:
    """Validation loss after a tenth of the steps, in bits per byte."""
    return series(metrics, "val_loss")[1][1] * BITS


def late_training_bits(metrics: Metrics) -> float:
    """Mean training loss of the last tenth of the steps, in bits per byte."""
    return mean_late("loss", share=0.1)(metrics) * BITS


def samples(metrics: Metrics) -> dict[int, dict[str, Any]]:
    """What the probe `Samples` kept, by step."""
    return {int(step): found for _, line in series(metrics, "samples") for step, found in line.items()}


def growth(metrics: Metrics) -> float:
    """How many times as long the gradient is at step 20 as at step 1."""
    return at("grad_norm", 20)(metrics) / at("grad_norm", 1)(metrics)


def share_of_the_fall(metrics: Metrics) -> float:
    """How much of the whole fall of the validation loss the first tenth of the steps brings."""
    blind = series(metrics, "val_loss")[0][1] * BITS
    return (blind - early_bits(metrics)) / (blind - final_bits(metrics))


def largest_difference(runs: Runs, arm: str, steps: int | None = None) -> list[float]:
    """The largest distance between the losses of an arm and of "train" at the same step, in the first `steps` or all."""
    found = []
    for seed in runs.seeds:
        loop, other = (dict(series(runs.metrics(name, seed), "loss")) for name in ("train", arm))
        found.append(max(abs(loop[step] - loss) for step, loss in other.items() if steps is None or step <= steps))
    return found


# --8<-- [start:claims]
MEASURES = {
    "validation, bits per byte": final_bits,
    "training, bits per byte": late_training_bits,
    "gradient, step 20 / step 1": growth,
}
CLAIMS = [
    Claim(
        "blind-guess",
        "Before the first step a guess costs 8 bits per byte",
        lambda runs: runs.values("train", lambda metrics: series(metrics, "val_loss")[0][1] * BITS),
        within=(7.9999, 8.0001),
        kind="algebra",
        unit="bits per byte",
        arms=("train",),
    ),
    Claim(
        "twelve-lines",
        "Twelve lines of plain PyTorch and the package's loop have the same losses, step by step",
        lambda runs: largest_difference(runs, "twelve lines"),
        within=(0.0, 0.0),
        kind="algebra",
        unit="nats",
        arms=("train", "twelve lines"),
    ),
    Claim(
        "learns",
        "After the last step a guess costs less than 3 bits per byte, on text it was not trained on",
        lambda runs: runs.values("train", final_bits),
        below=3.0,
        unit="bits per byte",
        arms=("train",),
    ),
    Claim(
        "most-is-early",
        "The first tenth of the steps brings more than three quarters of the fall",
        lambda runs: runs.values("train", share_of_the_fall),
        above=0.75,
        arms=("train",),
    ),
    Claim(
        "more-than-pairs",
        "In the end a guess costs at least half a bit less than with a table of which byte follows which, and how often",
        lambda runs: difference(runs, "train", "no network: pairs", final_bits),
        below=-0.5,
        unit="bits per byte",
        arms=("train", "no network: pairs"),
    ),
    Claim(
        "alike-on-both",
        "Validation and training loss end within 0.1 bits of each other",
        lambda runs: runs.values("train", lambda metrics: final_bits(metrics) - late_training_bits(metrics)),
        within=(-0.1, 0.1),
        unit="bits per byte",
        arms=("train",),
    ),
    Claim(
        "no-zero-grad-hides",
        "Without zero_grad the losses of the first two steps are what they should be",
        lambda runs: largest_difference(runs, BROKEN, steps=2),
        within=(0.0, 0.0),
        kind="algebra",
        unit="nats",
        arms=("train", BROKEN),
    ),
    Claim(
        "no-zero-grad-acts",
        "Without zero_grad the gradient of step 2 is longer than it should be, by more than a fifth",
        lambda runs: ratio(runs, BROKEN, "train", at("grad_norm", 2)),
        above=1.2,
        arms=("train", BROKEN),
    ),
    Claim(
        "no-zero-grad-grows",
        "Without zero_grad the gradient of step 20 is more than 3 times as long as that of step 1",
        lambda runs: runs.values(BROKEN, growth),
        above=3.0,
        arms=(BROKEN,),
    ),
    Claim(
        "no-zero-grad-costs",
        "Without zero_grad a guess costs at least 1 bit per byte more after a tenth of the steps",
        lambda runs: difference(runs, BROKEN, "train", early_bits),
        above=1.0,
        unit="bits per byte",
        arms=("train", BROKEN),
    ),
]
# --8<-- [end:claims]

HEIGHT = 7.2
ROWS, COLUMNS = 6, 46  # of a panel with text


def draw(figure: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """The first seed's run: what it answered to the prompt at three steps, and below them the loss of every step."""
    metrics = runs.metrics("train")
    texts, validation = samples(metrics), dict(series(metrics, "val_loss"))
    *panels, below = figure.subplots(4, 1, height_ratios=(1, 1, 1, 2))
    draw_loss(below, metrics, theme)
    for arm, words in (
        ("no network: bytes", "Counting bytes"),
        ("no network: pairs", "Counting pairs of bytes"),
    ):
        bits = runs.values(arm, final_bits)[0]
        below.axhline(bits, color=theme.green, linewidth=1, linestyle="--")
        label(below, max(texts) * 0.22, bits, words, theme.green, xytext=(0, 7))
    for step, panel, color in zip(sorted(texts), panels, (theme.red, theme.orange, theme.blue), strict=True):
        bits = validation[step] * BITS
        panel.set_title(f"Step {step}: {bits:.2f} bits per byte", color=color, fontsize=11, pad=4)
        draw_text(panel, texts[step]["text"], theme, color)
        below.plot(step, bits, marker="o", color=color, markersize=7, clip_on=False, zorder=4)
    if prediction is not None:
        hollow(below, max(texts), prediction, theme, "Your prediction", xytext=(-8, 9), ha="right")


def draw_loss(axes: Any, metrics: Metrics, theme: Theme) -> None:
    """The training loss of every step, which is the cost of one batch and so jumps up and down."""
    steps, losses = zip(*series(metrics, "loss"), strict=True)
    axes.plot(steps, [loss * BITS for loss in losses], color=theme.grey, linewidth=0.8)
    axes.set(xlabel="Step", ylabel="Bits per byte", xlim=(0, steps[-1] * 1.02), ylim=(0, 8.6), yticks=range(0, 9, 2))
    label(axes, 0, 8, "A blind guess", theme.ink, xytext=(9, 0))
    early = int(steps[-1] * 0.22)
    lowest = min(losses[early : 2 * early]) * BITS
    label(axes, early, lowest, "Cost of each batch", theme.grey, xytext=(0, -14))


def draw_text(axes: Any, text: str, theme: Theme, color: str) -> None:
    """The first lines of a text, long ones folded; the prompt, which the model did not write, in `color`."""
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1))
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set(color=color, linewidth=2.5)
    lines = [line[i : i + COLUMNS] for line in text.split("\n") for i in range(0, max(len(line), 1), COLUMNS)]
    how = {"textcoords": "offset points", "family": "monospace", "fontsize": 10.5, "parse_math": False}
    for row, line in enumerate(lines[:ROWS], start=1):
        written = line if row > 1 else " " * len(PROMPT) + line[len(PROMPT) :]
        axes.annotate(written, (0, 1), xytext=(7, -13 * row + 2), color=theme.ink, **how)
    axes.annotate(PROMPT, (0, 1), xytext=(7, -11), color=color, weight="bold", **how)


def after(runs: Runs) -> None:
    """The reader types a prompt, and the first seed's model goes on from there; an empty line ends it."""
    recipe = runs.arms["train"]
    depth, width, context = (int(recipe[f"build_model.{size}"]) for size in ("depth", "width", "context"))
    model = GPT(depth=depth, width=width, context=context).eval()
    load_weights(model, runs.weights("train", runs.seeds[0]))
    print("\nNow you: how should it begin? Try 'class ', 'import ', or your name. (Enter ends)")
    try:
        while prompt := input("> "):
            print(printable(sample_text(model, prompt, max_new_tokens=200)[0]) + "\n")
    except (EOFError, KeyboardInterrupt):
        print()


if __name__ == "__main__":
    lesson_main(__file__)
