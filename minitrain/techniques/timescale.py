"""How long a run remembers: AdamW's weights are a moving average of its updates, and weight decay sets its length.

A step `w <- (1 - lr*weight_decay) w - lr*u` moves the weight a little from where it is towards `q = -u / weight_decay`, as
every exponential average does. So the final weight is an average with known weights, whatever the updates were:

    w_T = left w_0 + sum_i c_i q_i,    c_i = lr_i weight_decay prod_(j>i) (1 - lr_j weight_decay),    left + sum_i c_i = 1

Its length `tau = 1 / (lr*weight_decay)` steps is what has to fit to the data: about as many epochs for much data as for
little, so that more data asks for less decay. Functions here say in their names what they count: steps, epochs (one pass
over the data) or runs (1 is all of the run's steps).

Reference: Wang & Aitchison, 2024, arXiv 2405.13698. That weights are such an average, that the best `tau` in epochs stays
about the same when data or model grow, and that it lies between one epoch and the whole run, is in the abstracts of its
versions. In training with a single pass over the data, the best share of the run is no constant: `retimed_for_one_pass`.

When it does not help: `q` depends on the weights that it is averaged into, so that the sum is exact and yet no forecast of a
loss. Without decay, or with a `tau` far beyond the run, it says only that everything counts alike. Decay that goes through
the gradients, as in Adam with L2, is no such average.

Deviations: the form for any schedule is derived here. The rule for a learning rate that grows with the batch is that of
nanochat's code; the rule for the batch at a fixed rate, and that for width, are known from accounts of the papers.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from minitrain.equilibrium import check_decay
from minitrain.optim import SGD, AdamW, Optimizer, adam, decay_by_lr, l2_gradient, lion, needed, no_decay, sgdm
from minitrain.schedules import constant

ENOUGH = 3.0  # time constants after which equilibrium counts as reached: a twentieth of the distance is left


# --- units --------------------------------------------------------------------------------------------------------------


# --8<-- [start:units]
def tau_in_steps(lr: float, weight_decay: float) -> float:
    """The length of the average, `1 / (lr*weight_decay)`, in steps: what is older weighs less than 1/e of the newest."""
    check_decay(weight_decay)
    check_positive(lr=lr)
    return 1 / (lr * weight_decay)


def decay_for(tau_steps: float, lr: float) -> float:
    """The weight decay that makes the average `tau_steps` steps long at the learning rate `lr`."""
    check_positive(tau_steps=tau_steps, lr=lr)
    return 1 / (lr * tau_steps)


def steps_per_epoch(data_size: float, batch_size: float) -> float:
    """Steps in one pass over the data. Both sizes count the same thing: tokens, or rows, or images."""
    check_positive(data_size=data_size, batch_size=batch_size)
    if batch_size > data_size:
        raise ValueError(
            f"a batch of {batch_size:g} is more than the {data_size:g} there are; count both in tokens, or both in rows"
        )
    return data_size / batch_size


def steps_to_epochs(steps: float, data_size: float, batch_size: float) -> float:
    """A number of steps, in epochs."""
    return steps / steps_per_epoch(data_size, batch_size)


def epochs_to_steps(epochs: float, data_size: float, batch_size: float) -> float:
    """A number of epochs, in steps."""
    return epochs * steps_per_epoch(data_size, batch_size)


def steps_to_runs(steps: float, run_steps: float) -> float:
    """A number of steps as a fraction of a run of `run_steps` steps."""
    check_positive(run_steps=run_steps)
    return steps / run_steps


def runs_to_steps(runs: float, run_steps: float) -> float:
    """A fraction of a run of `run_steps` steps, in steps."""
    check_positive(run_steps=run_steps)
    return runs * run_steps


# --8<-- [end:units]


# --- the average --------------------------------------------------------------------------------------------------------


class Average(NamedTuple):
    """The weights of all past in the final weights; together they are 1."""

    weights: Float[Tensor, " steps"]
    """`c_i`: how much of the final weight is `q_i = -u_i / weight_decay`, by step; float64."""
    left: float
    """How much of it is the initial weight."""


# --8<-- [start:average]
def surviving(lrs: Sequence[float], weight_decay: float) -> Float[Tensor, " steps"]:
    """What the decay of all later steps leaves of what each step moved, `prod_(j>i) (1 - lr_j weight_decay)`; float64.

    `lrs` holds the learning rate of every step, in order.
    """
    kept = 1 - rates(lrs, weight_decay)
    later = torch.cat((kept[1:], kept.new_ones(1)))  # nothing comes after the last step
    return later.flip(0).cumprod(0).flip(0)


def average_weights(lrs: Sequence[float], weight_decay: float) -> Average:
    """The final weight as an average over the initial weight and all updates; see the top of this file."""
    check_decay(weight_decay)
    rate = rates(lrs, weight_decay)
    # c_i = lr_i weight_decay prod_(j>i) (1 - lr_j weight_decay)
    return Average(rate * surviving(lrs, weight_decay), (1 - rate).prod().item())


def share_of_last(lrs: Sequence[float], weight_decay: float, part: float = 0.1) -> float:
    """How much of what all steps have contributed comes from the last `part` of them, at least one step.

    The initial weight is not counted: its size has nothing to do with that of `q`. So it is `sum c_i` over the last steps
    divided by `1 - left`, and has a value without decay too: then every step counts as its learning rate.
    """
    if not 0 < part <= 1:
        raise ValueError(f"part is a share of the steps, above 0 and at most 1, not {part}")
    moved = torch.as_tensor(lrs, dtype=torch.float64) * surviving(lrs, weight_decay)
    last = max(1, round(part * len(moved)))
    return (moved[-last:].sum() / moved.sum()).item()


# --8<-- [end:average]
def rates(lrs: Sequence[float], weight_decay: float) -> Float[Tensor, " steps"]:
    """The rate of the average in each step, `lr_i weight_decay`. Raises `ValueError` where it is no share."""
    rate = torch.as_tensor(lrs, dtype=torch.float64) * weight_decay
    if rate.ndim != 1 or not len(rate):
        raise ValueError("lrs holds the learning rate of every step; give a list of at least one number")
    if not ((rate >= 0) & (rate <= 1)).all():
        raise ValueError(
            f"lr * weight_decay is a share of the weight, from 0 to 1, and here it goes from {rate.min():g} to "
            f"{rate.max():g}; lower one of the two"
        )
    return rate


# --- rules --------------------------------------------------------------------------------------------------------------


# --8<-- [start:rules]
def rescaled(
    lr: float, weight_decay: float, *, data: float = 1.0, width: float = 1.0, batch: float = 1.0, lr_power: float = 0.0
) -> tuple[float, float]:
    """`(lr, weight_decay)` of hidden matrices for `data`, `width` and `batch` times as much: the same `tau` in epochs.

    data     the rate stays, the decay is divided by it
    width    the rate is divided by it, as muP has it, and the decay multiplied, so that `tau` in steps stays as well
    batch    the rate is multiplied by `batch**lr_power`, and the decay by what is left of `batch`: 0 for a fixed rate, 1/2
             for one that grows with the root
    """
    check_decay(weight_decay)
    check_positive(lr=lr, data=data, width=width, batch=batch)
    return lr * batch**lr_power / width, weight_decay * width * batch ** (1 - lr_power) / data


def retimed_for_one_pass(tau_runs: float, tokens_per_parameter_ratio: float, power: float) -> float:
    """`tau` as a fraction of a one-pass run whose tokens per parameter are `tokens_per_parameter_ratio` times as many.

    With a single pass over the data an epoch is the run, and the rule of a constant `tau` in epochs does not hold: the best
    fraction, `batch / (lr * weight_decay * tokens)`, goes as a power of the tokens per parameter. So says the abstract of
    Bergsma et al., 2025, arXiv 2505.13738, which also has the best decay in proportion to the batch, at a given amount of
    data; it gives no power, and the paper's own was not checked here: `power` is yours to measure. 0 keeps the fraction.
    """
    check_positive(tau_runs=tau_runs, tokens_per_parameter_ratio=tokens_per_parameter_ratio)
    return tau_runs * tokens_per_parameter_ratio**power


# --8<-- [end:rules]


# --- in a recipe --------------------------------------------------------------------------------------------------------


def with_timescale(
    params: Iterable, *, make: Callable[..., Any], tau_steps: float, lr: float, **hyper: Any
) -> torch.optim.Optimizer:
    """The optimizer `make(params, lr=lr, weight_decay=..., **hyper)` whose average is `tau_steps` steps long.

    For recipes: `partial(with_timescale, make=AdamW, tau_steps=1000, lr=1e-3)`, where a sweep of `lr` leaves the memory as
    it is. A group with a learning rate of its own gets the decay that belongs to it, one with a decay of its own keeps it.
    The other keywords are handed on. Raises `ValueError` for an optimizer whose decay is not `1 - lr * weight_decay`.
    """
    groups = [dict(group) if isinstance(group, dict) else group for group in params]
    for group in groups:
        if isinstance(group, dict) and "lr" in group:
            group.setdefault("weight_decay", decay_for(tau_steps, group["lr"]))
    optimizer = make(groups, lr=lr, weight_decay=decay_for(tau_steps, lr), **hyper)
    for group in optimizer.param_groups:
        ours = counterpart(optimizer, group)
        if ours is None or ours.rules(group)[1] is not decay_by_lr:
            raise ValueError(
                f"{type(optimizer).__name__} does not multiply weights by 1 - lr * weight_decay, so that tau says nothing "
                "of its decay; give AdamW or Lion, or set weight_decay yourself"
            )
    return optimizer


def counterpart(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Optimizer | None:
    """The optimizer itself if it is minitrain's, else minitrain's of the same rule; None where there is none."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # what `StepInBackward` stands around
    if isinstance(optimizer, Optimizer):
        return optimizer
    nothing = [torch.zeros(1)]
    if type(optimizer) is torch.optim.SGD and group["dampening"] == 0:
        return SGD(nothing)
    if isinstance(optimizer, torch.optim.Adam) and group["decoupled_weight_decay"] and not group["amsgrad"]:
        return AdamW(nothing)
    return None


# --- the forecast -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forecast:
    """What is known of one group before the first step; None where nothing is. Angles are in radians per step."""

    name: str
    weights: int
    """How many there are."""
    lr: float
    """The peak."""
    weight_decay: float
    size: float
    """Root mean square of the group's weights as they are."""
    first_angle: float | None
    """How far the first step turns them: Adam and Lion then move every weight by the learning rate of that step."""
    settled_size: float | None
    """The same root mean square in equilibrium at the peak rate; times `sqrt(fan_in)` it is the norm of a neuron."""
    settled_angle: float | None
    time_constant: float | None
    """Steps in which the squared norm (for SGD its square) comes nearer to its end by a factor of e, at the peak rate."""
    time_constants: float | None
    """How many of these the run has, with what the schedule takes away."""
    tau: float | None
    """Length of the average at the peak rate, in steps."""
    left: float | None
    """How much of the initial weights is left in the end."""
    last_tenth: float | None
    """How much of what the steps contribute comes from the last tenth of them; see `share_of_last`.

    None where the decay does not follow the rate, so that the steps' `q_i` have no common measure.
    """

    @property
    def never_settles(self) -> bool:
        """Whether the run is too short for equilibrium, or there is none."""
        return not self.weight_decay or (self.time_constants is not None and self.time_constants < ENOUGH)

    @property
    def verdict(self) -> str:
        """One sentence on whether this group reaches its equilibrium."""
        if not self.weight_decay:
            return f"{self.name}: no decay, so that there is no equilibrium to reach."
        if self.time_constant == 0:
            return f"{self.name}: this optimizer turns weights as in equilibrium from the first step."
        if self.time_constants is None:
            return f"{self.name}: the equilibrium of this optimizer depends on its gradients, or is not known."
        reaches = "never reaches equilibrium" if self.never_settles else "reaches equilibrium"
        lasts = f"it lasts {self.time_constants:.2g} time constants, and {ENOUGH:g} are needed"
        return f"{self.name}: this run {reaches}: {lasts}."

    def cells(self) -> list[str]:
        """What a table says of this group, from top to bottom."""
        share = [f"{100 * x:.3g} %" if x is not None else "-" for x in (self.left, self.last_tenth)]
        values = (self.lr, self.weight_decay, self.size, self.settled_size, self.first_angle, self.settled_angle)
        numbers = [number(x) for x in (*values, self.time_constant, self.time_constants, self.tau)]
        return [self.name, f"{self.weights:,}", *numbers, *share]


ROWS = (
    "group", "weights", "peak learning rate", "weight decay", "size of a weight (rms)", "  in equilibrium",
    "angle of the first step", "  in equilibrium", "time constant, steps", "  how many in this run", "tau, steps",
    "of the start is left", "from the last tenth",
)  # fmt: skip


class Forecasts(tuple[Forecast, ...]):
    """The groups' forecasts; printed, a table with a column for each, and a sentence for each below it."""

    __slots__ = ()

    def __str__(self) -> str:
        columns = [list(ROWS), *(group.cells() for group in self)]
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "  ".join([first.ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(others, widths[1:], strict=True))])
            for first, *others in zip(*columns, strict=True)
        ]
        return "\n".join([*lines, *(group.verdict for group in self)])


def forecast(optimizer: torch.optim.Optimizer, steps: int, schedule: Callable[[int], float] = constant) -> Forecasts:
    """What `steps` steps will do to the weights of each group, before the first one is taken.

    Call it on an optimizer that has not been used, so that weights and rates are those at the start. `schedule` is the
    multiplier of the learning rate by step. The peak is a group's `initial_lr`, which torch's schedulers keep, and without
    it `lr`; torch's OneCycleLR puts the rate of the first step there, so call this before that one is attached. Knows
    minitrain's optimizers and torch's SGD and AdamW. Raises `ValueError` for fewer than one step, for a peak that is not
    above 0, and for decoupled decay that would take more than a whole weight in a step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    multipliers = [float(schedule(step)) for step in range(steps)]
    return Forecasts(forecast_group(optimizer, group, i, multipliers) for i, group in enumerate(optimizer.param_groups))


@torch.no_grad()
def forecast_group(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], index: int, multipliers: list[float]
) -> Forecast:
    """The forecast of one group; `multipliers` are those of its learning rate."""
    name, lr = group.get("name", f"group {index}"), float(group.get("initial_lr", group["lr"]))
    if not 0 < lr < math.inf:
        raise ValueError(
            f"{name}: the peak learning rate must be a number above 0, not {lr:g}; give the optimizer the peak, and leave "
            "what is lower to schedule"
        )
    ours = counterpart(optimizer, group)
    group = {**group, "lr": lr}  # torch's may be a tensor, and a scheduler may have lowered it already
    inputs = max((p.numel() // max(1, len(p)) if p.ndim > 1 else 1 for p in group["params"]), default=1)
    settled = ours.equilibrium(group, inputs) if ours else None
    imposed = settled is not None and settled.steps == 0  # a rotational optimizer, which decays nothing
    lrs = [lr * x for x in multipliers]
    rate, *rates = decay_rates(ours, group, [lr, *lrs]) if ours and not imposed else [None]
    if rate is not None and not all(0 <= x <= 1 for x in (rate, *rates)):
        if ours and ours.rules(group)[1] is not no_decay:
            raise ValueError(
                f"{name}: a step takes a share of every weight, from 0 to 1, and here it goes from {min(rate, *rates):g} to "
                f"{max(rate, *rates):g}; lower weight_decay or the learning rate"
            )
        settled, rate = None, None  # L2 that is faster than the momentum it passes through: the formulas do not hold
    follows = rate is not None and all(
        math.isclose(x, rate * y, abs_tol=1e-15) for x, y in zip(rates, multipliers, strict=True)
    )
    squares = sum(p.float().square().sum().item() for p in group["params"])
    count = sum(p.numel() for p in group["params"])
    size = math.sqrt(squares / count) if count else 0.0
    return Forecast(
        name=name,
        weights=count,
        lr=lr,
        weight_decay=float(group.get("weight_decay", 0.0)),
        size=size,
        first_angle=math.atan(lrs[0] / size) if size and not imposed and moves_by_lr(optimizer, group) else None,
        settled_size=known(settled.norm / math.sqrt(inputs)) if settled else None,
        settled_angle=known(settled.rotation) if settled else None,
        time_constant=settled.steps if settled else None,
        time_constants=sum(rates) / rate / settled.steps if settled and rate else None,
        tau=1 / rate if rate else None,
        left=average_weights(rates, 1.0).left if rate else None,
        last_tenth=known(share_of_last(rates, 1.0) if rate else share_of_last(lrs, 0.0)) if follows else None,
    )


def decay_rates(optimizer: Optimizer, group: dict[str, Any], lrs: list[float]) -> list[Any]:
    """`decay_rate` at each of `lrs`, of which the first is the group's own; None for each where it is not known."""
    step_rule = optimizer.rules(group)[1]
    if step_rule not in (decay_by_lr, no_decay) and optimizer.equilibrium(group, 1) is None:
        return [None] * len(lrs)  # somebody's own rule, of which nobody says that it is a decay
    found = {lr: decay_rate(optimizer, {**group, "lr": lr}) for lr in set(lrs)}
    return [found[lr] for lr in lrs]


def decay_rate(optimizer: Optimizer, group: dict[str, Any]) -> float | None:
    """The share of a weight that decay takes from it per step in the long run; None where it is not known.

    L2 through SGD's momentum is amplified by the momentum's total, and decays late: then the average is not exact.
    """
    rate, filter = group["lr"] * group.get("weight_decay", 0.0), optimizer.momentum_filter(group)
    input_rule, step_rule = optimizer.rules(group)
    if step_rule is decay_by_lr:
        return rate
    if input_rule is l2_gradient:
        return rate * filter.total if optimizer.direction is sgdm and filter is not None else None
    if step_rule is no_decay:
        return None
    # The share is what the rule takes from a weight of one that has no update, as in `Optimizer.equilibrium`.
    one = torch.ones((), dtype=torch.float64)
    return 1 - step_rule(one, torch.zeros_like(one), {}, **needed(step_rule, group)).item()


def moves_by_lr(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    """Whether the first step moves every weight that has a gradient by `lr`: Adam's and Lion's `u` is a sign then."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    if isinstance(optimizer, Optimizer):
        return optimizer.direction in (adam, lion) and optimizer.rules(group)[1] in (decay_by_lr, no_decay)
    return isinstance(optimizer, torch.optim.Adam)


def known(x: float) -> float | None:
    """None for what depends on the gradients, which is NaN."""
    return None if math.isnan(x) else x


def number(x: float | None) -> str:
    """Three digits, and a dash for what is not known."""
    return "-" if x is None else f"{x:.3g}" if x < 1000 else f"{x:,.0f}"


def check_positive(**values: float) -> None:
    """Raises `ValueError` that names the first value that is not above 0."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a number above 0, not {value}")
