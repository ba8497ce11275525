"""07 Rotational optimizers. Question: what is left of weight decay when every neuron turns as it would in the end, at once?

Plain AdamW needs time until its neurons turn at the speed that learning rate and decay set. Here that speed is imposed from
the first step on: no neuron ever gets longer, and no decay is applied. A probe of the theory, not a better optimizer.

    python lessons/07_rotational_optimizers.py                # --preset quick (default), cpu, record, gpu
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
from minitrain.data.text import standard_library
from minitrain.gpt import GPT, nanogpt_style
from minitrain.lab.claims import Claim
from minitrain.lab.compare import Measure, Metrics, Runs, at, final, over_steps, series
from minitrain.lab.course import Predict
from minitrain.lab.plots import Theme, band, hollow, label, u_curve
from minitrain.lab.probes import Rotation, angle, predict, rms
from minitrain.optim import AdamW, wrapped
from minitrain.recipe import Recipe, by_kind
from minitrain.schedules import linear, warmup_stable_decay
from minitrain.techniques.rotational import RotationalAdamW, rotate, unbalance, which_rotate

# --8<-- [start:setup]
PREDICT = Predict(
    "AdamW starts without warmup. In its first step, how many times the angle of its equilibrium do its neurons turn?",
    low=0.0,
    high=50.0,
    answer=lambda runs: statistics.fmean(runs.values(ADAMW, over_set(1), RATE)),
)
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"steps": 250, "seeds": 2, "rates": (3e-3,)},
    "cpu": {"steps": 250, "seeds": 2, "rates": (3e-3, 1e-2, 3e-2)},
    "record": {"steps": 250, "seeds": 6, "first_seed": 101, "rates": (1e-3, 3e-3, 1e-2, 3e-2)},
    "gpu": {
        "steps": 2000, "seeds": 2, "rates": (3e-4, 1e-3, 3e-3), "depth": 12, "width": 768, "context": 1024,
        "batch_size": 65_536, "weight_decay": 0.5, "precision": "bf16",
    },
}  # fmt: skip


def experiment(
    steps: int,
    seeds: int,
    rates: tuple[float, ...],
    first_seed: int = 0,
    depth: int = 2,
    width: int = 64,
    context: int = 64,
    batch_size: int = 1024,
    weight_decay: float = 1.0,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, Any]:
    """AdamW and its rotational variant, with and without warmup; an imbalance; another model, long and short at first."""
    sizes = {"depth": depth, "width": width, "context": context}
    adamw = partial(AdamW, weight_decay=weight_decay, betas=(0.9, 0.95))
    turning = partial(RotationalAdamW, weight_decay=weight_decay, betas=(0.9, 0.95))
    unbalanced = partial(
        wrapped,
        make=RotationalAdamW,
        by=(partial(unbalance, fraction=0.5, speed=0.1),),
        lr=rates[0],
        **turning.keywords,
    )
    schedule = partial(warmup_stable_decay, steps=steps, cooldown=steps // 2, shape=linear)
    warm = {("*", "lr"): partial(schedule, warmup=steps // 10)}
    base = Recipe(
        build_model=partial(started, partial(nanogpt_style, **sizes), std=0.02),
        data=partial(standard_library, context=context),
        steps=steps,
        batch_size=batch_size,
        make_optimizer=adamw,
        schedules={("*", "lr"): schedule},
        precision=precision,
    )
    rotational = replace(base, make_optimizer=turning)
    long, short = partial(GPT, **sizes), partial(started, partial(GPT, **sizes), std=0.02)
    return {
        "arms": {
            ADAMW: base,
            WARM_ADAMW: replace(base, schedules=warm),
            TURNING: rotational,
            WARM_TURNING: replace(rotational, schedules=warm),
            UNBALANCED: replace(base, make_optimizer=unbalanced),
            NORMED_ADAMW: replace(base, build_model=long),
            NORMED: replace(rotational, build_model=long),
            SHORT_ADAMW: replace(base, build_model=short),
            BROKEN: replace(rotational, build_model=short),
        },
        "seeds": range(first_seed, first_seed + seeds),
        "learning_rates": list(rates),
        "probes": (partial(Turned, steps=spread_out(steps)),),
        "log_every": steps // 2,
        "evaluate_every": steps,
    }


def spread_out(steps: int, each: float = 1.6) -> tuple[int, ...]:
    """1, 2, 3, 5, 8, ...: steps that stand at about equal distances on a logarithmic axis."""
    found = [1]
    while found[-1] < steps:
        found.append(min(steps, max(found[-1] + 1, round(found[-1] * each))))
    return tuple(found)


# --8<-- [end:setup]
RATE = 3e-3  # the learning rate at which angles and lengths are looked at
ADAMW, WARM_ADAMW = "AdamW", "AdamW, warmup"
TURNING, WARM_TURNING, UNBALANCED = "rotational", "rotational, warmup", "rotational, unbalanced"
NORMED_ADAMW, NORMED = "more norms: AdamW", "more norms: rotational"
SHORT_ADAMW, BROKEN = "more norms, short at first: AdamW", "broken: more norms, short at first: rotational"


# --8<-- [start:probe]
class Turned(Rotation):
    """A probe: how far the neurons of all block matrices turn in some of the steps, as one root mean square.

    Beside it the angle that learning rate, decay and momentum set, and how long the neurons are, as `|w| / sqrt(fan_in)`.
    """

    def __init__(self, steps: tuple[int, ...]):
        super().__init__(every=1)
        self.steps = steps

    @torch.no_grad()
    def before(self, run: Any) -> None:
        if run.step + 1 in self.steps:
            super().before(run)

    @torch.no_grad()
    def after(self, run: Any) -> dict[str, Any]:
        if run.step not in self.steps:
            return {}
        weights = self.weights(run)
        angles = torch.cat([angle(w.rows(self.old[w.name]), w.rows(w.parameter)) for w in weights])
        sizes = torch.cat([w.rows(w.parameter).square().mean(dim=1).sqrt() for w in weights])
        settled = predict(run.optimizer, weights[0].group, 64)
        self.old = {}
        found = {
            "turned": rms(angles).item(),
            "size": rms(sizes).item(),
            "set": settled.rotation if settled else math.nan,
        }
        return {key: float(f"{value:.4g}") for key, value in found.items()}


# --8<-- [end:probe]
# --8<-- [start:models]
def started(model: Callable[[], nn.Module], std: float) -> nn.Module:
    """The model with the matrices of its blocks drawn anew, all numbers with the same spread, as GPT-2 begins."""
    built = model()
    with torch.no_grad():
        for name, p in built.named_parameters():
            if name.startswith("blocks.") and p.ndim == 2:
                p.normal_(std=std)
    return built


# --8<-- [end:models]


# --- by hand ----------------------------------------------------------------------------------------------------------


# --8<-- [start:hand]
def one_step() -> None:
    """One step of one neuron with four inputs, by 0.1 radians."""
    w, u = torch.tensor([3.0, -1.0, -1.0, -1.0]), torch.tensor([2.0, 1.0, 0.0, -1.0])
    u = u - u.mean()
    print(f"u without its mean:         {numbers(u)}")
    u = u - w * (u @ w) / (w @ w)
    print(f"what goes across w:         {numbers(u)}    (u times w is now {abs(float(u @ w)):.4f})")
    longer = w - 0.1 * w.norm() * u / u.norm()
    print(f"a tenth of |w| that way:    {numbers(longer)}    length {longer.norm():.4f}, and w's {w.norm():.4f}")
    new = longer * w.norm() / longer.norm()
    print(f"back to the old length:     {numbers(new)}    length {new.norm():.4f}")
    print(f"turned by {angle(w, new):.4f} radians, the arc tangent of 0.1: {math.atan(0.1):.4f}")


def loud_and_quiet() -> None:
    """Two neurons, one with updates a million times as long; then a jump, a hundred times as long as usual."""
    w, state = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)), {}
    w = w - w.mean(dim=1, keepdim=True)
    for step in range(1, 41):
        u = torch.randn(2, 50, generator=torch.Generator().manual_seed(step)) * torch.tensor([[1.0], [1e-6]])
        u = 100 * u if step == 40 else u
        old, w = w, rotate(w, u, state, angle=0.1, per_neuron=True, center=True, rms_decay=0.9)
        if step in (1, 2, 3, 39, 40):
            print(f"step {step:2}: turned {numbers(angle(old, w))} radians, lengths {numbers(w.norm(dim=1))}")


def who_rotates() -> None:
    """In a GPT: the matrices of its blocks, each row a neuron."""
    model = GPT(depth=1, width=32, context=16)
    print(which_rotate(RotationalAdamW(by_kind(model), lr=1e-2, weight_decay=1.0), model))


def by_hand() -> None:
    """The step on a handful of numbers, and what it is applied to."""
    for part in (one_step, loud_and_quiet, who_rotates):
        print(f"\n{part.__doc__}")
        part()


def numbers(x: Tensor) -> str:
    """With four digits each."""
    return " ".join(f"{value:7.4f}" for value in x.tolist())


# --8<-- [end:hand]


# --- claims -----------------------------------------------------------------------------------------------------------


# --8<-- [start:claims]
loss = final("val_loss")


def over_set(step: int) -> Measure:
    """The angle at a step, over the one that learning rate, decay and momentum set then."""
    return lambda metrics: at("turned", step)(metrics) / at("set", step)(metrics)


def before_cooldown(metrics: Metrics) -> float:
    """The same at the last step measured before the cooldown."""
    return over_set(max(step for step, _ in series(metrics, "turned") if step <= metrics[-1]["step"] // 2))(metrics)


def growth(metrics: Metrics) -> float:
    """How long neurons are at the end, over how long they were after the first step."""
    return final("size")(metrics) / at("size", 1)(metrics)


MEASURES = {
    "validation loss": loss,
    "angle / set, step 1": over_set(1),
    "angle / set, before the cooldown": before_cooldown,
    "length, end / start": growth,
}


def cost(runs: Runs, arm: str, beside: str) -> list[float]:
    """How much higher the loss is than beside, each at the rate that is best for it on the average, per seed."""
    a, b = (runs.values(x, loss, runs.best_lr(x, loss)) for x in (arm, beside))
    return [x - y for x, y in zip(a, b, strict=True)]


def range_over_rates(runs: Runs, arm: str) -> list[float]:
    """The largest minus the smallest loss over the learning rates from 3e-3 on, per seed; NaN where there is but one."""
    rates = [lr for lr in runs.learning_rates if lr and lr >= 3e-3]
    each = zip(*(runs.values(arm, loss, lr) for lr in rates), strict=True)
    return [max(values) - min(values) if len(values) > 1 else math.nan for values in each]


def at_rate(arm: str, measure: Measure) -> Callable[[Runs], list[float]]:
    """A measure at the learning rate `RATE`, per seed."""
    return lambda runs: runs.values(arm, measure, RATE)


CLAIMS = [
    Claim(
        "rotational-first-step",
        "Rotational: in the very first step neurons turn by the angle that is set (measured / set)",
        at_rate(TURNING, over_set(1)),
        within=(0.99, 1.01),
        arms=(TURNING,),
    ),
    Claim(
        "adamw-first-step",
        "AdamW without warmup: in the first step they turn more than 5 times as far (measured / set)",
        at_rate(ADAMW, over_set(1)),
        above=5.0,
        arms=(ADAMW,),
    ),
    Claim(
        "adamw-arrives",
        "AdamW: before the cooldown they turn by the angle that is set, within a factor of two (measured / set)",
        at_rate(ADAMW, before_cooldown),
        within=(0.5, 2.0),
        arms=(ADAMW,),
    ),
    Claim(
        "rotational-stays",
        "Rotational: before the cooldown they turn by the angle that is set, within 15 % (measured / set)",
        at_rate(TURNING, before_cooldown),
        within=(0.85, 1.15),
        arms=(TURNING,),
    ),
    Claim(
        "no-warmup-rotational",
        "Rotational: leaving out the warmup costs less than 0.01 nats, each at the best rate tried",
        lambda runs: cost(runs, TURNING, WARM_TURNING),
        below=0.01,
        unit="nats",
        arms=(TURNING, WARM_TURNING),
    ),
    Claim(
        "no-warmup-adamw",
        "AdamW: leaving out the warmup changes the loss by less than 0.03 nats, each at the best rate tried",
        lambda runs: cost(runs, ADAMW, WARM_ADAMW),
        within=(-0.03, 0.03),
        unit="nats",
        arms=(ADAMW, WARM_ADAMW),
    ),
    Claim(
        "rotational-is-flat",
        "Rotational, no warmup: the loss differs by less than 0.1 nats between learning rates of 0.003 and ten times that",
        lambda runs: range_over_rates(runs, TURNING),
        below=0.1,
        unit="nats",
        arms=(TURNING,),
    ),
    Claim(
        "adamw-is-steep",
        "AdamW, no warmup: it differs by more than 0.1 nats",
        lambda runs: range_over_rates(runs, ADAMW),
        above=0.1,
        unit="nats",
        arms=(ADAMW,),
    ),
    Claim(
        "rotational-wins",
        "Rotational ends lower than AdamW, without warmup, each at the best rate tried",
        lambda runs: cost(runs, ADAMW, TURNING),
        above=0.0,
        unit="nats",
        arms=(ADAMW, TURNING),
    ),
    Claim(
        "imbalance",
        "Half of the neurons at a tenth of the speed cost less than 0.02 nats, each at the best rate tried",
        lambda runs: cost(runs, UNBALANCED, TURNING),
        below=0.02,
        unit="nats",
        arms=(UNBALANCED, TURNING),
    ),
    Claim(
        "more-norms",
        "With more norms too, rotational ends lower than AdamW by more than 0.03 nats",
        lambda runs: cost(runs, NORMED_ADAMW, NORMED),
        above=0.03,
        unit="nats",
        arms=(NORMED_ADAMW, NORMED),
    ),
    Claim(
        "short-stays-short",
        "Short at first: neurons of the rotational optimizer are as long at the end as after the first step (ratio)",
        at_rate(BROKEN, growth),
        within=(0.999, 1.001),
        kind="algebra",
        arms=(BROKEN,),
    ),
    Claim(
        "adamw-outgrows-it",
        "Short at first: AdamW's are more than 1.5 times as long at the end (ratio)",
        at_rate(SHORT_ADAMW, growth),
        above=1.5,
        arms=(SHORT_ADAMW,),
    ),
    Claim(
        "adamw-forgets-the-start",
        "AdamW's loss is the same within 0.1 nats, whether neurons were long or short at first",
        lambda runs: cost(runs, SHORT_ADAMW, NORMED_ADAMW),
        within=(-0.1, 0.1),
        unit="nats",
        arms=(SHORT_ADAMW, NORMED_ADAMW),
    ),
    Claim(
        "rotational-does-not",
        "Rotational's is higher by more than 0.1 nats where they were short at first",
        lambda runs: cost(runs, BROKEN, NORMED),
        above=0.1,
        unit="nats",
        arms=(BROKEN, NORMED),
    ),
    Claim(
        "rotational-loses",
        "Short at first: rotational ends higher than AdamW by more than 0.03 nats",
        lambda runs: cost(runs, BROKEN, SHORT_ADAMW),
        above=0.03,
        unit="nats",
        arms=(BROKEN, SHORT_ADAMW),
    ),
]
# --8<-- [end:claims]


# --- the picture ------------------------------------------------------------------------------------------------------

HEIGHT = 8.4  # inches


def draw(figure: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """Above: the angle, step by step. Middle: the loss over the learning rates. Below: what the first length does to it."""
    above, center, below = figure.subplots(3, 1, height_ratios=(3, 3, 2.2))
    draw_angles(above, runs, theme, prediction)
    draw_losses(center, runs, theme)
    draw_starts(below, runs, theme)


def draw_angles(axes: Any, runs: Runs, theme: Theme, prediction: float | None) -> None:
    """Both optimizers without warmup, at one learning rate, and dashed the angle that is set."""
    for arm, color, words, up in ((ADAMW, theme.red, "AdamW", 9), (TURNING, theme.blue, "Rotational", -15)):
        steps, angles = over_steps(runs, arm, "turned", RATE)
        band(axes, steps, angles, color)
        label(axes, steps[3], angles[0][3], words, color, xytext=(4, up))
    line = series(runs.metrics(TURNING, lr=RATE), "set")
    axes.plot(*zip(*line, strict=True), color=theme.ink, linestyle="--", linewidth=1.2)
    label(axes, *line[0], "The angle that is set", theme.ink, xytext=(0, 9))
    if prediction is not None:
        hollow(axes, 1, max(prediction, 0.1) * line[0][1], theme, "Your prediction")
    axes.set(xscale="log", yscale="log", xlabel="Step", ylabel="Radians", ylim=(6e-4, None))
    axes.set_xticks([1, 10, 100], ["1", "10", "100"])
    axes.set_yticks([1e-3, 1e-2, 1e-1], ["0.001", "0.01", "0.1"])
    axes.set_title(f"Angle per step, at a rate of {RATE:g}")


def draw_losses(axes: Any, runs: Runs, theme: Theme) -> None:
    """The four sweeps."""
    lines = {
        ADAMW: (theme.red, "AdamW"),
        WARM_ADAMW: (theme.orange, "AdamW, warmup"),
        WARM_TURNING: (theme.sky, "Rotational, warmup"),
        TURNING: (theme.blue, "Rotational"),
    }
    for arm, (color, words) in lines.items():
        u_curve(axes, runs, arm, loss, color)
        axes.plot([], [], color=color, label=words)
    axes.legend(fontsize="small", loc="upper left", labelcolor="linecolor", handlelength=0.8)
    axes.set(xlabel="Learning rate", ylabel="Nats", xscale="log")
    axes.set_xticks(runs.learning_rates, [f"{lr:g}" for lr in runs.learning_rates])
    axes.minorticks_off()
    axes.set_title("Validation loss")


def draw_starts(axes: Any, runs: Runs, theme: Theme) -> None:
    """A dot a seed, each arm at its best rate."""
    rows = {
        NORMED_ADAMW: (theme.red, "AdamW"),
        SHORT_ADAMW: (theme.red, "AdamW, short at first"),
        NORMED: (theme.blue, "Rotational"),
        BROKEN: (theme.blue, "Rotational, short at first"),
    }
    means = []
    for y, (arm, (color, words)) in enumerate(rows.items()):
        values = runs.values(arm, loss, runs.best_lr(arm, loss))
        axes.plot(values, [y] * len(values), "o", color=color, markersize=6, alpha=0.6)
        means.append(statistics.fmean(values))
        label(axes, means[-1], y, words, color, xytext=(0, 11), ha="center")
    room = 0.5 * (max(means) - min(means))
    axes.set(xlabel="Nats, each at the best rate tried", yticks=[], ylim=(len(rows) - 0.6, -0.9))
    axes.set_xlim(min(means) - room, max(means) + room)
    axes.spines["left"].set_visible(False)
    axes.set_title("Validation loss with more norms")


if __name__ == "__main__":
    lesson_main(__file__)
