"""06 The slow clock. Question: how much of a step is left at the end of the run, and how much should be?

With weight decay, the final weights are an average over all updates of the run, with weights that are known before it
starts. Its length, `tau = 1 / (lr * weight_decay)` steps, is what weight decay decides. Counted in passes over the data, the
best length is about the same for little data and for much.

    python lessons/06_the_slow_clock.py                # --preset quick (default), cpu, record, gpu
"""

import functools
import hashlib
import math
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minitrain.cli import lesson_main
from minitrain.data.text import standard_library
from minitrain.gpt import GPT
from minitrain.lab.claims import Claim
from minitrain.lab.compare import Measure, Metrics, Runs, difference, final, mean_late, ratio, series
from minitrain.lab.course import Predict
from minitrain.lab.plots import Theme, band, hollow, label
from minitrain.lab.probes import Norm
from minitrain.optim import AdamW, Optimizer, adam, decay_by_lr
from minitrain.recipe import Recipe, by_kind, cross_entropy
from minitrain.schedules import constant, cosine, warmup_stable_decay
from minitrain.techniques.timescale import average_weights, decay_for, epochs_to_steps, share_of_last, with_timescale

# --8<-- [start:setup]
EPOCHS = 16
AVERAGES = ("average: constant", "average: cosine", "average: WSD")
SHORT, LONG = 0.125, 64.0  # epochs: far less than one, and far more than the run has
PREDICT = Predict(
    "The rate falls along a cosine to a tenth, and tau is a quarter of the run. Of what all steps have put into the final "
    "weights, how many percent come from the last tenth of the steps?",
    low=0.0,
    high=100.0,
    answer=lambda runs: 100 * runs.values("average: cosine", final("last_tenth"))[0],
)
TAUS = (0.5, 1.0, 2.0, 4.0, 8.0)
PRESETS: dict[str, dict[str, Any]] = {  # `tokens`: the two amounts of data; `taus`: in epochs
    "quick": {
        "seeds": range(2), "tokens": (16_384, 65_536), "taus": TAUS[::2], "all_arms": False, "width": 32, "lr": 2e-2,
    },
    "cpu": {"seeds": range(3), "tokens": (16_384, 65_536), "taus": TAUS},
    "record": {"seeds": range(101, 108), "tokens": (16_384, 65_536), "taus": TAUS},
    "gpu": {
        "seeds": range(2), "tokens": (1_048_576, 4_194_304), "taus": TAUS, "depth": 12, "width": 768, "context": 1024,
        "batch_size": 65_536, "lr": 2e-3, "precision": "bf16",
    },
}  # fmt: skip


def named(data: str, tau: float, slow: bool = False) -> str:
    """The name of an arm, `data` being "less" or "more"."""
    broken = "" if SHORT < tau < LONG else "broken: "
    return f"{broken}{data} data, tau {tau:g}{', lower lr' if slow else ''}"


def experiment(
    seeds: range, tokens: Sequence[int], taus: Sequence[float], all_arms: bool = True, depth: int = 2, width: int = 64,
    context: int = 32, batch_size: int = 512, lr: float = 1e-2, precision: Any = "fp32",
) -> dict[str, Any]:  # fmt: skip
    """Three averages taken apart; and two amounts of data, each seen 16 times, with averages of several lengths.

    `all_arms` adds an average that is too short and one that is too long, and a sweep with two fifths of the learning rate.
    """
    size_of = dict(zip(("less", "more"), tokens, strict=True))

    def arm(data: str, tau: float, slow: bool = False) -> Recipe:
        size = size_of[data]
        steps, tau_steps = (epochs_to_steps(epochs, size, batch_size) for epochs in (EPOCHS, tau))
        how = {"tau_steps": tau_steps, "lr": 0.4 * lr if slow else lr, "betas": (0.9, 0.95)}
        return Recipe(
            build_model=partial(GPT, depth=depth, width=width, context=context),
            data=partial(Passages, tokens=size, context=context),
            steps=int(steps),
            batch_size=batch_size,
            make_optimizer=partial(with_timescale, make=AdamW, **how),
            schedules={("*", "lr"): partial(cosine, steps=int(steps))},
            precision=precision,
        )

    steps = 400
    schedules = (constant, partial(cosine, steps=steps), partial(warmup_stable_decay, steps=steps, cooldown=steps // 5))
    averages = {
        name: partial(taken_apart, schedule=f, steps=steps) for name, f in zip(AVERAGES, schedules, strict=True)
    }
    plan = [(data, tau, False) for data in size_of for tau in taus]
    if all_arms:
        plan += [("less", SHORT, False), ("less", LONG, False), *(("less", 2 * tau, True) for tau in taus)]
    per_epoch = size_of["less"] // batch_size
    return {
        "arms": {
            **averages,
            **{named(*of): arm(*of) for of in plan},
        },
        "seeds": seeds,
        "probes": (partial(Norm, every=EPOCHS * per_epoch),),
        "log_every": 2 * per_epoch,
        "evaluate_every": EPOCHS * per_epoch,
    }


# --8<-- [end:setup]


# --- data that is seen again --------------------------------------------------------------------------------------------


# --8<-- [start:data]
class Passages:
    """`tokens` tokens of the training text, in passages of `context`: all of them in every epoch, in an order of its own.

    The seed chooses the passages too; where it is the same, less data is a part of more. Validation is that of the text.
    """

    def __init__(self, tokens: int, context: int):
        self.text = standard_library(context)
        self.there = (len(self.text.train_tokens) - 1) // context
        if tokens % context or tokens > self.there * context:
            raise ValueError(f"tokens must be a multiple of {context}, up to {self.there * context}, not {tokens}")
        self.row_size, self.size = context, tokens
        self.digest = hashlib.sha256(f"{self.text.digest} {tokens}".encode()).hexdigest()

    def batch(self, seed: int, step: int, rows: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one step. Raises `ValueError` where batches do not fill an epoch."""
        passages = shuffled(seed, self.there)[: self.size // self.row_size]
        if len(passages) % rows:
            raise ValueError(
                f"{len(passages)} passages are no whole number of batches of {rows}; change one of the two"
            )
        epoch, first = divmod(step * rows, len(passages))
        order = np.random.default_rng((seed, 1 + epoch)).permutation(passages)  # (seed, 0) is (seed,)
        return self.text.windows(self.text.train_tokens, order[first : first + rows] * self.row_size)

    def validation(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        """Other text, the same for all amounts of data."""
        return self.text.validation(rows)


@functools.cache
def shuffled(seed: int, there: int) -> np.ndarray:
    """All passages in the order in which a seed takes them."""
    return np.random.default_rng(seed).permutation(there)


# --8<-- [end:data]


# --- an average, taken apart --------------------------------------------------------------------------------------------


# --8<-- [start:apart]
class Remember:
    """The step rule of AdamW, which keeps the updates of the weights that decay."""

    def __init__(self) -> None:
        self.updates: list[Tensor] = []

    def __call__(self, w: Tensor, u: Tensor, state: dict, *, lr: float, weight_decay: float) -> Tensor:
        if weight_decay:
            self.updates.append(u.flatten().double())
        return decay_by_lr(w, u, state, lr=lr, weight_decay=weight_decay)


def taken_apart(seed: int, schedule: Any, steps: int, lr: float = 1e-2, runs: float = 0.25) -> Metrics:
    """Trains a small GPT, keeps every update, and puts its final weights together again out of these.

    `runs` is tau as a fraction of the run. The last line says how far off the sum is, relative to the length of the final
    weights, and how much of them each tenth of the run makes up: by its weights in the average, and by what really lies
    along the final weights.
    """
    torch.manual_seed(seed)
    model, data, rule = GPT(depth=1, width=32, context=32), standard_library(32), Remember()
    groups, weight_decay = by_kind(model), decay_for(runs * steps, lr)
    hyper = {"lr": lr, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": weight_decay}
    optimizer = Optimizer(groups, hyper, direction=adam, step_rule=rule)
    lrs = [lr * schedule(step) for step in range(steps)]
    start = flat(groups[0]["params"])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lrs[step]
        cross_entropy(model, *data.batch(seed, step, rows=16)).backward()
        optimizer.step()
        optimizer.zero_grad()
    end = flat(groups[0]["params"])

    c, left = average_weights(lrs, weight_decay)
    q = -torch.cat(rule.updates).view(steps, -1) / weight_decay
    tenths = (c[:, None] * q).view(10, steps // 10, -1).sum(1)
    error = (left * start + tenths.sum(0) - end).norm() / end.norm()
    along = [(part @ end / (end @ end)).item() for part in (left * start, *tenths)]
    lines = [{"step": i + 1, "weight": (steps * c[i] / c.sum()).item()} for i in range(0, steps, steps // 40)]
    return [
        *lines,
        {
            "step": steps,
            "weight": (steps * c[-1] / c.sum()).item(),
            "off_by": error.item(),
            "sum_off_by": abs(c.sum().item() + left - 1),
            "left": left,
            "last_tenth": share_of_last(lrs, weight_decay),
            "last_tenth_along": along[-1] / sum(along[1:]),
        },
    ]


def flat(params: Sequence[Tensor]) -> Tensor:
    """All of them in a row, in double precision."""
    return torch.cat([p.detach().flatten().double() for p in params])


# --8<-- [end:apart]
# --8<-- [start:hand]
def by_hand() -> None:
    """Five steps on one weight: walked, and as an average."""
    lr, weight_decay, start, updates = 0.1, 2.0, 1.0, [3.0, -1.0, 2.0, 2.0, -4.0]
    w = start
    for u in updates:
        w = (1 - lr * weight_decay) * w - lr * u
    print(f"walked:            w = {w:.6f}")
    c, left = average_weights([lr] * len(updates), weight_decay)
    q = [-u / weight_decay for u in updates]
    print(f"each step's q:     {'  '.join(f'{x:+.4f}' for x in q)}")
    print(
        f"its weight c:      {'  '.join(f'{x:.5f}' for x in c.tolist())}   and {left:.5f} of the start: {c.sum() + left:.1f}"
    )
    print(f"as an average:     w = {left * start + sum(a * b for a, b in zip(c.tolist(), q, strict=True)):.6f}")
    print(f"tau = 1 / (lr * weight_decay) = {1 / (lr * weight_decay):.1f} steps")


# --8<-- [end:hand]
# --8<-- [start:measures]
def bits(metrics: Metrics) -> float:
    """Validation loss at the end, in bits per byte."""
    return final("val_loss")(metrics) / math.log(2)


def training_bits(metrics: Metrics) -> float:
    """Training loss during the last two epochs, in bits per byte."""
    if "lr" not in metrics[-1]:
        raise ValueError("an average that is taken apart has none")
    return mean_late("loss", share=2 / EPOCHS)(metrics) / math.log(2)


def percent(key: str) -> Measure:
    """A share in percent."""
    return lambda metrics: 100 * final(key)(metrics)


MEASURES = {
    "validation, bits per byte": bits,
    "training, bits per byte": training_bits,
    "length of a neuron's weights": mean_late("norm"),
    "last tenth, % of the average": percent("last_tenth"),
    "last tenth, % along the final weights": percent("last_tenth_along"),
    "rebuilt, off by": final("off_by"),
}


def size(runs: Runs, data: str) -> int:
    """How many tokens of data the arms of "less" or "more" data have."""
    return int(next(text["data.tokens"] for name, text in runs.arms.items() if f"{data} data" in name))


def taus(runs: Runs, slow: bool = False) -> list[float]:
    """The lengths of the average that were tried, in epochs."""
    return [tau for tau in (*TAUS, 2 * TAUS[-1]) if named("less", tau, slow) in runs.arms]


def sweep(runs: Runs, data: str, slow: bool = False) -> list[list[float]]:
    """Per length of the average the final bits of all seeds."""
    return [runs.values(named(data, tau, slow), bits) for tau in taus(runs, slow)]


def best(runs: Runs, data: str, slow: bool = False) -> list[float]:
    """Per seed the length of the average, in epochs, with the lowest validation loss."""
    return [taus(runs, slow)[int(np.argmin(of_seed))] for of_seed in zip(*sweep(runs, data, slow), strict=True)]


def longer(runs: Runs) -> list[float]:
    """Per seed how many times as long, in epochs, the best average is with more data than with less."""
    return [b / a for a, b in zip(best(runs, "less"), best(runs, "more"), strict=True)]


def between(runs: Runs, data: str) -> list[float]:
    """As `best`, but between the lengths that were tried: where a parabola through the lowest and its neighbours is lowest.

    In doublings of an epoch; for the lowest at the edge of the sweep, the parabola through the three that are nearest.
    """
    found, doublings = [], np.log2(taus(runs))
    for of_seed in zip(*sweep(runs, data), strict=True):
        middle = min(max(int(np.argmin(of_seed)), 1), len(of_seed) - 2)
        a, b, _ = np.polyfit(doublings[middle - 1 : middle + 2], of_seed[middle - 1 : middle + 2], 2)
        found.append(-b / (2 * a))
    return found


def power(runs: Runs) -> list[float]:
    """Per seed the power of the amount of data with which the best weight decay goes: -1 where the best tau stays."""
    more_data = math.log2(size(runs, "more") / size(runs, "less"))
    return [-1 - (b - a) / more_data for a, b in zip(between(runs, "less"), between(runs, "more"), strict=True)]


def cost(runs: Runs, data: str, tau: float, measure: Measure = bits) -> list[float]:
    """Per seed how much more `tau` costs than 2 epochs."""
    return difference(runs, named(data, tau), named(data, 2.0), measure)


def worst(runs: Runs, key: str) -> list[float]:
    """Per seed the largest of the three averages' values of `key`."""
    return [max(of_seed) for of_seed in zip(*(runs.values(arm, final(key)) for arm in AVERAGES), strict=True)]


def gap(metrics: Metrics) -> float:
    """Validation less training loss at the end, in bits per byte."""
    return bits(metrics) - training_bits(metrics)


# --8<-- [end:measures]
# --8<-- [start:claims]
CLAIMS = [
    Claim(
        "weights-are-one",
        "The weights of all steps and of the start add up to 1, under three schedules (largest distance)",
        partial(worst, key="sum_off_by"),
        within=(0.0, 1e-9),
        kind="algebra",
        arms=AVERAGES,
    ),
    Claim(
        "rebuilt",
        "The final weights are that average, up to rounding (largest distance, over the length of the weights)",
        partial(worst, key="off_by"),
        below=1e-5,
        kind="algebra",
        arms=AVERAGES,
    ),
    Claim(
        "last-tenth-constant",
        "At a constant rate, with tau a quarter of the run, a third of the average comes from the last tenth of the steps",
        lambda runs: runs.values("average: constant", final("last_tenth")),
        within=(0.33, 0.34),
        kind="algebra",
        arms=AVERAGES[:1],
    ),
    Claim(
        "last-tenth-cosine",
        "Under a cosine to a tenth of the rate, it is less than a twentieth",
        lambda runs: runs.values("average: cosine", final("last_tenth")),
        below=0.05,
        kind="algebra",
        arms=AVERAGES[1:2],
    ),
    Claim(
        "along-constant",
        "At a constant rate, the last tenth also makes up between 0.3 and 0.5 of what lies along the final weights",
        lambda runs: runs.values("average: constant", final("last_tenth_along")),
        within=(0.3, 0.5),
        arms=AVERAGES[:1],
    ),
    Claim(
        "along-cosine",
        "Under a cosine, it makes up less than 0.06 of it",
        lambda runs: runs.values("average: cosine", final("last_tenth_along")),
        below=0.06,
        arms=AVERAGES[1:2],
    ),
    Claim(
        "acts",
        "With tau 8 epochs, weights end more than 3 times as long as with half an epoch (less data)",
        lambda runs: ratio(runs, named("less", 8.0), named("less", 0.5), mean_late("norm")),
        above=3.0,
        arms=(named("less", 8.0), named("less", 0.5)),
    ),
    Claim(
        "interior",
        "The best tau lies inside the sweep, for both amounts of data",
        lambda runs: [
            {a, b} <= set(taus(runs)[1:-1]) for a, b in zip(best(runs, "less"), best(runs, "more"), strict=True)
        ],
        at_least=0.85,
    ),
    Claim(
        "same-tau",
        "With four times the data, the best tau in epochs is the same or its neighbour, from half to twice as long",
        lambda runs: [0.5 <= x <= 2 for x in longer(runs)],
        at_least=0.85,
    ),
    Claim(
        "power",
        "The best weight decay goes as the amount of data to a power near -1, between -1.5 and -0.5",
        power,
        within=(-1.5, -0.5),
    ),
    Claim(
        "decay-of-less-data",
        "With four times the data, the decay that gives less data 2 epochs is too much, by more than 0.08 bits per byte",
        lambda runs: cost(runs, "more", 0.5),
        above=0.08,
        unit="bits per byte",
        arms=(named("more", 0.5), named("more", 2.0)),
    ),
    Claim(
        "decay-of-more-data",
        "With a quarter of the data, the decay that gives more data 2 epochs is too little, by more than 0.08 bits per byte",
        lambda runs: cost(runs, "less", 8.0),
        above=0.08,
        unit="bits per byte",
        arms=(named("less", 8.0), named("less", 2.0)),
    ),
    Claim(
        "broken-short",
        "Broken: with tau an eighth of an epoch, the training loss stays more than 0.5 bits per byte above that of 2 epochs",
        lambda runs: cost(runs, "less", SHORT, training_bits),
        above=0.5,
        unit="bits per byte",
        arms=(named("less", SHORT), named("less", 2.0)),
    ),
    Claim(
        "broken-long",
        "Broken: with tau 64 epochs, validation lies above training by more than 0.3 bits per byte more than with 2 epochs",
        lambda runs: cost(runs, "less", LONG, gap),
        above=0.3,
        unit="bits per byte",
        arms=(named("less", LONG), named("less", 2.0)),
    ),
    Claim(
        "another-rate",
        "At two fifths of the learning rate, the best tau is longer: tau is not all that matters",
        lambda runs: [b > a for a, b in zip(best(runs, "less"), best(runs, "less", slow=True), strict=True)],
        at_least=0.85,
        arms=tuple(named("less", (1 + slow) * tau, slow) for slow in (False, True) for tau in TAUS),
    ),
]
# --8<-- [end:claims]

HEIGHT = 7.4
COLORS = {"constant": "green", "cosine": "pink", "WSD": "sky"}


def draw(figure: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """Above, how much each step counts in the end; below, the final loss for each length of the average."""
    top, bottom = figure.subplots(2, 1, height_ratios=(1, 1.25))
    draw_weights(top, runs, theme, prediction)
    draw_sweeps(bottom, runs, theme)


def draw_weights(axes: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """The weight of every step in the average, 1 where all count alike, and the last tenth's share in words."""
    end = series(runs.metrics("average: constant"), "weight")[-1][0]
    axes.axvspan(0.9, 1, color=theme.grey, alpha=0.18, linewidth=0)
    places = {"constant": (0.88, 3.75), "cosine": (0.36, 1.72), "WSD": (0.70, 2.6)}
    for name, color in COLORS.items():
        metrics, ink = runs.metrics(f"average: {name}"), getattr(theme, color)
        steps, weights = zip(*series(metrics, "weight"), strict=True)
        axes.plot([step / end for step in steps], weights, color=ink, linewidth=2)
        words = f"{name}: {100 * final('last_tenth')(metrics):.0f} %"
        label(axes, *places[name], words, ink, xytext=(0, 0), ha="right")
    label(axes, 0.89, 0.16, "last tenth", theme.grey, xytext=(0, 0), ha="right")
    axes.set(xlim=(0, 1), ylim=(0, max(4.2, (prediction or 0) / 10 * 1.1)))
    axes.set(xlabel="When the step was taken, as a share of the run", ylabel="Weight (1: all alike)")
    axes.set_title("How much of the final weights is whose step")
    if prediction is not None:
        hollow(axes, 0.95, prediction / 10, theme, "")
        words = f"Circle: your prediction, {prediction:g} %"
        label(axes, 0.03, 0.92, words, theme.ink, xycoords="axes fraction", xytext=(0, 0))


def draw_sweeps(axes: Any, runs: Runs, theme: Theme) -> None:
    """What each tau costs above the best one, a curve for each amount of data; crosses are the broken arms."""
    axes.set_xscale("log", base=2)
    axes.axhline(0, color=theme.grey, linewidth=1)
    broken = [tau for tau in (SHORT, LONG) if named("less", tau) in runs.arms]
    for data, color, height in (("less", theme.orange, 0.62), ("more", theme.blue, 0.42)):
        rows = sweep(runs, data)
        means = dict(zip(taus(runs), map(statistics.fmean, rows), strict=True))
        lowest = min(means, key=lambda tau: means[tau])
        above = [[x - means[lowest] for x in of_seed] for of_seed in zip(*rows, strict=True)]
        band(axes, taus(runs), above, color)
        axes.plot(lowest, 0, "o", color=color, markersize=8 if data == "less" else 5, zorder=4)
        words = f"{size(runs, data):,} tokens\n(0 is {means[lowest]:.2f})"
        label(axes, 1.1 * EPOCHS, height, words, color, xycoords=("data", "axes fraction"), fontsize=10)
        if data == "less":
            for tau in broken:
                bad = statistics.fmean(runs.values(named(data, tau), bits)) - means[lowest]
                axes.plot(tau, bad, "x", color=color, markersize=8, markeredgewidth=2)
    lines = {1: "one epoch", EPOCHS: "the run"}
    for tau, words in lines.items():
        axes.axvline(tau, color=theme.grey, linewidth=1, linestyle="--", zorder=0)
        label(axes, tau, 0.96, words, theme.grey, xycoords=("data", "axes fraction"), fontsize=10)
    ticks = sorted({*taus(runs), *broken, *lines})
    axes.set_xticks(ticks, [f"{tau:g}" for tau in ticks])
    axes.minorticks_off()
    axes.margins(y=0.12)
    axes.set_xlim(0.09, 110)
    axes.set(
        xlabel="tau in epochs", ylabel="Bits per byte above the lowest", title="The best tau, for two amounts of data"
    )


if __name__ == "__main__":
    lesson_main(__file__)
