"""16 Online normalization. Question: a norm that only knows the samples before this one: what gradient should it give?

Batch norm asks the whole batch. Online norm asks its own running averages, so a batch of one will do, and its backward pass
must then be told what the batch would have told it. A stream of numbers shows that first, a small ResNet after it.

    python lessons/16_online_normalization.py                # --preset quick (default), cpu, record, gpu
"""

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minitrain.cli import lesson_main
from minitrain.data.download import cifar10
from minitrain.data.images import letters
from minitrain.lab.accuracy import share_right
from minitrain.lab.claims import Claim
from minitrain.lab.compare import Metrics, Runs, difference, final, ratio, series
from minitrain.lab.course import Predict
from minitrain.lab.plots import Theme, band, hollow, label
from minitrain.optim import SGD
from minitrain.recipe import Recipe
from minitrain.resnet import cifar_resnet, layer_norm
from minitrain.schedules import linear, warmup_stable_decay
from minitrain.techniques.online_norm import (
    OnlineNorm2d,
    for_batch_size,
    gradient_of_sample,
    normalize_sample,
)
from minitrain.train import Run

WITH, WITHOUT = "stream, with control", "stream, without control"
BATCH, ONLINE, LAYER = "batch norm", "online norm", "layer norm"
ONE, BROKEN = "online norm, one image a step", "broken: online norm without control"

# --8<-- [start:setup]
PREDICT = Predict(
    "Without control online norm hands back g / r. What is the cosine between that and a large batch's gradient?",
    low=-1.0,
    high=1.0,
    answer=lambda runs: statistics.fmean(runs.values(WITHOUT, final("late_cosine"))),
)
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2, "steps": 240},
    "cpu": {"seeds": 3, "one_by_one": True},
    "record": {"seeds": 6, "first_seed": 101, "one_by_one": True},
    "gpu": {  # the sizes and rates of the authors' CIFAR experiments
        "seeds": 3, "steps": 97_500, "batch_size": 128, "weight_decay": 2e-4, "depth": 20, "width": 16, "data": cifar10,
        "rates": {BATCH: 0.1, ONLINE: 0.1, LAYER: 0.1, BROKEN: 0.1}, "forward_decay": 1023 / 1024, "every": 3900,
        "schedule": "drops",
    },
}  # fmt: skip
RATES = {BATCH: 0.2, ONLINE: 0.2, LAYER: 0.1, BROKEN: 0.1}  # each the best of a pilot
LETTERS = partial(letters, train=4000)


def experiment(
    seeds: int,
    first_seed: int = 0,
    steps: int = 300,
    batch_size: int = 64,
    weight_decay: float = 2e-3,
    depth: int = 8,
    width: int = 8,
    data: Callable[[], Any] = LETTERS,
    rates: dict[str, float] = RATES,
    forward_decay: float = 0.99,
    every: int = 30,
    one_by_one: bool = False,
    schedule: Literal["up and down", "drops"] = "up and down",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, Any]:
    """A stream of 20,000 samples with control and without; then a ResNet with one norm after the other."""
    online = partial(OnlineNorm2d, forward_decay=forward_decay, backward_decay=127 / 128)
    norms = {
        BATCH: nn.BatchNorm2d,
        ONLINE: online,
        LAYER: layer_norm,
        BROKEN: partial(online, backward_decay=1.0),
    }
    base = Recipe(
        build_model=partial(cifar_resnet, depth=depth, width=width),
        data=data,
        steps=steps,
        batch_size=batch_size,
        precision=precision,
    )
    trained = {
        arm: replace(
            base,
            build_model=partial(cifar_resnet, depth=depth, width=width, norm=norm),
            make_optimizer=partial(SGD, lr=rates[arm], momentum=0.9, weight_decay=weight_decay),
            schedules={("*", "lr"): SCHEDULES[schedule](steps)},
        )
        for arm, norm in norms.items()
    }
    if one_by_one:
        images = steps * batch_size
        lr, momentum = for_batch_size(rates[ONLINE], 0.9, tuned_at=batch_size, batch_size=1)
        trained[ONE] = replace(
            trained[ONLINE],
            steps=images,
            batch_size=1,
            make_optimizer=partial(SGD, lr=lr, momentum=momentum, weight_decay=weight_decay),
            schedules={("*", "lr"): SCHEDULES[schedule](images)},
        )
    streams = {
        WITH: partial(stream, backward_decay=0.99, samples=20_000),
        WITHOUT: partial(stream, backward_decay=1.0, samples=20_000),
    }
    return {
        "arms": trained | streams,
        "seeds": range(first_seed, first_seed + seeds),
        "probes": (partial(Reading, every=every, images=every * batch_size),),
        "log_every": steps * batch_size,
        "evaluate_every": steps * batch_size,
    }


def up_and_down(steps: int) -> Callable[[int], float]:
    """A warmup of a tenth of the run, and in its second half down to zero in a straight line."""
    return partial(warmup_stable_decay, steps=steps, warmup=steps // 10, cooldown=steps // 2, shape=linear)


def drops(steps: int) -> Callable[[int], float]:
    """A tenth of the rate after 40, 60 and 80 % of the run, each time."""
    return partial(dropped, at=(2 * steps // 5, 3 * steps // 5, 4 * steps // 5))


def dropped(step: int, at: tuple[int, ...]) -> float:
    """A factor of 0.1 for each of these steps that has come."""
    return 0.1 ** sum(step >= drop for drop in at)


SCHEDULES = {"up and down": up_and_down, "drops": drops}


# --8<-- [end:setup]
# --8<-- [start:stream]
def stream(
    seed: int, backward_decay: float, samples: int, channels: int = 8, window: int = 500
) -> list[dict[str, Any]]:
    """Online norm on a stream whose gradients break both conditions, beside batch norm with the whole stream as its batch.

    A line every `window` samples: the `cosine` of the two gradients in it, and what is left of the conditions since the
    start, in units of `g`: the mean of `g'` as `sum`, of `g' y` as `along`. The last line has `late_cosine`, over all but
    the first 5,000 samples, in which the averages find the stream.
    """
    random = torch.Generator().manual_seed(seed)
    noise, other = (torch.randn(samples, channels, generator=random, dtype=torch.float64) for _ in range(2))
    x = 2 + 3 * noise
    g = 0.5 + 0.7 * noise + other
    layer = OnlineNorm2d(channels, 0.999, backward_decay, guard="none", affine=False)
    y, back = through(layer, x, g)
    _, true = through(nn.BatchNorm1d(channels, affine=False), x, g)
    lines: list[dict[str, Any]] = []
    for end in range(window, samples + 1, window):
        part = slice(end - window, end)
        lines.append(
            {
                "step": end,
                "cosine": F.cosine_similarity(back[part], true[part], dim=0).mean().item(),
                "sum": 3 * root_mean_square(back[:end].mean(0)),
                "along": 3 * root_mean_square((back * y)[:end].mean(0)),
            }
        )
    late = slice(samples // 4, None)
    lines[-1]["late_cosine"] = F.cosine_similarity(back[late], true[late], dim=0).mean().item()
    return lines


def through(layer: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's output and the gradient that it hands back."""
    x = x.detach().clone().requires_grad_()
    y = layer.double()(x)
    (back,) = torch.autograd.grad(y, x, g)
    return y.detach(), back


def root_mean_square(x: Tensor) -> float:
    """Of all its numbers."""
    return x.square().mean().sqrt().item()


# --8<-- [end:stream]
# --8<-- [start:probe]
class Reading:
    """A probe of what a network reads rightly, every `images` images; and of the sums that the controllers hold.

    `every` counts steps, so that arms of other batch sizes are measured at the same images. Logs `val_accuracy`; where there
    are online norms also `sum` and `along`, the root mean squares of their `u` and `v`: sums over all images, kept with
    control and without, of the means of `g'` and of `h y`.
    """

    needs_data = True

    def __init__(self, every: int, images: int):
        self.every, self.images = every, images

    def before(self, run: Run) -> None:
        pass

    def after(self, run: Run) -> dict[str, float]:
        seen = run.step * run.recipe.batch_size
        if seen % self.images:
            return {}
        layers = [module for module in run.model.modules() if isinstance(module, OnlineNorm2d)]
        sums = {
            key: root_mean_square(torch.cat([getattr(layer, name) for layer in layers]))
            for key, name in (("sum", "u"), ("along", "v"))
            if layers
        }
        return {"images": seen, "val_accuracy": share_right(run, run.data.validation(250))} | sums


# --8<-- [end:probe]
# --8<-- [start:hand]
def by_hand() -> None:
    """The whole idea on a handful of numbers."""
    print("One channel and a stream of numbers; its averages reach back about ten of them. The way forward:")
    x = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 3.0]).repeat(50)
    g = torch.tensor([1.0, 0.2, 1.4, 0.3, 1.6, 0.9]).repeat(50)  # grows with x, and is positive: breaks both conditions
    m, s, passed = torch.zeros(1), torch.ones(1), []
    for i, one in enumerate(x):
        known = f"mean {m.item():.3f}, r {(s.item() + 1e-5) ** 0.5:.3f}"
        y, r, m, s = normalize_sample(one.view(1, 1), m, s, decay=0.9, eps=1e-5)
        passed.append((y, r))
        if i < 6:
            print(f"x = {one:.1f}   known so far: {known}   y = {y.item():+.3f}")
    print("\nThe way back, where each gradient is told what those before it left over:")
    u, v, plain = torch.zeros(1), torch.zeros(1), 0.0
    for i, (one, (y, r)) in enumerate(zip(g, passed, strict=True)):
        known = f"u {u.item():+.3f}, v {v.item():+.3f}"
        back, u, v = gradient_of_sample(one.view(1, 1), y, r, u, v, decay=0.9)
        plain += (one / r).item()
        if i < 6:
            print(f"g = {one:.1f}   g / r = {(one / r).item():+.3f}   {known}   g' = {back.item():+.3f}")
    print(f"\nThe mean over {len(x)} numbers: of g / r {plain / len(x):+.4f}, of g' {u.item() / len(x):+.4f}")


# --8<-- [end:hand]


# --- claims -----------------------------------------------------------------------------------------------------------


def percent(metrics: Metrics) -> float:
    """Validation letters that are read rightly at the end, of 100."""
    return 100 * final("val_accuracy")(metrics)


def better(arm: str, baseline: str) -> Callable[[Runs], list[float]]:
    """How many letters of 100 more an arm reads rightly than another."""
    return lambda runs: difference(runs, arm, baseline, percent)


def share_of_gap(runs: Runs) -> list[float]:
    """Of the way from layer norm to batch norm in letters read rightly, how much online norm goes."""
    layer, online, batch = (runs.values(arm, percent) for arm in (LAYER, ONLINE, BATCH))
    return [(middle - low) / (high - low) for low, middle, high in zip(layer, online, batch, strict=True)]


# --8<-- [start:claims]
MEASURES = {
    "read rightly, %": percent,
    "cosine": final("late_cosine"),
    "left of the sum": final("sum"),
    "left along y": final("along"),
}
CLAIMS = [
    Claim(
        "control-gives-the-gradient",
        "Stream: with control the gradient is that of batch norm with a large batch (cosine)",
        lambda runs: runs.values(WITH, final("late_cosine")),
        above=0.99,
        kind="simulation",
        arms=(WITH,),
    ),
    Claim(
        "no-control-does-not",
        "Stream: without control it is not (cosine)",
        lambda runs: runs.values(WITHOUT, final("late_cosine")),
        below=0.9,
        kind="simulation",
        arms=(WITHOUT,),
    ),
    Claim(
        "conditions-hold",
        "Stream: with control both conditions hold on average over the stream (the larger remainder, in units of g)",
        lambda runs: runs.values(WITH, lambda metrics: max(final("sum")(metrics), final("along")(metrics))),
        below=0.01,
        kind="simulation",
        arms=(WITH,),
    ),
    Claim(
        "conditions-broken",
        "Stream: without control neither does (the smaller remainder, in units of g)",
        lambda runs: runs.values(WITHOUT, lambda metrics: min(final("sum")(metrics), final("along")(metrics))),
        above=0.3,
        kind="simulation",
        arms=(WITHOUT,),
    ),
    Claim(
        "control-acts",
        "ResNet: without control more than twice as much is left of the gradients' sums, over the run (ratio)",
        lambda runs: ratio(runs, BROKEN, ONLINE, final("sum")),
        above=2.0,
        arms=(ONLINE, BROKEN),
    ),
    Claim(
        "most-of-the-gap",
        "Online norm makes up for more than three quarters of what layer norm loses against batch norm (share)",
        share_of_gap,
        above=0.75,
        arms=(BATCH, ONLINE, LAYER),
    ),
    Claim(
        "as-good-as-batch-norm",
        "Online norm reads as many letters rightly as batch norm, within 5 of 100",
        better(ONLINE, BATCH),
        within=(-5.0, 5.0),
        unit="points",
        arms=(ONLINE, BATCH),
    ),
    Claim(
        "control-is-needed",
        "Without control fewer letters are read rightly than with it, by more than 20 of 100",
        better(ONLINE, BROKEN),
        above=20.0,
        unit="points",
        arms=(ONLINE, BROKEN),
    ),
    Claim(
        "one-image-a-step",
        "With one image a step at most 10 letters of 100 fewer are read rightly than with 64",
        better(ONE, ONLINE),
        above=-10.0,
        unit="points",
        arms=(ONE, ONLINE),
    ),
]
# --8<-- [end:claims]


# --- the picture ------------------------------------------------------------------------------------------------------

HEIGHT = 6.4  # inches
COLORS = {
    BATCH: ("blue", "Batch norm"),
    ONLINE: ("green", "Online norm"),
    ONE: ("orange", "Online, one image a step"),
    LAYER: ("grey", "Layer norm"),
    BROKEN: ("red", "Online, no control"),
}


def draw(figure: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """Above: the gradients of a stream beside those of a large batch. Below: what the networks read."""
    above, below = figure.subplots(2, 1, height_ratios=(2, 3))
    for arm, color, words, where in (
        (WITH, theme.green, "With control", (0, -12)),
        (WITHOUT, theme.red, "Without", (0, -12)),
    ):
        lines = [series(runs.metrics(arm, seed), "cosine") for seed in runs.seeds]
        steps = [step / 1000 for step, _ in lines[0]]
        band(above, steps, [[x for _, x in line] for line in lines], color)
        last = statistics.fmean(line[-1][1] for line in lines)
        label(above, steps[-1], last, words, color, xytext=where, ha="right")
    above.set(title="Cosine with a large batch's gradient", xlabel="Thousand samples", ylim=(0, 1.04), xlim=(0, None))
    above.set_xticks(range(0, 21, 5))
    if prediction is not None:
        hollow(above, 20, prediction, theme, xytext=(-9, 0), ha="right")
    for arm, (color, words) in COLORS.items():
        if arm in runs.arms:
            draw_reading(below, runs, arm, getattr(theme, color), words)
    below.set(title="Letters read rightly", xlabel="Thousand images trained on", ylabel="Percent", ylim=(0, 100))
    below.set_xlim(0, None)
    below.locator_params(axis="x", nbins=5, integer=True)
    below.legend(fontsize="small", loc="upper left", labelcolor="linecolor", handlelength=0.8)


def draw_reading(axes: Any, runs: Runs, arm: str, color: str, words: str) -> None:
    """Validation accuracy over images, a band of the seeds."""
    metrics = [[line for line in runs.metrics(arm, seed) if "images" in line] for seed in runs.seeds]
    images = [line["images"] / 1000 for line in metrics[0]]
    band(axes, images, [[100 * line["val_accuracy"] for line in lines] for lines in metrics], color, label=words)


if __name__ == "__main__":
    lesson_main(__file__)
