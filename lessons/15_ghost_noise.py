"""15 Ghost noise. Question: is batch norm's noise worth having, and can it be had without batch norm's small batches?

What a sample becomes in batch norm depends on who else is in its batch. The lesson takes that noise apart from the
normalization, exactly, looks at its cloud, and then trains a small ResNet on few letters with more and with less of it.

    python lessons/15_ghost_noise.py                # --preset quick (default), cpu, record, gpu
"""

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minitrain.cli import lesson_main
from minitrain.data.download import cifar10
from minitrain.data.images import letters
from minitrain.lab.accuracy import Accuracy
from minitrain.lab.claims import Claim
from minitrain.lab.compare import Metrics, Runs, difference, final, mean_late
from minitrain.lab.course import Predict
from minitrain.lab.intervals import mean_interval
from minitrain.lab.plots import Theme, hollow, label
from minitrain.optim import SGD
from minitrain.recipe import Recipe
from minitrain.resnet import ResNet, layer_norm, resnet18
from minitrain.schedules import cosine_shape, linear, warmup_stable_decay
from minitrain.techniques.ghost_noise import (
    ExclusiveBatchNorm2d,
    GhostBatchNorm2d,
    NoisyAffine,
    ghost_noise,
    inject,
    instance_moments,
    noisy_batch_norm,
    noisy_layer_norm,
)

BATCH, SAME, MUCH = "batch norm", "batch norm, rate 0.3", "broken: noise 4"
LAYER, LAYER_NOISE = "layer norm", "layer norm, noise 64"
PIXELS, NO_PIXELS, EXACT = "cloud: images", "cloud: no pixels", "identities"
LETTERS = partial(letters, train=1000, pad=0)
N = 16


# --8<-- [start:setup]
class HalfSize(ResNet):
    """A ResNet that looks at every image at half its height and width, for a quarter of the time."""

    def features(self, images: Tensor) -> Tensor:
        return super().features(F.avg_pool2d(images, 2))


def small_resnet(norm: Callable[[int], nn.Module], width: int = 16) -> ResNet:
    """Three blocks."""
    return HalfSize([(width, 1), (2 * width, 1), (4 * width, 1)], norm=norm)


# Each with its learning rate: the best of a pilot for batch norm, for noise and for ghost batch norm.
NORMS: dict[str, tuple[Callable[[int], nn.Module], float]] = {
    BATCH: (nn.BatchNorm2d, 0.6),
    SAME: (nn.BatchNorm2d, 0.3),
    "noise 16": (partial(noisy_batch_norm, ghost_batch_size=16), 0.3),
    "noise 32": (partial(noisy_batch_norm, ghost_batch_size=32), 0.3),
    "ghost batch norm 8": (partial(GhostBatchNorm2d, ghost_batch_size=8), 0.6),
    "ghost batch norm 16": (partial(GhostBatchNorm2d, ghost_batch_size=16), 0.6),
    MUCH: (partial(noisy_batch_norm, ghost_batch_size=4), 0.3),
    LAYER: (layer_norm, 0.3),
    LAYER_NOISE: (partial(noisy_layer_norm, ghost_batch_size=64), 0.3),
}
PREDICT = Predict(
    "Batch norm reads about 88 of 100 letters of unseen fonts. How many with the noise of ghost batches of 16 on top?",
    low=0.0,
    high=100.0,
    answer=lambda runs: statistics.fmean(runs.values(f"noise {N}", accuracy)),
)
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2, "steps": 200, "norms": tuple(NORMS)[:7]},
    "cpu": {"seeds": 4},
    "record": {"seeds": 41, "first_seed": 201},
    "gpu": {
        "seeds": 3, "steps": 39_063, "batch_size": 256, "lr": 0.3, "warmup": 0.025, "cooldown": 0.975, "shape": cosine_shape,
        "norms": (BATCH, "noise 16", "noise 32", "ghost batch norm 16"), "model": resnet18, "data": cifar10,
        "precision": "bf16",
    },
}  # fmt: skip


def experiment(
    seeds: int,
    first_seed: int = 0,
    steps: int = 300,
    batch_size: int = 64,
    lr: float | None = None,
    warmup: float = 0.1,
    cooldown: float = 0.5,
    shape: Callable[[float], float] = linear,
    norms: tuple[str, ...] = tuple(NORMS),
    model: Callable[..., nn.Module] = small_resnet,
    data: Callable[[], Any] = LETTERS,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, Any]:
    """One network with many norms; and, without training, clouds of noise and what holds exactly.

    `warmup` and `cooldown`, which has a `shape`, are shares of the steps. With `lr` all arms have that learning rate.
    """

    def recipe(norm: Callable[[int], nn.Module], rate: float, steps: int) -> Recipe:
        schedule = partial(
            warmup_stable_decay, steps=steps, warmup=int(warmup * steps), cooldown=int(cooldown * steps), shape=shape
        )
        return Recipe(
            build_model=partial(model, norm=norm),
            data=data,
            steps=steps,
            batch_size=batch_size,
            make_optimizer=partial(SGD, lr=lr or rate, momentum=0.9, nesterov=True, weight_decay=5e-4),
            schedules={("*", "lr"): schedule},
            precision=precision,
        )

    # Layer norm takes longer to know its letters.
    arms: dict[str, Any] = {
        name: recipe(*NORMS[name], steps * (2 if name in (LAYER, LAYER_NOISE) else 1)) for name in norms
    }
    arms |= {PIXELS: partial(cloud, pixels=True), NO_PIXELS: partial(cloud, pixels=False), EXACT: identities}
    return {
        "arms": arms,
        "seeds": range(first_seed, first_seed + seeds),
        "probes": (partial(Accuracy, every=steps, seen=500),),
        "log_every": steps // 10,
        "evaluate_every": steps,
    }


# --8<-- [end:setup]
# --8<-- [start:cloud]
def activations(seed: int, pixels: bool) -> Tensor:
    """Sixteen channels of an untrained network for 64 letters: its stem's images, or the means behind its blocks."""
    torch.manual_seed(seed)
    model = small_resnet(nn.BatchNorm2d)
    images, _ = LETTERS().batch(seed, 0, 64)
    with torch.no_grad():
        x = model.stem(F.avg_pool2d(images, 2)) if pixels else model.features(images)[:, :16]
    return x.double()


def normalized(x: Tensor) -> Tensor:
    """By the moments of each channel over the batch, exactly."""
    a, q = instance_moments(x)
    mu = a.mean(0, keepdim=True).expand_as(a)
    return inject(x, mu, (q.mean(0) - mu * mu).sqrt())


def cloud(seed: int, pixels: bool, draws: int = 100_000) -> Metrics:
    """Many ghost batches of the same batch: their moments over what these should be, and some of them to look at."""
    a, q = instance_moments(normalized(activations(seed, pixels)))
    B, C = a.shape
    cov = a.T @ a / B  # the channels' means are 0
    V, apart = cov.diagonal(), ~torch.eye(C, dtype=torch.bool)
    shift, scale = ghost_noise(a, q, torch.randint(B, (draws, N)), eps=0.0)
    found = shift.T @ shift / draws
    partition, _ = ghost_noise(a, q, torch.rand(draws, B).argsort(1)[:, :N], eps=0.0)
    analytic_shift, analytic_scale = NoisyAffine(N).draw(torch.zeros(draws, 1), None)
    return [
        {
            "step": 0,
            "bias": (shift.mean(0) / (V / N).sqrt()).mean().item(),
            "variance": (found.diagonal() / (V / N)).mean().item(),
            "covariance": ((found * cov)[apart].sum() / (cov * cov / N)[apart].sum()).item(),
            "missing": ((1 - scale.square().mean(0)).sum() / (V / N).sum()).item(),
            "partition": (partition.square().mean(0) / (V / N * (B - N) / (B - 1))).mean().item(),
            "analytic": (analytic_shift.square().mean() * N).item(),
            "inverse": (1 / analytic_scale).mean().item() / inverse_scale(N),
            "points": [
                [round(s.item(), 3), round(c.item(), 3)] for s, c in zip(shift[:60, 0], scale[:60, 0], strict=True)
            ],
            "channel": V[0].sqrt().item(),
        }
    ]


def inverse_scale(n: int) -> float:
    """The mean of `1 / scale` where `n scale^2` is chi-squared with n - 1 degrees of freedom."""
    return math.sqrt(n / 2) * math.exp(math.lgamma((n - 2) / 2) - math.lgamma((n - 1) / 2))


# --8<-- [end:cloud]
# --8<-- [start:identities]
def identities(seed: int) -> Metrics:
    """Ghost batch norm less noise on batch norm, in the largest place; and how a sample's output sees the sample."""
    x = activations(seed, pixels=True)
    z = normalized(x)
    own = torch.arange(64).view(-1, 1, N).expand(-1, N, -1).reshape(64, N)  # a row: who is in that sample's ghost batch
    noise = ghost_noise(*instance_moments(z), own, eps=0.0)
    ghost, exclusive = (kind(16, N, eps=0.0).double() for kind in (GhostBatchNorm2d, ExclusiveBatchNorm2d))
    all_of_them, _ = ghost_noise(*instance_moments(z), torch.arange(64)[None], eps=0.0)
    return [
        {
            "step": 0,
            "apart": (inject(z, *noise) - ghost(x)).abs().max().item(),
            "twice": (ghost(z) - ghost(x)).abs().max().item(),
            "noise": (noise[0].square().mean().sqrt()).item(),
            "at_the_batch": all_of_them.abs().max().item(),
            "ghost_sees": sees_itself(ghost, x),
            "exclusive_sees": sees_itself(exclusive, x),
        }
    ]


def sees_itself(norm: nn.Module, x: Tensor) -> float:
    """How one output of the first sample changes with that sample's other pixels, over how it changes with its own."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(norm(x)[0, 0, 0, 0], x)
    own = slope[0, 0, 0, 0].abs().item()
    slope[0, 0, 0, 0] = 0.0
    return slope[0].abs().max().item() / own


# --8<-- [end:identities]
# --8<-- [start:hand]
def by_hand() -> None:
    """The whole idea on four numbers: a batch of four samples, one channel, no pixels, ghost batches of two."""
    x = torch.tensor([1.0, 3.0, 4.0, 8.0], dtype=torch.float64).view(4, 1)
    z = normalized(x)
    pairs = torch.tensor([[0, 1], [0, 1], [2, 3], [2, 3]])
    shift, scale = ghost_noise(z, z * z, pairs, eps=0.0)
    ghost = torch.cat([normalized(x[:2]), normalized(x[2:])])
    print("           x   batch norm    shift   scale   (batch norm - shift) / scale   ghost batch norm of x")
    for row in zip(*(t.flatten().tolist() for t in (x, z, shift, scale, inject(z, shift, scale), ghost)), strict=True):
        print("  {:>10.4f} {:>12.4f} {:>8.4f} {:>7.4f} {:>30.4f} {:>23.4f}".format(*row))
    print(
        "Ghost batch norm is batch norm and then noise. Ghost noise draws whose noise it is, anew in every layer and step:"
    )
    for seed in range(3):
        torch.manual_seed(seed)
        idx = torch.randint(4, (4, 2))
        shift, scale = ghost_noise(z, z * z, idx)
        print(f"  of {idx.tolist()!s:<34} shift", *(f"{s:+.3f}" for s in shift.flatten().tolist()), end="")
        print("   scale", *(f"{s:.3f}" for s in scale.flatten().tolist()))


# --8<-- [end:hand]


# --- claims -----------------------------------------------------------------------------------------------------------


# --8<-- [start:claims]
def accuracy(metrics: Metrics) -> float:
    """Letters of unseen fonts that are read right at the end, in percent."""
    return 100 * final("val_accuracy")(metrics)


def accuracy_in_training(metrics: Metrics) -> float:
    """The same of 500 letters that were trained on."""
    return 100 * final("train_accuracy")(metrics)


def gap(metrics: Metrics) -> float:
    """How many more of the known letters are read right, in points."""
    return accuracy_in_training(metrics) - accuracy(metrics)


MEASURES = {
    "unseen fonts, %": accuracy,
    "training letters, %": accuracy_in_training,
    "validation loss, nats": final("val_loss"),
    "training loss with noise, nats": mean_late("loss", 0.1),
    "shift variance / exact": final("variance"),
    "covariance / exact": final("covariance"),
}


def simulated(
    name: str, sentence: str, key: str, arm: str = PIXELS, margin: float = 0.05, center: float = 1.0
) -> Claim:
    """That a cloud's moment is the exact one, as a ratio."""
    return Claim(
        name=name,
        sentence=sentence,
        statistic=lambda runs: runs.values(arm, final(key)),
        within=(center - margin, center + margin),
        kind="simulation",
        arms=(arm,),
    )


def exact(name: str, sentence: str, key: str, **threshold: Any) -> Claim:
    """About what holds to rounding."""
    return Claim(
        name, sentence, lambda runs: runs.values(EXACT, final(key)), kind="algebra", arms=(EXACT,), **threshold
    )


def points(
    name: str, sentence: str, arm: str, against: str, measure: Any = None, paper: str = "", **threshold: Any
) -> Claim:
    """About how many more letters of unseen fonts one arm reads right than another."""
    return Claim(
        name=name,
        sentence=sentence,
        statistic=lambda runs: difference(runs, arm, against, measure or accuracy),
        unit="points",
        arms=(arm, against),
        paper=paper,
        **threshold,
    )


PAPER = "a greater generalization benefit than ghost batch norm is possible (abstract of arXiv 2305.17205)"
PAPER_LAYER = "can be beneficial in layer-normalized networks (abstract of arXiv 2305.17205)"
CLAIMS = [
    exact(
        "separable",
        "Ghost batch norm is batch norm, then the noise of a partition (largest difference)",
        "apart",
        below=1e-12,
    ),
    exact(
        "normalizing-twice",
        "Batch norm before ghost batch norm changes nothing (largest difference)",
        "twice",
        below=1e-12,
    ),
    exact(
        "no-noise-at-the-batch", "A partition into one ghost batch has no shift (largest)", "at_the_batch", below=1e-12
    ),
    exact(
        "exclusive-is-blind",
        "Exclusive batch norm: no sample's statistics see the sample (ratio of slopes)",
        "exclusive_sees",
        below=1e-12,
    ),
    exact(
        "ghost-sees-itself",
        "Ghost batch norm: a sample's statistics do see it (ratio of slopes)",
        "ghost_sees",
        above=1e-5,
    ),
    simulated("no-bias", "Ghost noise: the shift has mean 0 (over its standard deviation)", "bias", center=0.0),
    simulated("shift-variance", "Ghost noise: the shift's variance is V / N (ratio)", "variance"),
    simulated(
        "channels-together", "Ghost noise: channels are shifted together, by their covariance / N (ratio)", "covariance"
    ),
    simulated(
        "variance-is-low", "Ghost noise: a ghost batch's variance falls short by V / N (ratio)", "missing", margin=0.05
    ),
    simulated(
        "partition-variance",
        "Without replacement the shift's variance is V / N * (B - N) / (B - 1) (ratio)",
        "partition",
    ),
    simulated(
        "shift-variance-no-pixels", "No pixels: the shift's variance is V / N too (ratio)", "variance", arm=NO_PIXELS
    ),
    simulated("analytic-variance", "Noisy affine: the shift's variance is 1 / N (ratio)", "analytic"),
    simulated("analytic-scale", "Noisy affine: the mean of 1 / scale is what chi-squared says (ratio)", "inverse"),
    Claim(
        "noise-acts",
        "At the same rate, noise 16 makes the loss in training higher (difference over the last tenth)",
        lambda runs: difference(runs, "noise 16", SAME, mean_late("loss", 0.1)),
        above=0.0,
        unit="nats",
        arms=("noise 16", SAME),
    ),
    points("rate-alone", "Batch norm reads more at twice the rate, without any noise", BATCH, SAME, above=0.0),
    points("same-rate", "At the same rate, noise 16 reads more than batch norm", "noise 16", SAME, above=0.0),
    points(
        "it-regularizes", "Each at its best rate, noise 16 reads more than batch norm", "noise 16", BATCH, above=0.0
    ),
    points("weaker-noise", "Each at its best rate, noise 32 reads more than batch norm", "noise 32", BATCH, above=0.0),
    points(
        "ghost-batch-norm-8", "Ghost batch norm 8 reads more than batch norm", "ghost batch norm 8", BATCH, above=0.0
    ),
    points(
        "ghost-batch-norm-16", "Ghost batch norm 16 reads more than batch norm", "ghost batch norm 16", BATCH, above=0.0
    ),
    points(
        "more-than-ghost-bn",
        "Each at its best rate, noise 16 reads more than ghost batch norm 16",
        "noise 16",
        "ghost batch norm 16",
        above=0.0,
        paper=PAPER,
    ),
    points(
        "smaller-gap",
        "Known letters are ahead of unseen fonts by less with noise 16 than with batch norm",
        "noise 16",
        BATCH,
        gap,
        below=0.0,
    ),
    points("layer-norm", "Layer norm reads more with noise 64", LAYER_NOISE, LAYER, above=0.0, paper=PAPER_LAYER),
    points("too-much", "Noise 4 reads at least 10 in 100 fewer than noise 16", MUCH, "noise 16", below=-10.0),
]
# --8<-- [end:claims]


# --- the picture ------------------------------------------------------------------------------------------------------

HEIGHT = 8.4  # inches


def draw(figure: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """Above: two clouds. In the middle: accuracy against the size of the ghost batches. Below: known and unseen letters."""
    above, middle, below = figure.subfigures(3, 1, height_ratios=(2.6, 3.0, 2.8))
    left, right = above.subplots(1, 2, sharex=True, sharey=True)
    draw_cloud(left, runs, PIXELS, "Images: 256 pixels", theme.blue, theme)
    draw_cloud(right, runs, NO_PIXELS, "No pixels", theme.pink, theme)
    left.set_ylabel("Scale")
    draw_sizes(middle.subplots(), runs, theme, prediction)
    draw_gaps(below.subplots(), runs, theme)


def draw_cloud(axes: Any, runs: Runs, arm: str, title: str, color: str, theme: Theme) -> None:
    """Shift and scale of ghost batches in one channel, and the exact two standard deviations of the shift."""
    for seed in runs.seeds[:5]:
        (line,) = runs.metrics(arm, seed)
        axes.plot(
            *zip(*line["points"], strict=True), marker=".", markersize=3, linestyle="none", color=color, alpha=0.6
        )
    spread = statistics.fmean(runs.values(arm, final("channel"))[:5]) / math.sqrt(N)
    for x in (-2 * spread, 2 * spread):
        axes.axvline(x, color=theme.ink, linestyle="--", linewidth=1)
    axes.set_title(title, color=color, fontsize=11)
    axes.set_xlabel("Shift")


def draw_sizes(axes: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """Accuracy against the size of the ghost batches, and the line of batch norm, each with its interval."""
    plain = runs.values(BATCH, accuracy)
    axes.axhspan(*interval(plain), color=theme.ink, alpha=0.12, linewidth=0)
    axes.axhline(statistics.fmean(plain), color=theme.ink, linewidth=1.2, label="batch norm")
    shown = list(interval(plain))
    for start, color, aside in (("noise ", theme.blue, 0.98), ("ghost batch norm ", theme.orange, 1.02)):
        arms = sorted(
            (int(arm.removeprefix(start)), arm) for arm in runs.arms if arm in NORMS and arm.startswith(start)
        )
        found = {n * aside: runs.values(arm, accuracy) for n, arm in arms}
        means, ends = list(map(statistics.fmean, found.values())), list(map(interval, found.values()))
        axes.plot(list(found), means, color=color, marker="o", markersize=5, label=start)
        axes.vlines(list(found), *zip(*ends, strict=True), color=color, linewidth=1.5)
        shown += [x for pair in ends for x in pair]
    shown += [] if prediction is None else [prediction]
    low, high = min(shown), max(shown)
    bottom = low - 0.6 * (high - low)  # with room for the legend
    if MUCH in runs.arms:
        label(axes, 4, bottom, f"↓ {statistics.fmean(runs.values(MUCH, accuracy)):.0f} %", theme.blue, xytext=(-6, 9))
    axes.set_ylim(bottom, high + 0.1 * (high - low))
    axes.set_xscale("log", base=2)
    axes.set_xticks((4, 8, 16, 32), labels=("4", "8", "16", "32"))
    axes.set(xlabel="Samples in a ghost batch", ylabel="Unseen fonts, %", xlim=(3.5, 37))
    axes.legend(loc="lower right", fontsize="small")
    if prediction is not None:
        hollow(axes, N, prediction, theme, "Your prediction")


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of the mean; of a few seeds, the smallest and the largest."""
    return mean_interval(values) if len(values) >= 5 else (min(values), max(values))


def draw_gaps(axes: Any, runs: Runs, theme: Theme) -> None:
    """For each kind of norm what is read right of the known letters, hollow, and of unseen fonts, filled."""
    arms = [arm for arm in NORMS if arm in runs.arms and arm != MUCH]
    colors = {"ghost": theme.orange, "layer": theme.green}
    for y, arm in enumerate(reversed(arms)):
        known, unseen = (statistics.fmean(runs.values(arm, measure)) for measure in (accuracy_in_training, accuracy))
        color = colors.get(arm[:5], theme.blue)
        axes.plot([unseen, known], [y, y], color=color, linewidth=1.2, alpha=0.6)
        axes.plot(known, y, marker="o", markersize=6, fillstyle="none", color=color, linestyle="none", clip_on=False)
        axes.plot(unseen, y, marker="o", markersize=6, color=color, linestyle="none")
    axes.set_yticks(range(len(arms)), labels=list(reversed(arms)), fontsize="small")
    axes.set_title("Filled: unseen fonts. Hollow: known", fontsize=11)
    axes.set(xlabel="Letters read right, %", xlim=(None, 101))


if __name__ == "__main__":
    lesson_main(__file__)
