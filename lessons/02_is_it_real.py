"""02 Is it real? Question: one run of B beats one run of A; will it under the next seed?

Two recipes that differ in one number, a sweep of learning rates for each, and several seeds. You bet after the first.

    python lessons/02_is_it_real.py                # --preset quick (default), cpu, record, gpu
"""

# --8<-- [start:setup]
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from minitrain.cli import lesson_main
from minitrain.data.text import standard_library
from minitrain.gpt import GPT
from minitrain.lab.claims import Claim
from minitrain.lab.compare import Metrics, Runs, final, ratio, series
from minitrain.lab.course import Predict
from minitrain.lab.intervals import mean_interval, student_t
from minitrain.lab.noise import NoiseScale
from minitrain.lab.plots import Theme, hollow, label, u_curve
from minitrain.optim import AdamW, ClipGradNorm
from minitrain.recipe import Recipe
from minitrain.schedules import warmup_stable_decay
from minitrain.train import Run

RATES = [0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128]
MARGIN = 0.03  # bits per byte; a smaller difference would not make us change a recipe


class NoiseAtBothEnds(NoiseScale):
    """Signal and noise in the squared length of a batch's gradient, over all layers, in the first and last five steps."""

    def before(self, run: Run) -> None:
        self.found = {}
        if min(run.step, run.recipe.steps - 1 - run.step) < 5:
            super().before(run)

    def after(self, run: Run) -> dict[str, Any]:
        if not self.found:
            return {}
        rows = run.recipe.batch_size // run.data.row_size  # averaging over rows leaves a share 1 / rows of the noise
        return {"signal": self.found["total_gradient_signal"], "noise": self.found["total_gradient_noise"] / rows}


def recipe(steps: int, depth: int, width: int, context: int, batch_size: int, precision: Any) -> Recipe:
    """Arm A."""
    return Recipe(
        build_model=partial(GPT, depth=depth, width=width, context=context),
        data=partial(standard_library, context=context),
        steps=steps,
        batch_size=batch_size,
        make_optimizer=partial(AdamW, weight_decay=0.5, betas=(0.9, 0.95), eps=1e-8),  # the sweep adds `lr`
        schedules={("*", "lr"): partial(warmup_stable_decay, steps=steps, warmup=steps // 10, cooldown=steps // 2)},
        before_step=(ClipGradNorm,),
        precision=precision,
    )


def experiment(
    steps: int, seeds: range, rates: list[float], depth: int = 2, width: int = 64, context: int = 32,
    batch_size: int = 512, precision: str = "fp32",
) -> dict[str, Any]:  # fmt: skip
    """What `compare` runs. Arms with the same seed start from the same weights and see the same batches."""
    a = recipe(steps, depth, width, context, batch_size, precision)
    b = replace(a, make_optimizer=partial(AdamW, weight_decay=0.5, betas=(0.9, 0.95), eps=1e-6))
    return {
        "arms": {"A": a, "B": b},
        "seeds": seeds,
        "learning_rates": rates,
        "probes": (partial(NoiseAtBothEnds, every=1),),
        "log_every": steps // 4,
        "evaluate_every": steps,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"steps": 100, "seeds": range(1, 6), "rates": RATES[1:6:2]},
    "cpu": {"steps": 250, "seeds": range(1, 9), "rates": RATES},
    "record": {"steps": 400, "seeds": range(101, 117), "rates": RATES},
    "gpu": {
        "steps": 1000, "seeds": range(1, 6), "rates": [rate / 8 for rate in RATES], "depth": 8, "width": 512, "context": 512,
        "batch_size": 32_768, "precision": "bf16",
    },
}  # fmt: skip
# --8<-- [end:setup]


# --8<-- [start:by_hand]
def by_hand() -> None:
    """Three seeds, two arms: the same six numbers as two groups and as three pairs."""
    a, b = [3.31, 3.22, 3.27], [3.29, 3.21, 3.24]
    pairs = [after - before for before, after in zip(a, b, strict=True)]
    n = len(pairs)
    mean = statistics.fmean(pairs)
    as_groups = math.sqrt(statistics.variance(a) / n + statistics.variance(b) / n)
    as_pairs = statistics.stdev(pairs) / math.sqrt(n)
    print(f"A {a}, B {b}, B - A {[round(x, 2) for x in pairs]}: mean {mean:.3f}")
    print(f"standard error as two groups {as_groups:.3f}, as pairs {as_pairs:.3f}")
    low, high = mean_interval(pairs)
    print(f"95 % interval, {student_t(0.95, n - 1):.2f} standard errors to each side: {low:.3f} to {high:.3f}")


# --8<-- [end:by_hand]


# --8<-- [start:measures]
def bits(metrics: Metrics) -> float:
    """Validation loss at the end, in bits per byte."""
    return final("val_loss")(metrics) / math.log(2)


def noise_share(metrics: Metrics, end: bool) -> float:
    """The part of the gradient's squared length that another batch would not share, in the first or last five steps."""
    measured = series(metrics, "noise")[-5:] if end else series(metrics, "noise")[:5]
    noise = sum(value for _, value in measured)
    signal = sum(value for step, value in series(metrics, "signal") if step in dict(measured))
    return noise / (noise + signal)


def rates_of(runs: Runs) -> list[float]:
    """The learning rates of the sweep, the smallest first."""
    return sorted(rate for rate in runs.learning_rates if rate is not None)


def best_rate(runs: Runs, arm: str) -> float:
    """The learning rate at which an arm needs the fewest bits, on average over the seeds."""
    return min(rates_of(runs), key=lambda rate: statistics.fmean(runs.values(arm, bits, rate)))


def tuned(runs: Runs, arm: str) -> list[float]:
    """Bits per byte per seed, at the learning rate that is best in it: each seed is a whole experiment, tuning included."""
    sweep = [runs.values(arm, bits, rate) for rate in rates_of(runs)]
    return [min(of_seed) for of_seed in zip(*sweep, strict=True)]


def gaps(runs: Runs) -> list[float]:
    """B - A per seed, each arm at its own best learning rate; below zero where B wins."""
    return [b - a for a, b in zip(tuned(runs, "A"), tuned(runs, "B"), strict=True)]


def variance_left(runs: Runs, seeds: Sequence[int], beyond: bool = False) -> float:
    """The variance of B - A over that of A and of B together, both arms at the same learning rate, over `seeds`.

    A mean over the rates up to A's best one or those beyond, without any at which a run diverged.
    """
    ratios, best = [], best_rate(runs, "A")
    for rate in [rate for rate in rates_of(runs) if (rate > best) == beyond]:
        a, b = (
            [dict(zip(runs.seeds, runs.values(arm, bits, rate), strict=True))[seed] for seed in seeds] for arm in "AB"
        )
        if all(map(math.isfinite, a + b)):
            pairs = [after - before for before, after in zip(a, b, strict=True)]
            ratios.append(statistics.variance(pairs) / (statistics.variance(a) + statistics.variance(b)))
    return statistics.fmean(ratios) if ratios else math.nan


def log_variance_left(runs: Runs, beyond: bool = False) -> list[float]:
    """The logarithm of `variance_left`, as one number per seed whose mean and scatter are those of the whole.

    A variance has no value in one run. The jackknife leaves one seed out at a time and takes how much that changes for what
    the seed contributes (Tukey, 1958). The logarithm makes their distribution nearly even on both sides.
    """
    n = len(runs.seeds)
    if n < 3:
        return [math.nan] * n
    whole = math.log(variance_left(runs, runs.seeds, beyond))
    others = [[other for other in runs.seeds if other != seed] for seed in runs.seeds]
    return [n * whole - (n - 1) * math.log(variance_left(runs, rest, beyond)) for rest in others]


def cost_of_smallest(runs: Runs, arm: str) -> list[float]:
    """Bits per byte per seed that `arm` loses with the smallest learning rate of the sweep."""
    smallest = runs.values(arm, bits, rates_of(runs)[0])
    return [slow - good for slow, good in zip(smallest, tuned(runs, arm), strict=True)]


# --8<-- [end:measures]


MEASURES = {
    "bits per byte": bits,
    "noise share, first steps": partial(noise_share, end=False),
    "noise share, last steps": partial(noise_share, end=True),
}


# --8<-- [start:bet]
def first_look(runs: Runs) -> str:
    """What one seed says; it is printed before the bet."""
    (seed,) = runs.seeds
    found = "; ".join(
        f"{arm} needs {tuned(runs, arm)[0]:.3f} at its best rate, {best_rate(runs, arm):g}" for arm in ("A", "B")
    )
    gap = gaps(runs)[0]
    return (
        f"Bits per byte under seed {seed}: {found}.\n"
        f"{'B' if gap < 0 else 'A'} wins by {1000 * abs(gap):.0f} thousandths of a bit. Would you publish that?"
    )


PREDICT = Predict(
    "Your bet on the other seeds: B - A on average, in thousandths of a bit (below 0: B wins, above 0: A wins)?",
    low=-200,
    high=200,
    answer=lambda runs: 1000 * statistics.fmean(gaps(runs)[1:]),
)
# --8<-- [end:bet]


# --8<-- [start:claims]
def noise_differs(runs: Runs, index: int) -> list[float]:
    """By which share the gradient's noise differs between the arms, in the first measured step (0) or the last (-1)."""

    def noise(metrics: Metrics) -> float:
        return series(metrics, "noise")[index][1]

    return [abs(b_over_a - 1) for b_over_a in ratio(runs, "B", "A", noise, best_rate(runs, "A"))]


def interior(runs: Runs) -> list[float]:
    """Per seed 1 where the best learning rate of both arms has neighbours on either side, else 0."""
    inside = rates_of(runs)[1:-1]
    return [all(runs.best_lr(arm, bits, seed) in inside for arm in ("A", "B")) for seed in runs.seeds]


def loses_next(runs: Runs) -> list[float]:
    """Per seed 1 where its winner loses under the next seed, else 0; the first comes after the last."""
    b_wins = [gap < 0 for gap in gaps(runs)]
    return [now != following for now, following in zip(b_wins, b_wins[1:] + b_wins[:1], strict=True)]


def growth(runs: Runs) -> list[float]:
    """The noise's share of A's gradient in the last five steps, less that in the first five."""

    def grown(metrics: Metrics) -> float:
        return noise_share(metrics, end=True) - noise_share(metrics, end=False)

    return runs.values("A", grown, best_rate(runs, "A"))


def unfair(runs: Runs) -> list[float]:
    """B - A with A at its best learning rate, and B at the smallest of the sweep, as if nobody had tuned it."""
    return [gap + cost for gap, cost in zip(gaps(runs), cost_of_smallest(runs, "B"), strict=True)]


CLAIMS = [
    Claim(
        "same-start",
        "Under one seed both arms meet the same gradient noise in the first step",
        partial(noise_differs, index=0),
        within=(0.0, 0.0),
        kind="algebra",
    ),
    Claim(
        "acts",
        "In the last step the arms' gradient noise differs: the change acts",
        partial(noise_differs, index=-1),
        above=1e-6,
        kind="algebra",
    ),
    Claim(
        "next-seed",
        "Under at least a quarter of the seeds, the winner loses under the next one",
        loses_next,
        at_least=0.25,
    ),
    Claim(
        "pairs",
        "Up to the best learning rate, pairs leave less than half of the variance (logarithm of the share)",
        log_variance_left,
        below=math.log(0.5),
    ),
    Claim(
        "pairs-beyond",
        "Beyond the best learning rate, pairs leave more of the variance than up to it (difference of the logarithms)",
        lambda runs: [
            y - x for x, y in zip(log_variance_left(runs), log_variance_left(runs, beyond=True), strict=True)
        ],
        above=0.0,
    ),
    Claim(
        "no-difference",
        "B and A, each at its best learning rate, are the same within 0.03 bits per byte",
        gaps,
        within=(-MARGIN, MARGIN),
        unit="bits",
    ),
    Claim(
        "interior",
        "The best learning rate of both arms lies inside the sweep",
        interior,
        at_least=0.875,
    ),
    Claim(
        "too-small",
        "The smallest learning rate of the sweep costs more than 0.15 bits per byte",
        lambda runs: cost_of_smallest(runs, "A"),
        above=0.15,
        unit="bits",
    ),
    Claim(
        "noise-grows",
        "The noise's share of the gradient's squared length grows by more than 0.6 from the first steps to the last",
        growth,
        above=0.6,
    ),
    Claim(
        "broken-unfair",
        "Broken on purpose: with B at the smallest learning rate, A seems to win by more than 0.15 bits per byte",
        unfair,
        above=0.15,
        unit="bits",
    ),
]
# --8<-- [end:claims]


# --8<-- [start:figure]
HEIGHT = 6.4


def draw(figure: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """The sweep of both arms, and below it their difference seed by seed."""
    top, bottom = figure.subplots(2, 1, height_ratios=[1.1, 1])
    draw_sweep(top, runs, theme)
    draw_gaps(bottom, runs, theme, prediction)


def draw_sweep(axes: Any, runs: Runs, theme: Theme) -> None:
    """Two U-curves with the bands of their seeds."""
    for arm, color in (("A", theme.blue), ("B", theme.orange)):
        u_curve(axes, runs, arm, bits, color)
    rates = rates_of(runs)
    axes.set(xlabel="Learning rate", ylabel="Bits per byte", title="Two recipes, all learning rates, all seeds")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    label(axes, 0.5, 0.93, "A: eps 1e-8", theme.blue, xycoords="axes fraction", xytext=(0, 0), ha="center")
    label(axes, 0.5, 0.82, "B: eps 1e-6", theme.orange, xycoords="axes fraction", xytext=(0, 0), ha="center")


def draw_gaps(axes: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """A dot for each seed, their mean with its interval, the margin as a band, and the reader's bet."""
    values, n = gaps(runs), len(runs.seeds)
    axes.axhspan(-MARGIN, MARGIN, color=theme.grey, alpha=0.15, linewidth=0)
    axes.axhline(0, color=theme.grey, linewidth=1)
    colors = [theme.orange if gap < 0 else theme.blue for gap in values]
    axes.scatter(range(1, n + 1), values, color=colors, s=36, zorder=3)
    shown = (1, n) if n > 8 else range(1, n + 1)
    ticks: dict[float, str] = {place: str(runs.seeds[place - 1]) for place in shown}
    if n > 1:
        low, high = mean_interval(values)
        mean, at = statistics.fmean(values), 1.13 * n + 0.4
        axes.errorbar(at, mean, [[mean - low], [high - mean]], color=theme.ink, fmt="o", capsize=4, linewidth=2)
        ticks |= {at: "Mean"}
    if prediction is not None:
        at = 1.25 * n + 0.7
        hollow(axes, at, prediction / 1000, theme, "", xytext=(0, 0))
        ticks |= {at: "Your\nbet"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    reach = 1.25 * max(MARGIN, *map(abs, values), abs(prediction or 0) / 1000)
    axes.set(ylim=(-reach, reach), xlabel="Seed", ylabel="B − A, bits per byte", title="The winner, seed by seed")
    label(axes, 0.0, 0.95, "A wins", theme.blue, xycoords="axes fraction")
    label(axes, 0.0, 0.05, "B wins", theme.orange, xycoords="axes fraction")
    label(axes, 1.0, 0.05, "Grey: too small to matter", theme.grey, xycoords="axes fraction", xytext=(0, 0), ha="right")


# --8<-- [end:figure]


if __name__ == "__main__":
    lesson_main(__file__)
