"""Learning-rate schedules: pure functions from the step to a multiplier, made of warmup x plateau x cooldown.

`step` counts the steps already taken, so the first is 0. Unless asked otherwise a multiplier is above 0 during the run
and at most 1. As `partial(cosine, steps=1000)` they fit a recipe and `torch.optim.lr_scheduler.LambdaLR` alike.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

Shape = Callable[[float], float]

# --- warmup: x from just above 0 to 1 ----------------------------------------------------------------------------------


def linear_warmup(step: int, warmup: int) -> float:
    """`(step + 1) / warmup`, then 1: the first step is not a zero step, step `warmup - 1` is a full one."""
    return min((step + 1) / warmup, 1.0) if warmup else 1.0


def exponential_warmup(step: int, warmup: int, start: float = 0.01) -> float:
    """Rises by the same factor each step, from just above `start` to 1."""
    return start ** (1 - linear_warmup(step, warmup))


# --- cooldown shapes: x in [0, 1) is how much of the cooldown is over; from 1 down to 0 --------------------------------
# Those in the code of Dremov et al., 2025, arXiv 2508.01483; `one_minus_sqrt` is from Hägele et al., 2024, arXiv 2405.18392.


def linear(x: float) -> float:
    """A straight line; area 1/2."""
    return 1 - x


def one_minus_sqrt(x: float, power: float = 0.5) -> float:
    """Drops early and fast, then lingers at small rates; area under the curve 1/3."""
    return 1 - x**power


def lowered_linear(x: float, start: float = 0.7) -> float:
    """Linear from `start`: a sudden drop at the first cooldown step."""
    return start * (1 - x)


def cosine_shape(x: float) -> float:
    """Half a cosine: slow, fast, slow; area 1/2."""
    return (1 + math.cos(math.pi * x)) / 2


def mirror_cosine(x: float) -> float:
    """The cosine reflected in the straight line: falls early where the cosine falls late."""
    return 2 * linear(x) - cosine_shape(x)


def square(x: float) -> float:
    """Holds on to large rates and drops late; area 2/3."""
    return 1 - x**2


def piecewise_linear(x: float, points: Sequence[float] = (0.5,), start: float = 1.0) -> float:
    """Straight lines through `start`, `points` and 0, which stand at equal distances."""
    heights = [start, *points, 0.0]
    position = x * (len(heights) - 1)
    i = min(int(position), len(heights) - 2)
    return heights[i] + (position - i) * (heights[i + 1] - heights[i])


# --- whole schedules ---------------------------------------------------------------------------------------------------


def constant(step: int, *, warmup: int = 0) -> float:
    """Warmup, then 1."""
    if not warmup >= 0:
        raise ValueError(f"warmup must be 0 steps or more, not {warmup}")
    return linear_warmup(step, warmup)


def warmup_stable_decay(
    step: int, *, steps: int, warmup: int = 0, cooldown: int = 0, shape: Shape = one_minus_sqrt, floor: float = 0.0
) -> float:
    """WSD: warmup, a plateau, and `cooldown` last steps along `shape` towards `floor`; after the end, `floor`.

    Hägele et al., 2024, arXiv 2405.18392. Runs of different `steps` agree up to the cooldown of the shorter one.
    """
    check(steps, warmup, cooldown, floor)
    hold = steps - cooldown
    if step >= steps:
        return floor
    return linear_warmup(step, warmup) * (towards(floor, shape((step - hold) / cooldown)) if step >= hold else 1.0)


def decay_after_warmup(step: int, *, steps: int, warmup: int, shape: Shape, floor: float) -> float:
    """Warmup, then `shape` over all the rest: a WSD without a plateau."""
    return warmup_stable_decay(step, steps=steps, warmup=warmup, cooldown=steps - warmup, shape=shape, floor=floor)


def cosine(step: int, *, steps: int, warmup: int = 0, floor: float = 0.1) -> float:
    """Warmup, then half a cosine down to `floor` (Loshchilov & Hutter, 2017, arXiv 1608.03983, without restarts)."""
    return decay_after_warmup(step, steps=steps, warmup=warmup, shape=cosine_shape, floor=floor)


def linear_to_floor(step: int, *, steps: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Warmup, then a straight line down to `floor`."""
    return decay_after_warmup(step, steps=steps, warmup=warmup, shape=linear, floor=floor)


def exponential_decay(step: int, *, steps: int, warmup: int = 0, cooldown: int = 0, floor: float = 0.01) -> float:
    """WSD whose cooldown falls by the same factor each step, `floor^x`; it needs a floor above 0."""
    if not floor > 0:
        raise ValueError(f"an exponential cooldown never reaches 0; give a floor above 0, not {floor}")
    check(steps, warmup, cooldown, floor)
    x = min(max((step - (steps - cooldown)) / cooldown, 0.0), 1.0) if cooldown else float(step >= steps)
    return linear_warmup(step, warmup) * floor**x


def inverse_sqrt(step: int, *, warmup: int) -> float:
    """Linear warmup, then `sqrt(warmup / (step + 1))`: no end has to be known (Vaswani et al., 2017, arXiv 1706.03762)."""
    if not warmup >= 1:
        raise ValueError(
            f"inverse_sqrt decays from the end of its warmup; give a warmup of at least 1 step, not {warmup}"
        )
    return min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))


def one_cycle(step: int, *, steps: int, start: float = 0.1, annealing: float = 0.1, end: float = 0.001) -> float:
    """1cycle: up from `start` to 1 and back in two equal straight legs, then a short fall to `end`.

    Smith, 2018, arXiv 1803.09820. `annealing` is the share of the steps that the last fall takes.
    """
    check(steps, 0, 0, end)
    for name, share in (("start", start), ("annealing", annealing)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share, from 0 to 1, not {share}")
    leg = steps * (1 - annealing) / 2
    knots = [(0.0, start), (leg, 1.0), (2 * leg, start), (float(steps), end)]
    for (x0, y0), (x1, y1) in pairwise(knots):
        if step < x1:
            return y0 + (step - x0) / (x1 - x0) * (y1 - y0)
    return end


def towards(floor: float, height: float) -> float:
    """Squeezes a shape between 0 and 1 into one between `floor` and 1."""
    return floor + (1 - floor) * height


def check(steps: int, warmup: int, cooldown: int, floor: float) -> None:
    """Raises `ValueError` where the parts of a schedule do not fit."""
    if not steps >= 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if not (warmup >= 0 and cooldown >= 0 and warmup + cooldown <= steps):
        raise ValueError(f"warmup {warmup} and cooldown {cooldown} do not fit into {steps} steps; shorten one of them")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor is a share of the peak learning rate, from 0 to 1, not {floor}")


def set_schedules(
    optimizer: torch.optim.Optimizer, schedules: Mapping[tuple[str, str], Callable[[int], Any]], step: int
) -> None:
    """Sets every scheduled value for `step`: floats as multiples of the initial ones. A group's own entry beats "*".

    The initial value of `lr` is kept in the group as `initial_lr`, as torch's schedulers do, and so for any key.
    """
    for group in optimizer.param_groups:
        own = {key for name, key in schedules if name == group.get("name")}
        for (name, key), schedule in schedules.items():
            if key in group and (name == group.get("name") or (name == "*" and key not in own)):
                initial, value = group.setdefault(f"initial_{key}", group[key]), schedule(step)
                if isinstance(initial, torch.Tensor):
                    group[key] = initial * value
                else:
                    is_number = isinstance(initial, float | int) and not isinstance(initial, bool)
                    group[key] = float(initial * value) if is_number else value
