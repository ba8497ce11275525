"""03 One neuron. Question: what decides how long a weight vector gets, and how far it turns in a step?

A weight that is followed by a normalization only has a direction. Noise lengthens it, decay shortens it, and where the
two balance, its length and its speed of turning follow from learning rate, decay and momentum: no loss is needed.

    python lessons/03_one_neuron.py                # --preset quick (default), cpu, record, gpu
"""

import math
import statistics
from functools import partial
from typing import Any

import numpy as np

from minitrain.cli import lesson_main
from minitrain.equilibrium import (
    Equilibrium,
    equilibrium,
    equilibrium_adam_l2,
    equilibrium_l2,
    exponential,
    heavy_ball,
    sign_of_two_averages,
)
from minitrain.lab.claims import Claim
from minitrain.lab.compare import Measure, Metrics, Runs, at, final, mean_late, over_steps, ratio, series
from minitrain.lab.course import Predict
from minitrain.lab.plots import Theme, band, hollow, label

# --8<-- [start:setup]
PREDICT = Predict(
    "AdamW has settled at some length of w. With twice the weight decay, it settles at how many times that length?",
    low=0.0,
    high=2.0,
    answer=lambda runs: statistics.fmean(ratio(runs, "AdamW, twice the decay", "AdamW", mean_late("norm"))),
)
PRESETS = {  # `fan_in`: how many weights a neuron has
    "quick": {"seeds": 3, "steps": 4000, "neurons": 8, "fan_in": 256},
    "cpu": {"seeds": 5, "steps": 5000, "neurons": 8, "fan_in": 256},
    "record": {"seeds": 5, "steps": 5000, "neurons": 16, "fan_in": 256},
    "gpu": {"seeds": 5, "steps": 5000, "neurons": 64, "fan_in": 256},  # numpy all the same; no GPU is needed
}


def experiment(seeds: int, **size: int) -> dict[str, Any]:
    """Every arm is a walk driven by noise alone; gradients have length 1/8 at `|w| = 1`, where nothing else is said."""
    adamw = partial(random_walk, optimizer="AdamW", lr=0.01, weight_decay=0.1, **size)
    adam_l2 = partial(random_walk, optimizer="Adam with L2", lr=0.005, weight_decay=0.003, **size)
    arms = {
        "AdamW": adamw,
        "AdamW, long at first": partial(adamw, start=6.0),
        "AdamW, twice the decay": partial(adamw, weight_decay=0.2),
        "AdamW, gradients x 8": partial(adamw, unit_gradient=1.0),
        "SGD": partial(random_walk, optimizer="SGD", lr=0.016, weight_decay=0.00625, **size),
        "Adam with L2": adam_l2,
        "Adam with L2, gradients x 8": partial(adam_l2, unit_gradient=1.0),
        "Lion": partial(random_walk, optimizer="Lion", lr=0.0005, weight_decay=1.0, **size),
        "broken: gradients that remember": partial(adamw, memory=0.8),
        "broken: too little decay for the run": partial(adamw, lr=0.001, weight_decay=0.01),
        "two weights": partial(two_weights, lr=0.05, weight_decay=0.1, steps=300),
    }
    return {"arms": arms, "seeds": range(seeds)}


# --8<-- [end:setup]


# --- by hand ----------------------------------------------------------------------------------------------------------


# --8<-- [start:direction]
def loss(w: np.ndarray, x: np.ndarray) -> float:
    """One neuron `w @ x` with its normalization `w / |w|`; it should answer 1."""
    return float((w / np.linalg.norm(w) @ x - 1.0) ** 2)


def gradient(w: np.ndarray, x: np.ndarray, h: float = 1e-5) -> np.ndarray:
    """The slope of the loss in each coordinate, from two evaluations on both sides."""
    return np.array([(loss(w + h * e, x) - loss(w - h * e, x)) / (2 * h) for e in np.eye(len(w))])


def only_the_direction() -> None:
    """Three times the weight: the same loss, a gradient of a third, and no gradient ever points along the weight."""
    w, x = np.array([0.6, -0.2, 0.3]), np.array([1.0, 0.5, -1.0])
    g = gradient(w, x)
    print(f"loss at w and at 3w:        {loss(w, x):.6f}  {loss(3 * w, x):.6f}")
    print(f"|gradient| at w and at 3w:  {np.linalg.norm(g):.6f}  {np.linalg.norm(gradient(3 * w, x)):.6f}")
    along = g @ w / np.linalg.norm(w)  # the radial part; what is left is tangential
    print(f"gradient along, across w:   {abs(along):.6f}  {math.sqrt(g @ g - along**2):.6f}")


# --8<-- [end:direction]
# --8<-- [start:pythagoras]
def pythagoras() -> None:
    """A step at right angles to `w` makes it longer, whichever way it goes."""
    w, lr = np.array([0.6, -0.2, 0.3]), 0.1
    g = gradient(w, np.array([1.0, 0.5, -1.0]))
    print(f"|w|^2 + |lr g|^2:           {w @ w:.6f} + {lr**2 * g @ g:.6f} = {w @ w + lr**2 * g @ g:.6f}")
    for sign, words in ((-1, "down the hill:"), (+1, "up the hill:")):
        new = w + sign * lr * g
        print(f"|w|^2 after, {words:14} {new @ new:.6f}")


# --8<-- [end:pythagoras]
# --8<-- [start:balance]
def balance() -> None:
    """SGD without momentum, gradients of length `1/|w|`: the length of `w`, without knowing where it points."""
    lr, weight_decay = 0.05, 0.1
    short, long = 0.2, 1.5
    for step in range(301):
        if step % 100 == 0:
            print(f"step {step:3}: |w| = {short:.4f} and {long:.4f}")
        short, long = (
            math.sqrt((1 - lr * weight_decay) ** 2 * norm**2 + (lr / norm) ** 2)  # decay shortens, Pythagoras lengthens
            for norm in (short, long)
        )
    print(f"predicted: |w| = {equilibrium_l2(heavy_ball(0.0), lr, weight_decay, unit_gradient=1.0).norm:.4f}")


# --8<-- [end:balance]
# --8<-- [start:memory]
def memory_of_the_optimizer() -> None:
    """Adam's momentum is a filter: a gradient of age `k` has the weight `c_k` in the update."""
    beta = 0.9
    c = (1 - beta) * beta ** np.arange(200)
    print(f"c_0, c_1, c_2, ...:         {c[0]:.4f}  {c[1]:.4f}  {c[2]:.4f} ...")
    print(f"S  = sum of c_k:            {c.sum():.4f}  closed form {exponential(beta).total:.4f}")
    print(f"E2 = sum of c_k^2:          {(c**2).sum():.4f}  closed form {exponential(beta).energy:.4f}")


# --8<-- [end:memory]


def by_hand() -> None:
    """The whole idea on a handful of numbers."""
    for part in (only_the_direction, pythagoras, balance, memory_of_the_optimizer):
        print(f"\n{part.__doc__}")
        part()


# --- the optimizers ---------------------------------------------------------------------------------------------------


# --8<-- [start:optimizers]
def sgd(g: np.ndarray, state: dict[str, Any], momentum: float = 0.9) -> np.ndarray:
    """The heavy ball `b <- momentum*b + g`."""
    state["b"] = momentum * state.get("b", 0.0) + g
    return state["b"]


def adam(g: np.ndarray, state: dict[str, Any], beta1: float = 0.9, beta2: float = 0.95) -> np.ndarray:
    """Average over the root of the average square; without `eps`, since no gradient here is zero."""
    t = state["t"] = state.get("t", 0) + 1
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g**2
    return state["m"] / (1 - beta1**t) / np.sqrt(state["v"] / (1 - beta2**t))


def lion(g: np.ndarray, state: dict[str, Any], beta1: float = 0.9, beta2: float = 0.99) -> np.ndarray:
    """The sign of two averages, one inside the other."""
    m = state.get("m", 0.0)
    state["m"] = beta2 * m + (1 - beta2) * g
    return np.sign(beta1 * m + (1 - beta1) * g)


DIRECTIONS = {"SGD": sgd, "AdamW": adam, "Adam with L2": adam, "Lion": lion}
L2 = ("SGD", "Adam with L2")  # here the decay goes through the direction, with the gradient


def predicted(optimizer: str, lr: float, weight_decay: float, unit_gradient: float, fan_in: int) -> Equilibrium:
    """Where theory says that the walk settles."""
    if optimizer == "SGD":
        return equilibrium_l2(heavy_ball(0.9), lr, weight_decay, unit_gradient=unit_gradient)
    if optimizer == "Adam with L2":
        of_each_weight = unit_gradient / math.sqrt(fan_in)
        return equilibrium_adam_l2(exponential(0.9), lr, weight_decay, fan_in, unit_gradient_rms=of_each_weight)
    momentum_filter = sign_of_two_averages((0.9, 0.99)) if optimizer == "Lion" else exponential(0.9)
    return equilibrium(momentum_filter, lr, weight_decay, fan_in)


# --8<-- [end:optimizers]


# --- the walk ---------------------------------------------------------------------------------------------------------


# --8<-- [start:walk]
def length(w: np.ndarray) -> np.ndarray:
    """The length of each row, as a column."""
    return np.linalg.norm(w, axis=-1, keepdims=True)


def random_walk(
    seed: int,
    optimizer: str,
    lr: float,
    weight_decay: float,
    neurons: int,
    fan_in: int,
    steps: int,
    unit_gradient: float = 0.125,
    memory: float = 0.0,
    start: float = 1.0,
    log_every: int = 100,
) -> list[dict[str, Any]]:
    """`neurons` weight vectors walk among noise, as if a normalization followed each; a line every `log_every` steps.

    `unit_gradient` is the root mean square length of the gradients at `|w| = 1`, `start` the length of `w` at first, and
    `memory` the correlation of the noise with that of the step before. Logged are root mean squares: `norm` over the
    neurons, `rotation` over the neurons and the steps since the last line, in radians per step.
    """
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((neurons, fan_in))
    w *= start / length(w)
    noise = rng.standard_normal(w.shape)
    settled = predicted(optimizer, lr, weight_decay, unit_gradient, fan_in)
    names = ("update", "norm", "rotation", "steps")
    lines = [{"step": 0, "norm": start} | {f"predicted_{name}": getattr(settled, name) for name in names}]
    direction, state, turned = DIRECTIONS[optimizer], {}, []
    norm = length(w)
    unit = w / norm
    for step in range(1, steps + 1):
        noise = memory * noise + math.sqrt(1 - memory**2) * rng.standard_normal(w.shape)
        # What a normalization leaves of a gradient: only the part across w, and shorter where w is longer.
        across = noise - unit * (noise * unit).sum(axis=-1, keepdims=True)
        g = unit_gradient / math.sqrt(fan_in - 1) * across / norm
        if optimizer in L2:
            w = w - lr * direction(g + weight_decay * w, state)
        else:
            w = (1 - lr * weight_decay) * w - lr * direction(g, state)
        old, norm = unit, length(w)
        unit = w / norm
        turned.append(2 * np.arcsin(length(unit - old) / 2))
        if step % log_every == 0:
            lines.append({"step": step, "norm": root_mean_square(norm), "rotation": root_mean_square(turned)})
            turned = []
    return lines


def root_mean_square(values: Any) -> float:
    """Over all of them."""
    return float(np.sqrt(np.mean(np.square(values))))


# --8<-- [end:walk]


def two_weights(seed: int, lr: float, weight_decay: float, steps: int, start: float = 0.2) -> list[dict[str, Any]]:
    """A neuron that can be drawn: two weights, SGD without momentum, and a coin that says left or right.

    The coin decides where `w` goes, and never how long it is.
    """
    rng = np.random.default_rng(seed)
    w = np.array([start, 0.0])
    settled = equilibrium_l2(heavy_ball(0.0), lr, weight_decay, unit_gradient=1.0)
    lines = [{"step": 0, "x": start, "y": 0.0, "predicted_norm": settled.norm}]
    for step in range(1, steps + 1):
        across = np.array([-w[1], w[0]]) / length(w)
        g = rng.choice([-1.0, 1.0]) * across / length(w)
        w = (1 - lr * weight_decay) * w - lr * g
        lines.append({"step": step, "x": float(w[0]), "y": float(w[1])})
    return lines


# --- claims -----------------------------------------------------------------------------------------------------------


# --8<-- [start:claims]
def over_predicted(key: str) -> Measure:
    """The late mean of `key` as a multiple of where it should settle."""
    return lambda metrics: mean_late(key)(metrics) / at(f"predicted_{key}", 0)(metrics)


MEASURES = {
    "length of w": mean_late("norm"),
    "length / predicted": over_predicted("norm"),
    "radians per step": mean_late("rotation"),
    "radians / predicted": over_predicted("rotation"),
}


def relaxation(metrics: Metrics) -> float:
    """Steps in which `|w|^2` comes nearer to its end by a factor of e, over the predicted number."""
    norms, end = dict(series(metrics, "norm")), mean_late("norm")(metrics)
    first, last = (math.log(abs(norms[step] ** 2 - end**2)) for step in (100, 1100))
    return 1000 / (first - last) / at("predicted_steps", 0)(metrics)


def coin_lengths(runs: Runs) -> list[float]:
    """Where the neuron of two weights ends, over where it ends with the first seed."""
    ends = [math.hypot(x, y) for x, y in zip(*(runs.values("two weights", final(key)) for key in "xy"), strict=True)]
    return [end / ends[0] for end in ends]


def exponent(runs: Runs, arm: str) -> list[float]:
    """The power of the gradients' size that the rotation goes with, per seed."""
    return [math.log(x) / math.log(8) for x in ratio(runs, f"{arm}, gradients x 8", arm, mean_late("rotation"))]


def settles(optimizer: str, key: str, words: str, within: tuple[float, float]) -> Claim:
    """That what is logged as `key` settles where predicted, within a margin."""
    margin = f"{100 * (within[1] - 1):.0f} %"
    return Claim(
        name=f"{optimizer.lower().replace(' ', '-')}-{key}",
        sentence=f"{optimizer}: the {words} is within {margin} of the predicted one (measured / predicted)",
        statistic=lambda runs: runs.values(optimizer, over_predicted(key)),
        within=within,
        kind="simulation",
        arms=(optimizer,),
    )


MARGINS = {"AdamW": (0.98, 1.02), "SGD": (0.98, 1.02), "Adam with L2": (0.98, 1.02), "Lion": (0.95, 1.05)}
BOTH = {"norm": "length", "rotation": "angle per step"}
CLAIMS = [
    *(settles(optimizer, *what, within) for optimizer, within in MARGINS.items() for what in BOTH.items()),
    Claim(
        name="start-is-forgotten",
        sentence="AdamW, long at first, ends as long as AdamW that was short at first (ratio of lengths)",
        statistic=lambda runs: ratio(runs, "AdamW, long at first", "AdamW", mean_late("norm")),
        within=(0.99, 1.01),
        kind="simulation",
        arms=("AdamW", "AdamW, long at first"),
    ),
    Claim(
        name="time-from-below",
        sentence="AdamW: |w|^2 grows to its end within 10 % of the predicted time (measured / predicted)",
        statistic=lambda runs: runs.values("AdamW", relaxation),
        within=(0.9, 1.1),
        kind="simulation",
        arms=("AdamW",),
    ),
    Claim(
        name="time-from-above",
        sentence="AdamW: |w|^2 shrinks to its end within 10 % of the predicted time (measured / predicted)",
        statistic=lambda runs: runs.values("AdamW, long at first", relaxation),
        within=(0.9, 1.1),
        kind="simulation",
        arms=("AdamW, long at first",),
    ),
    Claim(
        name="decay-is-a-speed",
        sentence="AdamW with twice the decay turns sqrt(2) times as fast (ratio of rotations over sqrt(2))",
        statistic=lambda runs: [
            x / math.sqrt(2) for x in ratio(runs, "AdamW, twice the decay", "AdamW", mean_late("rotation"))
        ],
        within=(0.98, 1.02),
        kind="simulation",
        arms=("AdamW", "AdamW, twice the decay"),
    ),
    Claim(
        name="adamw-ignores-scale",
        sentence="AdamW with gradients 8 times larger turns exactly as fast as before (ratio of rotations)",
        statistic=lambda runs: ratio(runs, "AdamW, gradients x 8", "AdamW", mean_late("rotation")),
        within=(1.0, 1.0),  # without `eps`, a factor that is a power of two drops out to the last bit
        kind="algebra",
        arms=("AdamW", "AdamW, gradients x 8"),
    ),
    Claim(
        name="adam-l2-feels-scale",
        sentence="Adam with L2 turns as the power -1/3 of the gradients' size (exponent)",
        statistic=lambda runs: exponent(runs, "Adam with L2"),
        within=(-0.353, -0.313),
        kind="simulation",
        arms=("Adam with L2", "Adam with L2, gradients x 8"),
    ),
    Claim(
        name="coin-decides-no-length",
        sentence="Two weights and a coin: every seed ends with the same length (length over that of the first seed)",
        statistic=coin_lengths,
        within=(1 - 1e-5, 1 + 1e-5),
        kind="algebra",
        arms=("two weights",),
    ),
    Claim(
        name="memory-breaks-length",
        sentence="Gradients that remember: w ends more than twice as long as predicted (measured / predicted)",
        statistic=lambda runs: runs.values("broken: gradients that remember", over_predicted("norm")),
        above=2.0,
        kind="simulation",
        arms=("broken: gradients that remember",),
    ),
    Claim(
        name="memory-spares-rotation",
        sentence="Gradients that remember: the rotation is within 3 % of the predicted one (measured / predicted)",
        statistic=lambda runs: runs.values("broken: gradients that remember", over_predicted("rotation")),
        within=(0.97, 1.03),
        kind="simulation",
        arms=("broken: gradients that remember",),
    ),
    Claim(
        name="short-run-breaks-rotation",
        sentence="Too little decay for the run: w turns more than 1.5 times as fast as predicted (measured / predicted)",
        statistic=lambda runs: runs.values("broken: too little decay for the run", over_predicted("rotation")),
        above=1.5,
        kind="simulation",
        arms=("broken: too little decay for the run",),
    ),
]
# --8<-- [end:claims]


# --- the picture ------------------------------------------------------------------------------------------------------

HEIGHT = 6.4  # inches


def draw(figure: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """Above: one step, and a walk of two weights. Below: the lengths that settle, dashed where theory puts them."""
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.5, 3.9))
    step, walk = top.subplots(1, 2)
    draw_step(step, theme)
    draw_walk(walk, runs, theme)
    draw_lengths(bottom.subplots(), runs, theme, prediction)


def arrow(axes: Any, start: Any, end: Any, color: str) -> None:
    """An arrow from point to point."""
    style = {"arrowstyle": "-|>,head_width=0.25,head_length=0.5", "color": color, "linewidth": 2}
    axes.annotate("", end, start, arrowprops={**style, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 14})


def draw_step(axes: Any, theme: Theme) -> None:
    """One step, far larger than a real one: across `w`, so out of the circle, and back by decay."""
    angles = np.linspace(-0.35, 1.25, 100)
    axes.plot(np.cos(angles), np.sin(angles), color=theme.grey, linestyle="--", linewidth=1.2)
    w, out = np.array([1.0, 0.0]), np.array([1.0, 0.62])
    back = out / length(out)
    axes.plot([0, back[0]], [0, back[1]], color=theme.ink, linewidth=1.2, alpha=0.5)
    arrow(axes, (0, 0), w, theme.ink)
    arrow(axes, w, out, theme.red)
    arrow(axes, out, back, theme.blue)
    label(axes, 0.45, 0.0, "w", theme.ink, xytext=(0, -9))
    label(axes, *(w + out) / 2, "step", theme.red, xytext=(7, 0))
    label(axes, *(out + back) / 2, "decay", theme.blue, xytext=(-2, 15), ha="center")
    arc = np.linspace(0, math.atan(0.62), 30)
    axes.plot(0.38 * np.cos(arc), 0.38 * np.sin(arc), color=theme.ink, linewidth=1)
    label(axes, 0.42 * math.cos(0.28), 0.42 * math.sin(0.28), "angle", theme.ink)
    axes.set(aspect="equal", xlim=(-0.05, 1.42), ylim=(-0.35, 1.0), title="One step")
    axes.axis("off")


def draw_walk(axes: Any, runs: Runs, theme: Theme) -> None:
    """The tip of a weight vector of two numbers, from short to its circle."""
    lines = runs.metrics("two weights")
    x, y = np.array([[line["x"], line["y"]] for line in lines]).T
    angles = np.linspace(0, 2 * math.pi, 200)
    circle = lines[0]["predicted_norm"] * np.array([np.cos(angles), np.sin(angles)])
    axes.plot(*circle, color=theme.grey, linestyle="--", linewidth=1.2)
    axes.plot(x, y, color=theme.blue, linewidth=1)
    axes.plot(x[0], y[0], "o", color=theme.blue, markersize=4)
    label(axes, x[0], y[0], "start", theme.blue, xytext=(7, 0))
    arrow(axes, (0, 0), (x[-1], y[-1]), theme.ink)
    axes.set(aspect="equal", title=f"{len(lines) - 1} steps of two weights")
    axes.axis("off")


def draw_lengths(axes: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """One line an arm, the mean over seeds, with its prediction dashed."""
    colors = {
        "AdamW": theme.blue,
        "AdamW, long at first": theme.blue,
        "AdamW, twice the decay": theme.sky,
        "Lion": theme.pink,
        "Adam with L2": theme.green,
        "SGD": theme.orange,
    }
    for arm, color in colors.items():
        steps, lengths = over_steps(runs, arm, "norm")
        band(axes, steps, lengths, color)
        settled = at("predicted_norm", 0)(runs.metrics(arm))
        axes.plot([0, steps[-1]], [settled] * 2, color=theme.ink, linestyle=(0, (5, 3)), linewidth=1, zorder=3)
        if arm == "AdamW, long at first":
            early = len(steps) // 20
            label(axes, steps[early], lengths[0][early], arm, color, xytext=(8, 4))
        else:
            label(axes, 0.95 * steps[-1], settled, arm, color, xytext=(0, 8), ha="right")
    guess = (prediction or 0.0) * statistics.fmean(runs.values("AdamW", mean_late("norm")))
    axes.set(xlabel="Steps", ylabel="Length of w", xlim=(0, steps[-1]), ylim=(0, max(6.2, 1.05 * guess)))
    axes.set_title("Noise lengthens, decay shortens (dashed: predicted)")
    if prediction is not None:
        hollow(axes, steps[-1], guess, theme, "Your\nprediction")


if __name__ == "__main__":
    lesson_main(__file__)
