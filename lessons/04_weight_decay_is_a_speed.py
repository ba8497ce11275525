"""04 Weight decay is a speed. Question: halve the decay and double the learning rate: what changes in the long run?

For weights that a normalization follows. Two runs with other rates, decays and weights then make the same predictions, to
the last bit; what is left of rate and decay is one speed, at which neurons turn.

    python lessons/04_weight_decay_is_a_speed.py                # --preset quick (default), cpu, record, gpu
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from minitrain.cli import lesson_main
from minitrain.data.text import standard_library
from minitrain.equilibrium import equilibrium, exponential
from minitrain.gpt import GPT
from minitrain.lab.claims import Claim
from minitrain.lab.compare import Measure, Metrics, Runs, final, mean_late, over_steps, ratio, series
from minitrain.lab.course import Predict
from minitrain.lab.plots import Theme, band, hollow, label
from minitrain.lab.probes import Rotation, angle, predict, rms
from minitrain.optim import SGD, Adam, AdamW, Lion, wrapped
from minitrain.recipe import Recipe, by_kind
from minitrain.schedules import constant
from minitrain.techniques.weight_decay import Meaning, share, with_decay
from minitrain.techniques.weight_standardization import weight_standardized
from minitrain.train import train

PREDICT = Predict(
    "Twice the learning rate and half the decay, from the same start: late neurons turn how many times as fast per step?",
    low=0.0,
    high=4.0,
    answer=lambda runs: statistics.fmean(ratio(runs, f"AdamW, {SAME_PRODUCT}", "AdamW", turning)),
)
SAME_PRODUCT, HALF = "rate x 2, decay / 2", "decay / 2"


# --8<-- [start:setup]
class Start(NamedTuple):
    """An optimizer, and what it does to the matrices inside the blocks; all other parameters keep its own values."""

    make: Callable[..., torch.optim.Optimizer]
    lr: float
    weight_decay: float
    eps: float | None = None


STARTS = {
    "AdamW": Start(partial(AdamW, lr=6e-3, betas=(0.9, 0.95)), 0.02, 1.0, 1e-8),
    "SGD": Start(partial(SGD, lr=0.1, momentum=0.9), 1.0, 5e-4),
    "Lion": Start(partial(Lion, lr=1e-3, betas=(0.9, 0.95)), 3e-3, 3.0),
    "Adam with L2": Start(partial(Adam, lr=6e-3, betas=(0.9, 0.95)), 0.02, 1.15e-4, 1e-8),
}
# Each takes 2 % of a weight per step at a rate of 0.02; but for `l2`, whose share depends on the gradients.
DECAYS: dict[Meaning, float] = {"adamw": 1.0, "constant": 0.02, "lr_squared": 50.0, "l2": 1.15e-4}


class Twin(NamedTuple):
    """By how much the second of two runs differs from the first, in its matrices alone."""

    optimizer: str
    lr: float
    weight_decay: float
    start: float
    eps: float = 1.0
    normalized: bool = True


TWINS = {
    "twins: AdamW": Twin("AdamW", lr=4, weight_decay=1 / 4, start=4, eps=1 / 4),
    "twins: SGD": Twin("SGD", lr=16, weight_decay=1 / 16, start=4),
    "twins: Lion": Twin("Lion", lr=4, weight_decay=1 / 4, start=4),
    "broken: no norm": Twin("AdamW", lr=4, weight_decay=1 / 4, start=4, eps=1 / 4, normalized=False),
    "broken: eps left alone": Twin("AdamW", lr=4, weight_decay=1 / 4, start=4),
    "broken: Adam with L2": Twin("Adam with L2", lr=4, weight_decay=1 / 4, start=4, eps=1 / 4),
}
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"steps": 240, "twin_steps": 40, "seeds": 2, "only": ("AdamW", "quarter", "twins: AdamW", "broken: no norm")},
    "cpu": {"steps": 600, "twin_steps": 100, "seeds": 3},
    "record": {"steps": 600, "twin_steps": 100, "seeds": 5},
    "gpu": {
        "steps": 2000, "twin_steps": 1, "seeds": 2, "depth": 12, "width": 768, "context": 1024, "batch_size": 65_536,
        "precision": "bf16", "only": ("AdamW", "Adam", "quarter"),
    },
}  # fmt: skip


def experiment(
    steps: int,
    twin_steps: int,
    seeds: int,
    only: tuple[str, ...] = ("",),
    depth: int = 2,
    width: int = 64,
    context: int = 64,
    batch_size: int = 1024,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, Any]:
    """Four optimizers with two or three pairs of rate and decay; four meanings of decay under a rate that falls; and twins.

    `only`: how the names of the arms that are wanted begin.
    """
    plain = partial(GPT, depth=depth, width=width, context=context)
    base = Recipe(
        build_model=partial(weight_standardized, plain, eps=0.0),
        data=partial(standard_library, context=context),
        steps=steps,
        batch_size=batch_size,
        schedules={("*", "lr"): partial(constant, warmup=20)},
        precision=precision,
    )
    arms: dict[str, Any] = {}
    for name, start in STARTS.items():
        arms[name] = changed(base, start)
        arms[f"{name}, {SAME_PRODUCT}"] = changed(base, start, lr=2, weight_decay=1 / 2)
        if name != "Adam with L2":
            arms[f"{name}, {HALF}"] = changed(base, start, weight_decay=1 / 2)
    falling = replace(base, schedules={("*", "lr"): partial(then_a_quarter, at=steps // 3)})
    for meaning, number in DECAYS.items():
        by = (partial(with_decay, meaning=meaning),)
        make = partial(wrapped, make=AdamW, by=by, lr=6e-3, betas=(0.9, 0.95))
        arms[f"quarter: {meaning}"] = changed(falling, Start(make, 0.02, number))
    for name, twin in TWINS.items():
        first = replace(base, steps=twin_steps, build_model=base.build_model if twin.normalized else plain)
        second = replace(first, build_model=partial(longer, first.build_model, times=twin.start))
        start = STARTS[twin.optimizer]
        arms[name] = partial(
            twins,
            first=changed(first, start),
            second=changed(second, start, twin.lr, twin.weight_decay, twin.eps),
            times=twin.start,
        )
    return {
        "arms": {name: arm for name, arm in arms.items() if name.startswith(only)},
        "seeds": range(seeds),
        "probes": (partial(Turning, window=20),),
        "log_every": 20,
        "evaluate_every": steps,
    }


def changed(recipe: Recipe, start: Start, lr: float = 1.0, weight_decay: float = 1.0, eps: float = 1.0) -> Recipe:
    """The recipe with an optimizer, whose rate, decay and `eps` for the matrices are multiplied by these factors."""
    groups = partial(
        matrices_apart,
        lr=lr * start.lr,
        weight_decay=weight_decay * start.weight_decay,
        eps=None if start.eps is None else eps * start.eps,
    )
    return replace(recipe, make_optimizer=start.make, param_groups=groups)


def matrices_apart(model: nn.Module, lr: float, weight_decay: float, eps: float | None) -> list[dict[str, Any]]:
    """The usual groups, but that the matrices inside the blocks are given values of their own."""
    own = {"lr": lr, "weight_decay": weight_decay, **({} if eps is None else {"eps": eps})}
    return [group | (own if group["name"] == "matrices" else {}) for group in by_kind(model)]


def longer(build_model: Callable[[], nn.Module], times: float) -> nn.Module:
    """The model with the matrices inside its blocks multiplied by a number."""
    model = build_model()
    with torch.no_grad():
        for group in by_kind(model):
            for p in group["params"] if group["name"] == "matrices" else ():
                p.mul_(times)
    return model


def then_a_quarter(step: int, at: int, warmup: int = 20) -> float:
    """Warmup, then 1, and a quarter of it from step `at`."""
    return constant(step, warmup=warmup) / (4 if step >= at else 1)


# --8<-- [end:setup]
# --8<-- [start:twins]
def twins(seed: int, first: Recipe, second: Recipe, times: float) -> Metrics:
    """Trains both and compares bits: the losses of all steps, the matrices at the end, and logits on unseen text."""
    a, b = (train(replace(recipe, seed=seed), log_every=recipe.steps) for recipe in (first, second))
    gaps = (a.losses - b.losses).abs()
    inputs, _ = a.data.validation(rows=16)[0]
    with torch.no_grad():
        logits = [run.model(inputs) for run in (a, b)]
    matrices = [
        torch.cat(
            [p.detach().flatten() for g in run.optimizer.param_groups if g["name"] == "matrices" for p in g["params"]]
        )
        for run in (a, b)
    ]
    differing = {
        "losses": int((gaps != 0).sum()),
        "logits": int((logits[0] != logits[1]).sum()),
        "weights": int((times * matrices[0] != matrices[1]).sum()),
    }
    return [
        {"step": first.steps, "differing": differing, "largest_gap": gaps.max().item(), "logits": logits[0].numel()}
    ]


# --8<-- [end:twins]
# --8<-- [start:probe]
class Turning(Rotation):
    """A probe: what all neurons of the block matrices do together, per step, as a mean over `window` steps.

    `rotation`, in radians, is a root mean square over the neurons, and `spread` the standard deviation of their rotations
    over the mean; `size`, at the end, is the root mean square of `|w| / sqrt(fan_in)`; `predicted` is the rotation that
    theory expects, where it does.
    """

    def __init__(self, window: int):
        super().__init__(every=1)
        self.window = window
        self.seen: list[Tensor] = []

    @torch.no_grad()
    def after(self, run: Any) -> dict[str, Any]:
        weights = self.weights(run)
        rows = [w.rows(w.parameter) for w in weights]
        turned = torch.cat([angle(w.rows(self.old[w.name]), new) for w, new in zip(weights, rows, strict=True)])
        self.seen.append(torch.stack([rms(turned), turned.std() / turned.mean()]))
        if run.step % self.window:
            return {}
        seen, self.seen = self.seen, []
        if len(seen) < self.window:  # the run was stopped and resumed in between
            return {}
        rotation, spread = torch.stack(seen).mean(0).tolist()
        sizes = torch.cat([new.norm(dim=1) / new.shape[1] ** 0.5 for new in rows])
        settled = predict(run.optimizer, weights[0].group, rows[0].shape[1])
        known = {"predicted": settled.rotation} if settled else {}
        return {"rotation": rotation, "spread": spread, "size": rms(sizes).item(), **known}


# --8<-- [end:probe]
# --- by hand ----------------------------------------------------------------------------------------------------------


# --8<-- [start:hand]
def one_neuron(lr: float, weight_decay: float, start: float, steps: int = 4) -> list[tuple[float, float]]:
    """SGD on a neuron `w @ x / |w|` that should answer 1: what it answers before each step, and how long `w` is then."""
    w, x, seen = start * np.array([0.6, -0.2, 0.3]), np.array([1.0, 0.5, -1.0]), []
    for _ in range(steps):
        norm = np.linalg.norm(w)
        answer = w @ x / norm
        seen.append((float(answer), float(norm)))
        g = 2 * (answer - 1) * (x - answer * w / norm) / norm  # shorter where w is longer, and at right angles to it
        w = w - lr * (g + weight_decay * w)
    return seen


def twin_neurons() -> None:
    """Sixteen times the rate, a sixteenth of the decay, four times the weight: the same answers, digit by digit."""
    a = one_neuron(lr=0.1, weight_decay=0.5, start=1)
    b = one_neuron(lr=1.6, weight_decay=0.03125, start=4)
    print("step  A answers            B answers            |w| of A   |w| of B")
    for step, ((answer_a, norm_a), (answer_b, norm_b)) in enumerate(zip(a, b, strict=True)):
        print(f"{step:>4}  {answer_a:<19.16f}  {answer_b:<19.16f}  {norm_a:.6f}   {norm_b:.6f}")


def what_theory_expects() -> None:
    """AdamW, a neuron of 64 weights: only the product of rate and decay makes it turn, only their quotient makes it long."""
    print("   lr  decay  radians per step  length")
    for lr, weight_decay in ((0.02, 1.0), (0.04, 0.5), (0.02, 0.5), (0.04, 1.0)):
        settled = equilibrium(exponential(0.9), lr, weight_decay, fan_in=64)
        print(f"{lr:.3f}  {weight_decay:5.2f}  {settled.rotation:16.4f}  {settled.norm:6.3f}")


def five_meanings() -> None:
    """What one step takes of a weight, at the peak rate and at a quarter of it; `l2` takes it through the gradient."""
    for meaning, number in list(DECAYS.items())[:-1]:
        group = {"initial_lr": 0.02, "weight_decay": number}
        taken = [share(meaning, group | {"lr": lr}) for lr in (0.02, 0.005)]
        print(f"{meaning:<10}  weight_decay={number:<7.4g}  {taken[0]:.5f}  {taken[1]:.5f}")


# --8<-- [end:hand]
def by_hand() -> None:
    """Twins of three weights, the formulas in numbers, and the meanings of decay."""
    for part in (twin_neurons, what_theory_expects, five_meanings):
        print(f"\n{part.__doc__}")
        part()


# --- claims -----------------------------------------------------------------------------------------------------------


# --8<-- [start:claims]
turning = mean_late("rotation")
MEASURES = {
    "radians per step": turning,
    "radians / predicted": lambda metrics: turning(metrics) / mean_late("predicted")(metrics),
    "size of w": mean_late("size"),
    "spread over neurons": mean_late("spread"),
    "losses that differ": final("differing.losses"),
    "share of logits that differ": lambda metrics: share_of_logits(metrics),
    "largest gap of losses": final("largest_gap"),
}


def exponent(measure: Measure, arm: str, baseline: str, factor: float) -> Callable[[Runs], list[float]]:
    """The power of `factor` by which a measure differs in two arms, per seed."""
    return lambda runs: [math.log(x) / math.log(factor) for x in ratio(runs, arm, baseline, measure)]


def differing(metrics: Metrics) -> float:
    """How many losses, logits and weights of a twin are not what they should be, to the last bit."""
    return sum(final(f"differing.{what}")(metrics) for what in ("losses", "logits", "weights"))


def share_of_logits(metrics: Metrics) -> float:
    """How many of a twin's logits differ, as a share."""
    return final("differing.logits")(metrics) / final("logits")(metrics)


def fall(key: str) -> Measure:
    """The late mean of `key` over its mean over the last steps before the rate fell."""

    def measure(metrics: Metrics) -> float:
        found = series(metrics, key)
        fell = found[-1][0] / 3
        before = [value for step, value in found if 0.75 * fell < step <= fell]
        return mean_late(key)(metrics) / statistics.fmean(before)

    return measure


def same_bits(name: str) -> Claim:
    """That twins do the same, to the last bit."""
    optimizer = name.partition(": ")[2]
    return Claim(
        name=f"twins-{optimizer.lower()}",
        sentence=f"{optimizer}: twins have the same losses, logits and, but for the factor, weights (bits that differ)",
        statistic=lambda runs: runs.values(name, differing),
        within=(0.0, 0.0),
        kind="algebra",
        arms=(name,),
    )


def speed(arm: str, baseline: str, factor: float, words: str, margin: float) -> Claim:
    """How many times as fast the late neurons of an arm turn, over the factor that theory expects."""
    kind = "product" if SAME_PRODUCT in arm else "root"
    return Claim(
        name=f"{kind}-{baseline.lower().replace(' ', '-')}",
        sentence=f"{arm}: late neurons turn {words}, within {100 * margin:.0f} % (measured / expected)",
        statistic=lambda runs: [x / factor for x in ratio(runs, arm, baseline, turning)],
        within=(1 - margin, 1 + margin),
        arms=(arm, baseline),
    )


def no_twins(name: str, arm: str, words: str) -> Claim:
    """That two runs are not the same, by far."""
    return Claim(
        name=f"{name}-no-twins",
        sentence=f"{words}: in every seed some loss differs by more than 0.02 nats",
        statistic=lambda runs: [float(gap > 0.02) for gap in runs.values(arm, final("largest_gap"))],
        at_least=1.0,
        arms=(arm,),
    )


def length_of(optimizer: str, within: tuple[float, float], words: str) -> Claim:
    """That the quotient of rate and decay decides how long neurons get."""
    arms = (f"{optimizer}, {SAME_PRODUCT}", optimizer)
    return Claim(
        name=f"length-{optimizer.lower()}",
        sentence=f"{optimizer}: the length goes as {words} of rate over decay (exponent, from four times the quotient)",
        statistic=exponent(mean_late("size"), *arms, factor=4),
        within=within,
        arms=arms,
    )


def after_the_fall(meaning: str, key: str, words: str, within: tuple[float, float]) -> Claim:
    """What a quarter of the rate does in the long run."""
    return Claim(
        name=f"quarter-{meaning.replace('_', '-')}-{key}",
        sentence=f"The rate falls to a quarter, {meaning}: {words} (late over before)",
        statistic=lambda runs: runs.values(f"quarter: {meaning}", fall(key)),
        within=within,
        arms=(f"quarter: {meaning}",),
    )


CLAIMS = [
    *map(same_bits, ("twins: AdamW", "twins: SGD", "twins: Lion")),
    speed(f"AdamW, {SAME_PRODUCT}", "AdamW", 1.0, "as fast as before", 0.05),
    speed(f"SGD, {SAME_PRODUCT}", "SGD", 1.0, "as fast as before", 0.1),
    speed(f"Lion, {SAME_PRODUCT}", "Lion", 1.0, "as fast as before", 0.1),
    speed(f"AdamW, {HALF}", "AdamW", 0.5**0.5, "slower by the root of 2", 0.05),
    speed(f"SGD, {HALF}", "SGD", 0.5**0.5, "slower by the root of 2", 0.1),
    speed(f"Lion, {HALF}", "Lion", 0.5**0.5, "slower by the root of 2", 0.1),
    length_of("AdamW", (0.45, 0.55), "the square root"),
    length_of("SGD", (0.18, 0.32), "the fourth root"),
    length_of("Lion", (0.45, 0.55), "the square root"),
    Claim(
        name="adam-l2-has-another-product",
        sentence="Adam with L2, twice the rate and half the decay: late neurons turn more than 10 % faster (ratio)",
        statistic=lambda runs: ratio(runs, f"Adam with L2, {SAME_PRODUCT}", "Adam with L2", turning),
        above=1.1,
        arms=(f"Adam with L2, {SAME_PRODUCT}", "Adam with L2"),
    ),
    Claim(
        name="means-are-alike",
        sentence="Adam with L2 turns its neurons as fast as AdamW within 20 %, over all of them (ratio of late rotations)",
        statistic=lambda runs: ratio(runs, "Adam with L2", "AdamW", turning),
        within=(0.8, 1.2),
        arms=("Adam with L2", "AdamW"),
    ),
    Claim(
        name="adam-l2-spreads",
        sentence="Adam with L2 spreads its neurons' rotations at least 1.5 times as far as AdamW (ratio of spreads)",
        statistic=lambda runs: ratio(runs, "Adam with L2", "AdamW", mean_late("spread")),
        above=1.5,
        arms=("Adam with L2", "AdamW"),
    ),
    after_the_fall("adamw", "rotation", "neurons turn half as fast, within 0.1", (0.4, 0.6)),
    after_the_fall("constant", "rotation", "neurons turn as fast as before, within 15 %", (0.85, 1.15)),
    after_the_fall("constant", "size", "and are a quarter as long, within 0.05", (0.2, 0.3)),
    after_the_fall("lr_squared", "rotation", "neurons turn a quarter as fast, within 0.05", (0.2, 0.3)),
    after_the_fall("lr_squared", "size", "and are as long as before, within 20 %", (0.8, 1.2)),
    no_twins("no-norm", "broken: no norm", "Without a norm the factors make no twins"),
    no_twins("adam-l2", "broken: Adam with L2", "AdamW's factors make no twins of Adam with L2"),
    Claim(
        name="eps-must-shrink",
        sentence="With eps left alone most logits differ in their bits (share of the logits)",
        statistic=lambda runs: runs.values("broken: eps left alone", share_of_logits),
        above=0.5,
        arms=("broken: eps left alone",),
    ),
]
# --8<-- [end:claims]


# --- the picture ------------------------------------------------------------------------------------------------------

HEIGHT = 8.4  # inches


def draw(figure: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """Three pairs of rate and decay: the size of the weights, and how far they turn. Below: four meanings of decay."""
    sizes, turns, meanings = figure.subplots(3, 1, height_ratios=(1, 1, 1))
    colors = {"AdamW": theme.blue, f"AdamW, {SAME_PRODUCT}": theme.orange, f"AdamW, {HALF}": theme.pink}
    words = dict(zip(colors, ("rate and decay", "rate x 2, decay / 2", "decay / 2"), strict=True))
    for arm, color in colors.items():
        for axes, key in ((sizes, "size"), (turns, "rotation")):
            end = draw_arm(axes, runs, arm, key, color)
            if axes is sizes:
                label(axes, *end, words[arm], color)
    turned = {arm: statistics.fmean(runs.values(arm, mean_late("rotation"))) for arm in colors}
    both = "rate and decay;\nrate x 2, decay / 2"
    label(turns, last_step(runs, "AdamW"), turned["AdamW"], both, theme.ink, xytext=(4, 6))
    label(turns, last_step(runs, "AdamW"), turned[f"AdamW, {HALF}"], "decay / 2", theme.pink, xytext=(4, -4))
    sizes.set(ylabel="Size of a weight", title="Rate over decay decides how long, ...")
    turns.set(ylabel="Radians per step", title="... rate times decay how fast")
    if prediction is not None:
        hollow(turns, last_step(runs, "AdamW"), prediction * turned["AdamW"], theme, "Your\nprediction")
    for meaning, color, up in (
        ("constant", theme.orange, 0),
        ("adamw", theme.blue, 5),
        ("l2", theme.green, 1),
        ("lr_squared", theme.pink, -7),
    ):
        end = draw_arm(meanings, runs, f"quarter: {meaning}", "rotation", color)
        label(meanings, *end, meaning, color, xytext=(4, up))
    meanings.axvline(last_step(runs, "quarter: adamw") / 3, color=theme.grey, linewidth=1, linestyle="--")
    meanings.set(xlabel="Steps", ylabel="Radians per step", title="The rate falls to a quarter: who slows down?")
    for axes, arm, width in ((sizes, "AdamW", 1.62), (turns, "AdamW", 1.62), (meanings, "quarter: adamw", 1.32)):
        end = last_step(runs, arm)
        axes.set(xlim=(0, end * width), xticks=range(0, end + 1, end // 3), ylim=(0, None))
    meanings.set_ylim(0, 1.6 * turned["AdamW"])  # what l2 does in its first steps is another matter


def last_step(runs: Runs, arm: str) -> int:
    """The last that was logged."""
    return series(runs.metrics(arm), "rotation")[-1][0]


def draw_arm(axes: Any, runs: Runs, arm: str, key: str, color: str) -> tuple[float, float]:
    """The band of an arm's seeds; returns where its line ends."""
    steps, lines = over_steps(runs, arm, key)
    band(axes, steps, lines, color)
    return steps[-1], statistics.fmean(line[-1] for line in lines)


if __name__ == "__main__":
    lesson_main(__file__)
