"""14 Train a ResNet. Question: what does batch norm do for a filter that layer norm does not, and can one make up for it?

The same loop and the same recipe as for text, now with images: a small residual network learns to read letters, with batch
norm, with layer norm, and with layer norm and one of two remedies from earlier lessons.

    python lessons/14_train_a_resnet.py                # --preset quick (default), cpu, record, gpu
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from minitrain.cli import lesson_main
from minitrain.data.download import cifar10
from minitrain.data.images import letters
from minitrain.lab.accuracy import Accuracy
from minitrain.lab.claims import Claim
from minitrain.lab.compare import Measure, Metrics, Runs, final, series
from minitrain.lab.course import Predict
from minitrain.lab.plots import Theme, hollow, label, u_curve
from minitrain.lab.probes import Rotation, angle, quantiles, rms
from minitrain.optim import SGD
from minitrain.recipe import Recipe
from minitrain.resnet import cifar_resnet, layer_norm, resnet18
from minitrain.schedules import linear, warmup_stable_decay
from minitrain.techniques.rotational import RotationalSGD
from minitrain.techniques.weight_standardization import weight_standardized

BATCH, LAYER = "batch norm", "layer norm"
STANDARDIZED, TURNING = "layer norm, standardized weights", "layer norm, rotational SGD"
BROKEN = "broken: no norm"

# --8<-- [start:setup]
RESNET_8, LETTERS = partial(cifar_resnet, depth=8), partial(letters, train=4000)
PREDICT = Predict(
    "Layer norm: in a layer of 8 to 32 filters, how many times as far as the slowest does the fastest turn in a step?",
    low=1.0,
    high=100.0,
    answer=lambda runs: statistics.fmean(runs.values(LAYER, spread, runs.best_lr(LAYER, wrong))),
)
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2, "rates": (0.25,)},
    "cpu": {"seeds": 4, "rates": (0.1, 0.25, 0.6)},
    "record": {"seeds": 8, "first_seed": 101, "rates": (0.1, 0.25, 0.6)},
    "gpu": {
        "seeds": 2, "rates": (0.03, 0.1, 0.3), "steps": 8000, "batch_size": 256, "weight_decay": 5e-4,
        "model": resnet18, "width": 64, "data": cifar10, "precision": "bf16",
    },
}  # fmt: skip


def experiment(
    seeds: int,
    rates: tuple[float, ...],
    first_seed: int = 0,
    steps: int = 300,
    batch_size: int = 64,
    weight_decay: float = 2e-3,
    model: Callable[..., nn.Module] = RESNET_8,
    width: int = 8,
    data: Callable[[], Any] = LETTERS,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, Any]:
    """Batch norm, layer norm alone and with what might make up for the difference, and no norm; each over learning rates."""
    sgd = partial(SGD, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    layer_normed = partial(model, width=width, norm=layer_norm)
    base = Recipe(
        build_model=partial(model, width=width, norm=nn.BatchNorm2d),
        data=data,
        steps=steps,
        batch_size=batch_size,
        make_optimizer=sgd,
        schedules={
            ("*", "lr"): partial(
                warmup_stable_decay, steps=steps, warmup=steps // 10, cooldown=steps // 2, shape=linear
            )
        },
        precision=precision,
    )
    return {
        "arms": {
            BATCH: base,
            LAYER: replace(base, build_model=layer_normed),
            STANDARDIZED: replace(base, build_model=partial(weight_standardized, layer_normed, eps=0.0)),
            TURNING: replace(base, build_model=layer_normed, make_optimizer=partial(RotationalSGD, **sgd.keywords)),
            BROKEN: replace(base, build_model=partial(model, width=width, norm=nn.Identity)),
        },
        "seeds": range(first_seed, first_seed + seeds),
        "learning_rates": list(rates),
        "probes": (partial(Filters, every=steps // 10), partial(Accuracy, every=steps // 5, seen=1000)),
        "log_every": steps // 5,
        "evaluate_every": steps,
    }


# --8<-- [end:setup]
# --8<-- [start:probe]
class Filters(Rotation):
    """A probe of the filters inside the blocks in one step: how far they turn, how unequally, and what their gradients are.

    Logs `turned`, the root mean square of their angles in radians; `spread`, in a layer the 95th percentile of the angles
    over the 5th, as the geometric mean of the layers; and `along`, the root mean square cosine between gradient and
    filter, by the layer's place in its block.
    """

    @torch.no_grad()
    def after(self, run: Any) -> dict[str, Any]:
        inside = [w for w in self.weights(run) if w.name.startswith("blocks.")]
        angles = [angle(w.rows(self.old[w.name]), w.rows(w.values)) for w in inside]
        along: dict[str, list[Tensor]] = {}
        for w in inside:
            assert w.parameter.grad is not None
            cosines = torch.cosine_similarity(w.rows(self.old[w.name]), w.rows(w.parameter.grad), dim=1)
            along.setdefault(w.name.split(".")[2], []).append(cosines)
        spreads = [math.log(q["p95"] / q["p5"]) for q in map(quantiles, angles) if q["p5"] > 0]
        self.old = {}
        return {
            "turned": four_digits(rms(torch.cat(angles))),
            "spread": four_digits(math.exp(statistics.fmean(spreads))) if spreads else math.nan,
            "along": {place: four_digits(rms(torch.cat(found))) for place, found in along.items()},
        }


def four_digits(x: Tensor | float) -> float:
    """All that a record needs."""
    return float(f"{float(x):.4g}")


# --8<-- [end:probe]
# --8<-- [start:hand]
def by_hand() -> None:
    """What either norm knows of a single filter's length."""
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    print("A convolution with a norm behind it. The first of its four filters is made four times as long.")
    print("                         output   length of its gradient   cosine of the two")
    for name, norm in (("batch norm", nn.BatchNorm2d(4)), ("layer norm", layer_norm(4)), ("no norm", nn.Identity())):
        torch.manual_seed(1)
        conv, answers = nn.Conv2d(3, 4, 3, bias=False), []
        for factor in (1.0, 4.0):
            with torch.no_grad():
                conv.weight[0].mul_(factor)
            conv.zero_grad()
            y = norm(conv(images))
            y.pow(3).mean().backward()
            w, g = conv.weight[0].detach().flatten(), conv.weight.grad
            assert g is not None
            answers.append((y[0, 0, 0, 0].item(), g[0].norm().item(), torch.cosine_similarity(w, g[0].flatten(), 0)))
        for words, (value, size, cosine) in zip(("as it was", "four times"), answers, strict=True):
            print(f"{name + ', ' + words:<22} {value:>+8.4f} {size:>28.4f} {cosine:>+16.4f}")


# --8<-- [end:hand]


# --- claims -----------------------------------------------------------------------------------------------------------


# --8<-- [start:claims]
def wrong(metrics: Metrics) -> float:
    """Validation letters that are read wrong at the end, in percent."""
    return 100 * (1 - final("val_accuracy")(metrics))


def wrong_in_training(metrics: Metrics) -> float:
    """The same of a thousand training letters."""
    return 100 * (1 - final("train_accuracy")(metrics))


def halfway(key: str) -> Measure:
    """The mean from the end of the warmup to the beginning of the cooldown, while the rate is constant."""

    def measure(metrics: Metrics) -> float:
        last = metrics[-1]["step"]
        return statistics.fmean(x for step, x in series(metrics, key) if last / 10 < step <= last / 2)

    return measure


PLACES = ("conv1", "conv2", "shortcut")  # of a filter in its block
spread = halfway("spread")
MEASURES = {
    "wrong, %": wrong,
    "wrong in training, %": wrong_in_training,
    "fast / slow": spread,
    "radians per step": halfway("turned"),
    "gradient along conv1": halfway("along.conv1"),
    "gradient along conv2": halfway("along.conv2"),
}


def at_best(arm: str, measure: Measure) -> Callable[[Runs], list[float]]:
    """A measure at the learning rate that is best for an arm on the average, per seed."""
    return lambda runs: runs.values(arm, measure, runs.best_lr(arm, wrong))


def more_wrong(arm: str, beside: str) -> Callable[[Runs], list[float]]:
    """How many more of a hundred letters an arm reads wrong than another, each at its best rate, per seed."""
    return lambda runs: [a - b for a, b in zip(at_best(arm, wrong)(runs), at_best(beside, wrong)(runs), strict=True)]


def ratio_at_best(arm: str, beside: str, measure: Measure) -> Callable[[Runs], list[float]]:
    """The same as a ratio of another measure."""
    return lambda runs: [
        a / b for a, b in zip(at_best(arm, measure)(runs), at_best(beside, measure)(runs), strict=True)
    ]


def best_remedy(runs: Runs) -> list[float]:
    """How many more letters the better one of the two remedies reads wrong than batch norm, per seed."""
    return min((more_wrong(arm, BATCH)(runs) for arm in (STANDARDIZED, TURNING)), key=statistics.fmean)


CLAIMS = [
    Claim(
        "batch-norm-across",
        "Batch norm: gradients of filters with a norm right behind them have nothing along the filter (cosine)",
        at_best(BATCH, halfway("along.conv1")),
        below=1e-3,
        kind="algebra",
        arms=(BATCH,),
    ),
    Claim(
        "layer-norm-along",
        "Layer norm: they do have (cosine)",
        at_best(LAYER, halfway("along.conv1")),
        above=0.05,
        arms=(LAYER,),
    ),
    Claim(
        "standardized-across",
        "Layer norm, standardized weights: gradients of all filters have nothing along them, wherever norms stand (cosine)",
        at_best(STANDARDIZED, lambda metrics: max(halfway(f"along.{x}")(metrics) for x in PLACES)),
        below=1e-5,
        kind="algebra",
        arms=(STANDARDIZED,),
    ),
    Claim(
        "batch-norm-reads-better",
        "Batch norm reads fewer letters wrong than layer norm, by more than 5 of 100, each at its best rate",
        more_wrong(LAYER, BATCH),
        above=5.0,
        unit="points",
        arms=(LAYER, BATCH),
    ),
    Claim(
        "batch-norm-balances",
        "Batch norm: the filters of a layer turn less unequally than under layer norm (fast / slow, as a ratio of the two)",
        ratio_at_best(BATCH, LAYER, spread),
        below=1.0,
        arms=(BATCH, LAYER),
    ),
    Claim(
        "standardized-balances",
        "Exploratory: with standardized weights they turn less unequally than with layer norm alone (ratio)",
        ratio_at_best(STANDARDIZED, LAYER, spread),
        below=1.0,
        arms=(STANDARDIZED, LAYER),
    ),
    Claim(
        "rotational-balances",
        "Exploratory: with rotational SGD they turn less unequally than with layer norm alone (ratio)",
        ratio_at_best(TURNING, LAYER, spread),
        below=1.0,
        arms=(TURNING, LAYER),
    ),
    Claim(
        "standardized-helps",
        "Exploratory: with standardized weights fewer letters are read wrong than with layer norm alone",
        more_wrong(STANDARDIZED, LAYER),
        below=0.0,
        unit="points",
        arms=(STANDARDIZED, LAYER),
    ),
    Claim(
        "rotational-helps",
        "Exploratory: with rotational SGD fewer letters are read wrong than with layer norm alone",
        more_wrong(TURNING, LAYER),
        below=0.0,
        unit="points",
        arms=(TURNING, LAYER),
    ),
    Claim(
        "rotational-is-faster",
        "With rotational SGD filters also turn more than twice as far per step as with layer norm alone (ratio)",
        ratio_at_best(TURNING, LAYER, halfway("turned")),
        above=2.0,
        arms=(TURNING, LAYER),
    ),
    Claim(
        "batch-norm-stays-ahead",
        "Exploratory: batch norm reads fewer letters wrong than the better of the two remedies",
        best_remedy,
        above=0.0,
        unit="points",
        arms=(STANDARDIZED, TURNING, BATCH),
    ),
    Claim(
        "new-fonts-are-harder",
        "Batch norm: of letters in fonts never seen, more are read wrong than of those in training, by more than 3 of 100",
        lambda runs: [
            a - b for a, b in zip(at_best(BATCH, wrong)(runs), at_best(BATCH, wrong_in_training)(runs), strict=True)
        ],
        above=3.0,
        unit="points",
        arms=(BATCH,),
    ),
    Claim(
        "no-norm-learns-little",
        "Without any norm more than 20 letters of 100 more are read wrong than with batch norm, each at its best rate",
        more_wrong(BROKEN, BATCH),
        above=20.0,
        unit="points",
        arms=(BROKEN, BATCH),
    ),
]
# --8<-- [end:claims]


# --- the picture ------------------------------------------------------------------------------------------------------

HEIGHT = 7.6  # inches
COLORS = {  # and words beside a curve
    BATCH: ("blue", "Batch norm"),
    LAYER: ("red", "Layer norm"),
    STANDARDIZED: ("orange", "Layer norm, standardized"),
    TURNING: ("green", "Layer norm, rotational"),
    BROKEN: ("grey", "No norm"),
}


def draw(figure: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """Above: letters read wrong, over the learning rates. Below: how unequally the filters of a layer turn."""
    above, below = figure.subplots(2, 1, height_ratios=(3, 2.4))
    draw_wrong(above, runs, theme)
    draw_spread(below, runs, theme, prediction)


def draw_wrong(axes: Any, runs: Runs, theme: Theme) -> None:
    """The sweeps."""
    for arm, (color, words) in COLORS.items():
        u_curve(axes, runs, arm, wrong, getattr(theme, color))
        axes.plot([], [], color=getattr(theme, color), label=words)
    axes.legend(
        fontsize="small", loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, labelcolor="linecolor", handlelength=0.8
    )
    axes.set(xlabel="Learning rate", ylabel="Percent", xscale="log", ylim=(0, 95))
    axes.set_xticks(runs.learning_rates, [f"{lr:g}" for lr in runs.learning_rates])
    axes.minorticks_off()
    axes.set_title("Letters read wrong, in new fonts")


def draw_spread(axes: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """A dot a seed, each arm at its best rate."""
    for y, (arm, (color, words)) in enumerate(COLORS.items()):
        values = at_best(arm, spread)(runs)
        axes.plot(values, [y] * len(values), "o", color=getattr(theme, color), markersize=6, alpha=0.6)
        label(axes, statistics.geometric_mean(values), y, words, getattr(theme, color), xytext=(0, 11), ha="center")
        if arm == LAYER and prediction is not None:
            side: dict[str, Any] = {} if prediction < 14 else {"xytext": (0, 11), "ha": "right"}
            if prediction < statistics.geometric_mean(values):
                side = {"xytext": (-9, 0), "ha": "right"}
            hollow(axes, prediction, y, theme, **side)
    axes.set(
        xscale="log", xlabel="Times as far, the 95th percentile over the 5th", yticks=[], ylim=(len(COLORS) - 0.5, -0.8)
    )
    axes.set_xlim(1, None)
    ticks = [1, 2, 3, 5, 10, 20, 50]
    axes.set_xticks(ticks, [f"{x}" for x in ticks])
    axes.minorticks_off()
    axes.spines["left"].set_visible(False)
    axes.set_title("Fast and slow filters of a layer")


if __name__ == "__main__":
    lesson_main(__file__)
