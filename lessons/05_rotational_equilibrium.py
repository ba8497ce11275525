"""05 Rotational equilibrium. Question: do the neurons of a real network turn as fast as theory says, every one of them?

Theory says it of a neuron whose weight only has a direction. In a GPT with standardized weights every neuron is of that
kind; in a plain GPT hardly one is. Both are trained, by two optimizers, and every neuron is watched.

    python lessons/05_rotational_equilibrium.py                # --preset quick (default), cpu, record, gpu
"""

import math
import statistics
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from minitrain.cli import lesson_main
from minitrain.data.text import standard_library
from minitrain.equilibrium import equilibrium, exponential
from minitrain.gpt import GPT
from minitrain.lab.claims import Claim
from minitrain.lab.compare import Measure, Metrics, Runs, final, over_steps, ratio, series
from minitrain.lab.course import Predict
from minitrain.lab.noise import NoiseScale
from minitrain.lab.plots import Theme, hollow, label
from minitrain.lab.probes import Rotation, Weight, angle, predict, quantiles, rms
from minitrain.optim import Adam, AdamW
from minitrain.recipe import Recipe
from minitrain.schedules import constant
from minitrain.techniques.weight_standardization import WeightStandardizedLinear, weight_standardized
from minitrain.train import Run

BITS = 1 / math.log(2)  # of a nat
STANDARDIZED, STANDARDIZED_L2 = "standardized, AdamW", "standardized, Adam with L2"
PLAIN, PLAIN_L2 = "plain, AdamW", "plain, Adam with L2"
CHANGED, BROKEN = "standardized, rate x 4 and back", "broken: too little decay for the run"

# --8<-- [start:setup]
PREDICT = Predict(
    "Standardized weights, AdamW: how many times as fast as the slowest twentieth of the neurons do the fastest turn?",
    low=1.0,
    high=20.0,
    answer=lambda runs: statistics.fmean(runs.values(STANDARDIZED, fast_over_slow)),
)
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"steps": 400, "seeds": 2, "weight_decay": 1.0, "l2": 8e-4},  # a decay that settles sooner
    "cpu": {"steps": 1000, "seeds": 3},
    "record": {"steps": 1000, "seeds": 5},
    "gpu": {
        "steps": 2000, "seeds": 2, "depth": 12, "width": 768, "context": 1024, "batch_size": 65_536, "lr": 3e-3,
        "precision": "bf16",
    },
}  # fmt: skip


def experiment(
    steps: int,
    seeds: int,
    depth: int = 2,
    width: int = 64,
    context: int = 64,
    batch_size: int = 1024,
    lr: float = 6e-3,
    weight_decay: float = 0.5,
    l2: float = 5e-4,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, Any]:
    """Two models by two optimizers; then, with standardized weights, a rate that changes and a decay that is too small."""
    plain = partial(GPT, depth=depth, width=width, context=context)
    adamw = partial(AdamW, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.95))
    adam_l2 = partial(Adam, lr=lr, weight_decay=l2, betas=(0.9, 0.95))
    base = Recipe(
        build_model=partial(weight_standardized, plain, eps=0.0),
        data=partial(standard_library, context=context),
        steps=steps,
        batch_size=batch_size,
        make_optimizer=adamw,
        schedules={("*", "lr"): partial(constant, warmup=20)},
        precision=precision,
    )
    there, back = steps // 2, steps * 7 // 10
    return {
        "arms": {
            STANDARDIZED: base,
            STANDARDIZED_L2: replace(base, make_optimizer=adam_l2),
            PLAIN: replace(base, build_model=plain),
            PLAIN_L2: replace(base, build_model=plain, make_optimizer=adam_l2),
            CHANGED: replace(base, schedules={("*", "lr"): partial(there_and_back, there=there, back=back)}),
            BROKEN: replace(base, make_optimizer=partial(adamw, weight_decay=0.005)),
        },
        "seeds": range(seeds),
        "probes": (
            partial(Neurons, window=10),
            partial(LateNeurons, window=steps // 4),
            partial(Noise, group="matrices", every=steps // 10),
        ),
        "log_every": steps // 10,
        "evaluate_every": steps,
    }


def there_and_back(step: int, there: int, back: int) -> float:
    """A short warmup, then 1, and 4 from step `there` to step `back`."""
    return constant(step, warmup=20) * (4.0 if there <= step < back else 1.0)


# --8<-- [end:setup]
# --8<-- [start:probes]
class Neurons(Rotation):
    """A probe of every neuron of the block matrices: its angle per step, as a root mean square over `window` steps.

    Logs three percentiles (5th, 50th and 95th) of the angle, `turned`, and of the size `|w| / sqrt(fan_in)`, which theory
    expects to be the same in every matrix; and both as predicted, whenever that changes. A window that was not seen whole,
    because the run was stopped in it, is left out.
    """

    def __init__(self, window: int):
        super().__init__(every=1)
        self.window = window
        self.squares: dict[str, Tensor] = {}
        self.seen = 0
        self.told: list[float] = []

    @torch.no_grad()
    def after(self, run: Any) -> dict[str, Any]:
        weights = self.weights(run)
        for w in weights:
            square = angle(w.rows(self.old[w.name]), w.rows(w.parameter)).square()
            self.squares[w.name] = self.squares[w.name] + square if self.seen else square
        self.seen += 1
        if run.step % self.window:
            return {}
        whole, self.seen = self.seen == self.window, 0
        return self.tell(run, weights) if whole else {}

    def turned(self) -> dict[str, Tensor]:
        """By matrix, each neuron's root mean square angle in the window."""
        return {name: (x / self.window).sqrt() for name, x in self.squares.items()}

    def tell(self, run: Run, weights: list[Weight]) -> dict[str, Any]:
        turned, size = torch.cat(list(self.turned().values())), torch.cat([size_of(w) for w in weights])
        line: dict[str, Any] = {"turned": percentiles(turned), "size": percentiles(size)}
        settled = predict(run.optimizer, weights[0].group, fan_in=1)
        if settled and self.told != [settled.rotation, settled.norm]:
            line["predicted"] = self.told = [settled.rotation, settled.norm]
        return line


class LateNeurons(Neurons):
    """The same over longer windows, of which the last one counts; and the gradients of the window's last step.

    Of these the part along the weights, and their sizes as `|g| |w|`, which for a weight whose length does not count does
    not depend on it.
    """

    def tell(self, run: Run, weights: list[Weight]) -> dict[str, Any]:
        turned = self.turned()
        along, sizes = map(torch.cat, zip(*(gradient_and_weight(w, self.old[w.name]) for w in weights), strict=True))
        return {
            "late_turned": percentiles(torch.cat(list(turned.values()))),
            "late_size": percentiles(torch.cat([size_of(w) for w in weights])),
            "late_by_matrix": {name.removesuffix(".weight"): x.median().item() for name, x in turned.items()},
            "gradient_along": rms(along).item(),
            "gradient_size": percentiles(sizes),
        }


def size_of(w: Weight) -> Tensor:
    """`|w| / sqrt(fan_in)` of each neuron."""
    x = w.rows(w.parameter)
    return x.norm(dim=1) / x.shape[1] ** 0.5


def gradient_and_weight(w: Weight, old: Tensor) -> tuple[Tensor, Tensor]:
    """Of each neuron's gradient and its weight there, before the step: the cosine, and the product of their lengths."""
    gradient = w.parameter.grad
    assert gradient is not None
    a, b = w.rows(old), w.rows(gradient)
    size = a.norm(dim=1) * b.norm(dim=1)
    return (a * b).sum(1) / size, size


def percentiles(x: Tensor) -> list[float]:
    """The 5th, 50th and 95th, to four digits."""
    found = quantiles(x)
    return [float(f"{found[name]:.4g}") for name in ("p5", "p50", "p95")]


class Noise(NoiseScale):
    """The squared length of a batch's gradient in all block matrices: how much of it is signal, how much noise."""

    def after(self, run: Run) -> dict[str, Any]:
        rows = run.recipe.batch_size // run.data.row_size
        return {
            "signal": self.found["total_gradient_signal_of_matrices"],
            "noise": self.found["total_gradient_noise_of_matrices"] / rows,
        }


# --8<-- [end:probes]
# --8<-- [start:hand]
def by_hand() -> None:
    """The whole idea on a handful of numbers."""
    torch.manual_seed(0)
    layer = WeightStandardizedLinear(4, 1, bias=False, eps=0.0)
    x = torch.tensor([1.0, 0.5, -1.0, 2.0])
    print("A neuron with a standardized weight: four times the weight, the same answer, a quarter of the gradient.")
    for factor in (1.0, 4.0):
        with torch.no_grad():
            layer.weight.mul_(factor)
        layer.zero_grad()
        y = layer(x)
        y.sum().backward()
        w, g = layer.weight[0], layer.weight.grad
        assert g is not None
        print(
            f"|w| = {w.norm():.4f}   answer {y.item():+.4f}   |g| = {g.norm():.4f}   g along w {(w @ g[0]).item():+.4f}"
        )
    print("\nWhat AdamW does to such a neuron, by theory: the rate goes up to four times, and stays there.")
    before, after = (equilibrium(exponential(0.9), lr, weight_decay=0.5, fan_in=64) for lr in (0.006, 0.024))
    print("steps after   size of w   radians per step")
    for steps in (-1, 0, 20, 40, 80, 160):
        left = math.exp(-steps / after.steps) if steps >= 0 else 1.0
        norm = math.sqrt(after.norm**2 + (before.norm**2 - after.norm**2) * left)
        update = before.update if steps < 0 else after.update
        print(f"{'before' if steps < 0 else steps:>11}   {norm / 8:>9.4f}   {update / norm:>16.4f}")


# --8<-- [end:hand]


# --- claims -----------------------------------------------------------------------------------------------------------


def last(metrics: Metrics, key: str) -> Any:
    """What was logged last, a list or a number. Raises `ValueError` where a stop took the last window of the run."""
    step, value = series(metrics, key)[-1]
    if key != "predicted" and step != metrics[-1]["step"]:  # that is logged where it changes
        raise ValueError(
            f"{key} was not measured at the end, where the run was stopped and resumed; delete it, and rerun"
        )
    return value


def fast_over_slow(metrics: Metrics) -> float:
    """The 95th percentile of the neurons' rotation over the 5th."""
    slow, _, fast = last(metrics, "late_turned")
    return fast / slow


def powers_of_ten(metrics: Metrics) -> float:
    """The same of the sizes of their gradients, as a decimal logarithm."""
    small, _, large = last(metrics, "gradient_size")
    return math.log10(large / small) if small > 0 else math.inf


def median(key: str) -> Measure:
    """The middle neuron's value in the last window."""
    return lambda metrics: last(metrics, f"late_{key}")[1]


def over_predicted(key: str) -> Measure:
    """The middle neuron's value over the predicted one."""
    place = ("turned", "size").index(key)
    return lambda metrics: median(key)(metrics) / last(metrics, "predicted")[place]


def noise_share(metrics: Metrics) -> float:
    """How much of a batch gradient's squared length is noise, over the second half of the run."""
    signal, noise = (sum(x for _, x in series(metrics, key)[-5:]) for key in ("signal", "noise"))
    return noise / (noise + signal)


def final_bits(metrics: Metrics) -> float:
    """Validation loss at the end, in bits per byte."""
    return final("val_loss")(metrics) * BITS


def steps_of_change(runs: Runs) -> tuple[int, int]:
    """When the learning rate goes up, and when it comes back."""
    there, back = (int(runs.arms[CHANGED][f"schedules.*.lr.{name}"]) for name in ("there", "back"))
    return there, back


def turned_between(runs: Runs, seed: int, first: int, until: int) -> float:
    """The middle neuron's rotation, averaged over the windows that end after step `first`, up to step `until`."""
    return statistics.fmean(x[1] for step, x in series(runs.metrics(CHANGED, seed), "turned") if first < step <= until)


def at_once(runs: Runs, change: int) -> list[float]:
    """Rotation in the 10 steps after a change of the rate, over that in the 50 steps before it."""
    return [
        turned_between(runs, seed, change, change + 10) / turned_between(runs, seed, change - 50, change)
        for seed in runs.seeds
    ]


def in_the_end(runs: Runs) -> list[float]:
    """Rotation in the last 50 steps at four times the rate, over what is predicted there: twice that at the usual rate."""
    _, back = steps_of_change(runs)
    return [
        turned_between(runs, seed, back - 50, back) / (2 * last(runs.metrics(CHANGED, seed), "predicted")[0])
        for seed in runs.seeds
    ]


def relaxation(runs: Runs) -> list[float]:
    """Once the rate is back: in how many steps |w|^2 comes nearer to its end by a factor of e, over the predicted number.

    The end is where the run without a change ends.
    """
    _, back = steps_of_change(runs)
    text = runs.arms[CHANGED]
    predicted = 1 / (2 * float(text["make_optimizer.lr"]) * float(text["make_optimizer.weight_decay"]))
    found = []
    for seed in runs.seeds:
        squares = {step: x[1] ** 2 for step, x in series(runs.metrics(CHANGED, seed), "size")}
        end = median("size")(runs.metrics(STANDARDIZED, seed)) ** 2
        begin, final_step = back + 10, max(squares)
        fell = math.log((squares[begin] - end) / (squares[final_step] - end))
        found.append((final_step - begin) / fell / predicted)
    return found


# --8<-- [start:claims]
MEASURES = {
    "radians per step": median("turned"),
    "radians / predicted": over_predicted("turned"),
    "fast / slow": fast_over_slow,
    "size / predicted": over_predicted("size"),
    "gradients, powers of ten": powers_of_ten,
    "gradient along w": final("gradient_along"),
    "noise in the gradient": noise_share,
    "bits per byte": final_bits,
}
CLAIMS = [
    Claim(
        "gradients-across",
        "Standardized: the gradients have nothing along their neuron's weight (root mean square cosine)",
        lambda runs: runs.values(STANDARDIZED, final("gradient_along")),
        below=1e-5,
        kind="algebra",
        arms=(STANDARDIZED,),
    ),
    Claim(
        "gradients-along",
        "Plain: the gradients do point along their neuron's weight (root mean square cosine)",
        lambda runs: runs.values(PLAIN, final("gradient_along")),
        above=0.1,
        arms=(PLAIN,),
    ),
    Claim(
        "gradients-differ",
        "Standardized, AdamW: large gradients are more than 10 times as large as small ones (log10 of 95th / 5th)",
        lambda runs: runs.values(STANDARDIZED, powers_of_ten),
        above=1.0,
        arms=(STANDARDIZED,),
    ),
    Claim(
        "mostly-noise",
        "Standardized, AdamW: more than half of a batch gradient's squared length is noise (share)",
        lambda runs: runs.values(STANDARDIZED, noise_share),
        above=0.5,
        arms=(STANDARDIZED,),
    ),
    Claim(
        "on-the-line",
        "Standardized, AdamW: the middle neuron turns within 5 % as fast as predicted (measured / predicted)",
        lambda runs: runs.values(STANDARDIZED, over_predicted("turned")),
        within=(0.95, 1.05),
        arms=(STANDARDIZED,),
    ),
    Claim(
        "all-alike",
        "Standardized, AdamW: fast neurons turn less than 1.3 times as fast as slow ones (95th / 5th percentile)",
        lambda runs: runs.values(STANDARDIZED, fast_over_slow),
        below=1.3,
        arms=(STANDARDIZED,),
    ),
    Claim(
        "as-long",
        "Standardized, AdamW: the middle neuron is as long as predicted, within 12 % (measured / predicted)",
        lambda runs: runs.values(STANDARDIZED, over_predicted("size")),
        within=(0.88, 1.12),
        arms=(STANDARDIZED,),
    ),
    Claim(
        "l2-as-fast",
        "Standardized: with L2 the middle neuron turns as fast as with AdamW, within 10 % (ratio)",
        lambda runs: ratio(runs, STANDARDIZED_L2, STANDARDIZED, median("turned")),
        within=(0.9, 1.1),
        arms=(STANDARDIZED, STANDARDIZED_L2),
    ),
    Claim(
        "l2-unbalanced",
        "Standardized, Adam with L2: fast neurons turn more than twice as fast as slow ones (95th / 5th percentile)",
        lambda runs: runs.values(STANDARDIZED_L2, fast_over_slow),
        above=2.0,
        arms=(STANDARDIZED_L2,),
    ),
    Claim(
        "plain-not-alike",
        "AdamW: the spread of the plain network is more than 1.5 times that of the standardized one (ratio of 95th / 5th)",
        lambda runs: ratio(runs, PLAIN, STANDARDIZED, fast_over_slow),
        above=1.5,
        arms=(PLAIN, STANDARDIZED),
    ),
    Claim(
        "plain-better-than-l2",
        "Plain: AdamW's spread is less than half of that of Adam with L2 (ratio of the two 95th / 5th percentiles)",
        lambda runs: ratio(runs, PLAIN, PLAIN_L2, fast_over_slow),
        below=0.5,
        arms=(PLAIN, PLAIN_L2),
    ),
    Claim(
        "first-the-rate",
        "Four times the rate: in the next 10 steps the middle neuron turns more than 3 times as fast as before (ratio)",
        lambda runs: at_once(runs, steps_of_change(runs)[0]),
        above=3.0,
        arms=(CHANGED,),
    ),
    Claim(
        "then-its-root",
        "Four times the rate: in the end the middle neuron turns within 10 % as fast as predicted, which is twice as fast"
        " (measured / predicted)",
        in_the_end,
        within=(0.9, 1.1),
        arms=(CHANGED,),
    ),
    Claim(
        "and-back",
        "The rate back at a quarter: in the next 10 steps the middle neuron turns less than a third as fast (ratio)",
        lambda runs: at_once(runs, steps_of_change(runs)[1]),
        below=1 / 3,
        arms=(CHANGED,),
    ),
    Claim(
        "time-constant",
        "After that the middle |w|^2 goes to its end within 20 % of the predicted time (measured / predicted)",
        relaxation,
        within=(0.8, 1.2),
        arms=(CHANGED, STANDARDIZED),
    ),
    Claim(
        "short-run-breaks-it",
        "Too little decay for the run: the middle neuron turns more than twice as fast as predicted",
        lambda runs: runs.values(BROKEN, over_predicted("turned")),
        above=2.0,
        arms=(BROKEN,),
    ),
]
# --8<-- [end:claims]


# --- the picture ------------------------------------------------------------------------------------------------------

HEIGHT = 7.6  # inches
PANELS = {  # of the neurons' rotation: title and colour
    STANDARDIZED: ("Standardized, AdamW", "blue"),
    PLAIN: ("Plain, AdamW", "orange"),
    STANDARDIZED_L2: ("Standardized, L2", "green"),
    PLAIN_L2: ("Plain, L2", "pink"),
}


def draw(figure: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """Above: how far the neurons turn, by model and optimizer. Below: a rate that changes, and how long weights are."""
    above, below = figure.subfigures(2, 1, height_ratios=(4.6, 3.0))
    panels = above.subplots(2, 2, sharex=True, sharey="row").flat
    predicted, _ = means(runs, STANDARDIZED, "predicted")[-1][1]
    for axes, (arm, (title, color)) in zip(panels, PANELS.items(), strict=True):
        draw_neurons(axes, runs, arm, "turned", getattr(theme, color))
        axes.axhline(predicted, color=theme.ink, linestyle="--", linewidth=1.2, zorder=3)
        axes.set_title(title, color=getattr(theme, color), fontsize=11)
        axes.set(yscale="log", ylim=(4e-3, 4 if arm in (STANDARDIZED_L2, PLAIN_L2) else 0.4))
    for axes in (panels[0], panels[2]):
        axes.set_ylabel("Radians per step")
    for axes in (panels[2], panels[3]):
        axes.set_xlabel("Steps")
    label(panels[1], 0.4 * means(runs, PLAIN, "turned")[-1][0], predicted, "Predicted", theme.ink, xytext=(0, 30))
    if prediction is not None:
        step, (slow, _, _) = means(runs, STANDARDIZED, "turned")[-1]
        hollow(panels[0], step, slow * prediction, theme, "Your prediction", xytext=(-9, 0), ha="right")
    left, right = below.subplots(1, 2)
    draw_change(left, runs, theme)
    draw_sizes(right, runs, theme)


def means(runs: Runs, arm: str, key: str) -> list[tuple[int, list[float]]]:
    """A list of numbers at each step, as the mean over the seeds."""
    steps, lines = over_steps(runs, arm, key)
    each = ([statistics.fmean(x) for x in zip(*of_seeds, strict=True)] for of_seeds in zip(*lines, strict=True))
    return list(zip(steps, each, strict=True))


def draw_neurons(axes: Any, runs: Runs, arm: str, key: str, color: str, since: int = 0) -> None:
    """The middle neuron as a line, and a band from the 5th to the 95th percentile."""
    steps, values = zip(*[x for x in means(runs, arm, key) if x[0] > since], strict=True)
    slow, middle, fast = zip(*values, strict=True)
    axes.fill_between(steps, slow, fast, color=color, alpha=0.25, linewidth=0)
    axes.plot(steps, middle, color=color, linewidth=1.8)


def draw_change(axes: Any, runs: Runs, theme: Theme) -> None:
    """Rotation where the rate goes up to four times and back."""
    there, back = steps_of_change(runs)
    since = there - (back - there) // 2
    draw_neurons(axes, runs, CHANGED, "turned", theme.blue, since)
    before, during, _ = (x[0] for _, x in means(runs, CHANGED, "predicted")[-3:])
    end = means(runs, CHANGED, "turned")[-1][0]
    axes.plot([since, there, there, back, back, end], [before, before, during, during, before, before],
              color=theme.ink, linestyle="--", linewidth=1.2)  # fmt: skip
    axes.set(title="Rate x 4 and back", xlabel="Steps", ylabel="Radians per step", ylim=(0, None))


def draw_sizes(axes: Any, runs: Runs, theme: Theme) -> None:
    """How long the neurons' weights are."""
    for arm in (STANDARDIZED, PLAIN):
        draw_neurons(axes, runs, arm, "size", getattr(theme, PANELS[arm][1]))
    dashed = means(runs, STANDARDIZED, "predicted")[-1][1][1]
    axes.axhline(dashed, color=theme.ink, linestyle="--", linewidth=1.2, zorder=3)
    axes.set(title="Size of w", xlabel="Steps", ylim=(0, None))


if __name__ == "__main__":
    lesson_main(__file__)
